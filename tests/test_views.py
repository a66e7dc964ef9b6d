"""CL4SRec: views of histories, their contrast, and training with it."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmemb_cli.config.rat import RatSettings
from llmemb_cli.config.runs import run_name
from llmemb_cli.datasets.split import Ragged
from llmemb_cli.peers import ALONE
from llmemb_cli.pipeline import rat_stage
from llmemb_cli.progress import Reporter
from llmemb_cli.srs.batch import make_batch
from llmemb_cli.srs.item_embedding import ItemTable
from llmemb_cli.srs.methods.views import Views, altered, view_contrast
from llmemb_cli.srs.objective import Step
from llmemb_cli.srs.recommender import Recommender
from llmemb_cli.srs.sequences import training_rows
from llmemb_cli.srs.train import run_rat
from tests.make_workspace import make_workspace
from tests.test_recommenders import SMALL, small

MASK = 99


@given(lengths=st.lists(st.integers(1, 12), min_size=1, max_size=8), seed=st.integers(0, 10**6))
@settings(max_examples=60)
def test_a_view_is_a_piece_a_masked_or_a_partly_shuffled_history(lengths: list[int], seed: int) -> None:
    width = max(lengths)
    rows = [list(range(1, length + 1)) for length in lengths]
    padded = np.array([[0] * (width - len(row)) + row for row in rows])
    for row, view in zip(rows, altered(padded, MASK, np.random.default_rng(seed)).tolist(), strict=True):
        assert len(view) == width
        found = view[width - sum(item > 0 for item in view) :]
        assert all(item > 0 for item in found), "padding stands on the left alone"
        piece = max(1, math.floor(0.6 * len(row)))
        begins = range(len(row) - piece + 1)
        cropped = any(found == row[begin : begin + piece] for begin in begins)
        kept = [item for item in found if item != MASK]
        masked = len(found) == len(row) and all(f in (MASK, item) for f, item in zip(found, row, strict=True))
        masked = masked and len(row) - len(kept) == math.floor(0.3 * len(row))
        shuffled = sorted(found) == row and any(
            found[:begin] == row[:begin] and found[begin + piece :] == row[begin + piece :] for begin in begins
        )
        assert cropped or masked or shuffled, (row, found)


def test_views_are_of_all_three_kinds_and_pieces_are_really_shuffled() -> None:
    padded = np.tile(np.arange(1, 11), (600, 1))
    views = altered(padded, MASK, np.random.default_rng(0))
    cropped, masked = (views == 0).any(axis=1), (views == MASK).any(axis=1)
    shuffled = ~cropped & ~masked & (views != padded).any(axis=1)
    for kind in (cropped, masked, shuffled):
        assert 150 < kind.sum() < 250
    # Pieces begin anywhere, masks fall anywhere.
    assert set((views[cropped][:, -1] - 5).tolist()) == {1, 2, 3, 4, 5}
    assert ((views[masked] == MASK).sum(axis=0) > 20).all()


def test_contrast_equals_a_loop() -> None:
    torch.manual_seed(0)
    left, right = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    total = 0.0
    for one, other in ((left, right), (right, left)):
        for i in range(4):
            positive = math.exp(float(one[i] @ other[i]))
            negative = sum(math.exp(float(one[i] @ side[j])) for side in (left, right) for j in range(4) if j != i)
            total -= math.log(positive / (positive + negative))
    assert view_contrast(left, right).item() == pytest.approx(total / 8)


def test_the_contrast_has_its_weight() -> None:
    def loss(weight: float) -> torch.Tensor:
        torch.manual_seed(0)
        chosen = RatSettings(method="none", contrast="cl4srec", contrast_weight=weight, hidden_size=8, dropout=0)
        model = Recommender(chosen, 12, ItemTable(12, 8, torch.randn(12, 8)))
        train = Ragged(np.array([3, 7, 12, 9, 4, 1, 5, 6, 8, 2, 8, 11], dtype=np.int32), np.array([0, 6, 9, 12]))
        rng = np.random.default_rng(0)
        batch = make_batch(training_rows(train, "sasrec"), np.arange(3), chosen, 12, None, rng)
        return Views(chosen, train, "cpu").loss(model, Step(batch, torch.empty(0), 0, 0, 1, rng, ALONE))

    assert loss(0.0) == 0 and loss(1.0) > 0
    torch.testing.assert_close(loss(0.3), 0.3 * loss(1.0))


@pytest.mark.parametrize(("name", "method"), [("sasrec", "none"), ("bert4rec", "llmemb"), ("bsarec", "none")])
def test_a_planted_rule_is_learned_with_the_contrast(tmp_path: Path, name: str, method: str) -> None:
    from llmemb_cli.evaluation.stage import run_eval

    values = small(name, rat__method=method, rat__contrast="cl4srec")
    workspace, chosen = make_workspace(tmp_path / "ws", **values)
    run_rat(workspace, chosen, Reporter())
    measured = run_eval(workspace, chosen, run_name(chosen), Reporter()).manifest["summary"]
    assert measured["overall"]["HR@10"] > 0.95


def test_runs_without_the_contrast_do_not_depend_on_its_settings(tmp_path: Path) -> None:
    workspace, chosen = make_workspace(tmp_path / "ws", **SMALL)
    kept = rat_stage(workspace, chosen, "run").settings
    assert not any(key.startswith(("contrast", "bsarec", "caser")) for key in kept)
