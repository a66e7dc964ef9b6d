"""Steps that a CUDA card records once for every shape of batch and then replays.

A step of a recommender is some 300 kernels of a few microseconds. Launching them one by one takes the CPU several
times as long as the card takes to compute them; a recorded step is launched as one, the making of its batch included.
"""

from __future__ import annotations

import numpy as np
import torch

from llmemb_cli.seeds import numpy_rng
from llmemb_cli.srs.fixed_batch import Shape, fixed_batch, read_lengths, rows_on_device, shape_of
from llmemb_cli.srs.learn import Learner, learn
from llmemb_cli.srs.negatives import NegativeSampler
from llmemb_cli.srs.sequences import TrainingRows


def can_replay(learner: Learner, device: str) -> bool:
    """Whether steps can be recorded: by one process, on an NVIDIA card, and nothing that the CPU makes is added."""
    nvidia = device.startswith("cuda") and torch.version.hip is None  # never tried with AMD's
    recordable = learner.extra is None or learner.extra.recordable
    return learner.rat.replay and nvidia and learner.peers.size == 1 and recordable


class Replay:
    """The recorded steps of a training. Weights and optimizer state must stay where they are."""

    def __init__(
        self, learner: Learner, rows: TrainingRows, sampler: NegativeSampler | None, n_items: int, device: str
    ) -> None:
        self.learner, self.n_items, self.device = learner, n_items, device
        self.lengths = read_lengths(rows, learner.rat)
        batch = min(learner.rat.batch_size, len(rows))
        self.rows = rows_on_device(rows, sampler, learner.rat, batch, n_items, device)
        self.chosen = torch.full((batch,), len(rows), device=device)
        self.graphs: dict[Shape, torch.cuda.CUDAGraph | None] = {}
        self.pool, self.stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream(device)

    def start_epoch(self, batches: list[np.ndarray]) -> None:
        """Tell which rows the steps of the epoch read."""
        whole = np.full((len(batches), len(self.chosen)), len(self.lengths))
        for number, rows in enumerate(batches):
            whole[number, : len(rows)] = rows
        self.order = torch.from_numpy(whole).to(self.device)
        self.shapes = [shape_of(self.lengths[rows], self.learner.rat) for rows in batches]

    def step(self, number: int) -> None:
        """Take a step of the epoch. The device's generator must have been seeded for it."""
        with torch.cuda.device(self.device):
            self.chosen.copy_(self.order[number])
            shape = self.shapes[number]
            if shape not in self.graphs:
                self.graphs[shape] = None
                self._launch(shape)
                return
            graph = self.graphs[shape]
            if graph is None:
                graph = self.graphs[shape] = self._record(shape)
            graph.replay()

    def _launch(self, shape: Shape) -> None:
        """The first step of a shape, in which libraries prepare themselves: that must not be recorded."""
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            self._learn(shape)
        torch.cuda.current_stream().wait_stream(self.stream)

    def _record(self, shape: Shape) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool, stream=self.stream):
            self._learn(shape)
        return graph

    def _learn(self, shape: Shape) -> None:
        batch = fixed_batch(self.rows, self.chosen, shape, self.learner.rat, self.n_items)
        # Nothing recordable reads the number of the step or draws from a stream of the CPU.
        learn(self.learner, batch, 0, 0, 1, numpy_rng(0))
