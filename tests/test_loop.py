"""The training loop: when it stops, what it calls, and that what it draws is drawn as it says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from llmemb_cli.config.rat import RatSettings
from llmemb_cli.datasets.split import Ragged
from llmemb_cli.errors import InterruptedRunError, LlmembError
from llmemb_cli.progress import Reporter
from llmemb_cli.srs import loop
from llmemb_cli.srs.batch import masked_pairs
from llmemb_cli.srs.learn import make_optimizer
from llmemb_cli.srs.methods.melt import Melt
from llmemb_cli.srs.negatives import NegativeSampler
from llmemb_cli.srs.recommender import Recommender
from llmemb_cli.srs.sequences import epoch_batches
from llmemb_cli.srs.train import run_rat
from llmemb_cli.srs.tune import run_tune
from tests.make_workspace import make_workspace
from tests.test_recommenders import EXACT, StopAfter

ITEMS = 12


@pytest.mark.parametrize(
    ("ranks", "patience", "epochs", "best"),
    [
        ([1, 2, 2, 2, 2], 2, 3, 1),  # no better for two epochs
        ([3, 3, 3, 3, 3], 1, 2, 1),  # equal is not better
        ([5, 4, 5, 3, 5], 2, 5, 4),  # better within the patience: counting starts again
        ([5, 4, 5, 5, 3], 2, 4, 2),  # what would come after is not seen
        ([2, 2, 2, 2, 2], 9, 5, 1),
    ],
)
def test_training_stops_after_as_many_epochs_without_a_better_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ranks: list[int], patience: int, epochs: int, best: int
) -> None:
    coming = iter(ranks)
    monkeypatch.setattr(loop, "validation_ranks", lambda m, d, users, *rest: np.full(len(users), next(coming)))
    values = EXACT | {"rat__method": "none", "rat__epochs": 5, "rat__patience": patience}
    workspace, chosen = make_workspace(tmp_path / "ws", **values)
    summary = run_rat(workspace, chosen, Reporter()).manifest["summary"]
    assert (summary["epochs"], summary["best_epoch"]) == (epochs, best)


def test_an_added_loss_is_told_of_every_epoch_once_also_after_an_interruption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[int] = []
    start = Melt.start_epoch

    def counted(self: Melt, model: Recommender, epoch: int) -> None:
        told.append(epoch)
        start(self, model, epoch)

    monkeypatch.setattr(Melt, "start_epoch", counted)
    values = EXACT | {"rat__method": "melt", "rat__epochs": 1}
    workspace, chosen = make_workspace(tmp_path / "ws", **values)
    run_rat(
        workspace, chosen.model_copy(update={"rat": chosen.rat.model_copy(update={"method": "none"})}), Reporter()
    )
    longer = chosen.model_copy(update={"rat": chosen.rat.model_copy(update={"epochs": 4})})
    with pytest.raises(InterruptedRunError):
        run_rat(workspace, longer, StopAfter(6))  # four epochs of its plain run, then two
    run_rat(workspace, longer, Reporter())
    assert told == [0, 1, 2, 3]


@pytest.mark.parametrize("searched", [False, True])
def test_a_loss_that_is_no_number_leaves_nothing_to_go_on_from(tmp_path: Path, searched: bool) -> None:
    values = EXACT | {"rat__method": "none", "rat__epochs": 3, "rat__checkpoint_minutes": 1e-9}
    workspace, chosen = make_workspace(tmp_path / "ws", **values)
    if searched:
        space = {"rat.learning_rate": [0.005, 1e30]}
        found = run_tune(workspace, space, {}, Reporter(), trials=2)
        assert sorted(one["NDCG@10"] is None for one in found["trials"]) == [False, True]
        assert not list((workspace.root / "runs").glob(".*"))
        return
    wild = chosen.model_copy(update={"rat": chosen.rat.model_copy(update={"learning_rate": 1e30})})
    with pytest.raises(LlmembError, match="not finite"):
        run_rat(workspace, wild, Reporter(), name="wild")
    assert not list((workspace.root / "runs").rglob("checkpoint*"))


def test_the_optimizer_is_adam_as_the_settings_have_it() -> None:
    weights = [torch.nn.Parameter(torch.zeros(2))]
    (group,) = make_optimizer(weights, RatSettings(learning_rate=0.02, weight_decay=0.3)).param_groups
    assert (group["lr"], group["weight_decay"], group["betas"]) == (0.02, 0.3, (0.9, 0.98))


def test_negatives_are_uniform_over_what_the_user_has_not_had() -> None:
    had = [1, 4, 5]
    sampler = NegativeSampler(Ragged(np.array(had, dtype=np.int32), np.array([0, 3])), ITEMS)
    drawn = sampler.draw(np.zeros(3000, dtype=np.int64), 4, np.random.default_rng(0))
    counts = np.bincount(drawn.ravel(), minlength=ITEMS + 1)
    others = [item for item in range(1, ITEMS + 1) if item not in had]
    assert counts.sum() == counts[others].sum() == 12_000
    assert stats.chisquare(counts[others]).pvalue > 0.001


@given(rows=st.integers(1, 200), size=st.integers(1, 50), seed=st.integers(0, 1000), epoch=st.integers(0, 50))
@settings(max_examples=60)
def test_an_epoch_meets_every_row_once_in_an_order_of_its_own(rows: int, size: int, seed: int, epoch: int) -> None:
    def order(at: int) -> list[int]:
        batches = epoch_batches(rows, size, seed, at)
        assert [len(batch) for batch in batches[:-1]] == [size] * (len(batches) - 1) and len(batches[-1]) <= size
        return [int(row) for batch in batches for row in batch]

    assert sorted(order(epoch)) == list(range(rows)) and order(epoch) == order(epoch)
    if rows > 20:
        assert order(epoch) != order(epoch + 1)


@pytest.mark.parametrize("ratio", [0.2, 0.3, 0.6])
def test_as_many_items_are_masked_as_the_share_says_or_the_last_alone(ratio: float) -> None:
    lengths = np.tile(np.arange(1, 13), 250)
    sequences = np.array([[0] * (12 - length) + list(range(1, length + 1)) for length in lengths])
    _, targets = masked_pairs(sequences, 99, ratio, np.random.default_rng(0))
    masked = (targets > 0).sum(axis=1)
    share = np.maximum(1, np.round(ratio * lengths))
    last_alone = (masked == 1) & (targets[:, -1] > 0)
    assert ((masked == share) | last_alone).all()
    # One copy in eleven has the last item masked alone (BERT4Rec); seen where the share would mask more.
    longer = share > 1
    test = stats.binomtest(int(last_alone[longer].sum()), int(longer.sum()), 1 / 11)
    assert test.pvalue > 0.001
