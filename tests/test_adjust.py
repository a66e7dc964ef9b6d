"""`llmemb adjust`: a run ranked with another logit adjustment than it was trained with."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from typer.testing import CliRunner, Result

from llmemb_cli.app import app
from llmemb_cli.config.settings import Settings
from llmemb_cli.datasets.split import load_split
from llmemb_cli.progress import Reporter
from llmemb_cli.srs.recommender import load_recommender
from llmemb_cli.srs.train import run_rat
from llmemb_cli.workspace.locate import Workspace
from tests.make_workspace import make_workspace

RUN = "gru4rec-none-42"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, Settings]:
    options: dict[str, Any] = {"rat__method": "none", "rat__backbone": "gru4rec", "rat__hidden_size": 8}
    options |= {"rat__epochs": 3, "rat__logit_adjustment": 1.0, "rat__logit_adjustment_share": 0.8}
    workspace, settings = make_workspace(tmp_path_factory.mktemp("adjust") / "ws", **options)
    run_rat(workspace, settings, Reporter())
    return workspace, settings


def call(workspace: Workspace, *args: str) -> Result:
    return CliRunner().invoke(app, [*args, "-w", str(workspace.root)])


def adjustments(workspace: Workspace, *args: str) -> list[dict[str, Any]]:
    done = call(workspace, "adjust", *args, "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["run"] == RUN
    return list(found["adjustments"])


def log_popularity(workspace: Workspace, share: float) -> np.ndarray:
    """Of items 1.. in order: the logarithm of training interactions plus one, of the most popular at the cap."""
    log = pl.read_parquet(workspace.data / "interactions.parquet")
    counts = dict(log.filter(pl.col("split").cast(pl.String) == "train")["item_id"].value_counts().iter_rows())
    counts_in_order = [1 + counts.get(item, 0) for item in load_split(workspace.data).item_ids]
    cap = sorted(counts_in_order)[round(share * len(counts_in_order)) - 1]
    return np.log([min(count, cap) for count in counts_in_order])


@pytest.mark.parametrize("share", [None, 0.5, 1.0])
def test_figures_are_those_of_scores_with_one_adjustment_in_the_place_of_the_other(
    trained: tuple[Workspace, Settings], share: float | None
) -> None:
    workspace, _ = trained
    data = load_split(workspace.data)
    model = load_recommender(workspace.run(RUN), data)
    told = [] if share is None else ["--logit-adjustment-share", str(share)]
    found = adjustments(workspace, RUN, "--logit-adjustment", "0,0.5,2", *told)
    weights = [(one["logit_adjustment"], one["logit_adjustment_share"]) for one in found]
    assert weights == [(0.0, 0.8), (0.5, share or 0.8), (1.0, 0.8), (2.0, share or 0.8)]
    users = [user for user in range(data.n_users) if data.valid[user] and len(data.train.row(user))]
    assert [one["overall"]["n"] for one in found] == [len(users)] * 4
    for one in found:
        taken = log_popularity(workspace, 0.8)
        wanted = one["logit_adjustment"] * log_popularity(workspace, one["logit_adjustment_share"])
        hits, gains = 0.0, 0.0
        for user in users:
            had = data.train.row(user)
            with torch.no_grad():
                state = model.encode(torch.from_numpy(had[None].astype(np.int64)))[0]
                scores = (model.item_table[1:] @ state).numpy() + taken - wanted
            target = scores[data.valid[user] - 1]
            rank = 1 + sum(
                score >= target
                for item, score in enumerate(scores, 1)
                if item not in had and item != data.valid[user]
            )
            hits += rank <= 10
            gains += 1 / math.log2(rank + 1) if rank <= 10 else 0
        assert one["overall"]["HR@10"] == pytest.approx(hits / len(users), abs=1e-12)
        assert one["overall"]["NDCG@10"] == pytest.approx(gains / len(users), abs=1e-12)


def test_the_line_as_trained_is_what_eval_finds_on_validation_items(trained: tuple[Workspace, Settings]) -> None:
    workspace, _ = trained
    done = call(workspace, "eval", RUN, "--protocol", "validation", "--json")
    assert done.exit_code == 0, done.output
    evaluated = json.loads(done.stdout)["runs"][0]
    found = adjustments(workspace)
    assert [one["trained"] for one in found].count(True) == 1 and len(found) == 8
    own = next(one for one in found if one["trained"])
    assert own["logit_adjustment"] == 1.0 and own["logit_adjustment_share"] == 0.8
    parts = {"overall": evaluated["overall"]} | {one["name"]: one for one in evaluated["groups"]["popularity"]}
    assert set(parts) == {"overall", "tail", "head"}
    for name, figures in parts.items():
        assert {"n", "HR@10", "NDCG@10"} <= own[name].keys()
        assert {key: figures[key] for key in own[name]} == own[name]


def test_a_run_without_adjustment_is_ranked_with_the_share_of_the_file(tmp_path: Path) -> None:
    workspace, settings = make_workspace(
        tmp_path / "ws", rat__method="none", rat__backbone="gru4rec", rat__hidden_size=8, rat__epochs=1
    )
    run_rat(workspace, settings, Reporter())
    found = adjustments(workspace, "--logit-adjustment", "1", "--set", "rat.logit_adjustment_share=0.6")
    assert [(one["logit_adjustment"], one["trained"]) for one in found] == [(0.0, True), (1.0, False)]
    assert found[1]["logit_adjustment_share"] == 0.6


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--logit-adjustment", "0.5,much"], "--logit-adjustment 0.5,much"),
        (["--logit-adjustment", "-1"], "numbers from 0"),
        (["--logit-adjustment", "nan"], "numbers from 0"),
        (["--logit-adjustment-share", "0"], "logit_adjustment_share"),
        (["gru4rec-none-24"], "did you mean gru4rec-none-42"),
    ],
)
def test_wrong_use_is_said(trained: tuple[Workspace, Settings], args: list[str], said: str) -> None:
    done = call(trained[0], "adjust", *args)
    assert done.exit_code == 2 and said in done.output.replace("\n", " ")


def test_the_table_fits_a_terminal_and_marks_the_run(
    trained: tuple[Workspace, Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    done = call(trained[0], "adjust", RUN)
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert [line.split()[:2] for line in lines if " * " in line[:12]] == [["1", "*"]]
