"""Using a trained run: recommendations, nearest items, and keeping house among runs."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from llmemb_cli.config.settings import Settings
from llmemb_cli.datasets.split import load_split
from llmemb_cli.errors import InterruptedRunError, WrongUseError
from llmemb_cli.evaluation.candidates import test_users as users_with_test
from llmemb_cli.evaluation.document import near_or_some
from llmemb_cli.evaluation.rank import full_ranking
from llmemb_cli.evaluation.recommend import known_history, top_items
from llmemb_cli.evaluation.spaces import background, best_run, find_item, unit_vectors
from llmemb_cli.evaluation.stage import run_eval
from llmemb_cli.progress import Reporter
from llmemb_cli.srs.recommender import load_recommender
from llmemb_cli.srs.train import run_rat
from llmemb_cli.workspace.locate import Workspace
from tests.calls import call, document
from tests.make_workspace import make_workspace
from tests.test_recommenders import StopAfter


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, Settings]:
    root = tmp_path_factory.mktemp("use") / "ws"
    workspace, settings = make_workspace(root, rat__hidden_size=8, rat__epochs=2, rat__backbone="gru4rec")
    run_rat(workspace, settings, Reporter())
    return workspace, settings


@pytest.mark.parametrize("how", ["full", "eval", "train"])
def test_recommendations_equal_a_loop_over_users_and_items(trained: tuple[Workspace, Settings], how: Any) -> None:
    workspace, _ = trained
    log = pl.read_parquet(workspace.data / "interactions.parquet")
    parts = {"full": ["train", "valid", "test"], "eval": ["train", "valid"], "train": ["train"]}[how]
    data = load_split(workspace.data)
    model = load_recommender(workspace.run("gru4rec-llmemb-42"), data)
    got = document(workspace, "recommend", "u3", "u77", "--history", how, "-k", "6", "--run", "gru4rec-llmemb-42")
    number = {item: place + 1 for place, item in enumerate(data.item_ids)}
    for user, entry in zip(("u3", "u77"), got["users"], strict=True):
        had = log.filter((pl.col("user_id") == user) & pl.col("split").cast(pl.String).is_in(parts))[
            "item_id"
        ].to_list()
        with torch.no_grad():
            state = model.encode(torch.tensor([[number[item] for item in had]]))[0]
            scores = {
                item: float(state @ model.item_table[number[item]]) for item in data.item_ids if item not in had
            }
        best = sorted(scores, key=lambda item: -scores[item])[:6]
        assert [one["item_id"] for one in entry["items"]] == best
        assert [one["score"] for one in entry["items"]] == pytest.approx([scores[item] for item in best], abs=1e-5)
        assert entry["items"][0]["title"] == f"Thing <b>{best[0][1:]}</b>"


def test_lists_are_those_that_evaluation_judges(trained: tuple[Workspace, Settings]) -> None:
    workspace, _ = trained
    data = load_split(workspace.data)
    model = load_recommender(workspace.run("gru4rec-none-42"), data)
    users = users_with_test(data)
    for keep in (False, True):
        judged = full_ranking(model, data, users, top=10, exclude_history=not keep).top
        shown, scores = top_items(
            model, known_history(data, users, "eval"), 10, filter_history=not keep, batch_users=7
        )
        for user, theirs, ours in zip(users, judged.tolist(), shown.tolist(), strict=True):
            # Evaluation lets a repeated target compete, a list for the user does not show it again.
            again = not keep and data.test[user] in data.test_history().row(user)
            expected = [item for item in theirs if not (again and item == data.test[user])]
            assert ours[: len(expected)] == expected
        assert (np.diff(scores, axis=1) <= 0).all()


def test_history_given_by_hand_and_one_that_is_longer_than_the_catalogue(trained: tuple[Workspace, Settings]) -> None:
    workspace, _ = trained
    kept = document(workspace, "recommend", "--items", "i1,i2", "-k", "40", "--keep-history")["users"][0]["items"]
    assert len(kept) == 30, "all items, once"
    rest = document(workspace, "recommend", "--items", "i1, i2", "-k", "40")["users"][0]["items"]
    assert [one["item_id"] for one in rest] == [one["item_id"] for one in kept if one["item_id"] not in ("i1", "i2")]
    every = ",".join(f"i{n}" for n in range(30))
    assert document(workspace, "recommend", "--items", every)["users"][0]["items"] == []


@pytest.mark.parametrize("form", ["txt", "csv", "parquet"])
def test_users_from_a_file_to_a_file(trained: tuple[Workspace, Settings], tmp_path: Path, form: str) -> None:
    workspace, _ = trained
    asked = pl.DataFrame({"user_id": ["u5", "u0", "u5"], "more": [1, 2, 3]})
    path = tmp_path / f"users.{form}"
    if form == "txt":
        path.write_text("u5\nu0\n\nu5\n")
    else:
        getattr(asked, f"write_{form}")(path)
    single = document(workspace, "recommend", "u5", "-k", "3")["users"][0]["items"]
    done = call(workspace, "recommend", "--users", str(path), "-k", "3", "-o", str(tmp_path / "lists.parquet"))
    assert done.exit_code == 0 and done.stdout == ""
    lists = pl.read_parquet(tmp_path / "lists.parquet")
    assert lists["user_id"].to_list() == ["u5"] * 3 + ["u0"] * 3 + ["u5"] * 3
    assert lists["item_id"].to_list()[:3] == [one["item_id"] for one in single] == lists["item_id"].to_list()[6:]
    call(workspace, "recommend", "--all-users", "-o", str(tmp_path / "all.csv"))
    assert pl.read_csv(tmp_path / "all.csv")["user_id"].n_unique() == 150
    shown = call(workspace, "recommend", "--all-users", "-k", "1").stdout
    assert shown.count("for user") == 10 and "140 more users" in shown


def test_ids_of_a_file_or_history_that_are_not_there_are_left_out_and_counted(
    trained: tuple[Workspace, Settings], tmp_path: Path
) -> None:
    workspace, _ = trained
    (tmp_path / "u.txt").write_text("u3\ngone\nu4\n")
    asked = ("recommend", "--users", str(tmp_path / "u.txt"))
    done = call(workspace, *asked)
    assert done.exit_code == 0 and "1 users are not in the data, for example gone" in " ".join(done.stderr.split())
    assert [one["user_id"] for one in document(workspace, *asked)["users"]] == ["u3", "u4"]
    known, more = (document(workspace, "recommend", "--items", items)["users"] for items in ("i1,i2", "i1,x,i2"))
    assert known == more
    assert call(workspace, "recommend", "--items", "x,y").exit_code == 2


def test_a_hint_with_some_names_counts_no_runs_among_methods() -> None:
    known = [f"sasrec-none-{seed}" for seed in range(7)]
    some = ", ".join(known[:6])
    assert near_or_some("zzz", known[:6]) == some
    assert near_or_some("zzz", [*known, "sasrec", "none"]) == f"{some}, ... (`llmemb runs` lists the runs)"


def test_wrong_questions_are_answered_kindly(trained: tuple[Workspace, Settings], tmp_path: Path) -> None:
    workspace, _ = trained
    for args, said in (
        (["recommend"], "name users"),
        (["recommend", "u1", "--all-users"], "only one of them"),
        (["recommend", "--users", "nowhere.csv"], "no such file"),
        (["recommend", "uu77"], "did you mean u77"),
        (["recommend", "177"], "what the rules of `llmemb init` left out is not there"),
        (["recommend", "u1", "uu77"], "1 users are not in the data, for example uu77"),
        (["recommend", "u1", "--run", "sasrec"], "no run sasrec"),
        (["recommend", "u1", "-o", "lists.xlsx"], ".parquet, .csv or .json"),
        (["similar", "i99"], "no item i99"),
        (["similar"], "--text"),
        (["similar", "--text", "nothing like it"], "no title"),
        (["runs", "show"], "which run"),
        (["runs", "remove", "gru4rec-none-42"], "--yes"),
    ):
        done = call(workspace, *args)
        assert done.exit_code == 2 and said in done.stderr.replace("\n", " "), args
    (tmp_path / "no.csv").write_text("id\nu1\n")
    done = call(workspace, "recommend", "--users", str(tmp_path / "no.csv"))
    assert done.exit_code == 4 and "user_id" in done.stderr


@pytest.mark.parametrize("raw", [False, True])
def test_neighbours_equal_a_loop(trained: tuple[Workspace, Settings], raw: bool) -> None:
    workspace, _ = trained
    from safetensors.numpy import load_file

    vectors = load_file(workspace.embeddings("scft") / "embeddings.safetensors")["embeddings"].astype(np.float64)
    ids = pl.read_parquet(workspace.embeddings("scft") / "ids.parquet")["item_id"].to_list()
    moved = vectors if raw else vectors - vectors.mean(axis=0)
    mine = moved[ids.index("i7")]
    cosine = {
        item: mine @ row / np.linalg.norm(mine) / np.linalg.norm(row)
        for item, row in zip(ids, moved, strict=True)
        if item != "i7"
    }
    got = document(workspace, "similar", "i7", "-k", "4", *(["--raw"] if raw else []))
    assert got["space"] == "scft"
    assert [one["item_id"] for one in got["neighbours"]] == sorted(cosine, key=lambda item: -cosine[item])[:4]
    assert [one["cosine"] for one in got["neighbours"]] == pytest.approx(
        sorted(cosine.values(), reverse=True)[:4], abs=1e-6
    )
    run = document(workspace, "similar", "--text", "thing <B>7</b>", "--in", "gru4rec-none-42")
    assert run["kind"] == "run" and run["item_id"] == "i7" and run["other_matches"] == []


def test_background_is_that_of_all_pairs() -> None:
    vectors = np.random.default_rng(3).normal(size=(300, 5)).astype(np.float32) + 0.5
    unit = unit_vectors(vectors, centred=False)
    pairs = (unit @ unit.T)[~np.eye(300, dtype=bool)]
    level = background(unit)
    assert level["mean"] == pytest.approx(pairs.mean(), abs=0.02)
    assert level["high"] == pytest.approx(np.quantile(pairs, 0.95), abs=0.02)


def test_titles_are_found_by_their_words() -> None:
    titles = {"a": "Toy Story", "b": "Toy Story 2", "c": "The Story of a Toy", "d": "Heat"}
    assert find_item(titles, None, "toy story") == ("a", ["b", "c"])
    assert find_item(titles, None, "story toy the") == ("c", [])
    assert find_item(titles, "d", None) == ("d", [])


def test_runs_are_listed_shown_and_removed_with_what_needs_them(tmp_path: Path) -> None:
    workspace, settings = make_workspace(tmp_path / "ws", rat__hidden_size=8, rat__epochs=1)
    run_rat(workspace, settings, Reporter())
    run_eval(workspace, settings, "sasrec-none-42", Reporter())
    listed = {one["run"]: one for one in document(workspace, "runs")["runs"]}
    assert listed.keys() == {"sasrec-none-42", "sasrec-llmemb-42"}
    assert listed["sasrec-none-42"]["evaluated"] == ["full"] and listed["sasrec-none-42"]["state"] == "current"
    file = workspace.settings_file
    before = file.read_text()
    file.write_text(before.replace("hidden_size = 8", "hidden_size = 16"))
    reason = "stale: setting hidden_size changed: 8 -> 16"
    assert [one["state"] for one in document(workspace, "runs")["runs"]] == [reason] * 2
    assert reason in " ".join(call(workspace, "runs", "show", "sasrec-none-42").stdout.split())
    assert call(workspace, "runs").stdout.count("stale") == 3, "two runs, and what it means"
    file.write_text(before)
    needed = listed["sasrec-none-42"]["needed_by"]
    assert len(needed) == 1 and "sasrec-llmemb-42 was aligned to it" in needed[0]
    done = call(workspace, "runs", "remove", "sasrec-none-42", "--yes")
    assert done.exit_code == 0 and "sasrec-llmemb-42 was aligned to it" in done.stderr
    assert not workspace.run("sasrec-none-42").exists() and workspace.run("sasrec-llmemb-42").exists()
    assert not list((workspace.root / "runs").glob(".*removed"))
    left = document(workspace, "runs", "show", "sasrec-llmemb-42")["runs"][0]
    assert left["state"] == "other align now" and left["settings"]["hidden_size"] == 8


def test_runs_that_were_begun_are_listed_shown_and_removed(tmp_path: Path) -> None:
    workspace, settings = make_workspace(tmp_path / "ws", rat__hidden_size=8, rat__epochs=3, rat__method="none")
    with pytest.raises(InterruptedRunError):
        run_rat(workspace, settings, StopAfter(2), name="mine")
    listed = document(workspace, "runs")
    assert listed["runs"] == []
    (begun,) = listed["begun"]
    assert (begun["run"], begun["state"], begun["seed"]) == ("mine", "begun", 42)
    logged = (workspace.root / "runs" / ".mine.partial" / "log.jsonl").read_text().splitlines()
    assert begun["epochs"] == len(logged) > 0 and begun["bytes"] > 1000
    (line,) = [line for line in call(workspace, "runs").stdout.splitlines() if "mine" in line]
    assert f"begun, {len(logged)} epoch" in line
    shown = call(workspace, "runs", "show", "mine").stdout
    assert re.search(r"rat\.hidden_size +8", shown)
    assert "mine" in call(workspace, "runs", "remove").stderr
    assert "did you mean mine?" in call(workspace, "runs", "remove", "mien").stderr
    # A damaged one is listed too, and goes.
    (workspace.root / "runs" / ".mine.partial" / "partial.json").write_text("{")
    assert document(workspace, "runs")["begun"][0]["settings"] == {}
    assert call(workspace, "runs", "remove", "mine", "--yes").exit_code == 0
    assert not list((workspace.root / "runs").iterdir())
    # What is begun of a run that is to be trained anew goes with it.
    run_rat(workspace, settings, Reporter())
    shutil.copytree(workspace.run("sasrec-none-42"), workspace.root / "runs" / ".sasrec-none-42.partial")
    assert call(workspace, "runs", "remove", "sasrec-none-42", "--yes").exit_code == 0
    assert not list((workspace.root / "runs").iterdir())


def test_runs_without_validation_are_listed_and_not_preferred(
    trained: tuple[Workspace, Settings], tmp_path: Path
) -> None:
    workspace = Workspace(Path(shutil.copytree(trained[0].root, tmp_path / "copy")))
    manifest = workspace.run("gru4rec-none-42") / "manifest.json"
    changed = json.loads(manifest.read_text())
    changed["summary"]["best_validation"] = None
    manifest.write_text(json.dumps(changed))
    lines = [line.split() for line in call(workspace, "runs").stdout.splitlines() if "gru4rec-" in line]
    assert {line[0]: line[1] for line in lines}["gru4rec-none-42"] == "-"
    assert best_run(workspace) == "gru4rec-llmemb-42"
    # A run on data of before cannot serve the users and items of now, however well it validated.
    path = workspace.run("gru4rec-llmemb-42") / "manifest.json"
    before = path.read_text()
    manifest = json.loads(before)
    manifest["made_from"]["inputs"]["data"] = "0" * 64
    path.write_text(json.dumps(manifest))
    assert best_run(workspace) != "gru4rec-llmemb-42"
    path.write_text(before)


@pytest.mark.parametrize("name", ["../out", "a/b", ".hidden", "-x", "", "a b", "=1+1", "x" * 200])
def test_runs_have_names_that_stay_in_their_place(trained: tuple[Workspace, Settings], name: str) -> None:
    with pytest.raises(WrongUseError, match="no name for a run"):
        trained[0].run(name)
    assert trained[0].run("sasrec-größer_2.1+b=3").parent == trained[0].root / "runs"


def test_ids_that_look_like_formulas_are_warned_of_whosever_they_are(
    trained: tuple[Workspace, Settings], tmp_path: Path
) -> None:
    workspace = Workspace(Path(shutil.copytree(trained[0].root, tmp_path / "copy")))
    log = workspace.data / "interactions.parquet"
    renamed = pl.col("user_id").cast(pl.String).replace({"u3": "=1+1", "u4": "@SUM(A1)"})
    pl.read_parquet(log).with_columns(renamed).write_parquet(log)
    for out, said in (("lists.csv", True), ("lists.parquet", False)):
        done = call(workspace, "recommend", "=1+1", "@SUM(A1)", "u5", "-k", "3", "-o", str(tmp_path / out))
        assert done.exit_code == 0 and ("2 ids look like formulas" in done.stderr) == said


@pytest.mark.parametrize("content", ["{", "[]", '{"schema": 1, "summary": {}}'])
def test_a_damaged_run_leaves_the_others_usable(
    trained: tuple[Workspace, Settings], tmp_path: Path, content: str
) -> None:
    workspace = Workspace(Path(shutil.copytree(trained[0].root, tmp_path / "copy")))
    (workspace.run("gru4rec-llmemb-42") / "manifest.json").write_text(content)
    listed = document(workspace, "runs")
    assert {entry["run"] for entry in listed["runs"]} == {"gru4rec-none-42"}
    assert [entry["run"] for entry in listed["damaged"]] == ["gru4rec-llmemb-42"]
    for args in (["eval"], ["compare"], ["recommend", "u3"], ["report"], ["export"]):
        done = call(workspace, *args)
        assert done.exit_code == 0, done.output
        assert "left out: gru4rec-llmemb-42 is damaged" in done.stderr
    assert best_run(workspace) == "gru4rec-none-42"
    # Who names it is told what is wrong with it and what to do, which then works.
    for args in (
        ["eval", "gru4rec-llmemb-42"],
        ["export", "gru4rec-llmemb-42"],
        ["runs", "show", "gru4rec-llmemb-42"],
    ):
        done = call(workspace, *args)
        assert done.exit_code == 4 and "llmemb runs remove gru4rec-llmemb-42" in done.stderr
    assert call(workspace, "runs", "remove", "gru4rec-llmemb-42", "--yes").exit_code == 0
    assert document(workspace, "runs")["damaged"] == []
    shutil.rmtree(workspace.run("gru4rec-none-42"))
    workspace.run("gru4rec-none-42").mkdir()
    (workspace.run("gru4rec-none-42") / "manifest.json").write_text(content)
    assert "gru4rec-none-42 is damaged" in call(workspace, "export").stderr  # not: there are no runs


def test_names_of_runs_are_whole_where_the_terminal_is_narrow(
    trained: tuple[Workspace, Settings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = Workspace(Path(shutil.copytree(trained[0].root, tmp_path / "copy")))
    long = "gru4rec-llmemb-42-d82a83-with-a-name-of-sixty-characters-all"
    workspace.run("gru4rec-llmemb-42").rename(workspace.run(long))
    for columns, header in (("80", ["run", "valid"]), ("140", ["run", "valid", "time", "MB", "evaluated"])):
        monkeypatch.setenv("COLUMNS", columns)
        lines = [line.split() for line in call(workspace, "runs").stdout.splitlines() if line.strip()]
        assert lines[0] == header
        assert long in [line[0] for line in lines]
