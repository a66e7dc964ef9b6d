"""Gradient caching: contrast more items than pass the model at once, with the gradients of one large batch.

First all micro-batches pass and the loss gives the gradient of every vector. Those whose activations fitted in
memory are driven backwards at once; the others passed without a graph, pass again with the same dropout, and are
driven backwards then (Gao et al., Scaling deep contrastive learning batch size under memory limited setup, 2021).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from llmemb_cli.errors import LlmembError
from llmemb_cli.llm.memory import out_of_memory
from llmemb_cli.peers import ALONE, Peers

Batch = TypeVar("Batch")


class OutOfMemoryAtError(Exception):
    """A process ran out of memory in a step; `batch` is the micro-batch that did not pass here, None elsewhere."""

    def __init__(self, batch: int | None) -> None:
        super().__init__("out of memory")
        self.batch = batch


def cached_backward(
    batches: Sequence[Batch],
    embed: Callable[[Batch], torch.Tensor],
    loss_of: Callable[[torch.Tensor], torch.Tensor],
    seed_of: Callable[[int], int],
    *,
    keep: int = 0,
    scale: Callable[[torch.Tensor], torch.Tensor] = lambda loss: loss,
    peers: Peers = ALONE,
    counts: Sequence[int] | None = None,
) -> float:
    """Add the gradients of `loss_of(all vectors)` to the model's parameters; returns the loss.

    Args:
        batches: this process's micro-batches, in the order of the vectors.
        embed: a micro-batch to its vectors (n, d), with a graph where gradients are on.
        loss_of: all vectors (total, d) to a scalar; may use further trainable parameters.
        seed_of: the random seed of a micro-batch's pass, so that both passes drop the same units.
        keep: the first so many micro-batches keep their graph and pass once.
        scale: the loss to what is driven backwards (fp16 multiplies it).
        peers: the processes that hold the other vectors.
        counts: how many vectors each process has; needed with several.

    Raises:
        OutOfMemoryAtError: in every process, when one ran out of memory; gradients are then incomplete.
        LlmembError: the loss itself, which no smaller micro-batch helps, took too much.
    """
    vectors: list[torch.Tensor] = []
    graphs: list[torch.Tensor | None] = []

    def first_pass(number: int) -> None:
        torch.manual_seed(seed_of(number))
        with torch.set_grad_enabled(number < keep):
            made = embed(batches[number])
        graphs.append(made if number < keep else None)
        vectors.append(made.detach())

    _together(first_pass, len(batches), peers)
    own = torch.cat(vectors)
    counts = counts or [len(own)]
    joined = peers.gather(own, counts).requires_grad_()
    try:
        loss = loss_of(joined)
        scale(loss).backward()
    except (RuntimeError, MemoryError) as error:
        if out_of_memory(error):
            raise LlmembError(
                f"out of memory comparing {len(joined):,} vectors with each other", hint="a smaller scft.batch_size"
            ) from None
        raise
    assert joined.grad is not None
    start = sum(counts[: peers.rank])
    gradients = joined.grad[start : start + len(own)].split([len(part) for part in vectors])

    def second_pass(number: int) -> None:
        made, graphs[number] = graphs[number], None
        if made is None:
            torch.manual_seed(seed_of(number))
            made = embed(batches[number])
        made.backward(gradients[number])

    _together(second_pass, len(batches), peers)
    return float(loss.detach())


def embed_all(
    batches: Sequence[Batch], embed: Callable[[Batch], torch.Tensor], peers: Peers = ALONE
) -> list[torch.Tensor]:
    """The vectors of each micro-batch, without a graph.

    Raises:
        OutOfMemoryAtError: in every process, when one ran out of memory.
    """
    vectors: list[torch.Tensor] = []
    with torch.no_grad():
        _together(lambda number: vectors.append(embed(batches[number])), len(batches), peers)
    return vectors


def _together(work: Callable[[int], None], count: int, peers: Peers) -> None:
    """Do `work` for 0 ... count - 1; all processes learn whether one of them ran out of memory."""
    failed: int | None = None
    for number in range(count):
        try:
            work(number)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            failed = number
            break
    if peers.any(failed is not None):
        raise OutOfMemoryAtError(failed)
