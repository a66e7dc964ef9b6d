"""One step of training: the loss of a batch, its gradients, and what they change."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from llmemb_cli.config.rat import RatSettings
from llmemb_cli.peers import Peers
from llmemb_cli.srs.batch import Batch
from llmemb_cli.srs.objective import Extra, Step, batch_loss
from llmemb_cli.srs.recommender import Recommender
from llmemb_cli.srs.start_decay import Start, pull_back


@dataclass(frozen=True)
class Learner:
    """What a step reads and changes.

    Attributes:
        trained: the weights that train.
        starts: the tables that are pulled back to where they start.
        offset: (n_items + 1,) float, added to scores, or None.
        loss_sum, targets: scalars on the device, the epoch's sum of losses and its number of targets so far, so that
            no step waits for it.
    """

    model: Recommender
    rat: RatSettings
    extra: Extra | None
    optimizer: torch.optim.Optimizer
    trained: list[torch.nn.Parameter]
    starts: list[Start]
    offset: torch.Tensor | None
    peers: Peers
    loss_sum: torch.Tensor
    targets: torch.Tensor


def make_optimizer(trained: list[torch.nn.Parameter], rat: RatSettings) -> torch.optim.Optimizer:
    """Adam with the settings of the run, its state on the device of the weights."""
    return torch.optim.Adam(
        trained,
        lr=rat.learning_rate,
        betas=(0.9, 0.98),
        weight_decay=rat.weight_decay,
        fused=True,
        capturable=trained[0].device.type == "cuda",
    )


def learn(learner: Learner, batch: Batch, epoch: int, number: int, steps: int, rng: np.random.Generator) -> None:
    """Take the step with the given number, of `steps`, in an epoch.

    Args:
        rng: stream of this step.
    """
    loss, embedded = batch_loss(learner.model, learner.rat, batch, learner.offset)
    if learner.extra is not None:
        loss = loss + learner.extra.loss(
            learner.model, Step(batch, embedded, epoch, number, steps, rng, learner.peers)
        )
    learner.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    _complete_gradients(learner.trained)
    learner.peers.sum_gradients(learner.trained)
    pull_back(learner.starts, learner.rat.learning_rate * learner.rat.start_decay)
    learner.optimizer.step()
    whole = loss.detach().to(learner.loss_sum.dtype)
    if learner.peers.size > 1:
        whole = learner.peers.gather(whole[None], [1] * learner.peers.size).sum()
    learner.loss_sum.add_(whole * batch.targets)
    learner.targets.add_(batch.targets)


def _complete_gradients(trained: list[torch.nn.Parameter]) -> None:
    """A parameter that a step does not touch gets a zero, as it does with several processes."""
    for parameter in trained:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
