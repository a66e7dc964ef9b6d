"""Validation ranks against a loop over users and items."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
import torch

from llmemb_cli.config.rat import RatSettings
from llmemb_cli.datasets.split import Ragged, SplitData
from llmemb_cli.srs import validate
from llmemb_cli.srs.item_embedding import AdaptedTable, ItemEmbedding, ItemTable
from llmemb_cli.srs.recommender import Recommender
from llmemb_cli.srs.validate import users_at_once, validation_ranks, validation_users

ITEMS = 21


def made_up(users: int) -> SplitData:
    """Histories of 0 to 9 items, some with an item twice, some users without a validation item."""
    rng = np.random.default_rng(4)
    lengths = rng.integers(0, 10, users)
    values = rng.integers(1, ITEMS + 1, int(lengths.sum())).astype(np.int32)
    valid = rng.integers(0, ITEMS + 1, users).astype(np.int32)
    return SplitData(
        train=Ragged(values, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)),
        valid=valid,
        test=np.zeros(users, dtype=np.int32),
        train_counts=np.bincount(values, minlength=ITEMS + 1),
        user_ids=pl.Series([str(i) for i in range(users)]),
        item_ids=pl.Series([str(i) for i in range(ITEMS)]),
        fingerprint="made-up",
    )


@pytest.mark.parametrize("backbone", ["sasrec", "bert4rec"])
@pytest.mark.parametrize("loss", ["auto", "infonce"])
@pytest.mark.parametrize("adapter", [False, True])
@torch.no_grad()
def test_ranks_equal_a_loop(backbone: str, loss: str, adapter: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(validate.BLOCK, "cpu", 7)
    torch.manual_seed(1)
    settings = RatSettings(backbone=backbone, loss=loss, hidden_size=6, max_length=5, method="none")
    vectors = torch.randn(ITEMS, 8)
    vectors[4] = vectors[9]  # two items that always tie
    embedding: ItemEmbedding = AdaptedTable(vectors, 6) if adapter else ItemTable(ITEMS, 6, vectors[:, :6])
    model = Recommender(settings, ITEMS, embedding).train(False)
    if model.bias is not None:
        torch.nn.init.normal_(model.bias)
        model.bias[5] = model.bias[10]
    data = made_up(40)
    users = validation_users(data, 0, 42)
    assert sorted(users) == [u for u in range(40) if data.valid[u] and len(data.train.row(u))]
    got = validation_ranks(model, data, users)
    table = model.item_table
    for user, rank in zip(users.tolist(), got.tolist(), strict=True):
        row, target = data.train.row(user), int(data.valid[user])
        scores = table @ model.encode(torch.from_numpy(row[-5:].astype(np.int64))[None])[0]
        if model.item_bias is not None:
            scores = scores + model.item_bias
        others = [i for i in range(1, ITEMS + 1) if i != target and i not in row]
        # Equal items may differ in the last bit of another order of additions.
        ahead = sum(float(scores[i]) >= float(scores[target]) - 1e-6 for i in others)
        assert rank == 1 + ahead


@pytest.mark.parametrize("device", ["cpu", "cuda", "cuda:1", "mps"])
def test_scores_of_a_huge_catalogue_never_take_more_than_a_gibibyte(device: str) -> None:
    few = 128 if device == "cpu" else 512
    assert users_at_once(device, 20_000) == few
    assert 20 <= users_at_once(device, 10_000_000) <= 2**30 / 4 / 10_000_000
    assert users_at_once(device, 10**9) == 1


@torch.no_grad()
def test_ranks_do_not_depend_on_how_many_users_are_scored_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(1)
    model = Recommender(RatSettings(hidden_size=6, max_length=5, method="none"), ITEMS, ItemTable(ITEMS, 6))
    data = made_up(40)
    users = validation_users(data, 0, 42)
    together = validation_ranks(model, data, users)
    monkeypatch.setattr(validate, "MOST_SCORES", 3 * 32 + 1)  # 22 scores, in rows of 32
    sizes, encode = [], model.encode
    monkeypatch.setattr(model, "encode", lambda rows, table: sizes.append(len(rows)) or encode(rows, table))
    assert validation_ranks(model, data, users).tolist() == together.tolist()
    assert max(sizes) == 3 and sum(sizes) == len(users)


def test_a_model_without_numbers_ranks_last() -> None:
    model = Recommender(RatSettings(hidden_size=6, method="none"), ITEMS, ItemTable(ITEMS, 6))
    with torch.no_grad():
        model.embedding.items().fill_(torch.nan)
    data = made_up(40)
    users = validation_users(data, 0, 42)
    assert validation_ranks(model, data, users).min() > 10
