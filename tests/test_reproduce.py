"""Reproduction: the grid holds what the paper compares and survives failures; verdicts follow from figures."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from scipy import stats
from typer.testing import CliRunner

from llmemb_cli.app import app
from llmemb_cli.chain import Step, variants
from llmemb_cli.config.settings import Settings, load_settings, update_settings
from llmemb_cli.datasets.split import load_split
from llmemb_cli.errors import BadDataError, LlmembError, MissingError
from llmemb_cli.progress import Reporter
from llmemb_cli.reporting import grid
from llmemb_cli.reporting.estimate import estimate, only_users
from llmemb_cli.reporting.grid import is_done, run_grid, steps_before
from llmemb_cli.reporting.reproduce import SWEEPS, grid_of, known, paper_figures, reproduce_document
from llmemb_cli.reporting.reproduce_text import markdown
from llmemb_cli.reporting.verdicts import judge, verdict
from llmemb_cli.srs.train import run_rat
from llmemb_cli.workspace.locate import Workspace
from llmemb_cli.workspace.make import run_stage
from llmemb_cli.workspace.stage import Stage, output_fingerprint, read_manifest
from tests.make_workspace import make_workspace

TINY: dict[str, Any] = {"rat__hidden_size": 8, "rat__epochs": 1, "eval__negatives": 10}
SAMPLED = {"eval.protocol": "sampled"}


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return make_workspace(tmp_path / "ws", **TINY)[0]


def test_grids_hold_what_the_paper_compares(workspace: Workspace) -> None:
    table1 = grid_of("table1", [workspace], [1, 2])
    assert len(table1) == 2 * 3 * 6 == len({cell.run for cell in table1})
    assert {cell.settings.rat.method for cell in table1} == {"none", "melt", "llm2x", "said", "tslrec", "llmemb"}
    assert {cell.settings.rat.backbone for cell in table1} == {"sasrec", "gru4rec", "bert4rec"}
    more = grid_of("table1", [workspace], [1], backbones=["sasrec"], methods=["llmesr", "alphafuse"])
    assert [cell.settings.rat.method for cell in more] == ["llmesr", "alphafuse"]
    table2 = grid_of("table2", [workspace], [1])
    assert [cell.settings.rat.without for cell in table2] == [[], ["scft"], ["adapter"], ["freeze"], ["align"]]
    fig4 = grid_of("fig4", [workspace], [1])
    for key, values in SWEEPS.items():
        assert {getattr(cell.settings.rat, key) for cell in fig4} >= set(values)
    assert len(fig4) == sum(map(len, SWEEPS.values())) - 1, "the run with both defaults is shared"


def test_vectors_that_are_made_from_a_run_come_after_it(workspace: Workspace) -> None:
    (cell,) = grid_of("table1", [workspace], [7], backbones=["gru4rec"], methods=["tslrec"])
    names = [step.name for step in steps_before(cell)]
    assert "rat sasrec-none-42" in names and names.index("rat sasrec-none-42") < names.index("tslrec")
    changed = grid_of(
        "table1", [workspace], [7], backbones=["gru4rec"], methods=["none"], overrides={"rat.epochs": 9}
    )
    assert steps_before(changed[0]) == [] and changed[0].run != "gru4rec-none-7"


def test_paper_figures_have_a_source_and_equal_those_known_elsewhere() -> None:
    for target in ("table1", "table2", "fig4", "fig5", "fig6"):
        paper = paper_figures(target)  # type: ignore[arg-type]
        for figure in paper["figures"]:
            assert figure["source"] in paper["sources"] and figure["dataset"] in paper["data"]
            assert figure["backbone"] in known("backbone")
            assert all(0 < figure[m] < 1 for m in ("HR@10", "NDCG@10") if m in figure)
    found = {
        (f["dataset"], f["method"], f["part"]): f
        for f in paper_figures("table1")["figures"]
        if f["backbone"] == "sasrec" and "NDCG@10" in f
    }
    assert len(found) == 3 * 4 * 2
    places = [(f["dataset"], f["backbone"], f["method"], f["part"]) for f in paper_figures("table1")["figures"]]
    assert len(places) == len(set(places))
    # What the table is quoted for: LLM-ESR ahead overall on every data set, LLMEmb ahead of it on every tail.
    for dataset in ("yelp", "fashion", "beauty"):
        for metric in ("HR@10", "NDCG@10"):
            esr, ours = (
                [found[dataset, m, part][metric] for part in ("overall", "tail")] for m in ("llmesr", "llmemb")
            )
            assert esr[0] > ours[0] and esr[1] < ours[1]
        assert found[dataset, "alphafuse", "overall"]["NDCG@10"] > found[dataset, "llmemb", "overall"]["NDCG@10"]
    gains = {d: found[d, "llmemb", "tail"]["HR@10"] / found[d, "none", "tail"]["HR@10"] for d in ("yelp", "beauty")}
    assert gains == pytest.approx({"yelp": 2.584, "beauty": 4.821}, abs=1e-3)


def test_ablation_is_run_measured_and_judged(workspace: Workspace) -> None:
    cells = grid_of("table2", [workspace], [42, 43], overrides=SAMPLED)
    assert not any(is_done(cell) for cell in cells)
    run_grid(cells, Reporter())
    assert [cell.status for cell in cells] == ["done"] * len(cells)
    document = reproduce_document("table2", cells)
    by = {(tuple(r["without"]), r["part"], r["metric"]): r for r in document["figures"]}
    ranks = {
        run: pl.read_parquet(workspace.evaluation(run, "sampled-10-uniform-42") / "ranks.parquet")
        for run in (f"sasrec-llmemb{part}-{seed}" for part in ("", "-no-align") for seed in (42, 43))
    }
    row = by[("align",), "tail", "NDCG@10"]
    tails = {run: one.filter(pl.col("popularity") == "tail")["NDCG@10"].to_numpy() for run, one in ranks.items()}
    assert row["mean"] == pytest.approx(np.mean([tails[f"sasrec-llmemb-no-align-{s}"].mean() for s in (42, 43)]))
    verdict = next(
        one
        for one in document["claims"]
        if (one["part"], one["metric"], one["compared"]) == ("tail", "NDCG@10", "llmemb and without align")
    )
    ours = np.mean([tails[f"sasrec-llmemb-{s}"] for s in (42, 43)], axis=0)
    theirs = np.mean([tails[f"sasrec-llmemb-no-align-{s}"] for s in (42, 43)], axis=0)
    assert verdict["ours"] == pytest.approx([ours.mean(), theirs.mean()])
    gap = ours.mean() - theirs.mean()
    assert verdict["verdict"].startswith("no difference" if gap == 0 else "holds" if gap > 0 else "does not hold")
    assert verdict["p"] >= stats.ttest_rel(ours, theirs).pvalue or gap == 0
    made = {cell.run: (workspace.run(cell.run) / "manifest.json").read_text() for cell in cells}
    again = grid_of("table2", [workspace], [42, 43], overrides=SAMPLED)
    run_grid(again, Reporter())
    assert [cell.status for cell in again] == ["up-to-date"] * len(cells)
    assert made == {cell.run: (workspace.run(cell.run) / "manifest.json").read_text() for cell in again}


def test_one_failure_does_not_stop_the_rest(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    from llmemb_cli.srs import train

    real = train.run_rat

    def sometimes(workspace: Workspace, settings: Settings, *args: Any, **more: Any) -> Any:
        if settings.rat.without == ["freeze"]:
            raise BadDataError("the dog ate it", where="kitchen", hint="another dog")
        if settings.rat.without == ["adapter"]:
            raise KeyError("nobody thought of this")
        return real(workspace, settings, *args, **more)

    monkeypatch.setattr(train, "run_rat", sometimes)
    args = ["reproduce", "table2", "--seeds", "42", "-w", str(workspace.root), "--json"]
    done = CliRunner().invoke(app, args)
    document = json.loads(done.stdout)
    assert done.exit_code == 1
    states = {"-".join(one["without"]): one["status"] for one in document["runs"]}
    assert states == {"": "done", "scft": "done", "adapter": "failed", "freeze": "failed", "align": "done"}
    assert "the dog ate it" in (workspace.root / "reproduce" / "table2.md").read_text()
    monkeypatch.setattr(train, "run_rat", real)
    done = CliRunner().invoke(app, args)
    assert done.exit_code == 0
    assert sorted(one["status"] for one in json.loads(done.stdout)["runs"]) == ["done"] * 2 + ["up-to-date"] * 3


def test_processes_give_the_same_runs_as_one_after_the_other(workspace: Workspace, tmp_path: Path) -> None:
    other = make_workspace(tmp_path / "other", **TINY)[0]
    parallel = grid_of(
        "table1", [workspace], [42], backbones=["gru4rec"], methods=["none", "llmemb"], overrides=SAMPLED
    )
    single = grid_of("table1", [other], [42], backbones=["gru4rec"], methods=["none", "llmemb"], overrides=SAMPLED)
    run_grid(parallel, Reporter(), jobs=2)
    run_grid(single, Reporter())
    assert [cell.error for cell in parallel] == [None, None]
    for cell in single:
        mine, theirs = (
            pl.read_parquet(w.evaluation(cell.run, "sampled-10-uniform-42") / "ranks.parquet")
            for w in (workspace, other)
        )
        assert (mine["rank"] == theirs["rank"]).mean() > 0.95  # another number of threads rounds sums otherwise


def test_interrupted_grid_keeps_what_is_finished_and_goes_on(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path / "ws", **{**TINY, "rat__epochs": 400, "rat__patience": 400})[0]
    args = [sys.executable, "-m", "llmemb_cli", "reproduce", "fig5", "--method", "none", "--method", "llmemb"]
    args += ["--seeds", "42", "-w", str(workspace.root), "--jobs", "2"]
    process = subprocess.Popen(args, stderr=subprocess.PIPE, text=True)
    partial = workspace.root / "runs" / ".sasrec-none-42.partial" / "log.jsonl"
    deadline = time.monotonic() + 120
    while not partial.is_file() and time.monotonic() < deadline:
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130 and "interrupted" in said
    kept = len(partial.read_text().splitlines())
    assert 0 < kept < 400
    cells = grid_of("fig5", [workspace], [42], methods=["none"], overrides={**SAMPLED})
    run_grid(cells, Reporter())
    assert cells[0].status == "done"
    lines = (workspace.run("sasrec-none-42") / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == list(range(1, 401))


def test_one_signal_ends_a_grid_of_which_a_worker_has_nothing_to_do(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path / "ws", **TINY)[0]
    args = [sys.executable, "-m", "llmemb_cli", "reproduce", "fig5", "--method", "none", "--jobs", "2"]
    args += ["-w", str(workspace.root), "--seeds"]
    # Three runs for two workers, and the last of them has no end of its own.
    assert subprocess.run([*args, "42,43"], capture_output=True, timeout=200).returncode == 0
    update_settings(workspace.settings_file, {"rat.epochs": 100_000, "rat.patience": 100_000})
    shutil.rmtree(workspace.run("sasrec-none-42"))
    with workspace.settings_file.open("a", encoding="utf-8") as file:
        file.write("\n[rat.gru4rec]\nepochs = 1\n")
    both = [*args, "42", "--backbone", "sasrec", "--backbone", "gru4rec"]
    process = subprocess.Popen(both, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    partial = workspace.root / "runs" / ".sasrec-none-42.partial" / "log.jsonl"
    short = workspace.evaluation("gru4rec-none-42", "sampled-10-uniform-42") / "manifest.json"
    while not (partial.is_file() and short.is_file()) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert short.is_file(), "one worker has finished"
    time.sleep(1)
    os.kill(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and "interrupted" in said
    assert partial.is_file(), "what was trained is kept"


def test_what_follows_from_a_changed_run_is_trained_again_in_the_same_call(workspace: Workspace) -> None:
    def grid() -> Any:
        return grid_of("fig5", [workspace], [42], methods=["none", "llmemb"], overrides=SAMPLED)

    run_grid(grid(), Reporter())
    with workspace.settings_file.open("a", encoding="utf-8") as file:
        file.write("\n[rat.none]\ndropout = 0.31\n")
    cells = grid()
    assert [is_done(cell) for cell in cells] == [False, False]
    run_grid(cells, Reporter(), jobs=2)
    assert [(cell.error, is_done(cell)) for cell in cells] == [(None, True)] * 2
    aligned = (read_manifest(workspace.run("sasrec-llmemb-42")) or {})["made_from"]["inputs"]["align"]
    assert aligned == output_fingerprint(workspace.run("sasrec-none-42"))


def test_stages_that_read_what_will_be_made_again_are_made_again_too(tmp_path: Path) -> None:
    def stages(steps: int) -> list[Stage]:
        data = Stage("data", tmp_path / "data", 1, {})
        scft = Stage("scft", tmp_path / "scft", 1, {"steps": steps}, inputs={"data": data.path})
        embed = Stage("embed", tmp_path / "embed", 1, {}, inputs={"scft": scft.path})
        return [data, scft, embed]

    for stage in stages(4):
        run_stage(stage, lambda work: (work / "file").write_text("x") and {})
    data, scft, embed = stages(4)
    assert grid._made_again([data, scft, embed]) == set()
    assert grid._made_again(stages(6)) == {scft.path, embed.path}
    shutil.rmtree(scft.path)
    assert grid._made_again([data, scft]) == {scft.path}


def test_a_grid_keeps_the_settings_it_began_with(workspace: Workspace) -> None:
    cells = grid_of("fig5", [workspace], [42], methods=["none", "llmemb"], overrides=SAMPLED)
    update_settings(workspace.settings_file, {"rat.dropout": 0.37})
    run_grid(cells, Reporter())
    assert [cell.error for cell in cells] == [None, None]
    assert {path.name for path in (workspace.root / "runs").glob("[!.]*")} == {"sasrec-none-42", "sasrec-llmemb-42"}


def test_dry_run_trains_nothing_and_bad_choices_are_named(workspace: Workspace) -> None:
    def call(*args: str) -> Any:
        return CliRunner().invoke(app, ["reproduce", *args, "-w", str(workspace.root)])

    plan = json.loads(call("table1", "--dry-run", "--seeds", "1,2", "--json").stdout)
    assert plan["to_do"] == len(plan["runs"]) == 36 and plan["unknown"] == 6 and plan["at_most"]
    known = [one for one in plan["runs"] if one["method"] != "melt"]
    assert {one["estimated_from"] for one in known} == {"steps"}
    assert plan["estimate"] == pytest.approx(sum(one["estimate"] for one in known))
    assert not (workspace.root / "runs").exists()
    assert call("table1", "--method", "llmemd").exit_code == 2
    assert "did you mean llmemb" in call("table1", "--method", "llmemd").stderr
    assert call("table1", "--seeds", "one").exit_code == 2
    assert call("table9").exit_code == 2
    assert "llmemb.toml" in call("table1", "--set", "scft.steps=3").stderr
    for setting, flag in (
        ("rat.method=none", "--method"),
        ("rat.backbone=gru4rec", "--backbone"),
        ("seed=1", "--seeds"),
    ):
        refused = call("table1", "--set", setting)
        assert refused.exit_code == 2 and f"take {flag}" in refused.stderr


def test_pairs_that_cannot_be_trained_are_left_out_and_told(workspace: Workspace) -> None:
    def call(*args: str) -> Any:
        args = ("table1", "--backbone", "caser", "--seeds", "42", *args, "-w", str(workspace.root))
        return CliRunner().invoke(app, ["reproduce", *args])

    plan = call("--method", "none", "--method", "melt", "--dry-run", "--json")
    assert [one["run"] for one in json.loads(plan.stdout)["runs"]] == ["caser-none-42"]
    assert "left out: caser with melt" in json.loads(plan.stdout)["notes"][0]
    assert "left out: caser with melt" in call("--method", "none", "--method", "melt", "--dry-run").stderr
    done = call("--method", "none", "--method", "melt", "--json")
    assert done.exit_code == 0 and "caser with melt" in json.loads(done.stdout)["notes"][0]
    alone = call("--method", "melt")
    assert alone.exit_code == 2 and "training diverges" in alone.stderr


def test_settings_that_no_run_of_the_grid_reads_are_told(workspace: Workspace) -> None:
    def notes(*backbones: str) -> list[str]:
        chosen = [word for name in backbones for word in ("--backbone", name)]
        args = ["table1", "--method", "none", *chosen, "--seeds", "42", "--set", "rat.mask_ratio=0.3"]
        done = CliRunner().invoke(app, ["reproduce", *args, "--dry-run", "--json", "-w", str(workspace.root)])
        return list(json.loads(done.stdout)["notes"])

    assert notes("sasrec", "gru4rec") == ["no effect on any run: rat.mask_ratio"]
    assert notes("sasrec", "bert4rec") == []


def test_a_stage_before_the_grid_that_fails_is_told_before_the_rest_is_trained(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []

    class Noting(Reporter):
        def warn(self, message: str) -> None:
            told.append(message)

    def unable(*args: Any) -> None:
        raise MissingError("no such model", where="scft.model", hint="take another one")

    def tried(cell: Any) -> list[Step]:
        return [Step("said", Stage("said", workspace.embeddings("said"), 1, {}), unable)] * (cell.run in blocked)

    blocked = ["sasrec-said-42", "gru4rec-said-42"]
    monkeypatch.setattr(grid, "steps_before", tried)
    monkeypatch.setattr(grid, "is_done", lambda cell: False)
    trained = grid._train

    def noted(*args: Any) -> dict[str, Any]:
        assert told, "said must have been told to fail by now"
        return trained(*args)

    monkeypatch.setattr(grid, "_train", noted)
    cells = grid_of("table1", [workspace], [42], backbones=["sasrec", "gru4rec"], methods=["none", "said"])
    run_grid(cells, Noting())
    assert {cell.run: cell.status for cell in cells} == {
        "sasrec-none-42": "done",
        "gru4rec-none-42": "done",
        "sasrec-said-42": "failed",
        "gru4rec-said-42": "failed",
    }
    assert told == [
        "said failed: scft.model: no such model (take another one); left out for it: sasrec-said-42, gru4rec-said-42"
    ]


def test_candidates_that_cannot_be_drawn_fail_before_a_language_model_is_trained(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trained(*args: Any) -> None:
        raise AssertionError("hours of an LLM, and then no candidates")

    stage = Stage("said", workspace.embeddings("said"), 1, {})
    monkeypatch.setattr(grid, "steps_before", lambda cell: [Step("said", stage, trained)])
    cells = grid_of("table1", [workspace], [42], methods=["said"], overrides=SAMPLED | {"eval.negatives": 9999})
    run_grid(cells, Reporter())
    assert cells and all("fewer than 9999 items" in (cell.error or {})["message"] for cell in cells)


def test_a_failure_holds_nothing_of_what_failed() -> None:
    class Tensors: ...

    held: list[weakref.ref[Tensors]] = []

    def fail() -> None:
        tensors = Tensors()
        held.append(weakref.ref(tensors))
        raise LlmembError("out of memory", hint="lower rat.batch_size")

    error = grid._attempt(fail)
    assert error is not None and error["hint"] == "lower rat.batch_size" and held[0]() is None


def test_time_is_estimated_from_runs_like_it_and_else_from_steps(workspace: Workspace) -> None:
    def grid(**overrides: Any) -> Any:
        changes = SAMPLED | {f"rat.{key}": value for key, value in overrides.items()}
        return grid_of(
            "table1", [workspace], [1], backbones=["sasrec"], methods=["none", "llmemb"], overrides=changes
        )

    before = estimate(grid(epochs=4))
    assert [one.source for one in before if one] == ["steps", "steps"]
    run_grid(grid(epochs=4, patience=9), Reporter())
    summaries = [
        json.loads((workspace.run(cell.run) / "manifest.json").read_text())["summary"]
        for cell in grid(epochs=4, patience=9)
    ]
    assert [one["epochs"] for one in summaries] == [4, 4]
    for most in (2, 40):
        found = estimate(grid(epochs=most))
        assert [one.source for one in found if one] == ["runs", "runs"]
        # A run that was cut off by its last epoch says nothing about stopping early.
        assert [one.seconds for one in found if one] == pytest.approx(
            [summary["seconds_per_epoch"] * most for summary in summaries]
        )
    assert [one.source for one in estimate(grid(hidden_size=16)) if one] == ["steps", "steps"]
    shutil.rmtree(workspace.data)
    assert estimate(grid(hidden_size=16)) == [None, None]


def test_some_users_are_whole_users(workspace: Workspace) -> None:
    data = load_split(workspace.data)
    some = only_users(data, np.array([7, 3]))
    assert some.user_ids.to_list() == ["u7", "u3"] and some.n_items == data.n_items
    assert [some.train.row(at).tolist() for at in (0, 1)] == [data.train.row(at).tolist() for at in (7, 3)]
    assert some.valid.tolist() == data.valid[[7, 3]].tolist()


@pytest.mark.parametrize("target", ["fig4", "fig5", "fig6"])
def test_figures_are_made_with_their_claims(workspace: Workspace, target: Any) -> None:
    cells = grid_of(
        target, [workspace], [42], methods=None if target == "fig4" else ["none", "llmemb"], overrides=SAMPLED
    )
    run_grid(cells, Reporter())
    document = reproduce_document(target, cells)
    assert not document["failed"] and document["claims"] and not document["sources"]
    for row in document["figures"]:
        assert f"{row['mean']:.4f}" in markdown(document)
    if target == "fig4":
        (claim,) = document["claims"]
        swept = {
            r["alpha"]: r["mean"]
            for r in document["figures"]
            if r["gamma"] == 2.0 and r["part"] == "overall" and r["metric"] == "HR@10"
        }
        assert swept.keys() == set(SWEEPS["alpha"]) and swept[claim["ours"][0]] == max(swept.values())
        assert (claim["verdict"] == "holds") == (claim["ours"] == [0.01])
    if target == "fig6":
        gaps = {one["metric"]: one["ours"][0] < one["ours"][1] for one in document["claims"]}
        assert {one["metric"]: one["verdict"] == "holds" for one in document["claims"]} == gaps


def test_figures_of_the_papers_data_stand_beside_ours(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path / "ws", items=141, length=5, **{**TINY, "eval__negatives": 100})[0]
    manifest = workspace.data / "manifest.json"
    card = json.loads(manifest.read_text())
    card["summary"]["dataset"] = "beauty"
    manifest.write_text(json.dumps(card))
    assert load_settings(workspace.settings_file).data.dataset == "custom"
    cells = grid_of("table1", [workspace], [42], backbones=["sasrec"], methods=["none", "llmemb"], overrides=SAMPLED)
    run_grid(cells, Reporter())
    document = reproduce_document("table1", cells)
    assert [cell.error for cell in cells] == [None] * len(cells)
    cell = next(
        r for r in document["figures"] if (r["method"], r["part"], r["metric"]) == ("llmemb", "tail", "HR@10")
    )
    assert cell["paper"] == 0.4194 and cell["ratio"] == pytest.approx(cell["mean"] / 0.4194)
    assert document["sources"].keys() == {"alphafuse", "table1"}
    head = [r for r in document["figures"] if r["part"] == "head"]
    assert head and all(r["paper"] is None and r["ratio"] is None for r in head)
    text = markdown(document)
    assert re.search(rf"\(0\.4194, ×{cell['ratio']:.2f}\)", text) and "52,204" in text and "absent" in text
    # Among other candidates, or the whole catalogue, the paper's figures do not stand beside ours.
    for changes in (
        {"eval.negatives": 10},
        {"eval.candidates": "popularity", "eval.negatives": 50},
        {"eval.protocol": "full"},
    ):
        cells = grid_of(
            "table1", [workspace], [42], backbones=["sasrec"], methods=["none", "llmemb"], overrides=SAMPLED | changes
        )
        run_grid(cells, Reporter())
        document = reproduce_document("table1", cells)
        assert {row["paper"] for row in document["figures"]} == {None} and not document["sources"]
        assert "another protocol" in markdown(document) and document["claims"]


def test_verdicts_say_what_the_figures_say() -> None:
    assert verdict(0.1, 0.01) == "holds, significantly"
    assert verdict(0.1, 0.2) == "holds, not significantly"
    assert verdict(-0.1, 0.01) == "does not hold, significantly"
    assert verdict(0.0, None) == "no difference" and verdict(0.2, None) == "holds"


@pytest.mark.parametrize(("llmemb", "none", "melt"), [(0.5, 0.4, 0.3), (0.4, 0.5, 0.6), (0.4, 0.4, 0.4)])
def test_claims_are_judged_for_the_methods_and_data_they_are_about(llmemb: float, none: float, melt: float) -> None:
    means = {"llmemb": llmemb, "none": none, "melt": melt, "alphafuse": 0.9}
    rows = [
        {
            "backbone": "sasrec",
            "method": method,
            "without": [],
            "part": "tail",
            "metric": "HR@10",
            "mean": mean,
            "paper": None,
            "baseline": method == "llmemb",
            "p_corrected": None if method == "llmemb" else 0.01,
            "dataset": "beauty",
        }
        for method, mean in means.items()
    ]
    claims = paper_figures("table1")["claims"]
    found = {one["compared"]: one for one in judge(claims, rows, "ws", [])}
    assert found.keys() == {"llmemb and none", "llmemb and melt", "none and melt"}
    for compared, one in found.items():
        better, worse = compared.split(" and ")
        gap = means[better] - means[worse]
        said = "no difference" if gap == 0 else "holds" if gap > 0 else "does not hold"
        assert one["verdict"].partition(",")[0] == said
        assert one["p"] == (0.01 if "llmemb" in compared else None)
    elsewhere = judge(claims, [row | {"dataset": "ml-100k"} for row in rows], "ws", [])
    assert [one["compared"] for one in elsewhere] == ["llmemb and none", "llmemb and melt"]
    ahead = judge(
        claims,
        [
            row | {"method": "llmesr", "part": "overall"} if row["method"] == "none" else row | {"part": "overall"}
            for row in rows
        ],
        "ws",
        [],
    )
    assert {one["compared"]: one["p"] for one in ahead}["llmesr and llmemb"] == 0.01


def test_settings_of_a_backbone_in_the_file_are_those_of_its_runs_and_of_runs_they_need(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path / "ws", **TINY)[0]
    own = {"rat.gru4rec.learning_rate": 0.02, "rat.gru4rec-llmemb.dropout": 0.3, "rat.llmemb.alpha": 0.2}
    update_settings(workspace.settings_file, own)
    filed = load_settings(workspace.settings_file)
    cells = grid_of("table1", [workspace], [42], backbones=["sasrec", "gru4rec"], methods=["none", "llmemb"])
    used = {cell.run: cell.settings.rat for cell in cells}
    # None of these is a change by flags, so all have plain names.
    assert list(used) == ["sasrec-none-42", "sasrec-llmemb-42", "gru4rec-none-42", "gru4rec-llmemb-42"]
    assert [rat.learning_rate for rat in used.values()] == [0.001, 0.001, 0.02, 0.02]
    assert [rat.dropout for rat in used.values()] == [0.5, 0.5, 0.5, 0.3]
    assert used["sasrec-llmemb-42"].alpha == used["gru4rec-llmemb-42"].alpha == 0.2
    run_rat(workspace, cells[3].settings, Reporter(), in_file=filed)
    assert {path.name for path in (workspace.root / "runs").glob("[!.]*")} == {"gru4rec-llmemb-42", "gru4rec-none-42"}
    assert not run_rat(workspace, cells[2].settings, Reporter(), in_file=filed).built, (
        "trained for llmemb to align to"
    )
    # A flag counts for both, and names say so.
    flagged = grid_of(
        "table1", [workspace], [42], backbones=["gru4rec"], methods=["none", "llmemb"], overrides={"rat.dropout": 0.1}
    )
    assert [cell.settings.rat.dropout for cell in flagged] == [0.1, 0.1]
    assert all(cell.run.count("-") == 3 for cell in flagged)
    # The whole plan of the file, as `llmemb run` makes it.
    plan = filed.model_copy(
        update={"run": filed.run.model_copy(update={"backbones": ["gru4rec"], "methods": ["none", "llmemb"]})}
    )
    assert [one.rat.dropout for one in variants(plan)] == [0.5, 0.3]


def test_workspaces_of_one_name_and_other_protocols_are_told_apart_and_corrected_together(tmp_path: Path) -> None:
    spaces = [
        make_workspace(tmp_path / name / "ws", users=60, **{**TINY, "eval__negatives": negatives})[0]
        for name, negatives in (("a", 10), ("b", 5))
    ]
    cells = grid_of("table1", spaces, [42], backbones=["sasrec"], methods=["none", "llm2x", "llmemb"])
    for cell in cells:
        cell.settings = cell.settings.model_copy(
            update={"eval": cell.settings.eval.model_copy(update={"protocol": "sampled"})}
        )
    run_grid(cells, Reporter())
    document = json.loads(json.dumps(reproduce_document("table1", cells)))
    ranked = {"a/ws": "ranked among 10 sampled", "b/ws": "ranked among 5 sampled"}
    assert {name: text[: len(ranked[name])] for name, text in document["protocols"].items()} == ranked
    text = markdown(document)
    for name, said in ranked.items():
        title = next(line for line in text.splitlines() if line.startswith(f"## {name}, SASRec"))
        assert said in title and f"{said} items" in document["protocol"]
        rows = [row for row in document["figures"] if row["workspace"] == name]
        assert len(rows) == 3 * 3 * 2
    # Every p that was computed, once, and Holm's correction over them by its definition.
    raw = []
    for cell in cells:
        if cell.settings.rat.method == "llmemb":
            continue
        folder = f"sampled-{cell.settings.eval.negatives}-uniform-42"
        theirs, ours = (
            pl.read_parquet(cell.workspace.evaluation(run, folder) / "ranks.parquet")
            for run in (cell.run, "sasrec-llmemb-42")
        )
        for part in ("overall", "tail", "head"):
            inside = pl.lit(True) if part == "overall" else pl.col("popularity") == part
            for metric in ("HR@10", "NDCG@10"):
                gaps = theirs.filter(inside)[metric].to_numpy() - ours.filter(inside)[metric].to_numpy()
                p = float(stats.ttest_1samp(gaps, 0).pvalue) if gaps.any() else 1.0
                where = "a/ws" if "/a/" in cell.workspace.root.as_posix() else "b/ws"
                raw.append(((where, cell.settings.rat.method, part, metric), p))
    assert document["tests"] == len(raw) == 2 * 2 * 3 * 2
    raw.sort(key=lambda one: one[1])
    expected: dict[Any, float] = {}
    worst = 0.0
    for place, (key, p) in enumerate(raw):
        worst = max(worst, min(1.0, (len(raw) - place) * p))
        expected[key] = worst
    found = {
        (row["workspace"], row["method"], row["part"], row["metric"]): row["p_corrected"]
        for row in document["figures"]
        if row["p"] is not None
    }
    assert found == pytest.approx(expected)


def test_nothing_is_said_of_embeddings_where_every_run_failed(workspace: Workspace) -> None:
    cells = grid_of("table1", [workspace], [42], backbones=["sasrec"], methods=["none"])
    for cell in cells:
        cell.status = "failed"
    text = markdown(reproduce_document("table1", cells))
    assert "Ours: no figures, as no run was finished." in text and "embeddings are looked at" not in text


def test_a_group_of_everybody_is_no_further_test_of_a_reproduction(workspace: Workspace) -> None:
    """Where all test users are in the tail, its figures are the overall ones, and so is its test."""
    changes = SAMPLED | {"eval.tail_threshold": 10_000}
    cells = grid_of("table1", [workspace], [42], backbones=["sasrec"], methods=["none", "llmemb"], overrides=changes)
    run_grid(cells, Reporter())
    document = reproduce_document("table1", cells)
    assert document["tests"] == 2
    by = {(row["method"], row["part"], row["metric"]): row["p_corrected"] for row in document["figures"]}
    for metric in ("HR@10", "NDCG@10"):
        assert by["none", "tail", metric] == by["none", "overall", metric] is not None


def test_protocol_may_be_set_and_methods_of_no_use_are_refused(workspace: Workspace) -> None:
    def call(*args: str) -> Any:
        return CliRunner().invoke(app, ["reproduce", *args, "-w", str(workspace.root)])

    args = ["table1", "--backbone", "sasrec", "--method", "none", "--seeds", "42"]
    for more, folder in (
        (["--set", "eval.protocol=full"], "full"),
        (["--set", "eval.protocol=full", "--protocol", "sampled"], "sampled-10-uniform-42"),
        ([], "sampled-10-uniform-42"),
    ):
        shutil.rmtree(workspace.run("sasrec-none-42") / "eval", ignore_errors=True)
        assert call(*args, *more).exit_code == 0
        assert [path.name for path in (workspace.run("sasrec-none-42") / "eval").iterdir()] == [folder]
    for target in ("table2", "fig4"):
        refused = call(target, "--method", "none", "--method", "llmemb", "--seeds", "42")
        assert refused.exit_code == 2 and "about llmemb alone" in refused.stderr
        assert call(target, "--method", "llmemb", "--seeds", "42", "--dry-run").exit_code == 0
