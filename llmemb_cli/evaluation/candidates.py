"""Sampled ranking: the items each test target is ranked among, drawn once and shared by all runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from llmemb_cli.config.settings import Settings
from llmemb_cli.datasets.split import SplitData, load_split
from llmemb_cli.errors import BadDataError
from llmemb_cli.pipeline import candidates_stage
from llmemb_cli.progress import Reporter
from llmemb_cli.seeds import numpy_rng
from llmemb_cli.workspace.locate import Workspace
from llmemb_cli.workspace.stage import StageResult, run_stage
from llmemb_cli.workspace.store import read_tensors, write_tensors

FILE = "candidates.safetensors"


def make_candidates(workspace: Workspace, settings: Settings, report: Reporter) -> StageResult:
    """Draw the candidates of `[eval]` for every test user, unless they are there."""

    def build(work: Path) -> dict[str, Any]:
        data = load_split(workspace.data)
        chosen = settings.eval
        drawn = draw_candidates(data, chosen.negatives, chosen.candidates, chosen.candidate_seed)
        write_tensors(work / FILE, {"items": torch.from_numpy(drawn)})
        return {"users": len(drawn), "negatives": chosen.negatives}

    return run_stage(candidates_stage(workspace, settings), build, report=report)


def read_candidates(directory: Path) -> np.ndarray:
    """(test users, negatives) int32, in the order of `test_users`."""
    return read_tensors(directory / FILE)["items"].numpy()


def test_users(data: SplitData) -> np.ndarray:
    """(n,) int64: the users with a test item and a history to predict it from."""
    return np.flatnonzero((data.test > 0) & ((data.train.lengths() > 0) | (data.valid > 0)))


def draw_candidates(data: SplitData, negatives: int, how: str, seed: int) -> np.ndarray:
    """Distinct items that the user has never had, for every test user (LLMEmb section 4.1).

    Args:
        data: the split.
        negatives: items per user.
        how: `uniform`, or `popularity`: proportional to training interactions.
        seed: of the draw.

    Returns:
        (test users, negatives) int32.

    Raises:
        BadDataError: a user has not had fewer than `negatives` other items.
    """
    users = test_users(data)
    history = data.test_history()
    weights = np.log(np.maximum(data.train_counts[1:], 1e-9)) if how == "popularity" else np.zeros(data.n_items)
    result = np.empty((len(users), negatives), dtype=np.int32)
    block = max(1, 20_000_000 // data.n_items)
    for start in range(0, len(users), block):
        part = users[start : start + block]
        # The largest keys of Gumbel-perturbed log-weights are a weighted sample without replacement.
        keys = weights + numpy_rng(seed, "candidates", how, start).gumbel(size=(len(part), data.n_items))
        owner = np.repeat(np.arange(len(part)), history.lengths()[part])
        own = np.concatenate([history.row(int(user)) for user in part]) if len(part) else np.empty(0, np.int32)
        keys[owner, own - 1] = -np.inf
        keys[np.arange(len(part)), data.test[part] - 1] = -np.inf
        left = np.isfinite(keys).sum(axis=1)
        if left.min(initial=negatives) < negatives:
            raise BadDataError(
                f"user {data.user_ids[int(part[int(left.argmin())])]} has only {left.min()} items left to rank among",
                hint=f"--negatives {left.min()} or fewer, or --protocol full",
            )
        result[start : start + block] = np.argpartition(-keys, negatives - 1, axis=1)[:, :negatives] + 1
    return result
