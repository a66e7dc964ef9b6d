"""`llmemb adjust`: a run ranked with another logit adjustment than it was trained with."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from llmemb_cli.config.settings import Settings
from llmemb_cli.datasets.split import load_split
from llmemb_cli.evaluation.document import seedless
from llmemb_cli.progress import Reporter
from llmemb_cli.srs.recommender import load_recommender
from llmemb_cli.srs.train import run_rat
from llmemb_cli.workspace.locate import Workspace
from tests.calls import call, document
from tests.make_workspace import make_workspace

RUN = "gru4rec-none-42"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, Settings]:
    options: dict[str, Any] = {"rat__method": "none", "rat__backbone": "gru4rec", "rat__hidden_size": 8}
    options |= {"rat__epochs": 3, "rat__logit_adjustment": 1.0, "rat__logit_adjustment_share": 0.8}
    workspace, settings = make_workspace(tmp_path_factory.mktemp("adjust") / "ws", **options)
    run_rat(workspace, settings, Reporter())
    return workspace, settings


def adjustments(workspace: Workspace, *args: str) -> list[dict[str, Any]]:
    found = document(workspace, "adjust", *args)
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
    assert [one["own"] for one in found].count(True) == 1 and len(found) == 8
    own = next(one for one in found if one["own"])
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
    assert [(one["logit_adjustment"], one["own"]) for one in found] == [(0.0, True), (1.0, False)]
    assert found[1]["logit_adjustment_share"] == 0.6


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--logit-adjustment", "0.5,much"], "--logit-adjustment 0.5,much"),
        (["--logit-adjustment", "-1"], "numbers from 0"),
        (["--logit-adjustment", "nan"], "numbers from 0"),
        (["--logit-adjustment", "inf"], "numbers from 0 to 100"),
        (["--logit-adjustment", "1e300", "--keep"], "numbers from 0 to 100"),
        ([""], "no run"),
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


@pytest.fixture(scope="module", params=["gru4rec", "bert4rec"])
def kept(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, str, str]:
    """A workspace, a run of two seeds in it, and the name of the first with another adjustment."""
    options: dict[str, Any] = {"rat__method": "none", "rat__backbone": request.param, "rat__hidden_size": 8}
    options |= {"rat__epochs": 3, "rat__logit_adjustment": 1.0, "rat__batch_size": 32}
    workspace, _ = make_workspace(tmp_path_factory.mktemp("kept") / "ws", **options)
    done = call(workspace, "rat", "--seeds", "42,43")
    assert done.exit_code == 0, done.output
    run = f"{request.param}-none-42"
    told = ["--logit-adjustment", "2", "--logit-adjustment-share", "0.5", "--keep"]
    for seed in (42, 43):
        done = call(workspace, "adjust", run.replace("42", str(seed)), *told, "--json")
        assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["kept"][0]["run"] == f"{request.param}-none-43-adjusted-2-of-0.5"
    return workspace, run, f"{run}-adjusted-2-of-0.5"


def test_a_kept_run_ranks_test_items_by_scores_with_the_other_adjustment(kept: tuple[Workspace, str, str]) -> None:
    workspace, run, name = kept
    assert call(workspace, "eval", name).exit_code == 0
    ranks = pl.read_parquet(workspace.evaluation(name, "full") / "ranks.parquet")
    data = load_split(workspace.data)
    model = load_recommender(workspace.run(run), data)
    raised = log_popularity(workspace, 1.0) - 2 * log_popularity(workspace, 0.5)
    users = {user: number for number, user in enumerate(data.user_ids.to_list())}
    items = {item: number for number, item in enumerate(data.item_ids.to_list(), 1)}
    own = 0 if model.item_bias is None else model.item_bias.detach().numpy()[1:]
    for user, item, rank in ranks.select("user_id", "item_id", "rank").iter_rows():
        had = [*data.train.row(users[user]), data.valid[users[user]]]
        with torch.no_grad():
            state = model.encode(torch.tensor([had], dtype=torch.int64))[0]
            scores = (model.item_table[1:] @ state).numpy() + own + raised
        target = scores[items[item] - 1]
        others = [score for at, score in enumerate(scores, 1) if at not in had and at != items[item]]
        # Where two scores differ by rounding alone, either may be first.
        first = 1 + sum(score > target + 1e-4 for score in others)
        assert first <= rank <= 1 + sum(score >= target - 1e-4 for score in others)


def test_validation_figures_of_a_kept_run_are_those_that_were_shown(kept: tuple[Workspace, str, str]) -> None:
    workspace, run, name = kept
    told = ["--logit-adjustment", "2", "--logit-adjustment-share", "0.5", "--json"]
    shown = json.loads(call(workspace, "adjust", run, *told).stdout)["adjustments"]
    wanted = next(one for one in shown if one["logit_adjustment"] == 2)
    evaluated = json.loads(call(workspace, "eval", name, "--protocol", "validation", "--json").stdout)["runs"][0]
    for metric in ("HR@10", "NDCG@10"):
        assert evaluated["overall"][metric] == pytest.approx(wanted["overall"][metric], abs=1e-12)
    described = json.loads(call(workspace, "runs", "show", name, "--json").stdout)["runs"][0]
    assert described["best_validation"] == pytest.approx(wanted["overall"]["NDCG@10"], abs=1e-12)
    assert described["state"] == "current" and described["adjusted_from"] == run
    # Back again: adjusted to what it was trained with, it ranks as the run itself.
    back = json.loads(call(workspace, "adjust", name, "--logit-adjustment", "1", "--json").stdout)["adjustments"]
    assert [(one["logit_adjustment"], one["own"]) for one in back] == [(1.0, False), (2.0, True)]
    back = call(workspace, "adjust", name, "--logit-adjustment", "1", "--logit-adjustment-share", "1", "--json")
    before = next(one for one in shown if one["own"])
    again = json.loads(back.stdout)["adjustments"][0]
    assert again["overall"]["NDCG@10"] == pytest.approx(before["overall"]["NDCG@10"], abs=1e-12)


def test_an_export_of_a_kept_run_has_the_bias_that_scores_add(kept: tuple[Workspace, str, str]) -> None:
    workspace, run, name = kept
    for one in (run, name):
        done = call(workspace, "export", one, "--format", "parquet")
        assert done.exit_code == 0, done.output
    before, after = (
        pl.read_parquet(workspace.root / "exports" / f"{one}-parquet" / "item_embeddings.parquet")
        for one in (run, name)
    )
    assert before["item_id"].equals(after["item_id"]) and before["embedding"].equals(after["embedding"])
    own = before["bias"].to_numpy() if "bias" in before.columns else np.zeros(len(before))
    assert ("bias" in before.columns) == run.startswith("bert4rec")
    raised = after["bias"].to_numpy() - own
    wanted = log_popularity(workspace, 1.0) - 2 * log_popularity(workspace, 0.5)
    # What is added to all items alike changes no ranking.
    assert raised - raised.mean() == pytest.approx(wanted - wanted.mean(), abs=1e-5)


def test_kept_runs_of_several_seeds_are_one_variant_beside_the_trained_ones(
    kept: tuple[Workspace, str, str],
) -> None:
    workspace, run, name = kept
    assert call(workspace, "rat", "--logit-adjustment", "2", "--logit-adjustment-share", "0.5").exit_code == 0
    assert call(workspace, "eval").exit_code == 0
    document = json.loads(call(workspace, "compare", "--json").stdout)
    families = [sorted(one["runs"]) for one in document["variants"]]
    trained = next(one for one in families if len(one) == 1)
    assert re.fullmatch(rf"{run}-[0-9a-f]{{6}}", trained[0])
    assert sorted(families) == sorted([[run, run.replace("42", "43")], [name, name.replace("-42-", "-43-")], trained])
    changed = next(one["changed"] for one in document["variants"] if name in one["runs"])
    assert changed == {
        "logit_adjustment": 2.0,
        "logit_adjustment_share": 0.5,
        "trained_logit_adjustment": 1.0,
        "trained_logit_adjustment_share": 1.0,
    }
    assert call(workspace, "report").exit_code == 0


def test_what_is_kept_twice_is_up_to_date_and_what_is_adjusted_already_is_refused(
    kept: tuple[Workspace, str, str],
) -> None:
    workspace, run, name = kept
    told = ["--logit-adjustment", "2", "--logit-adjustment-share", "0.5", "--keep"]
    done = call(workspace, "adjust", run, *told)
    assert f"up to date: {name}" in done.stdout
    for args, said in (
        ([name, "--logit-adjustment", "3", "--keep"], f"adjust that one: {run}"),
        ([run, "--keep"], "needs an adjustment"),
        ([run, "--logit-adjustment", "1", "--logit-adjustment-share", "1", "--keep"], "was trained with"),
    ):
        done = call(workspace, "adjust", *args)
        assert done.exit_code == 2 and said in done.output.replace("\n", " ")


def test_a_kept_run_outlives_the_run_that_it_was_made_from(tmp_path: Path) -> None:
    options: dict[str, Any] = {"rat__method": "none", "rat__backbone": "gru4rec", "rat__hidden_size": 8}
    workspace, _ = make_workspace(tmp_path / "ws", rat__epochs=1, **options)
    assert call(workspace, "rat").exit_code == 0
    assert call(workspace, "adjust", RUN, "--logit-adjustment", "0.5,1", "--keep").exit_code == 0
    removed = json.loads(call(workspace, "runs", "remove", RUN, "--yes", "--json").stdout)
    assert [use.split()[0] for use in removed["needed_by"][RUN]] == [f"{RUN}-adjusted-0.5", f"{RUN}-adjusted-1"]
    for name in (f"{RUN}-adjusted-0.5", f"{RUN}-adjusted-1"):
        assert call(workspace, "eval", name).exit_code == 0
        described = json.loads(call(workspace, "runs", "show", name, "--json").stdout)["runs"][0]
        assert described["state"] == "other source now"
        assert described["settings"]["trained_logit_adjustment"] == 0
    assert call(workspace, "recommend", "u3", "--run", name).exit_code == 0


def test_taking_an_adjustment_back_leaves_none(tmp_path: Path) -> None:
    options: dict[str, Any] = {"rat__method": "none", "rat__backbone": "gru4rec", "rat__hidden_size": 8}
    options |= {"rat__epochs": 1, "rat__logit_adjustment": 1.0, "rat__logit_adjustment_share": 0.8}
    workspace, _ = make_workspace(tmp_path / "ws", **options)
    assert call(workspace, "rat").exit_code == 0
    assert call(workspace, "adjust", RUN, "--logit-adjustment", "0", "--keep").exit_code == 0
    described = json.loads(call(workspace, "runs", "show", f"{RUN}-adjusted-0", "--json").stdout)["runs"][0]
    found = {key: value for key, value in described["settings"].items() if "logit" in key}
    assert found == {"trained_logit_adjustment": 1.0, "trained_logit_adjustment_share": 0.8}


def keep(workspace: Workspace, run: str, strengths: str, *args: str) -> list[dict[str, Any]]:
    done = call(workspace, "adjust", run, "--logit-adjustment", strengths, "--keep", "--json", *args)
    assert done.exit_code == 0, done.output
    return list(json.loads(done.stdout)["kept"])


@pytest.fixture
def small(tmp_path: Path) -> Workspace:
    """A workspace with one run, `gru4rec-none-42`, trained in one epoch without an adjustment."""
    options: dict[str, Any] = {"rat__method": "none", "rat__backbone": "gru4rec", "rat__hidden_size": 8}
    workspace, _ = make_workspace(tmp_path / "ws", rat__epochs=1, **options)
    assert call(workspace, "rat").exit_code == 0
    return workspace


def shown(workspace: Workspace, name: str) -> dict[str, Any]:
    return dict(json.loads(call(workspace, "runs", "show", name, "--json").stdout)["runs"][0])


def test_adjustments_that_differ_have_names_that_do(small: Workspace) -> None:
    found = keep(small, RUN, "1,1.0000001,1e-30", "--logit-adjustment-share", "0.9999999")
    assert [one["built"] for one in found] == [True] * 3
    assert {one["run"] for one in found} == {
        f"{RUN}-adjusted-1-of-0.9999999",
        f"{RUN}-adjusted-1.0000001-of-0.9999999",
        f"{RUN}-adjusted-1e-30-of-0.9999999",
    }


def test_a_trained_run_is_never_replaced_by_a_kept_one(small: Workspace) -> None:
    name = f"{RUN}-adjusted-1"
    assert call(small, "rat", "--name", name, "--hidden-size", "4").exit_code == 0
    weights = (small.run(name) / "model.safetensors").read_bytes()
    done = call(small, "adjust", RUN, "--logit-adjustment", "1", "--keep")
    assert done.exit_code == 2 and f"a run that was trained is called {name}" in done.output.replace("\n", " ")
    assert (small.run(name) / "model.safetensors").read_bytes() == weights


def test_training_the_source_again_alike_leaves_a_kept_run_current_and_otherwise_does_not(small: Workspace) -> None:
    (kept,) = keep(small, RUN, "1")
    assert call(small, "rat", "--force").exit_code == 0
    assert shown(small, kept["run"])["state"] == "current" and not keep(small, RUN, "1")[0]["built"]
    assert call(small, "rat", "--name", RUN, "--dropout", "0.1").exit_code == 0
    described = shown(small, kept["run"])
    assert described["state"] == "other source now" and described["adjusted_from"] is None
    done = call(small, "adjust", kept["run"], "--logit-adjustment", "2", "--keep")
    assert done.exit_code == 2 and "no longer here" in done.output
    done = call(small, "adjust", RUN, "--logit-adjustment", "1", "--keep")
    assert done.exit_code == 0 and "another takes the place of the one there" in done.output.replace("\n", " ")


def test_without_a_name_the_best_trained_run_is_adjusted(small: Workspace) -> None:
    (kept,) = keep(small, RUN, "1")
    manifest = small.run(kept["run"]) / "manifest.json"
    document = json.loads(manifest.read_text())
    document["summary"]["best_validation"] = 1.0
    manifest.write_text(json.dumps(document))
    assert json.loads(call(small, "recommend", "u3", "--json").stdout)["run"] == kept["run"]
    again = json.loads(call(small, "adjust", "--logit-adjustment", "1", "--keep", "--json").stdout)
    assert again["run"] == RUN and [one["built"] for one in again["kept"]] == [False]


def test_an_interrupted_keep_leaves_nothing_begun(small: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    from llmemb_cli.evaluation import adjust

    def stop(*args: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(adjust, "write_tensors", stop)
        assert call(small, "adjust", RUN, "--logit-adjustment", "1", "--keep").exit_code == 130
    assert [path.name for path in (small.root / "runs").iterdir()] == [RUN]
    assert keep(small, RUN, "1")[0]["built"]


def test_the_share_of_set_counts_and_what_counts_for_nothing_is_said(trained: tuple[Workspace, Settings]) -> None:
    told = ["--set", "rat.logit_adjustment_share=0.6", "--set", "rat.dropout=0.1"]
    done = call(trained[0], "adjust", RUN, "--logit-adjustment", "2", *told)
    assert "60%" in done.stdout and "no effect on a run that is trained: dropout" in done.output.replace("\n", " ")


def test_the_seed_of_a_kept_run_is_that_of_its_source() -> None:
    assert seedless("base-adjusted-1", 1) == "base-adjusted-1"
    assert seedless("base-1-adjusted-1-of-0.8", 1) == "base-adjusted-1-of-0.8"
    assert seedless("sasrec-none-42-1a2b3c", 42) == "sasrec-none-1a2b3c"


def test_a_card_says_what_the_bias_is_added_to(small: Workspace) -> None:
    assert call(small, "rat", "--similarity", "cosine", "--name", "angles").exit_code == 0
    for run, said in ((RUN, "inner products"), ("angles", "divided by 0.07, plus the item's `bias`")):
        (kept,) = keep(small, run, "1")
        assert call(small, "export", kept["run"], "--format", "npy").exit_code == 0
        assert said in (small.root / "exports" / f"{kept['run']}-npy" / "card.md").read_text()
