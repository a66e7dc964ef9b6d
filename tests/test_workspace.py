"""Workspaces: which one is used, when a stage is made again, and that nothing half-made is ever seen."""

from __future__ import annotations

import json
import multiprocessing
import shutil
import tempfile
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmemb_cli.errors import BadDataError, LlmembError, WrongUseError
from llmemb_cli.workspace.locate import Workspace, find_workspace
from llmemb_cli.workspace.lock import write_lock
from llmemb_cli.workspace.make import run_stage
from llmemb_cli.workspace.stage import Stage, read_manifest, require_stage, stage_state
from llmemb_cli.workspace.store import (
    append_jsonl,
    atomic_path,
    read_json,
    read_jsonl,
    read_parquet,
    write_json,
    write_parquet,
    write_text,
)
from tests.test_init_disk import as_nobody


def make(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    (path / "llmemb.toml").write_text("")
    return path


def builder(text: str = "x") -> Any:
    def build(work: Path) -> dict[str, Any]:
        (work / "file.txt").write_text(text)
        return {"length": len(text)}

    return build


def test_workspace_is_found_upwards_before_downwards(tmp_path: Path) -> None:
    outer = make(tmp_path / "outer")
    make(outer / "inner")
    assert find_workspace(start=outer / "inner").root == outer / "inner"
    (outer / "deep" / "er").mkdir(parents=True)
    assert find_workspace(start=outer / "deep" / "er").root == outer


def test_the_only_workspace_below_is_used_and_several_are_listed(tmp_path: Path) -> None:
    make(tmp_path / "yelp")
    assert find_workspace(start=tmp_path).root == tmp_path / "yelp"
    make(tmp_path / "beauty")
    with pytest.raises(WrongUseError, match="beauty, yelp"):
        find_workspace(start=tmp_path)


def test_a_folder_that_may_not_be_looked_into_hides_no_workspace() -> None:
    root = Path(tempfile.mkdtemp())  # pytest's own folders are for one user
    closed, inner = root / "closed", root / "closed" / "inner"
    try:
        root.chmod(0o755)
        make(root / "yelp")
        make(inner)
        (inner / "below").mkdir()
        closed.chmod(0)
        with as_nobody():
            assert find_workspace(start=root).root == root / "yelp"
        make(root)
        with as_nobody():
            # Upwards too: past the folder that is closed to us, and what is in it.
            assert find_workspace(start=inner / "below").root == root
    finally:
        closed.chmod(0o700)
        shutil.rmtree(root)


def test_flag_wins_over_variable_wins_over_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b, c = (make(tmp_path / name) for name in "abc")
    monkeypatch.setenv("LLMEMB_WORKSPACE", str(b))
    assert find_workspace(explicit=a, start=c).root == a
    assert find_workspace(start=c).root == b


def test_no_workspace_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(WrongUseError) as caught:
        find_workspace(start=tmp_path)
    assert "llmemb init" in (caught.value.hint or "")
    with pytest.raises(WrongUseError, match=r"llmemb\.toml is missing"):
        find_workspace(explicit=tmp_path)


def test_stage_is_made_once_and_again_when_a_setting_changes(tmp_path: Path) -> None:
    stage = Stage("s", tmp_path / "s", 1, {"a": 1}, seed=1)
    assert stage_state(stage).state == "missing"
    assert run_stage(stage, builder()).built
    assert not run_stage(stage, builder()).built
    changed = Stage("s", tmp_path / "s", 1, {"a": 2}, seed=1)
    state = stage_state(changed)
    assert state.state == "stale" and "a changed: 1 -> 2" in state.reason
    assert run_stage(changed, builder("longer")).built
    assert (tmp_path / "s" / "file.txt").read_text() == "longer"
    assert not run_stage(changed, builder()).built
    assert run_stage(changed, builder(), force=True).built


@pytest.mark.parametrize(("field", "value"), [("seed", 2), ("version", 2), ("settings", {})])
def test_every_part_of_the_description_counts(tmp_path: Path, field: str, value: Any) -> None:
    description: dict[str, Any] = {
        "name": "s",
        "path": tmp_path / "s",
        "version": 1,
        "settings": {"a": 1},
        "seed": 1,
    }
    run_stage(Stage(**description), builder())
    assert stage_state(Stage(**(description | {field: value}))).state == "stale"


def test_a_model_at_another_place_is_the_same_one_if_its_weights_are(tmp_path: Path) -> None:
    def at(model: str, weights: dict[str, Any]) -> Stage:
        return Stage("s", tmp_path / "s", 1, {"model": model, "a": 1}, files={"model": weights})

    run_stage(at("/here/tiny", {"sha256": "ab"}), builder())
    assert stage_state(at("/there/tiny", {"sha256": "ab"})).state == "up-to-date"
    assert stage_state(at("/there/tiny", {"sha256": "cd"})).state == "stale"
    assert "model changed" in stage_state(at("/there/tiny", {"missing": True})).reason
    assert stage_state(at("/here/tiny", {"missing": True})).state == "up-to-date"


def test_a_damaged_stage_says_what_to_remove(tmp_path: Path) -> None:
    run_stage(Stage("s", tmp_path / "s", 1, {}), builder())
    manifest = tmp_path / "s" / "manifest.json"
    manifest.write_bytes(manifest.read_bytes()[:50])
    with pytest.raises(BadDataError) as told:
        read_manifest(tmp_path / "s")
    assert told.value.where == str(manifest) and told.value.hint == f"remove {tmp_path / 's'}, and make it again"


def test_a_damaged_table_is_bad_data_with_its_path(tmp_path: Path) -> None:
    table = tmp_path / "t.parquet"
    with pytest.raises(BadDataError, match="missing"):
        read_parquet(table)
    write_parquet(table, pl.DataFrame({"a": [1, 2], "b": ["x", "y"]}))
    assert read_parquet(table, ["b"])["b"].to_list() == ["x", "y"]
    for damaged in (b"", table.read_bytes()[:-20], b"PAR1" + bytes(40)):
        table.write_bytes(damaged)
        with pytest.raises(BadDataError, match="not a readable Parquet file") as told:
            read_parquet(table)
        assert told.value.where == str(table)


def test_stage_is_stale_when_an_input_was_remade_with_other_content(tmp_path: Path) -> None:
    first = Stage("first", tmp_path / "first", 1, {})
    second = Stage("second", tmp_path / "second", 1, {}, inputs={"first": first.path})
    run_stage(first, builder("one"))
    run_stage(second, builder())
    run_stage(first, builder("one"), force=True)
    assert stage_state(second).state == "up-to-date", "same content, nothing to do"
    run_stage(first, builder("two"), force=True)
    assert stage_state(second).reason == "input first changed"


def test_failed_stage_leaves_the_old_one_and_is_gone_on_with(tmp_path: Path) -> None:
    stage = Stage("s", tmp_path / "s", 1, {"a": 1})
    run_stage(stage, builder("old"))
    newer = Stage("s", tmp_path / "s", 1, {"a": 2})

    def breaks(work: Path) -> dict[str, Any]:
        (work / "checkpoint").write_text("half")
        raise LlmembError("no")

    with pytest.raises(LlmembError):
        run_stage(newer, breaks)
    assert (stage.path / "file.txt").read_text() == "old"

    def goes_on(work: Path) -> dict[str, Any]:
        assert (work / "checkpoint").read_text() == "half"
        return builder("new")(work)

    run_stage(newer, goes_on)
    assert (stage.path / "file.txt").read_text() == "new"


def test_unfinished_work_of_other_settings_is_not_mixed_in(tmp_path: Path) -> None:
    def breaks(work: Path) -> dict[str, Any]:
        (work / "checkpoint").write_text("half")
        raise LlmembError("no")

    with pytest.raises(LlmembError):
        run_stage(Stage("s", tmp_path / "s", 1, {"a": 1}), breaks)

    def afresh(work: Path) -> dict[str, Any]:
        assert not (work / "checkpoint").exists()
        return {}

    run_stage(Stage("s", tmp_path / "s", 1, {"a": 2}), afresh)


def test_stage_refuses_inputs_that_change_under_it(tmp_path: Path) -> None:
    first = Stage("first", tmp_path / "first", 1, {})
    run_stage(first, builder("one"))

    def meddles(work: Path) -> dict[str, Any]:
        run_stage(first, builder("two"), force=True)
        return {}

    second = Stage("second", tmp_path / "second", 1, {}, inputs={"first": first.path})
    with pytest.raises(LlmembError, match="changed while"):
        run_stage(second, meddles)
    assert read_manifest(second.path) is None


def test_a_source_moved_away_keeps_its_result(tmp_path: Path) -> None:
    source = tmp_path / "source.csv"
    source.write_text("a")
    stage = Stage("s", tmp_path / "s", 1, {}, files={"log": source})
    run_stage(stage, builder())
    source.write_text("ab")
    assert stage_state(stage).reason == "file log changed"
    source.unlink()
    assert stage_state(stage).state == "up-to-date"


def test_manifest_names_every_output_with_its_hash(tmp_path: Path) -> None:
    import hashlib

    stage = Stage("s", tmp_path / "s", 1, {"a": 1}, seed=3)
    run_stage(stage, builder("content"))
    manifest = json.loads((stage.path / "manifest.json").read_text())
    assert manifest["outputs"]["file.txt"]["sha256"] == hashlib.sha256(b"content").hexdigest()
    assert manifest["summary"] == {"length": 7}
    assert manifest["made_from"]["settings"] == {"a": 1} and manifest["made_from"]["seed"] == 3
    assert manifest["peak_memory_mb"] > 0 and "numpy" in manifest["packages"]


def test_missing_stage_names_the_command_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(WrongUseError) as caught:
        require_stage(tmp_path / "data", made_by="llmemb init")
    assert "llmemb init" in (caught.value.hint or "")


def test_a_failing_write_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_json(path, {"a": 1})
    with pytest.raises(RuntimeError), atomic_path(path) as part:
        part.write_text("half")
        raise RuntimeError
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"a": float("nan")})
    assert read_json(path) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_damaged_json_is_bad_data_with_its_path(tmp_path: Path) -> None:
    write_text(tmp_path / "x.json", "{")
    with pytest.raises(BadDataError) as caught:
        read_json(tmp_path / "x.json")
    assert caught.value.where == str(tmp_path / "x.json")


def _hold(root: str, ready: Any, done: Any) -> None:
    with write_lock(Workspace(Path(root))):
        ready.set()
        done.wait(30)


def test_second_writer_is_told_who_holds_the_workspace(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ready, done = context.Event(), context.Event()
    process = context.Process(target=_hold, args=(str(make(tmp_path)), ready, done))
    process.start()
    try:
        assert ready.wait(30)
        with pytest.raises(LlmembError, match=f"process {process.pid} on"), write_lock(Workspace(tmp_path)):
            raise AssertionError("both hold the lock")
    finally:
        done.set()
        process.join(30)
    with write_lock(Workspace(tmp_path)), write_lock(Workspace(tmp_path)):
        assert (tmp_path / ".llmemb.lock.json").exists()


def test_what_only_describes_a_stage_makes_nothing_stale(tmp_path: Path) -> None:
    def first(**changes: Any) -> Stage:
        return Stage("one", tmp_path / "one", 1, changes, about=("card.md",), told=("words",))

    def make_first(card: str, content: str, words: str, **changes: Any) -> None:
        def build(work: Path) -> dict[str, Any]:
            (work / "card.md").write_text(card)
            (work / "rows.txt").write_text(content)
            return {"words": words, "seconds": card}

        run_stage(first(**changes), build)

    second = Stage("two", tmp_path / "two", 1, {}, inputs={"one": tmp_path / "one"})
    make_first("a", "rows", "words", x=1)
    run_stage(second, builder())
    make_first("b", "rows", "words", x=2)
    assert (tmp_path / "one" / "card.md").read_text() == "b" and stage_state(second).state == "up-to-date"
    make_first("b", "rows", "other words", x=3)
    assert stage_state(second).reason == "input one changed"
    make_first("b", "rows", "words", x=1)
    assert stage_state(second).state == "up-to-date", "what is the same is the same whatever was between"
    make_first("b", "other rows", "words", x=4)
    assert stage_state(second).state == "stale"


@pytest.mark.parametrize("when", ["manifest", "marker", "set aside", "in place"])
def test_finished_work_is_never_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    """A full disk or a kill at any moment behind the building: the next call finds what was built."""
    import llmemb_cli.workspace.make as module

    earlier = Stage("one", tmp_path / "one", 1, {"x": 1})
    run_stage(earlier, builder("earlier"))
    stage = Stage("one", tmp_path / "one", 1, {"x": 2})
    real_replace, real_json, real_unlink, moves = Path.replace, write_json, Path.unlink, []

    def stopping_json(path: Path, value: Any) -> None:
        real_json(path, value)
        if when == "manifest" and path.name == "manifest.json":
            raise OSError("disk full")

    def stopping_unlink(self: Path, missing_ok: bool = False) -> None:
        real_unlink(self, missing_ok)
        if when == "marker" and self.name == "partial.json":
            raise KeyboardInterrupt

    def stopping_replace(self: Path, target: Any) -> Path:
        moved = real_replace(self, target)
        if self.is_relative_to(tmp_path) and Path(target).is_dir():
            moves.append(self)
            if (when, len(moves)) in (("set aside", 1), ("in place", 2)):
                raise KeyboardInterrupt
        return moved

    with monkeypatch.context() as patched:
        patched.setattr(module, "write_json", stopping_json)
        patched.setattr(Path, "unlink", stopping_unlink)
        patched.setattr(Path, "replace", stopping_replace)
        with pytest.raises((OSError, KeyboardInterrupt)):
            run_stage(stage, builder("built"))

    def never(work: Path) -> dict[str, Any]:
        raise AssertionError("built again")

    assert run_stage(stage, never).manifest["summary"] == {"length": 5}
    assert (tmp_path / "one" / "file.txt").read_text() == "built"
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == ["file.txt", "manifest.json"]
    run_stage(Stage("one", tmp_path / "one", 1, {"x": 3}), builder("later"))
    assert sorted(path.name for path in tmp_path.iterdir() if "one" in path.name) == ["one"]


def test_a_folder_that_is_read_is_known_by_its_files(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "below").mkdir(parents=True)
    (source / "below" / "log.csv").write_text("a,b")
    stage = Stage("one", tmp_path / "one", 1, {}, files={"source": source})
    run_stage(stage, builder())
    (source / ".DS_Store").write_text("what a file browser leaves")
    assert stage_state(stage).state == "up-to-date"
    (source / "below" / "log.csv").write_text("a,b,c")
    assert stage_state(stage).reason == "file source changed"


@given(st.lists(st.dictionaries(st.text(max_size=4), st.text() | st.integers(), max_size=3), max_size=5), st.data())
def test_a_log_reads_back_and_loses_nothing_but_a_cut_last_line(records: list[dict[str, Any]], data: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log.jsonl"
        assert read_jsonl(log) == ([], False)
        for record in records:
            append_jsonl(log, record)
        assert read_jsonl(log) == (records, False)
        if records:
            whole = log.read_bytes()
            kept = len(whole) - len(whole.split(b"\n")[-2]) - 1
            at = data.draw(st.integers(kept, len(whole) - 1))
            log.write_bytes(whole[:at])
            assert read_jsonl(log) == (records[:-1], at > kept)


def test_another_broken_line_of_a_log_is_named(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    for broken in (b'{"a": 1', b"[]", b"\xff", b"\0\0"):
        log.write_bytes(b'{"a": 1}\n' + broken + b'\n{"a": 2}\n')
        with pytest.raises(BadDataError) as raised:
            read_jsonl(log)
        assert raised.value.where == f"{log}, line 2"
        log.write_bytes(b'{"a": 1}\n' + broken + b"\n")
        assert read_jsonl(log, {"a"}) == ([{"a": 1}], True)
