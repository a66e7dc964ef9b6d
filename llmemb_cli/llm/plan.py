"""Which items a step of SCFT contrasts, at which learning rate, in which micro-batches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

import numpy as np

from llmemb_cli.config.scft import ScftSettings
from llmemb_cli.errors import BadDataError
from llmemb_cli.seeds import numpy_rng

# What passes the model at once unless told: enough to fill the processor.
AUTO_TOKENS = {"cpu": 1024, "cuda": 32768, "mps": 8192}
LEAST_TOKENS = 64


def split_items(count: int, settings: ScftSettings, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Item numbers to train on and, sorted, those held out for validation (at least two, or none)."""
    order = numpy_rng(seed, "scft-held-out").permutation(count)
    held_out = min(round(count * settings.validation_share), settings.validation_items)
    held_out = 0 if held_out < 2 else held_out
    if count - held_out < 2:
        raise BadDataError(f"{count} items are too few to contrast")
    return np.sort(order[held_out:]), np.sort(order[:held_out])


def steps_per_epoch(settings: ScftSettings, train_items: int) -> int:
    """Steps of one pass over the items; the incomplete last batch is left out."""
    return max(train_items // min(settings.batch_size, train_items), 1)


def total_steps(settings: ScftSettings, train_items: int) -> int:
    """Optimizer steps of the run: `steps`, or `epochs` passes over the items."""
    return settings.steps or max(round(settings.epochs * steps_per_epoch(settings, train_items)), 1)


def step_items(train: np.ndarray, settings: ScftSettings, seed: int, step: int) -> np.ndarray:
    """The items of a step: each epoch is a new permutation, its incomplete last batch is left out."""
    size = min(settings.batch_size, len(train))
    per_epoch = steps_per_epoch(settings, len(train))
    at = (step % per_epoch) * size
    return train[_epoch_order(len(train), seed, step // per_epoch)[at : at + size]]


@lru_cache(maxsize=1)
def _epoch_order(count: int, seed: int, epoch: int) -> np.ndarray:
    # Kept, since of ten million items a new one at every step would take longer than the step.
    return numpy_rng(seed, "scft-order", epoch).permutation(count)


def learning_rate(settings: ScftSettings, step: int, total: int) -> float:
    """The learning rate of a step under the schedule, warm-up first."""
    warm = round(settings.warmup * total)
    if step < warm:
        return settings.learning_rate * (step + 1) / warm
    done = (step - warm) / max(total - warm, 1)
    factor = {"linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2, "constant": 1.0}[settings.schedule]
    return settings.learning_rate * factor


@dataclass
class MicroBatches:
    """How many texts pass the model at once; halved when memory does not suffice.

    Attributes:
        rows: most texts (0: no limit).
        tokens: most tokens, padding included (0: no limit); one text passes whatever its length.
        kept_tokens: tokens whose activations may be kept from the first pass to the second.
    """

    rows: int
    tokens: int
    kept_tokens: int = 0

    def split(self, lengths: Sequence[int]) -> list[slice]:
        """Consecutive micro-batches of texts with these token counts."""
        batches, start, longest = [], 0, 0
        for end, length in enumerate(lengths):
            longest = max(longest, length)
            full = (self.rows and end - start >= self.rows) or (
                self.tokens and longest * (end + 1 - start) > self.tokens
            )
            if full and end > start:
                batches.append(slice(start, end))
                start, longest = end, length
        return [*batches, slice(start, len(lengths))]

    def kept(self, lengths: Sequence[int], batches: Sequence[slice]) -> int:
        """How many of the first `batches` keep their activations."""
        sizes = [max(lengths[batch]) * len(lengths[batch]) for batch in batches]
        if sum(sizes) <= self.kept_tokens:
            return len(batches)
        left = self.kept_tokens - max(sizes)  # what is not kept passes again beside what is
        return sum(used <= left for used in accumulate(sizes))

    def halve(self) -> str:
        """Let half as much pass from now on and keep no activations; returns what passes now, in words."""
        self.kept_tokens = 0
        if self.rows:
            self.rows = max(self.rows // 2, 1)
            return f"{self.rows} texts"
        self.tokens = max(self.tokens // 2, 1)
        return f"{self.tokens} tokens"
