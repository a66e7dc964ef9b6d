"""Exports: every format holds the run's vectors under the user's own ids, and says where they come from."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import faiss
import numpy as np
import polars as pl
import pytest
import torch
from safetensors.numpy import load_file
from typer.testing import CliRunner
from usearch.index import Index

from llmemb_cli.app import app
from llmemb_cli.embeddings.export import ItemTable, _word2vec, _words, make_export
from llmemb_cli.errors import BadDataError, MissingError, WrongUseError
from llmemb_cli.progress import Reporter
from llmemb_cli.srs.train import run_rat
from llmemb_cli.workspace import make as make_module
from llmemb_cli.workspace.locate import Workspace
from tests.make_workspace import make_workspace


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A BERT4Rec run (it has a bias an item) of the method that reads LLM embeddings."""
    root = tmp_path_factory.mktemp("export") / "ws"
    workspace, settings = make_workspace(
        root, rat__hidden_size=8, rat__epochs=1, rat__backbone="bert4rec", rat__alpha=0.0
    )
    run_rat(workspace, settings, Reporter(), name="run")
    return workspace


def truth(workspace: Workspace) -> dict[str, np.ndarray]:
    ids = pl.read_parquet(workspace.run("run") / "ids.parquet")["item_id"].to_list()
    vectors = load_file(workspace.run("run") / "item_embeddings.safetensors")["item_embeddings"]
    return dict(zip(ids, vectors, strict=True))


def read_back(folder: Path, format: str) -> dict[str, np.ndarray]:
    """Vectors by item id, read as another system would."""
    if format == "parquet":
        frame = pl.read_parquet(folder / "item_embeddings.parquet")
        return dict(zip(frame["item_id"], frame["embedding"].to_numpy(), strict=True))
    ids = pl.read_parquet(folder / "ids.parquet").sort("row")["item_id"].to_list()
    if format == "npy":
        vectors: Any = np.load(folder / "item_embeddings.npy")
    elif format == "safetensors":
        vectors = load_file(folder / "item_embeddings.safetensors")["item_embeddings"]
    elif format == "word2vec":
        head, *lines = (folder / "item_embeddings.txt").read_text().splitlines()
        assert head == f"{len(ids)} {len(lines[0].split()) - 1}"
        assert [line.split()[0] for line in lines] == ids
        vectors = np.array([line.split()[1:] for line in lines]).astype(np.float32)
    elif format == "usearch":
        vectors = Index.restore(str(folder / "item_embeddings.usearch")).get(np.arange(len(ids)))
    else:
        index = faiss.read_index(str(folder / "item_embeddings.faiss"))
        vectors = index.reconstruct_n(0, index.ntotal)
    return dict(zip(ids, vectors, strict=True))


@pytest.mark.parametrize("format", ["parquet", "npy", "safetensors", "word2vec", "usearch", "faiss"])
def test_each_format_holds_the_vectors_under_their_ids(trained: Workspace, format: Any) -> None:
    made = make_export(trained, trained.run("run"), format, Reporter())
    folder = trained.root / "exports" / f"run-{format}"
    expected, got = truth(trained), read_back(folder, format)
    assert got.keys() == expected.keys()
    assert all((got[item] == vector).all() for item, vector in expected.items())
    card = json.loads((folder / "card.json").read_text())
    for entry in card["files"]:
        assert entry["sha256"] == hashlib.sha256((folder / entry["name"]).read_bytes()).hexdigest()
    text = (folder / "card.md").read_text()
    assert card["data"]["licence"] in text and card["model"]["licence"] in text and "0.001" in text
    first = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "manifest.json"}
    assert made.built and not make_export(trained, trained.run("run"), format, Reporter()).built
    assert make_export(trained, trained.run("run"), format, Reporter(), force=True).built
    assert first == {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "manifest.json"}


def test_bias_of_items_goes_along(trained: Workspace) -> None:
    bias = load_file(trained.run("run") / "model.safetensors")["bias"][1:]
    assert np.abs(bias).max() > 0
    make_export(trained, trained.run("run"), "parquet", Reporter())
    make_export(trained, trained.run("run"), "npy", Reporter())
    table = pl.read_parquet(trained.root / "exports/run-parquet/item_embeddings.parquet")
    beside = pl.read_parquet(trained.root / "exports/run-npy/ids.parquet")
    assert (table["bias"].to_numpy() == bias).all() and (beside["bias"].to_numpy() == bias).all()


@pytest.mark.parametrize("format", ["usearch", "faiss"])
@pytest.mark.parametrize("metric", ["ip", "cosine"])
def test_index_search_finds_what_a_full_search_finds(
    tmp_path: Path, trained: Workspace, format: Any, metric: Any
) -> None:
    made = make_export(trained, trained.run("run"), format, Reporter(), metric=metric, output=tmp_path / "index")
    table = np.stack(list(truth(trained).values()))
    unit = table / np.linalg.norm(table, axis=1, keepdims=True) if metric == "cosine" else table
    best = (unit[3] @ unit.T).argmax()
    if format == "usearch":
        found = Index.restore(str(tmp_path / "index/item_embeddings.usearch")).search(table[3], 1).keys[0]
    else:
        query = unit[3:4] if metric == "cosine" else table[3:4]
        found = faiss.read_index(str(tmp_path / "index/item_embeddings.faiss")).search(query, 1)[1][0][0]
    assert found == best
    assert made.manifest["summary"]["recall"] > 0.95


@pytest.mark.parametrize("changed", [{"rat__similarity": "cosine"}, {"rat__loss": "infonce"}, {}])
def test_an_index_searches_by_what_the_run_scores_with(tmp_path: Path, changed: dict[str, Any]) -> None:
    workspace, settings = make_workspace(
        tmp_path / "ws", rat__hidden_size=4, rat__epochs=1, rat__method="none", **changed
    )
    run_rat(workspace, settings, Reporter(), name="run")
    made = make_export(workspace, workspace.run("run"), "faiss", Reporter(), output=tmp_path / "index")
    index = faiss.read_index(str(tmp_path / "index/item_embeddings.faiss"))
    norms = np.linalg.norm(index.reconstruct_n(0, index.ntotal), axis=1)
    assert np.allclose(norms, 1, atol=1e-5) == bool(changed)
    assert made.manifest["summary"]["metric"] == ("cosine" if changed else "ip")


def test_an_index_leaves_pytorch_its_threads(tmp_path: Path, trained: Workspace) -> None:
    # What trains afterwards in this process must round as it would have.
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        make_export(trained, trained.run("run"), "faiss", Reporter(), output=tmp_path / "index")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


def test_ids_that_break_the_text_format_are_encoded_and_listed(tmp_path: Path) -> None:
    ids = pl.Series(["plain", "two words", "50 % off", "line\nend", "tab\t"])
    table = ItemTable(ids, np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32))
    made = _word2vec(tmp_path, table, "ip")
    lines = (tmp_path / "item_embeddings.txt").read_text().split("\n")
    assert len(lines) == 7 and all(len(line.split()) == 4 for line in lines[1:6])
    assert [unquote(line.split(" ")[0]) for line in lines[1:6]] == ids.to_list()
    assert pl.read_parquet(tmp_path / "ids.parquet")["word"].to_list() == [line.split(" ")[0] for line in lines[1:6]]
    assert made["encoded_ids"] == 4
    assert _words(["a%b", "c"]) == ["a%b", "c"], "ids that do not break it stay as they are"


def test_what_cannot_be_read_back_is_no_export(trained: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(np, "load", lambda *_, **__: np.zeros((30, 8), dtype=np.float32))
    with pytest.raises(BadDataError, match="read back"):
        make_export(trained, trained.run("run"), "npy", Reporter(), output=trained.root / "damaged")
    assert not (trained.root / "damaged").exists()


def test_other_files_are_never_replaced_and_a_missing_package_is_named(
    tmp_path: Path, trained: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(WrongUseError, match="no export"):
        make_export(trained, trained.run("run"), "npy", Reporter(), output=tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(MissingError, match="faiss is not installed") as missing:
        make_export(trained, trained.run("run"), "faiss", Reporter(), output=tmp_path / "new")
    assert missing.value.hint and "llmemb[ann]" in missing.value.hint


def test_command_exports_the_best_run_or_llm_embeddings(trained: Workspace) -> None:
    runner = CliRunner()
    done = runner.invoke(app, ["export", "--json", "-w", str(trained.root)])
    assert done.exit_code == 0 and json.loads(done.stdout)["source"] == "run"
    done = runner.invoke(app, ["export", "base", "--format", "npy", "--json", "-w", str(trained.root)])
    document = json.loads(done.stdout)
    assert np.load(Path(document["export"]) / "item_embeddings.npy").shape == (30, 24)
    done = runner.invoke(app, ["export", "rum", "-w", str(trained.root)])
    assert done.exit_code == 2 and "did you mean run?" in done.stderr


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_lies_beside_an_export_is_kept(tmp_path: Path, trained: Workspace) -> None:
    run, out = trained.run("run"), tmp_path / "out"
    make_export(trained, run, "npy", Reporter(), output=out)
    mine = {"notes.txt": b"years of work", "more/plot.svg": b"<svg/>"}
    (out / "more").mkdir()
    for name, content in mine.items():
        (out / name).write_bytes(content)
    before = contents(out)
    # Nothing is to be written, so nothing is in the way.
    assert not make_export(trained, run, "npy", Reporter(), output=out).built
    for source, format in ((run, "parquet"), (trained.embeddings("base"), "npy")):
        with pytest.raises(WrongUseError, match="export of run as npy") as refused:
            make_export(trained, source, format, Reporter(), output=out)  # type: ignore[arg-type]
        assert refused.value.hint and "--force" in refused.value.hint and contents(out) == before
    manifest = out / "manifest.json"
    stale = json.loads(manifest.read_text())
    stale["made_from"]["inputs"]["source"] = "0" * 64
    manifest.write_text(json.dumps(stale))
    with pytest.raises(WrongUseError, match=r"more than the export, for example more"):
        make_export(trained, run, "npy", Reporter(), output=out)
    # Twice: what was kept once is not taken for a part of the export the second time.
    for format in ("npy", "parquet"):
        make_export(trained, run, format, Reporter(), output=out, force=True)  # type: ignore[arg-type]
        found = contents(out)
        assert {name: found[name] for name in mine} == mine
        listed = {entry["name"] for entry in json.loads((out / "card.json").read_text())["files"]}
        assert found.keys() - mine.keys() == listed | {"card.md", "card.json", "manifest.json"}
    assert not list(tmp_path.glob(".out.*"))


def test_a_file_in_the_place_of_a_new_one_stops_the_export(tmp_path: Path, trained: Workspace) -> None:
    run, out = trained.run("run"), tmp_path / "out"
    make_export(trained, run, "parquet", Reporter(), output=out)
    (out / "ids.parquet").write_text("mine")
    before = contents(out)
    with pytest.raises(WrongUseError, match=r"ids\.parquet is there"):
        make_export(trained, run, "npy", Reporter(), output=out, force=True)
    assert contents(out) == before


def test_files_set_aside_come_back_after_a_crash(tmp_path: Path, trained: Workspace) -> None:
    run, out = trained.run("run"), tmp_path / "out"
    make_export(trained, run, "npy", Reporter(), output=out)
    (tmp_path / ".out.kept").mkdir()
    (tmp_path / ".out.kept" / "notes.txt").write_text("years of work")
    make_export(trained, run, "npy", Reporter(), output=out)
    assert (out / "notes.txt").read_text() == "years of work" and not (tmp_path / ".out.kept").exists()


def test_an_export_ended_before_it_was_put_in_its_place_keeps_what_lies_beside_it(
    tmp_path: Path, trained: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, out = trained.run("run"), tmp_path / "out"
    make_export(trained, run, "npy", Reporter(), output=out)
    (out / "notes.txt").write_text("years of work")

    def killed(work: Path, target: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(make_module, "_publish", killed)
        with pytest.raises(KeyboardInterrupt):
            make_export(trained, run, "parquet", Reporter(), output=out, force=True)
    make_export(trained, run, "parquet", Reporter(), output=out, force=True)
    assert (out / "notes.txt").read_text() == "years of work" and (out / "item_embeddings.parquet").is_file()


@pytest.mark.parametrize("text", ['{"name": "a web app"}', "[1, 2]", "{", "no JSON"])
def test_a_manifest_of_something_else_is_no_export(tmp_path: Path, trained: Workspace, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    for force in (False, True):
        with pytest.raises(WrongUseError, match="no export"):
            make_export(trained, trained.run("run"), "npy", Reporter(), output=tmp_path, force=force)
    assert contents(tmp_path) == {"manifest.json": text.encode()}
