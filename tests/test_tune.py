"""Search of settings: validation data only, goes on after an interruption, keeps the best run."""

from __future__ import annotations

import json
import math
import re
import shlex
import shutil
import tomllib
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from typer.testing import CliRunner

from llmemb_cli.app import app
from llmemb_cli.config.runs import run_name
from llmemb_cli.config.settings import load_settings, parse_assignments
from llmemb_cli.datasets.split import SplitData
from llmemb_cli.embeddings.pca import fit_pca, write_pca
from llmemb_cli.embeddings.table import EmbeddingTable, read_table, write_table
from llmemb_cli.errors import BadDataError, InterruptedRunError, LlmembError, WrongUseError
from llmemb_cli.pipeline import embed_stage
from llmemb_cli.progress import Reporter
from llmemb_cli.srs import loop
from llmemb_cli.srs.train import run_rat
from llmemb_cli.srs.tune import exhausted, parse_space, run_tune, suggest
from llmemb_cli.workspace.locate import Workspace
from llmemb_cli.workspace.make import run_stage
from llmemb_cli.workspace.stage import read_manifest
from llmemb_cli.workspace.store import sha256_json
from tests.make_workspace import make_workspace
from tests.test_recommenders import SMALL, StopAfter

SPACE = parse_space(["rat.learning_rate=0.0001..0.02", "rat.layers=1..2"])
FEW = SMALL | {"rat__epochs": 4, "rat__method": "none"}


def names(workspace: Workspace) -> set[str]:
    return {path.name for path in (workspace.root / "runs").glob("[!.]*")}


def test_no_trial_is_made_twice_and_a_search_ends_with_its_settings() -> None:
    space = parse_space(["rat.dropout=0.1,0.3,0.5", "rat.layers=1,2"])
    done: list[dict[str, Any]] = []
    while not exhausted(space, done):
        # One setting is by far the best, which the search would ask for again and again.
        chosen = suggest(space, done, 7)
        score = 0.9 if chosen == {"rat.dropout": 0.3, "rat.layers": 2} else 0.1
        done.append({"settings": chosen, "NDCG@10": score})
    assert sorted((one["settings"]["rat.dropout"], one["settings"]["rat.layers"]) for one in done) == [
        (dropout, layers) for dropout in (0.1, 0.3, 0.5) for layers in (1, 2)
    ]
    assert not exhausted(SPACE, [{"settings": suggest(SPACE, [], 7)}] * 1000)


def test_a_search_asks_for_no_more_trials_than_there_are(tmp_path: Path) -> None:
    workspace, _ = make_workspace(tmp_path / "ws", **(FEW | {"rat__epochs": 1}))
    found = run_tune(workspace, parse_space(["rat.dropout=0.1,0.3"]), {"rat.method": "none"}, Reporter(), trials=9)
    assert [record["settings"]["rat.dropout"] for record in found["trials"]] in ([0.1, 0.3], [0.3, 0.1])


def test_what_can_be_searched() -> None:
    space = parse_space(["rat.alpha=1e-3..1", "rat.dropout=0.1,0.5", "rat.loss=bce,ce"])
    assert space == {"rat.alpha": (0.001, 1), "rat.dropout": [0.1, 0.5], "rat.loss": ["bce", "ce"]}
    for wrong, said in (
        ("rat.alhpa=1..2", "settings of"),
        ("scft.epochs=1,2", "settings of"),
        ("rat.alpha=2..1", "larger"),
        ("rat.alpha=x..y", "larger"),
        ("rat.alpha", "no values"),
        ("rat.method=none,llmemb", "which run it is"),
        ("rat.without=scft", "which run it is"),
    ):
        with pytest.raises(WrongUseError, match=said):
            parse_space([wrong])
    with pytest.raises(WrongUseError, match="given twice"):
        parse_space(["rat.dropout=0.1,0.3", "rat.dropout=0.2"])


def test_a_search_of_what_changes_nothing_says_so(tmp_path: Path) -> None:
    workspace, _ = make_workspace(tmp_path / "ws", **FEW | {"rat__epochs": 1})
    call = ["tune", "--trials", "1", "-w", str(workspace.root)]
    said = CliRunner().invoke(app, [*call, "--name", "a", "rat.alpha=0.1,0.3", "rat.dropout=0.1"]).stderr
    assert "no effect on sasrec-none, so all trials are alike in it: rat.alpha" in " ".join(said.split())
    call = [*call, "--name", "a", "rat.alpha=0.1,0.3", "rat.dropout=0.1"]
    assert "alpha" not in CliRunner().invoke(app, call).stdout.partition("best:")[2]
    CliRunner().invoke(app, [*call, "--keep"])
    kept = tomllib.loads(workspace.settings_file.read_text(encoding="utf-8"))["rat"]["sasrec-none"]
    assert kept == {"dropout": 0.1}
    call = ["tune", "--trials", "1", "-w", str(workspace.root)]
    # With one of the losses it does have an effect.
    said = CliRunner().invoke(app, [*call, "--name", "b", "rat.loss=ce,sce", "rat.negatives=5,9"]).stderr
    assert "no effect" not in said


def test_suggestions_stay_in_their_ranges_and_follow_what_was_found() -> None:
    space = parse_space(["rat.alpha=0.001..1", "rat.layers=1..4"])
    done: list[dict[str, Any]] = []
    for number in range(40):
        values = suggest(space, done, 1)
        assert 0.001 <= values["rat.alpha"] <= 1 and values["rat.layers"] in (1, 2, 3, 4)
        assert values == suggest(space, done, 1), "the trials so far decide"
        found = -abs(math.log10(values["rat.alpha"]) + 1) if number != 5 else None
        done.append({"settings": values, "NDCG@10": found})
    missed = [abs(math.log10(one["settings"]["rat.alpha"]) + 1) for one in done]
    assert sum(missed[25:]) / 15 < 0.6 * sum(missed[:10]) / 10
    assert sum(one["settings"]["rat.alpha"] < 0.03 for one in done[:10]) > 2, "logarithmic"


def test_search_keeps_the_best_run_and_says_how_to_repeat_it(tmp_path: Path) -> None:
    workspace, _ = make_workspace(tmp_path / "ws", **FEW)
    found = run_tune(workspace, SPACE, {"rat.dropout": 0.1}, Reporter(), trials=4)
    scores = [one["NDCG@10"] for one in found["trials"]]
    assert found["best"]["NDCG@10"] == max(scores) and len(set(scores)) > 1
    assert names(workspace) == {found["best"]["run"]}
    table = pl.read_parquet(tmp_path / "ws" / "tune" / found["name"] / "results.parquet")
    assert table["NDCG@10"].to_list() == scores and "rat.learning_rate" in table.columns
    # The command that is printed leads to the very run that was kept.
    words = shlex.split(found["command"])
    assert words[:6] == ["llmemb", "rat", "--backbone", "sasrec", "--method", "none"] and set(words[6::2]) == {
        "--set"
    }
    chosen = load_settings(workspace.settings_file, parse_assignments(words[7::2]) | {"rat.method": "none"})
    assert run_name(chosen, load_settings(workspace.settings_file)) == found["best"]["run"]
    manifest = read_manifest(workspace.run(found["best"]["run"])) or {}
    assert manifest["summary"]["best_validation"] == max(scores)


def test_kept_settings_are_those_of_this_backbone_and_method_alone(tmp_path: Path) -> None:
    workspace, before = make_workspace(tmp_path / "ws", **FEW)
    found = run_tune(workspace, SPACE, {"rat.dropout": 0.1}, Reporter(), trials=3, keep=True)
    best = found["best"]
    filed = load_settings(workspace.settings_file)
    assert filed.rat.dropout == 0.1
    assert all(getattr(filed.rat, key.removeprefix("rat.")) == value for key, value in best["settings"].items())
    other = load_settings(workspace.settings_file, {"rat.backbone": "gru4rec"})
    assert other.rat.model_dump() == before.rat.model_dump() | {"backbone": "gru4rec"}
    # The best run has the plain name now, and the plain command finds it up to date.
    assert names(workspace) == {"sasrec-none-42"} and best["run"] == "sasrec-none-42"
    assert found["command"] == "llmemb rat --backbone sasrec --method none"
    assert not run_rat(workspace, filed, Reporter(), in_file=filed).built
    assert len(run_tune(workspace, SPACE, {"rat.dropout": 0.1}, Reporter(), trials=4, keep=True)["trials"]) == 4


def test_what_adjust_kept_of_a_run_goes_with_its_name(tmp_path: Path) -> None:
    workspace, _ = make_workspace(tmp_path / "ws", **FEW)
    where = ["-w", str(workspace.root)]
    assert CliRunner().invoke(app, ["rat", *where]).exit_code == 0
    told = ["--logit-adjustment", "1", "--keep"]
    assert CliRunner().invoke(app, ["adjust", "sasrec-none-42", *told, *where]).exit_code == 0
    run_tune(workspace, parse_space(["rat.learning_rate=0.01,0.02"]), {}, Reporter(), trials=1, keep=True)
    (other,) = names(workspace) - {"sasrec-none-42"} - {one for one in names(workspace) if "adjusted" in one}
    assert names(workspace) == {"sasrec-none-42", other, f"{other}-adjusted-1"}
    done = CliRunner().invoke(app, ["runs", "show", f"{other}-adjusted-1", "--json", *where])
    described = json.loads(done.stdout)["runs"][0]
    assert (described["state"], described["adjusted_from"]) == ("current", other)


def test_a_later_better_trial_takes_the_plain_name_and_loses_nothing(tmp_path: Path) -> None:
    workspace, _ = make_workspace(tmp_path / "ws", **FEW)
    filed = load_settings(workspace.settings_file)
    run_rat(workspace, filed, Reporter(), in_file=filed)
    plain = workspace.run("sasrec-none-42")
    kept, tried = [(plain / "model.safetensors").read_bytes()], []
    for space in ("rat.learning_rate=0.0002,0.0003", "rat.learning_rate=0.01,0.02"):
        found = run_tune(workspace, parse_space([space]), {}, Reporter(), trials=2, keep=True, name=space[-2:])
        assert found["best"]["run"] == "sasrec-none-42"
        tried.append(found["best"]["settings"])
        assert (plain / "model.safetensors").read_bytes() not in kept
        kept.append((plain / "model.safetensors").read_bytes())
        filed = load_settings(workspace.settings_file)
        assert not run_rat(workspace, filed, Reporter(), in_file=filed).built
    # What had the name before is found by its settings.
    for values in ({"rat.learning_rate": FEW["rat__learning_rate"]}, tried[0]):
        earlier = load_settings(workspace.settings_file, values)
        name = run_name(earlier, filed)
        assert name != "sasrec-none-42" and (workspace.run(name) / "model.safetensors").read_bytes() in kept
        assert not run_rat(workspace, earlier, Reporter(), in_file=filed).built
    # The first search over again: its best run has another name now, and the settings it kept are in force again.
    again = run_tune(
        workspace, parse_space(["rat.learning_rate=0.0002,0.0003"]), {}, Reporter(), trials=2, keep=True, name="03"
    )
    assert load_settings(workspace.settings_file).rat.learning_rate == tried[0]["rat.learning_rate"]
    assert again["best"]["settings"] == tried[0] and again["best"]["run"] == "sasrec-none-42"
    assert (plain / "model.safetensors").read_bytes() == kept[1]
    filed = load_settings(workspace.settings_file)
    assert not run_rat(workspace, filed, Reporter(), in_file=filed).built


def test_runs_that_kept_settings_leave_behind_get_the_names_that_their_settings_find(tmp_path: Path) -> None:
    workspace, _ = make_workspace(tmp_path / "ws", **FEW | {"rat__method": "llmemb", "rat__epochs": 1})
    before = load_settings(workspace.settings_file)
    plain = {"rat.method": "none"}
    of_before = {"rat.sasrec-none.dropout": before.rat.dropout}
    made = [{"seed": 42}, {"seed": 43}, plain | {"seed": 43}, {"rat.without": ["scft"]}, plain | {"rat.layers": 1}]
    for flags in (*made, plain | {"rat.backbone": "gru4rec"}):
        run_rat(workspace, load_settings(workspace.settings_file, flags), Reporter(), in_file=before)
    swept = run_name(load_settings(workspace.settings_file, made[4]), before)
    notes = Notes()
    run_tune(workspace, parse_space(["rat.dropout=0.05,0.15"]), plain, notes, trials=1, keep=True)
    filed = load_settings(workspace.settings_file)
    # Also what aligns to a run that was put aside; runs of another backbone, and those of changed settings, stay.
    stay = {"sasrec-none-42", "gru4rec-none-42"}
    assert {name for name in names(workspace) if re.fullmatch(r".*-\d\d", name)} == stay and swept in names(workspace)
    assert len(names(workspace)) == 8 and len([said for said in notes.said if "it is called" in said]) == 5
    for flags in made[:4]:
        earlier = load_settings(workspace.settings_file, of_before | flags)
        assert not run_rat(workspace, earlier, Reporter(), in_file=filed).built
        assert run_name(earlier, filed) in names(workspace)


def test_a_name_that_is_taken_is_no_obstacle_to_the_best_run(tmp_path: Path) -> None:
    workspace, _ = make_workspace(tmp_path / "ws", **FEW | {"rat__epochs": 1})
    filed = load_settings(workspace.settings_file)
    run_rat(workspace, filed, Reporter(), in_file=filed)
    taken = f"sasrec-none-42-{sha256_json({'dropout': filed.rat.dropout})[:6]}"
    shutil.copytree(workspace.run("sasrec-none-42"), workspace.run(taken))
    found = run_tune(workspace, parse_space(["rat.dropout=0.3"]), {}, Reporter(), trials=1, keep=True)
    assert found["best"]["run"] == "sasrec-none-42"
    assert names(workspace) == {"sasrec-none-42", taken, f"{taken}-2"}
    now = load_settings(workspace.settings_file)
    assert run_name(load_settings(workspace.settings_file, {"rat.dropout": filed.rat.dropout}), now) == taken
    assert not run_rat(workspace, now, Reporter(), in_file=now).built


def test_what_a_search_varies_does_not_reach_the_collaborative_run(tmp_path: Path) -> None:
    workspace, before = make_workspace(tmp_path / "ws", **FEW | {"rat__method": "llmemb"})
    space = parse_space(["rat.dropout=0.05,0.15,0.25"])
    found = run_tune(workspace, space, {"rat.alpha": 0.2}, Reporter(), trials=3, keep=True)
    assert len({one["settings"]["rat.dropout"] for one in found["trials"]}) > 1
    # One collaborative run, trained as llmemb.toml says, for all trials; with --keep the best run stays up to date.
    assert names(workspace) == {"sasrec-none-42", "sasrec-llmemb-42"}
    aligned = read_manifest(workspace.run("sasrec-none-42")) or {}
    assert aligned["made_from"]["settings"]["dropout"] == before.rat.dropout
    manifest = read_manifest(workspace.run("sasrec-llmemb-42")) or {}
    assert manifest["summary"]["aligned_to"] == "sasrec-none-42"
    assert manifest["made_from"]["settings"]["alpha"] == 0.2
    filed = load_settings(workspace.settings_file)
    assert not run_rat(workspace, filed, Reporter(), in_file=filed).built


def test_a_search_of_the_width_aligns_to_runs_as_wide(tmp_path: Path) -> None:
    workspace, _ = make_workspace(tmp_path / "ws", **FEW | {"rat__method": "llmemb", "rat__epochs": 1})
    found = run_tune(workspace, parse_space(["rat.hidden_size=8,12"]), {}, Reporter(), trials=4)
    assert {one["settings"]["rat.hidden_size"] for one in found["trials"]} == {8, 12}
    assert all(one["NDCG@10"] is not None for one in found["trials"])
    words = shlex.split(found["command"])
    chosen = load_settings(workspace.settings_file, parse_assignments(words[7::2]) | {"rat.method": "llmemb"})
    filed = load_settings(workspace.settings_file)
    assert not run_rat(workspace, chosen, Reporter(), in_file=filed).built


def test_a_search_goes_on_that_began_before_a_setting_existed(tmp_path: Path) -> None:
    workspace, _ = make_workspace(tmp_path / "ws", **FEW | {"rat__epochs": 1})
    run_tune(workspace, SPACE, {}, Reporter(), trials=1)
    file = tmp_path / "ws" / "tune" / "sasrec-none-42" / "study.json"
    study = json.loads(file.read_text())
    del study["settings"]["logit_adjustment_share"]
    file.write_text(json.dumps(study))
    assert len(run_tune(workspace, SPACE, {}, Reporter(), trials=2)["trials"]) == 2
    with pytest.raises(WrongUseError, match=r"with other rat\.logit_adjustment_share$"):
        run_tune(workspace, SPACE, {"rat.logit_adjustment_share": 0.8}, Reporter(), trials=3)


def test_interrupted_search_goes_on_and_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    one, _ = make_workspace(tmp_path / "one", **FEW)
    whole = run_tune(one, SPACE, {}, Reporter(), trials=3)
    two, _ = make_workspace(tmp_path / "two", **FEW)
    with pytest.raises(InterruptedRunError):
        run_tune(two, SPACE, {}, StopAfter(6), trials=3)
    assert len((tmp_path / "two" / "tune" / "sasrec-none-42" / "trials.jsonl").read_text().splitlines()) == 1
    partial = list((two.root / "runs").glob(".*.partial"))
    assert len(partial) == 1 and (partial[0] / "checkpoint.safetensors").exists()
    resumed = run_tune(two, SPACE, {}, Reporter(), trials=3)

    def kept(found: dict[str, Any]) -> list[Any]:
        return [(trial["settings"], trial["NDCG@10"]) for trial in found["trials"]]

    assert kept(resumed) == kept(whole)
    more = run_tune(two, SPACE, {}, Reporter(), trials=4)
    assert kept(more)[:3] == kept(whole) and len(more["trials"]) == 4
    with pytest.raises(WrongUseError, match=r"with other rat\.dropout$"):
        run_tune(two, SPACE, {"rat.dropout": 0.3}, Reporter(), trials=4)


def test_no_test_item_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[SplitData] = []
    original = loop.train

    def blind(training: loop.Training) -> Any:
        training.data.test[:] = -1_000_000  # any use as an item number fails
        seen.append(training.data)
        return original(training)

    monkeypatch.setattr("llmemb_cli.srs.train.train", blind)
    workspace, _ = make_workspace(tmp_path / "ws", **FEW)
    run_tune(workspace, SPACE, {}, Reporter(), trials=2)
    assert len(seen) == 2


def test_a_trial_that_diverges_does_not_end_the_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace, _ = make_workspace(tmp_path / "ws", **FEW)
    space = parse_space(["rat.learning_rate=0.005,1e30"])
    found = run_tune(workspace, space, {}, Reporter(), trials=5)
    failed = [one for one in found["trials"] if one["NDCG@10"] is None]
    assert failed and all(one["settings"]["rat.learning_rate"] == 1e30 for one in failed)
    assert found["best"]["settings"] == {"rat.learning_rate": 0.005}


@pytest.mark.parametrize(
    ("method", "text", "wrong", "reason"),
    [
        ("none", "rat.heads=1,3", 3, "equal share"),
        ("llm2x", "rat.hidden_size=16,999", 999, "principal components"),
    ],
)
def test_values_that_do_not_fit_are_a_failed_trial(
    tmp_path: Path, method: str, text: str, wrong: int, reason: str
) -> None:
    workspace, _ = make_workspace(tmp_path / "ws", **FEW | {"rat__epochs": 1, "rat__method": method})
    key, space = text.partition("=")[0], parse_space([text])
    trials = run_tune(workspace, space, {}, Reporter(), trials=5)["trials"]
    assert {one["settings"][key] == wrong for one in trials} == {True, False}
    assert all((one["NDCG@10"] is None) == (one["settings"][key] == wrong) for one in trials)
    assert all(reason in one["reason"] for one in trials if one["NDCG@10"] is None)
    assert len(run_tune(workspace, space, {}, Reporter(), trials=6)["trials"]) == 2  # there are no more


def test_a_search_whose_trials_all_fail_says_why(tmp_path: Path) -> None:
    workspace, _ = make_workspace(tmp_path / "ws", **FEW)
    for _ in range(2):
        with pytest.raises(LlmembError, match=r"no trial has finished; the last one failed: rat\.heads is"):
            run_tune(workspace, parse_space(["rat.heads=3,5"]), {}, Reporter(), trials=3)


def test_an_error_that_every_trial_would_meet_ends_the_search(tmp_path: Path) -> None:
    workspace, _ = make_workspace(tmp_path / "ws", **FEW)
    shutil.rmtree(workspace.embeddings("scft"))
    for overrides, said in (
        ({"rat.backbone": "caser", "rat.method": "melt"}, "Caser"),
        ({"rat.method": "llmemb"}, "scft is not there yet"),
        ({"rat.heads": 3}, "equal share"),
        ({"rat.method": "llm2x", "rat.hidden_size": 999}, "principal components"),
    ):
        with pytest.raises((WrongUseError, BadDataError), match=said):
            run_tune(workspace, parse_space(["rat.dropout=0.1,0.2"]), overrides, Reporter(), trials=3, name="one")
        assert not (workspace.root / "tune" / "one" / "trials.jsonl").exists()
        shutil.rmtree(workspace.root / "tune" / "one")


def test_a_search_lies_in_its_directory(tmp_path: Path) -> None:
    workspace, _ = make_workspace(tmp_path / "ws", **FEW)
    call = ["tune", "rat.dropout=0.0,0.2", "--trials", "1", "-w", str(workspace.root), "--name"]
    for name in ("../m", "a/b", "..", ".m", str(tmp_path / "m")):
        refused = CliRunner().invoke(app, [*call, name])
        assert refused.exit_code == 2 and "no name for a search" in refused.stderr
    assert not (workspace.root / "tune").exists() and not (workspace.root / "m").exists()


class Notes(Reporter):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, message: str) -> None:
        self.said.append(message)


def test_a_cut_last_line_is_a_trial_to_make_again(tmp_path: Path) -> None:
    workspace, _ = make_workspace(tmp_path / "ws", **FEW | {"rat__epochs": 1})
    whole = run_tune(workspace, SPACE, {}, Reporter(), trials=3)["trials"]
    log = workspace.root / "tune" / "sasrec-none-42" / "trials.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    scores = [(one["settings"], one["NDCG@10"]) for one in whole]
    for cut in (lines[2][:40], lines[2][:-1], b'{"run": "\xc3', lines[2][:40] + b"\n", b"\0\0\n"):
        log.write_bytes(b"".join(lines[:2]) + cut)
        notes = Notes()
        again = run_tune(workspace, SPACE, {}, notes, trials=3)["trials"]
        assert [(one["settings"], one["NDCG@10"]) for one in again] == scores
        assert any("was cut: trial 3 is made again" in said for said in notes.said)
        assert [json.loads(line)["trial"] for line in log.read_text().splitlines()] == [1, 2, 3]


def test_another_broken_line_is_named(tmp_path: Path) -> None:
    workspace, _ = make_workspace(tmp_path / "ws", **FEW | {"rat__epochs": 1})
    run_tune(workspace, SPACE, {}, Reporter(), trials=2)
    log = workspace.root / "tune" / "sasrec-none-42" / "trials.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    for broken in (lines[0][:40] + b"\n", b"{}\n", b"\xff\n"):
        log.write_bytes(broken + lines[1])
        with pytest.raises(BadDataError) as raised:
            run_tune(workspace, SPACE, {}, Reporter(), trials=3)
        assert raised.value.where == f"{log}, line 1" and log.read_bytes() == broken + lines[1]


def test_command_prints_one_document_and_a_table(tmp_path: Path) -> None:
    workspace, _ = make_workspace(tmp_path / "ws", **FEW)
    call = ["tune", "rat.dropout=0.0,0.2", "--trials", "2", "-w", str(workspace.root)]
    document = json.loads(CliRunner().invoke(app, [*call, "--json"]).stdout)
    assert len(document["trials"]) == 2 and document["command"].startswith("llmemb rat --backbone sasrec")
    again = CliRunner().invoke(app, [*call, "-q"], env={"COLUMNS": "150"})
    assert again.exit_code == 0 and "best: llmemb rat" in again.stdout
    wrong = CliRunner().invoke(app, ["tune", "rat.dropout=2.5,0.1", "-w", str(workspace.root)])
    assert wrong.exit_code == 2 and "dropout" in wrong.stderr


def test_only_whole_numbers_are_searched_as_such() -> None:
    for setting, whole in (("alpha", False), ("logit_adjustment", False), ("hidden_size", True)):
        space = parse_space([f"rat.{setting}=1..9"])
        found = [suggest(space, [], seed)[f"rat.{setting}"] for seed in range(8)]
        assert all(1 <= value <= 9 for value in found)
        assert all(float(value).is_integer() for value in found) == whole
        assert all(isinstance(value, int) for value in found) == whole


def test_a_search_does_not_mix_trials_from_different_vectors_but_goes_on_on_another_device(tmp_path: Path) -> None:
    workspace, settings = make_workspace(tmp_path / "ws", **FEW | {"rat__method": "llm2x", "rat__epochs": 1})
    space = parse_space(["rat.dropout=0.1,0.2"])
    run_tune(workspace, space, {}, Reporter(), trials=1)
    found = run_tune(workspace, space, {"rat.device": "cpu"}, Reporter(), trials=2)
    assert [one["trial"] for one in found["trials"]] == [1, 2]

    def other(work: Path) -> dict[str, Any]:
        table = read_table(workspace.embeddings("base"))
        write_table(work, EmbeddingTable(table.item_ids, table.vectors * 2))
        write_pca(work, fit_pca(table.vectors * 2, 1536))
        return {}

    run_stage(embed_stage(workspace, settings, tuned=False), other, force=True)
    with pytest.raises(WrongUseError, match="other vectors than embeddings/base"):
        run_tune(workspace, space, {}, Reporter(), trials=3)
