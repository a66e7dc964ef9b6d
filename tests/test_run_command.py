"""`llmemb run` and `llmemb status`: the grid of a workspace, flags on it, and what is damaged in it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from llmemb_cli.config.rat import RatSettings
from llmemb_cli.config.runs import unused_settings
from llmemb_cli.config.settings import (
    load_settings,
    make_settings,
    parse_assignments,
    update_settings,
    write_settings,
)
from llmemb_cli.datasets.split import load_split
from llmemb_cli.errors import BadDataError, WrongUseError
from llmemb_cli.srs.vectors import Source
from llmemb_cli.workspace.locate import Workspace
from llmemb_cli.workspace.lock import write_lock
from llmemb_cli.workspace.stage import check_contents
from tests.calls import call, document
from tests.make_workspace import make_workspace

PLAN = {"run__methods": ["none", "melt"], "rat__hidden_size": 8, "rat__epochs": 1, "rat__max_length": 8}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    workspace, _ = make_workspace(tmp_path_factory.mktemp("grid") / "ws", **PLAN)
    assert call(workspace, "run").exit_code == 0
    return workspace


@pytest.fixture
def grid(finished: Workspace, tmp_path: Path) -> Workspace:
    return Workspace(Path(shutil.copytree(finished.root, tmp_path / "ws")))


def stages(workspace: Workspace, *args: str) -> dict[str, dict[str, str]]:
    return {entry["stage"]: entry for entry in document(workspace, "status", *args)["stages"]}


def contents(workspace: Workspace) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in (workspace.root / "runs").rglob("*") if path.is_file()}


def test_flags_on_a_grid_make_runs_of_their_own_and_leave_those_of_the_file(grid: Workspace) -> None:
    before = contents(grid)
    flags = ("--set", "rat.epochs=2", "--set", "run.methods=none")
    would = {entry["stage"] for entry in document(grid, "run", "--dry-run", *flags)["would_run"]}
    assert "rat sasrec-none-42" not in would
    built = {entry["stage"] for entry in document(grid, "run", *flags)["stages"] if entry["built"]}
    (own,) = (name.removeprefix("rat ") for name in built if name.startswith("rat "))
    assert own.startswith("sasrec-none-42-") and f"eval {own}" in built
    assert contents(grid).items() >= before.items()
    # It is the run that `rat` with the same flag makes, and nothing of the file's own grid is to be done again.
    trained = document(grid, "rat", "--method", "none", "--epochs", "2")["runs"]
    assert [(one["run"], one["built"]) for one in trained] == [(own, False)]
    assert {entry["stage"] for entry in document(grid, "run", "--dry-run")["would_run"]} == {"report"}


def test_a_setting_in_the_file_makes_the_plain_run_stale(grid: Workspace) -> None:
    update_settings(grid.settings_file, {"rat.epochs": 2})
    assert "epochs changed: 1 -> 2" in stages(grid)["rat sasrec-none-42"]["reason"]
    assert stages(grid)["report"]["reason"] == "setting rat.epochs changed: 1 -> 2"


@pytest.mark.parametrize("damage", ["manifest", "cut", "gone"])
def test_what_is_damaged_is_stale_and_the_grid_mends_it(grid: Workspace, damage: str) -> None:
    weights = grid.run("sasrec-melt-42") / "model.safetensors"
    whole = weights.read_bytes()
    if damage == "manifest":
        (grid.run("sasrec-melt-42") / "manifest.json").write_text("{")
    elif damage == "cut":
        weights.write_bytes(whole[:100])
        assert call(grid, "export", "sasrec-melt-42").exit_code == 4
        done = call(grid, "recommend", "u3", "--run", "sasrec-melt-42")
        assert done.exit_code == 4 and "make it again" in done.stderr
    else:
        weights.unlink()
    found = stages(grid)
    assert found["rat sasrec-melt-42"]["state"] == "stale" and found["rat sasrec-none-42"]["state"] == "up-to-date"
    assert {"manifest": "damaged", "cut": "has 100 bytes", "gone": "is gone"}[damage] in found["rat sasrec-melt-42"][
        "reason"
    ]
    built = {entry["stage"] for entry in document(grid, "run")["stages"] if entry["built"]}
    assert "rat sasrec-melt-42" in built and "rat sasrec-none-42" not in built
    assert weights.read_bytes() == whole
    assert {entry["state"] for entry in stages(grid).values()} == {"up-to-date"}


def test_an_export_of_changed_numbers_is_refused(grid: Workspace, tmp_path: Path) -> None:
    vectors = grid.run("sasrec-none-42") / "item_embeddings.safetensors"
    changed = bytearray(vectors.read_bytes())
    changed[-3] ^= 1
    vectors.write_bytes(changed)
    with pytest.raises(BadDataError, match="not as it was written"):
        check_contents(grid.run("sasrec-none-42"))
    done = call(grid, "export", "sasrec-none-42", "-o", str(tmp_path / "out"))
    assert done.exit_code == 4 and "not as it was written" in done.stderr and not (tmp_path / "out").exists()


def test_a_part_that_is_begun_with_other_settings_is_said_to_start_afresh(grid: Workspace) -> None:
    run = grid.run("sasrec-none-42")
    work = run.with_name(f".{run.name}.partial")
    work.mkdir()
    made_from = json.loads((run / "manifest.json").read_text())["made_from"]
    (work / "partial.json").write_text(json.dumps({"made_from": made_from}))
    shutil.rmtree(run)
    assert "goes on" in stages(grid)["rat sasrec-none-42"]["reason"]
    update_settings(grid.settings_file, {"rat.epochs": 2})
    assert "starts afresh" in stages(grid)["rat sasrec-none-42"]["reason"]


def test_what_only_reads_works_beside_a_training(grid: Workspace, tmp_path: Path) -> None:
    with write_lock(grid):
        import llmemb_cli.workspace.lock as lock

        held, lock._held = lock._held, set()  # as another process would see it
        try:
            assert call(grid, "eval").exit_code == 0
            assert call(grid, "export", "sasrec-none-42", "-o", str(tmp_path / "out")).exit_code == 0
            assert call(grid, "export", "sasrec-none-42").exit_code == 0
            done = call(grid, "eval", "--force")
            assert done.exit_code == 1 and "in use by" in done.stderr
        finally:
            lock._held = held


def test_the_plan_is_checked_before_anything_is_made(grid: Workspace) -> None:
    chosen = make_settings(parse_assignments(["run.seeds=42", "run.methods=none,melt,none", "eval.k=5"]))
    assert (chosen.run.seeds, chosen.run.methods, chosen.eval.k) == ([42], ["none", "melt"], [5])
    assert make_settings(parse_assignments(["run.backbones=bsarec"])).run.backbones == ["bsarec"]
    for wrong in ("run.seeds=-1,4", "run.methods=", "run.backbones=", "run.seeds=a"):
        with pytest.raises(WrongUseError, match=wrong.partition("=")[0]):
            make_settings(parse_assignments([wrong]))
    flags = ("--set", "run.methods=none,said", "--set", "scft.model=minilm-l6")
    for more in ((), ("--dry-run",)):
        done = call(grid, "run", *flags, *more)
        assert done.exit_code == 2 and "is an encoder" in done.stderr and not grid.embeddings("said").exists()
    done = call(grid, "run", "--set", "run.methods=melt", "--set", "run.backbones=caser", "--dry-run")
    assert done.exit_code == 2 and "caser" in done.stderr


def test_lists_of_flags_may_have_commas(grid: Workspace) -> None:
    done = document(grid, "rat", "--method", "llmemb", "--without", "align,freeze", "--epochs", "1")
    assert done["runs"][0]["without"] == ["align", "freeze"]


def test_comparing_a_method_says_which_of_its_runs_is_damaged(grid: Workspace) -> None:
    (grid.run("sasrec-melt-42") / "manifest.json").write_text("[1]")
    done = call(grid, "compare", "none")
    assert done.exit_code == 0 and "left out: sasrec-melt-42 is damaged" in done.stderr


def test_an_empty_history_is_wrong_use(grid: Workspace) -> None:
    done = call(grid, "recommend", "--items", " ,")
    assert done.exit_code == 2 and "--items is empty" in done.stderr


def test_runs_aligned_to_other_kinds_of_runs_are_no_seeds_of_one_variant(grid: Workspace) -> None:
    with grid.settings_file.open("a") as file:
        file.write("\n[rat.llmemb]\nlearning_rate = 0.002\n")
    for flags in (["--seeds", "42,43"], ["--seeds", "44", "--set", "rat.none.init_std=0.5"]):
        assert call(grid, "rat", "--method", "llmemb", *flags).exit_code == 0
    assert call(grid, "eval").exit_code == 0
    found = [entry for entry in document(grid, "compare")["variants"] if entry["method"] == "llmemb"]
    assert sorted(entry["seeds"] for entry in found) == [[42, 43], [44]]
    (other,) = (entry for entry in found if entry["seeds"] == [44])
    assert other["changed"] == {"collaborative.init_std": 0.5}
    # Runs of before did not say what they read: those of that name are looked at.
    for seed in ("42", "43", "44-*"):
        (path,) = grid.root.glob(f"runs/sasrec-llmemb-{seed}/manifest.json")
        manifest = json.loads(path.read_text())
        del manifest["summary"]["collaborative"]
        path.write_text(json.dumps(manifest))
    again = [entry for entry in document(grid, "compare")["variants"] if entry["method"] == "llmemb"]
    assert [entry["seeds"] for entry in again] == [entry["seeds"] for entry in found]


def test_parts_that_leave_nothing_to_compare_are_not_left_out_together(grid: Workspace) -> None:
    done = call(grid, "rat", "--method", "llmemb", "--without", "adapter,freeze")
    assert done.exit_code == 2 and "--method llm2x" in done.stderr


def test_embeddings_that_lack_items_cost_the_diversity_alone(grid: Workspace) -> None:
    ids = grid.embeddings("scft") / "ids.parquet"
    pl.read_parquet(ids).with_columns(pl.col("item_id").replace("i3", "gone")).write_parquet(ids)
    done = call(grid, "eval", "sasrec-none-42", "--force")
    assert done.exit_code == 0 and "embeddings/scft lacks items" in done.stderr
    (run,) = document(grid, "eval", "sasrec-none-42")["runs"]
    assert run["beyond"]["diversity"] is None and run["beyond"]["coverage"] > 0


def test_components_without_variance_are_not_whitened_into_noise(grid: Workspace) -> None:
    settings = load_settings(grid.settings_file)
    source = Source(grid, settings, load_split(grid.data), "base")
    low = np.random.default_rng(0).normal(size=(3, 24))
    source.vectors = (np.random.default_rng(1).normal(size=(len(source.vectors), 3)) @ low * 30).astype(np.float32)
    whitened = source.principal(8, whiten=True)
    np.testing.assert_allclose(whitened[:, :3].std(axis=0, ddof=1), 1.0, rtol=1e-3)
    assert not whitened[:, 3:].any()


def test_another_loss_has_its_own_number_of_negatives_again(tmp_path: Path) -> None:
    path = tmp_path / "llmemb.toml"
    write_settings(path, make_settings({"rat.loss": "sce"}))
    assert "# negatives = 0" in path.read_text()
    assert load_settings(path).rat.negatives == 500
    assert load_settings(path, {"rat.loss": "gbce"}).rat.negatives == 256
    write_settings(path, make_settings({"rat.loss": "sce", "rat.negatives": 64}))
    assert load_settings(path, {"rat.loss": "gbce"}).rat.negatives == 64


@pytest.mark.parametrize(
    ("values", "unused"),
    [
        ({"method": "llm2x", "init_scale": "none"}, {"init_std"}),
        ({"method": "llmesr", "init_scale": "none"}, {"init_std"}),
        ({"method": "said", "freeze_vectors": True}, {"init_std", "init_scale"}),
        ({"method": "alphafuse"}, {"init_scale"}),
        ({"method": "llmesr", "esr_distill_weight": 0.0}, {"esr_similar_users"}),
    ],
)
def test_settings_that_change_nothing_do_not_count(values: dict[str, Any], unused: set[str]) -> None:
    assert unused <= unused_settings(RatSettings(**values))
    without = {key: value for key, value in values.items() if key == "method"}
    assert not (unused - {"init_scale"}) & unused_settings(RatSettings(**without))
