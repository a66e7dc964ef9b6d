"""Evaluation: ranks equal brute force, groups add up, candidates are fixed, nothing favours the target."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from llmemb_cli.config.runs import run_name
from llmemb_cli.datasets.split import SplitData, load_split
from llmemb_cli.errors import BadDataError
from llmemb_cli.evaluation import rank
from llmemb_cli.evaluation.beyond import beyond_accuracy
from llmemb_cli.evaluation.candidates import draw_candidates, test_users
from llmemb_cli.evaluation.document import eval_document
from llmemb_cli.evaluation.groups import make_groupings
from llmemb_cli.evaluation.rank import full_ranking, sampled_ranks
from llmemb_cli.evaluation.recommend import known_history, top_items
from llmemb_cli.evaluation.stage import figures, run_eval
from llmemb_cli.progress import Reporter
from llmemb_cli.srs.train import run_rat
from tests.dataset_fixtures import prepare
from tests.make_workspace import make_workspace

test_users.__test__ = False  # type: ignore[attr-defined]  # a function of ours, not a test


class Fixed:
    """A recommender with given vectors: users are what they had last."""

    def __init__(self, table: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        self.item_table, self.item_bias, self.max_length = table, bias, 5

    def encode(self, sequences: torch.Tensor) -> torch.Tensor:
        return self.item_table[sequences[:, -1]]


@pytest.mark.parametrize("exclude", [True, False])
def test_full_ranking_equals_brute_force(tmp_path: Path, exclude: bool) -> None:
    workspace, _ = make_workspace(tmp_path / "ws")
    data = load_split(workspace.data)
    users = test_users(data)
    rng = torch.Generator().manual_seed(0)
    # Coarse scores make ties common.
    model = Fixed(
        torch.randn(data.n_items + 1, 3, generator=rng).round(), torch.randn(data.n_items + 1, generator=rng).round()
    )
    got, top = full_ranking(model, data, users, top=4, exclude_history=exclude, batch_users=7)
    history = data.test_history()
    for place, user in enumerate(users):
        scores = (model.item_table @ model.item_table[history.row(user)[-1]] + model.item_bias).tolist()
        others = set(range(1, data.n_items + 1)) - {int(data.test[user])}
        if exclude:
            others -= set(history.row(user).tolist())
        assert got[place] == 1 + sum(scores[i] >= scores[data.test[user]] for i in others)
        best = sorted((scores[i] for i in others | {int(data.test[user])}), reverse=True)[:4]
        assert [scores[i] for i in top[place]] == best and set(top[place]) <= others | {int(data.test[user])}


@pytest.mark.parametrize("looked_up", [True, False])
def test_sampled_ranking_equals_brute_force_and_candidates_are_strangers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, looked_up: bool
) -> None:
    # Candidates are looked up one by one, or everything is scored where that is less work: the ranks are the same.
    monkeypatch.setattr(rank, "LOOKUP_COST", 0 if looked_up else 10**9)
    monkeypatch.setattr(rank, "LOOKED_UP", 11 * 3 * 2)  # two users at once
    workspace, _ = make_workspace(tmp_path / "ws")
    data = load_split(workspace.data)
    users = test_users(data)
    for how in ("uniform", "popularity"):
        drawn = draw_candidates(data, 10, how, 42)
        assert (drawn == draw_candidates(data, 10, how, 42)).all()
        assert not (drawn == draw_candidates(data, 10, how, 43)).all()
        history = data.test_history()
        for row, user in zip(drawn.tolist(), users, strict=True):
            assert len(set(row)) == 10 and 0 not in row
            assert not set(row) & {*history.row(user).tolist(), int(data.test[user])}
    model = Fixed(torch.randn(data.n_items + 1, 3).round(), torch.randn(data.n_items + 1).round())
    got = sampled_ranks(model, data, users, drawn, batch_users=9)
    for place, user in enumerate(users):
        scores = (model.item_table @ model.item_table[history.row(user)[-1]] + model.item_bias).tolist()
        assert got[place] == 1 + sum(scores[i] >= scores[data.test[user]] for i in drawn[place])
    with pytest.raises(BadDataError, match="items left to rank among"):
        draw_candidates(data, 29, "uniform", 1)


DAY = 86_400


def split_by_time(folder: Path) -> tuple[SplitData, dict[str, list[str]]]:
    """90 users over 30 days, with validation from the 11th and test from the 21st; and all that each has had."""
    rng = np.random.default_rng(8)
    rows = [
        (f"u{user}", f"i{item}", DAY * int(day))
        for user in range(90)
        for item, day in zip(rng.integers(40, size=9), rng.permutation(30)[:9], strict=True)
    ]
    text = "user_id,item_id,timestamp\n" + "".join(f"{user},{item},{time}\n" for user, item, time in rows)
    (folder / "log.csv").write_text(text)
    data = prepare(
        folder / "ws",
        "custom",
        interactions=str(folder / "log.csv"),
        **{"split": "time", "valid_from": "1970-01-11", "test_from": "1970-01-21"},
    )
    assert data.stats["split_rows"]["later"] > 100
    had: dict[str, list[str]] = {}
    for user, item, _ in sorted(rows, key=lambda row: row[2]):
        had.setdefault(user, []).append(item)
    return load_split(data.workspace.data), had


def test_what_a_split_by_time_passes_over_is_no_stranger(tmp_path: Path) -> None:
    data, had = split_by_time(tmp_path)
    number = {item: place for place, item in enumerate(data.item_ids, start=1)}
    own = [{number[item] for item in had[user]} for user in data.user_ids]
    users = test_users(data)
    for how in ("uniform", "popularity"):
        for row, user in zip(draw_candidates(data, 15, how, 1).tolist(), users, strict=True):
            assert len(set(row)) == 15 and not set(row) & own[user]
    model = Fixed(torch.randn(data.n_items + 1, 3, generator=torch.Generator().manual_seed(0)).round())
    ranks, top = full_ranking(model, data, users, top=10, batch_users=7)
    history = data.test_history()
    for got, row, user in zip(ranks.tolist(), top.tolist(), users, strict=True):
        scores = (model.item_table @ model.item_table[history.row(user)[-1]]).tolist()
        target = int(data.test[user])
        others = set(range(1, data.n_items + 1)) - own[user]
        assert got == 1 + sum(scores[item] >= scores[target] for item in others)
        assert set(row) <= others | {target}


def test_recommend_knows_all_that_a_user_of_a_split_by_time_has_had(tmp_path: Path) -> None:
    data, had = split_by_time(tmp_path)
    users = np.arange(data.n_users)
    ids = data.item_ids.to_list()
    full, seen, train = (known_history(data, users, how) for how in ("full", "eval", "train"))
    for user in users:
        assert [ids[item - 1] for item in full.row(user)] == had[data.user_ids[int(user)]]
        before = [*train.row(user), *([data.valid[user]] if data.valid[user] else [])]
        assert train.row(user).tolist() == data.train.row(user).tolist() and seen.row(user).tolist() == before
    model = Fixed(torch.randn(data.n_items + 1, 3, generator=torch.Generator().manual_seed(0)))
    items, _ = top_items(model, full, 10)
    assert not any(set(row) & set(full.row(user)) for user, row in zip(users, items.tolist(), strict=True))


def test_leave_one_out_knows_nothing_but_its_three_parts(tmp_path: Path) -> None:
    workspace, _ = make_workspace(tmp_path / "ws")
    data = load_split(workspace.data)
    assert data.timeline is None
    full = data.full_history()
    log = pl.read_parquet(workspace.data / "interactions.parquet")
    ids = data.item_ids.to_list()
    assert [ids[item - 1] for item in full.values] == log["item_id"].to_list()
    assert full.lengths().tolist() == log["user_id"].rle().struct.field("len").to_list()


def test_crowded_rows_are_filled_with_the_items_that_are_left(tmp_path: Path) -> None:
    workspace, _ = make_workspace(tmp_path / "ws")
    data = load_split(workspace.data)
    history = data.test_history()
    users = test_users(data)
    own = [{*history.row(user).tolist(), int(data.test[user])} for user in users]
    least = data.n_items - max(map(len, own))
    drawn = draw_candidates(data, least, "uniform", 3)
    for row, had in zip(drawn.tolist(), own, strict=True):
        assert len(set(row)) == least and not set(row) & had and set(row) <= set(range(1, data.n_items + 1))


def test_popular_items_are_drawn_in_proportion(tmp_path: Path) -> None:
    workspace, _ = make_workspace(tmp_path / "ws", users=2000)
    data = load_split(workspace.data)
    drawn = draw_candidates(data, 1, "popularity", 1)[:, 0]
    counts = data.train_counts / data.train_counts.sum()
    history = data.test_history()
    expected = np.zeros(data.n_items + 1)
    for user in test_users(data):
        free = counts.copy()
        free[history.row(user)] = 0
        free[data.test[user]] = 0
        expected += free / free.sum()
    seen = np.bincount(drawn, minlength=data.n_items + 1)
    assert (np.abs(seen - expected) < 5 * np.sqrt(expected + 1)).all()


def test_constant_scores_never_hit_and_random_ones_hit_by_chance(tmp_path: Path) -> None:
    workspace, _ = make_workspace(tmp_path / "ws", users=1500, items=140, length=4)
    data = load_split(workspace.data)
    users = test_users(data)
    drawn = draw_candidates(data, 100, "uniform", 42)
    for row in (torch.zeros(2), torch.randn(48, generator=torch.Generator().manual_seed(3))):
        same = Fixed(row.expand(data.n_items + 1, -1).contiguous())
        assert (sampled_ranks(same, data, users, drawn) == 101).all()
        alone = full_ranking(same, data, users[:3], exclude_history=False)
        assert (alone.ranks == data.n_items).all()
    constant = Fixed(torch.zeros(data.n_items + 1, 2))
    history = data.test_history()
    own = np.array([len({*history.row(u).tolist(), int(data.test[u])}) for u in users])
    assert (full_ranking(constant, data, users).ranks == 1 + data.n_items - own).all()

    class Random(Fixed):
        def encode(self, sequences: torch.Tensor) -> torch.Tensor:
            return torch.randn(len(sequences), 16, generator=generator)

    generator = torch.Generator().manual_seed(7)
    model = Random(torch.randn(data.n_items + 1, 16, generator=generator))
    hits = int((sampled_ranks(model, data, users, drawn) <= 10).sum())
    low, high = binom.interval(0.9999, len(users), 10 / 101)
    assert low <= hits <= high


@given(ranks=st.lists(st.integers(1, 60), min_size=1, max_size=50), seed=st.integers(0, 9))
def test_groups_weighted_by_size_give_the_overall_figure(ranks: list[int], seed: int) -> None:
    values = np.array(ranks)
    labels = np.random.default_rng(seed).integers(0, 3, len(values))
    whole, parts = figures(values, [5, 10]), [figures(values[labels == g], [5, 10]) for g in range(3)]
    assert sum(part["n"] for part in parts) == whole["n"]
    for metric in ("HR@5", "HR@10", "NDCG@10", "MRR"):
        weighted = sum(part["n"] * (part[metric] or 0.0) for part in parts) / whole["n"]
        assert weighted == pytest.approx(whole[metric])
    assert whole["NDCG@10"] == pytest.approx(sum(1 / math.log2(r + 1) for r in ranks if r <= 10) / len(ranks))


def test_groups_are_partitions_by_their_definition(tmp_path: Path) -> None:
    workspace, _ = make_workspace(tmp_path / "ws")
    data = load_split(workspace.data)
    users = test_users(data)
    groups = make_groupings(data, users, 0.8, None)
    counts = data.train_counts[data.test[users]]
    bins = groups["popularity_bins"]
    for count, label in zip(counts, bins.labels, strict=True):
        low, _, high = bins.names[label].partition("-")
        assert (count >= 40) if low == "40+" else int(low) <= count <= int(high or low)
    threshold = make_groupings(data, users, 0.8, 25)["popularity"]
    assert ((threshold.labels == 0) == (counts < 25)).all() and "25" in threshold.definition
    lengths = data.test_history().lengths()[users]
    assert ((groups["length"].labels == 1) == (lengths > np.median(lengths))).all()


def test_document_follows_the_contract_and_two_evals_are_identical(tmp_path: Path) -> None:
    workspace, settings = make_workspace(tmp_path / "ws", rat__hidden_size=8, rat__epochs=1, rat__method="none")
    run_rat(workspace, settings, Reporter())
    name = run_name(settings)
    chosen = settings.model_copy(
        update={"eval": settings.eval.model_copy(update={"protocol": "sampled", "negatives": 10})}
    )
    folder = workspace.evaluation(name, "sampled-10-uniform-42")
    run_eval(workspace, chosen, name, Reporter())
    first = {p.name: p.read_bytes() for p in folder.iterdir() if p.name != "manifest.json"}
    run_eval(workspace, chosen, name, Reporter(), force=True)
    assert {p.name: p.read_bytes() for p in folder.iterdir() if p.name != "manifest.json"} == first
    table = pl.read_parquet(folder / "ranks.parquet")
    document = json.loads(json.dumps(eval_document(workspace, chosen)))
    assert table["NDCG@10"].mean() == pytest.approx(document["runs"][0]["overall"]["NDCG@10"])
    assert table["user_id"].to_list() == [f"u{n}" for n in range(150)] and set(table["popularity"]) <= {
        "tail",
        "head",
    }
    (run,) = document["runs"]
    assert {"run", "method", "backbone", "seed", "protocol", "overall", "groups"} <= set(run)
    assert (
        run["protocol"]["kind"] == "sampled" and run["protocol"]["negatives"] == 10 and run["protocol"]["seed"] == 42
    )
    assert {"n", "HR@10", "NDCG@10", "MRR"} <= set(run["overall"])
    tail, head = run["groups"]["popularity"]
    assert (tail["name"], head["name"]) == ("tail", "head") and tail["n"] + head["n"] == run["overall"]["n"]
    with pytest.raises(BadDataError, match="protocol"):
        eval_document(workspace, settings)


def test_lists_are_described_as_slow_loops_do() -> None:
    rng = np.random.default_rng(1)
    counts = np.concatenate([[0], rng.integers(0, 30, 20)])
    vectors = rng.normal(size=(20, 6))
    top = np.stack([rng.permutation(20)[:5] + 1 for _ in range(9)])
    top[4, 3:] = 0  # a user who has had nearly everything
    got = beyond_accuracy(top, counts, vectors + 5)
    shown = [item for row in top for item in row if item]
    assert got["coverage"] == len(set(shown)) / 20
    assert got["popularity"] == pytest.approx(np.mean([counts[item] for item in shown]))
    total = sum(count + 1 for count in counts[1:])
    assert got["novelty"] == pytest.approx(np.mean([-math.log2((counts[item] + 1) / total) for item in shown]))
    times = [shown.count(item) for item in range(1, 21)]
    gaps = sum(abs(a - b) for a in times for b in times)
    assert got["gini"] == pytest.approx(gaps / (2 * 20 * sum(times)))
    lists, vectors = [], vectors - vectors.mean(axis=0)
    for row in top:
        items = [vectors[item - 1] / np.linalg.norm(vectors[item - 1]) for item in row if item]
        lists.append(np.mean([1 - a @ b for i, a in enumerate(items) for j, b in enumerate(items) if i != j]))
    assert got["diversity"] == pytest.approx(np.mean(lists), abs=1e-6)
    assert beyond_accuracy(top, counts, None)["diversity"] is None


def test_quantile_bins_split_the_users_evenly_and_keep_equal_counts_together(tmp_path: Path) -> None:
    workspace, _ = make_workspace(tmp_path / "ws")
    data = load_split(workspace.data)
    users = test_users(data)
    bins = make_groupings(data, users, 0.8, None, "quantiles")["popularity_bins"]
    counts = data.train_counts[data.test[users]]
    for count, label in zip(counts, bins.labels, strict=True):
        low, high = map(int, bins.names[label].split("-"))
        assert low <= count <= high
    assert len(bins.names) == 5 and np.bincount(bins.labels).max() < len(users) / 2


@pytest.mark.parametrize(("items", "negatives", "everything"), [(2000, 3, False), (100, 50, True)])
def test_sampled_ranking_does_no_more_work_than_full_ranking(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, items: int, negatives: int, everything: bool
) -> None:
    """Work is counted, not timed: numbers read a user, of vectors that are looked up or of scores of everything."""
    workspace, _ = make_workspace(tmp_path / "ws", users=40, items=items)
    data = load_split(workspace.data)
    users = test_users(data)
    read: list[int] = []
    looked_up, all_scored = rank._looked_up, rank.score_all

    def count_looked_up(states: torch.Tensor, wanted: torch.Tensor, *rest: torch.Tensor | None) -> torch.Tensor:
        read.append(wanted.numel() * states.shape[1])
        return looked_up(states, wanted, *rest)  # type: ignore[arg-type]

    def count_all(*given: torch.Tensor | None) -> torch.Tensor:
        scores = all_scored(*given)  # type: ignore[arg-type]
        read.append(scores.numel())
        return scores

    monkeypatch.setattr(rank, "_looked_up", count_looked_up)
    monkeypatch.setattr(rank, "score_all", count_all)
    model = Fixed(torch.randn(data.n_items + 1, 8))
    sampled_ranks(model, data, users, draw_candidates(data, negatives, "uniform", 1))
    sampled = sum(read)
    read.clear()
    full_ranking(model, data, users)
    assert sampled <= sum(read)
    assert sampled == len(users) * (data.n_items + 1 if everything else (negatives + 1) * 8)


@pytest.mark.parametrize("how", ["uniform", "popularity"])
def test_too_many_negatives_are_refused_with_a_number_that_works(tmp_path: Path, how: str) -> None:
    workspace, _ = make_workspace(tmp_path / "ws")
    data = load_split(workspace.data)
    with pytest.raises(BadDataError, match="items left to rank among") as refused:
        draw_candidates(data, 30, how, 1)
    hint = re.fullmatch(r"--set eval\.negatives=(\d+), or --set eval\.protocol=full", str(refused.value.hint))
    assert hint
    least = int(hint[1])
    history = data.test_history()
    pool = {item for item in range(1, data.n_items + 1) if how == "uniform" or data.train_counts[item]}
    expected = min(len(pool - {*history.row(u).tolist(), int(data.test[u])}) for u in test_users(data))
    assert least == expected and draw_candidates(data, least, how, 1).shape[1] == least
    with pytest.raises(BadDataError):
        draw_candidates(data, least + 1, how, 1)
