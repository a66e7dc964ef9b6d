"""Groups are partitions: every user in one group of each grouping, sizes add up, weighted groups give the whole."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from llmemb_cli.app import app
from llmemb_cli.config.runs import run_name
from llmemb_cli.datasets.split import Ragged, SplitData, load_split
from llmemb_cli.evaluation.candidates import test_users as users_with_test
from llmemb_cli.evaluation.groups import make_groupings
from llmemb_cli.evaluation.stage import figures, group_figures, run_eval, user_table
from llmemb_cli.progress import Reporter
from llmemb_cli.srs.train import run_rat
from tests.make_workspace import make_workspace


def split_data(histories: list[list[int]], targets: list[int], n_items: int) -> SplitData:
    """Users with these training items and test items; target 0: none."""
    values = np.array([item for row in histories for item in row], dtype=np.int32)
    return SplitData(
        item_ids=pl.Series([f"i{n}" for n in range(1, n_items + 1)], dtype=pl.String),
        user_ids=pl.Series([f"u{n}" for n in range(len(histories))], dtype=pl.String),
        train=Ragged(values, np.concatenate([[0], np.cumsum([len(row) for row in histories])]).astype(np.int64)),
        valid=np.zeros(len(histories), dtype=np.int32),
        test=np.array(targets, dtype=np.int32),
        train_counts=np.bincount(values, minlength=n_items + 1).astype(np.int64),
        fingerprint="",
    )


@st.composite
def splits(draw: st.DrawFn) -> SplitData:
    n_items = draw(st.integers(1, 30))
    item = st.integers(1, n_items)
    users = draw(st.lists(st.tuples(st.lists(item, max_size=60), st.integers(0, n_items)), min_size=1, max_size=25))
    return split_data([history for history, _ in users], [target for _, target in users], n_items)


@given(
    data=splits(),
    tail_share=st.floats(0, 1),
    threshold=st.none() | st.integers(1, 50),
    bins=st.sampled_from(["counts", "quantiles"]),
    ks=st.lists(st.integers(1, 40), min_size=1, max_size=3, unique=True),
    seed=st.integers(0, 99),
)
def test_every_grouping_is_a_partition_whose_weighted_figures_are_the_whole(
    data: SplitData, tail_share: float, threshold: int | None, bins: str, ks: list[int], seed: int
) -> None:
    users = users_with_test(data)
    if not len(users):
        return
    ranks = np.random.default_rng(seed).integers(1, 50, len(users))
    groupings = make_groupings(data, users, tail_share, threshold, bins)
    whole, groups = figures(ranks, ks), group_figures(groupings, ranks, ks)
    table = user_table(data, users, ranks, groupings, ks)
    assert groups.keys() == {"popularity", "popularity_bins", "length", "cold"}
    for name, parts in groups.items():
        assert sum(part["n"] for part in parts) == whole["n"] == len(users)
        for metric in whole.keys() - {"n"}:
            weighted = sum(part["n"] * (part[metric] or 0.0) for part in parts) / len(users)
            assert math.isclose(weighted, whole[metric], abs_tol=1e-12)
        for part in parts:
            assert (part["MRR"] is None) == (part["n"] == 0)
            assert table.filter(pl.col(name) == part["name"]).height == part["n"]
    assert table["user_id"].to_list() == [f"u{user}" for user in users]
    assert table["item_id"].to_list() == [f"i{item}" for item in data.test[users]]


@given(data=splits(), threshold=st.integers(1, 50))
def test_groups_are_what_their_definitions_say(data: SplitData, threshold: int) -> None:
    users = users_with_test(data)
    if not len(users):
        return
    groups = make_groupings(data, users, 0.8, threshold)
    for place, user in enumerate(users):
        count = int((data.train.values == data.test[user]).sum())
        named = {name: grouping.names[grouping.labels[place]] for name, grouping in groups.items()}
        assert (named["popularity"] == "tail") == (count < threshold)
        assert (named["cold"] == "cold") == (count == 0) == (named["popularity_bins"] == "0")
        low, _, high = named["popularity_bins"].partition("-")
        assert count >= 40 if low == "40+" else int(low) <= count <= int(high or low)
    lengths = sorted(len(data.train.row(int(user))) for user in users)
    middle = (lengths[(len(lengths) - 1) // 2] + lengths[len(lengths) // 2]) // 2
    short = [len(data.train.row(int(user))) <= middle for user in users]
    assert [groups["length"].names[label] == "short" for label in groups["length"].labels] == short


def test_tail_is_the_least_popular_share_of_the_items() -> None:
    # Items 1 to 10 have 1 to 10 interactions; item 11 none: of 11 items 80 % are 9, those with 0 to 8.
    histories = [[item] * item for item in range(1, 11)]
    data = split_data([*histories, [10]], [*range(1, 11), 11], 11)
    groups = make_groupings(data, users_with_test(data), 0.8, None)
    tail = [groups["popularity"].names[label] for label in groups["popularity"].labels]
    assert tail == ["tail"] * 8 + ["head"] * 2 + ["tail"]
    assert "80%" in groups["popularity"].definition and "at most 8" in groups["popularity"].definition


def test_items_that_nobody_had_before_the_cut_are_cold_and_the_command_says_so(tmp_path: Path) -> None:
    """A split in time leaves targets that training has never seen."""
    workspace, settings = make_workspace(
        tmp_path / "ws", users=200, rat__hidden_size=8, rat__epochs=1, rat__method="none"
    )
    log = pl.read_parquet(workspace.data / "interactions.parquet")
    # The test rows of three users are an item that no training row has.
    cold = (pl.col("split").cast(pl.String) == "test") & pl.col("user_id").is_in(["u0", "u1", "u2"])
    kept = log.filter((pl.col("item_id") != "i5") | cold)
    kept = kept.with_columns(pl.when(cold).then(pl.lit("i5")).otherwise(pl.col("item_id")).alias("item_id"))
    kept.write_parquet(workspace.data / "interactions.parquet")
    run_rat(workspace, settings, Reporter())
    run_eval(workspace, settings, run_name(settings), Reporter())
    data = load_split(workspace.data)
    assert data.train_counts[1 + data.item_ids.to_list().index("i5")] == 0

    def call(*args: str) -> Any:
        return CliRunner().invoke(app, ["eval", "-w", str(workspace.root), *args])

    (run,) = json.loads(call("--groups", "cold,length", "--groups", "popularity", "--json").stdout)["runs"]
    assert list(run["groups"]) == ["cold", "length", "popularity", "popularity_bins"]
    assert run["groups"]["cold"][0]["name"] == "cold" and run["groups"]["cold"][0]["n"] == 3
    ranks = pl.read_parquet(workspace.evaluation(run["run"], "full") / "ranks.parquet")
    assert ranks.filter(pl.col("cold") == "cold")["user_id"].to_list() == ["u0", "u1", "u2"]
    shown = call("--groups", "cold", "-k", "5,20").stdout
    assert "cold: target without any training interaction" in shown and "HR@5" in shown and "full ranking" in shown
    assert call("none", "--json").stdout == call("sasrec-none", "--json").stdout == call("--json").stdout
    assert "no run, variant or method nine" in call("nine").stderr
    wrong = call("-k", "5,ten")
    assert wrong.exit_code == 2 and "-k ten" in wrong.stderr
    assert call("--groups", "popular").exit_code == 2
    idle = call("--negatives", "5", "--history", "keep").stderr
    assert "no effect with --protocol full: --negatives" in idle and "--history" not in idle
    assert "no effect with --protocol sampled: --history" in call("--protocol", "sampled", "--history", "keep").stderr


def test_metrics_by_hand() -> None:
    got = figures(np.array([1, 3, 11]), [3, 10])
    assert got["HR@3"] == got["Recall@3"] == pytest.approx(2 / 3)
    assert got["NDCG@3"] == pytest.approx((1 + 1 / 2) / 3)
    assert got["MRR@10"] == pytest.approx((1 + 1 / 3) / 3)
    assert got["MRR"] == pytest.approx((1 + 1 / 3 + 1 / 11) / 3)
