"""`llmemb embed --items`: items that come later, through prompt, LLM, PCA and a run's adapter."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from llmemb_cli.app import app
from llmemb_cli.config.settings import Settings, load_settings, update_settings
from llmemb_cli.embeddings.pca import read_pca
from llmemb_cli.embeddings.table import read_table
from llmemb_cli.errors import BadDataError
from llmemb_cli.llm.encode import run_embed
from llmemb_cli.new_items import read_items
from llmemb_cli.progress import Reporter
from llmemb_cli.prompts.stage import make_prompts
from llmemb_cli.workspace.locate import Workspace
from llmemb_cli.workspace.store import read_tensors
from tests.make_workspace import make_workspace
from tests.tiny_llm import with_prompts
from tests.tiny_model import WORDS, tiny_llama

NUMBERS = [str(n) for n in range(60)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, Settings]:
    """A workspace of 30 items embedded by a tiny LLM, with a run on these vectors and one without any."""
    root = tmp_path_factory.mktemp("trained")
    model = tiny_llama(root / "model", words=[*WORDS, *NUMBERS])
    workspace, _ = make_workspace(root / "ws")
    update_settings(workspace.settings_file, {"scft.model": str(model), "embed.precision": "fp32"})
    update_settings(workspace.settings_file, {"rat.epochs": 1, "rat.hidden_size": 8, "rat.max_length": 8})
    settings = load_settings(workspace.settings_file)
    make_prompts(workspace, settings, Reporter())
    run_embed(workspace, settings, Reporter(), tuned=False)
    for name, flags in (
        ("adapted", ["--method", "llmemb", "--without", "scft"]),
        ("no-adapter", ["--method", "llmemb", "--without", "scft", "--without", "adapter"]),
        ("plain", ["--method", "none"]),
    ):
        done = CliRunner().invoke(app, ["rat", "-w", str(workspace.root), "--name", name, *flags])
        assert done.exit_code == 0, done.output
    return workspace, settings


def embed_items(workspace: Workspace, path: Path, *args: str) -> tuple[int, dict[str, Any]]:
    flags = ["--items", str(path), "--without", "scft", "-w", str(workspace.root), "--json"]
    done = CliRunner().invoke(app, ["embed", *flags, *args])
    return done.exit_code, json.loads(done.stdout)


def csv(path: Path, ids: list[str], titles: list[str | None], **more: list[str]) -> Path:
    pl.DataFrame({"item_id": ids, "title": titles, **more}).write_csv(path)
    return path


@pytest.mark.parametrize("run", ["adapted", "no-adapter"])
def test_known_items_come_out_as_in_the_workspace_and_new_ones_beside_them(
    tmp_path: Path, trained: tuple[Workspace, Settings], run: str
) -> None:
    workspace, _ = trained
    ids = ["i7", "new1", "i3", "new2"]
    titles: list[str | None] = ["Thing <b>7</b>", "Thing <b>45</b>", "Thing <b>3</b>", "w3 w9 w11 w12"]
    code, document = embed_items(
        workspace, csv(tmp_path / "n.csv", ids, titles), "--run", run, "--out", str(tmp_path / "o")
    )
    assert code == 0, document
    assert document["items"] == 4 and document["known"] == 2 and document["path"] == str(tmp_path / "o")
    assert pl.read_parquet(tmp_path / "o" / "ids.parquet")["item_id"].to_list() == ids
    found = {
        name: read_tensors(tmp_path / "o" / f"{name}.safetensors")[name].numpy()
        for name in ("embeddings", "reduced", "item_embeddings")
    }
    base = workspace.embeddings("base")
    table = read_table(base)
    places = {item: row for row, item in enumerate(table.item_ids.to_list())}
    reduced = read_pca(base).transform(table.vectors)
    final = read_tensors(workspace.run(run) / "item_embeddings.safetensors")["item_embeddings"].numpy()
    in_run = pl.read_parquet(workspace.run(run) / "ids.parquet")["item_id"].to_list()
    for row, item in ((0, "i7"), (2, "i3")):
        np.testing.assert_allclose(found["embeddings"][row], table.vectors[places[item]], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found["reduced"][row], reduced[places[item]], atol=1e-3)
        np.testing.assert_allclose(found["item_embeddings"][row], final[in_run.index(item)], atol=1e-3)
    for name, width in document["tables"].items():
        assert found[name].shape == (4, width) and np.isfinite(found[name]).all()
    assert np.abs(found["embeddings"][1] - found["embeddings"][3]).max() > 0.01


def test_one_parquet_file_with_ids(tmp_path: Path, trained: tuple[Workspace, Settings]) -> None:
    workspace, _ = trained
    items = csv(tmp_path / "fresh.csv", ["a", "b"], ["w1 w2", "w3"])
    code, document = embed_items(workspace, items, "--run", "adapted", "--out", str(tmp_path / "v.parquet"))
    assert code == 0, document
    frame = pl.read_parquet(tmp_path / "v.parquet")
    assert frame["item_id"].to_list() == ["a", "b"]
    assert [len(row) for row in frame["item_embeddings"]] == [8, 8]
    assert frame.columns == ["item_id", "embeddings", "reduced", "item_embeddings"]
    folder = workspace.root / "new-items" / "fresh"
    np.testing.assert_array_equal(
        np.array(frame["embeddings"].to_list(), dtype=np.float32),
        read_tensors(folder / "embeddings.safetensors")["embeddings"].numpy(),
    )
    assert not embed_items(workspace, items, "--run", "adapted")[1]["built"]


def test_files_of_one_name_in_two_folders_keep_both_their_results(
    tmp_path: Path, trained: tuple[Workspace, Settings]
) -> None:
    workspace, _ = trained
    monday, tuesday = (tmp_path / day for day in ("monday", "tuesday"))
    found = []
    for day, item in ((monday, "a"), (tuesday, "b"), (monday, "a"), (tuesday, "b")):
        day.mkdir(exist_ok=True)
        if not (day / "today.csv").exists():
            csv(day / "today.csv", [item], ["w1 w2"])
        code, document = embed_items(workspace, day / "today.csv")
        assert code == 0, document
        assert pl.read_parquet(Path(document["path"]) / "ids.parquet")["item_id"].to_list() == [item]
        found.append((document["path"], document["built"]))
    first, second, *again = found
    assert first[0] != second[0] and first[1] and second[1]
    assert again == [(first[0], False), (second[0], False)]


def test_a_line_of_json_leaves_out_what_it_does_not_know(tmp_path: Path) -> None:
    workspace, settings = with_prompts(tmp_path / "ws", tmp_path / "none")
    (tmp_path / "new.jsonl").write_text('{"id": 7, "title": "w1 w2"}\n{"id": 8, "genre": "w3"}\n')
    items = read_items(workspace, tmp_path / "new.jsonl", settings)
    assert items.select("item_id", "prompt").rows() == [("7", "title is w1 w2"), ("8", "genre is w3")]
    (tmp_path / "other.jsonl").write_text('{"id": 7, "colour": "red"}\n')
    with pytest.raises(BadDataError, match="lack the columns title, genre, year"):
        read_items(workspace, tmp_path / "other.jsonl", settings)


def test_an_adjusted_run_tells_what_its_scores_of_new_items_are_raised_by(
    tmp_path: Path, trained: tuple[Workspace, Settings]
) -> None:
    workspace, _ = trained
    told = ["--logit-adjustment", "1.5", "--keep", "-w", str(workspace.root)]
    assert CliRunner().invoke(app, ["adjust", "adapted", *told]).exit_code == 0
    path = csv(tmp_path / "new.csv", ["new1"], ["Thing <b>45</b>"])
    tables = []
    for run in ("adapted", "adapted-adjusted-1.5"):
        code, document = embed_items(workspace, path, "--run", run, "--out", str(tmp_path / run))
        assert code == 0
        tables.append(read_tensors(tmp_path / run / "item_embeddings.safetensors")["item_embeddings"])
    assert tables[0].equal(tables[1])
    log = pl.read_parquet(workspace.data / "interactions.parquet")
    counts = log.filter(pl.col("split").cast(pl.String) == "train")["item_id"].value_counts()["count"]
    # Every item of this workspace is in training: the mean of (count + 1) is that over the counted ones.
    assert len(counts) == 30
    assert document["bias"] == pytest.approx(1.5 * math.log((counts + 1).mean()), abs=1e-5)


@pytest.mark.parametrize("markup", ["text", "keep"])
def test_markup_of_new_items_is_treated_as_that_of_the_workspaces_own(tmp_path: Path, markup: str) -> None:
    workspace, settings = make_workspace(tmp_path / "ws", prompt__markup=markup)
    made = make_prompts(workspace, settings, Reporter()).manifest["made_from"]["settings"]
    # As before there was the setting, so that what was made then is still up to date where it is kept.
    assert made.get("markup") == {"text": "text", "keep": None}[markup]
    own = pl.read_parquet(workspace.prompts / "prompts.parquet").filter(item_id="i7")["prompt"][0]
    path = csv(tmp_path / "new.csv", ["i7"], ["Thing <b>7</b>"])
    now = settings.model_copy(update={"prompt": settings.prompt.model_copy(update={"markup": "text"})})
    assert read_items(workspace, path, now)["prompt"].to_list() == [own]
    assert ("<b>" in own) == (markup == "keep")


def test_missing_columns_and_bad_ids_are_named(tmp_path: Path, trained: tuple[Workspace, Settings]) -> None:
    workspace, _ = trained
    (tmp_path / "no-title.csv").write_text("item_id,colour\na,red\n")
    code, document = embed_items(workspace, tmp_path / "no-title.csv")
    assert code == 4 and "lack the columns title; there are: item_id, colour" in document["error"]["message"]
    (tmp_path / "no-id.csv").write_text("thing,title\na,red\n")
    code, document = embed_items(workspace, tmp_path / "no-id.csv")
    assert code == 4 and "which column is the item's id" in document["error"]["message"]
    code, document = embed_items(workspace, csv(tmp_path / "twice.csv", ["a", "b", "a"], ["w1", "w2", "w3"]))
    assert code == 4 and "2 items have an id that others have too" in document["error"]["message"]
    code, document = embed_items(workspace, csv(tmp_path / "empty.csv", ["a", "b"], ["w1", None]))
    assert code == 4 and "1 of 2 items have no text, for example b" in document["error"]["message"]
    assert embed_items(workspace, tmp_path / "nowhere.csv")[0] == 2


def test_a_run_without_adapter_for_new_items_says_so(tmp_path: Path, trained: tuple[Workspace, Settings]) -> None:
    workspace, _ = trained
    items = csv(tmp_path / "n.csv", ["a"], ["w1"])
    code, document = embed_items(workspace, items, "--run", "plain")
    assert code == 2 and "without vectors of the LLM" in document["error"]["message"]
    assert embed_items(workspace, items, "--run", "nothing")[0] == 2
    manifest = workspace.run("adapted") / "manifest.json"
    kept = manifest.read_text()
    manifest.write_text(kept.replace('"vectors": "base"', '"vectors": "scft"'))
    code, document = embed_items(workspace, items, "--run", "adapted")
    manifest.write_text(kept)
    assert code == 2 and document["error"]["hint"] == "leave out --without scft"
    done = CliRunner().invoke(app, ["embed", "-w", str(workspace.root), "--run", "adapted", "--json"])
    assert done.exit_code == 2 and "--items" in json.loads(done.stdout)["error"]["message"]


def test_prompts_that_changed_since_are_not_mixed_in(tmp_path: Path, trained: tuple[Workspace, Settings]) -> None:
    workspace, settings = trained
    items = csv(tmp_path / "n.csv", ["a"], ["w1"])
    other = settings.prompt.model_copy(update={"instruction": "w5 w6"})
    make_prompts(workspace, settings.model_copy(update={"prompt": other}), Reporter())
    code, document = embed_items(workspace, items)
    make_prompts(workspace, settings, Reporter())
    assert code == 4 and "prompts changed" in document["error"]["message"]
    assert document["error"]["hint"] == "run `llmemb embed --without scft` first"
    assert embed_items(workspace, items)[0] == 0


def test_out_never_takes_the_place_of_other_files(tmp_path: Path, trained: tuple[Workspace, Settings]) -> None:
    workspace, _ = trained
    items = csv(tmp_path / "n.csv", ["a"], ["w1"])
    thesis = tmp_path / "mine" / "thesis"
    thesis.parent.mkdir()
    thesis.write_text("two years of work")
    app = tmp_path / "app" / "manifest.json"
    app.parent.mkdir()
    app.write_text('{"name": "a web app"}')
    cut = tmp_path / "cut.parquet"
    cut.write_bytes(b"PAR1 cut")
    before = (workspace.data / "interactions.parquet").read_bytes()
    for out, said in (
        (thesis.parent, "other files"),
        (app.parent, "other files"),
        (thesis, "not .parquet"),
        (items, "file of --items"),
        (tmp_path / "vectors.npy", "not .npy"),
        (workspace.data / "interactions.parquet", "another file"),
        (cut, "another file"),
    ):
        code, document = embed_items(workspace, items, "--out", str(out))
        assert code == 2 and said in document["error"]["message"]
    code, document = embed_items(workspace, items, "--out", str(workspace.embeddings("base")))
    assert code == 2 and "other files" in document["error"]["message"]
    assert thesis.read_text() == "two years of work" and cut.read_bytes() == b"PAR1 cut"
    assert (workspace.data / "interactions.parquet").read_bytes() == before
    assert items.read_text() == "item_id,title\na,w1\n"
    # Earlier results make way, and an empty directory is filled.
    (tmp_path / "o").mkdir()
    for word in ("w2", "w3"):
        for name in ("o", "o.parquet"):
            code, document = embed_items(workspace, csv(items, ["a"], [word]), "--out", str(tmp_path / name))
            assert code == 0 and document["built"], document
    code, document = embed_items(workspace, items, "--out", str(tmp_path / "o"), "--pca", "2")
    assert code == 2 and "PCA" in document["error"]["message"]
    code, document = embed_items(workspace, items, "--shard", "1/2")
    assert code == 2 and "--shard" in document["error"]["message"]


def test_prompts_of_new_items_that_are_cut_are_counted_and_listed(
    tmp_path: Path, trained: tuple[Workspace, Settings]
) -> None:
    workspace, _ = trained
    before = load_settings(workspace.settings_file)
    update_settings(workspace.settings_file, {"scft.max_tokens": 20})
    settings = load_settings(workspace.settings_file)
    run_embed(workspace, settings, Reporter(), tuned=False)
    items = csv(tmp_path / "n.csv", ["short", "long"], ["w1", " ".join(["w1"] * 40)])
    flags = ["--items", str(items), "--without", "scft", "-w", str(workspace.root), "--out", str(tmp_path / "o")]
    done = CliRunner().invoke(app, ["embed", *flags])
    update_settings(workspace.settings_file, {"scft.max_tokens": before.scft.max_tokens})
    run_embed(workspace, load_settings(workspace.settings_file), Reporter(), tuned=False)
    assert done.exit_code == 0, done.output
    assert json.loads((tmp_path / "o" / "cut.json").read_text()) == ["long"]
    assert "1 prompts are longer than 20 tokens and were cut" in done.output


def test_other_weights_in_the_models_folder_are_refused(tmp_path: Path, trained: tuple[Workspace, Settings]) -> None:
    workspace, settings = trained
    items = csv(tmp_path / "n.csv", ["a"], ["w1"])
    weights = Path(settings.scft.model) / "model.safetensors"
    kept = weights.read_bytes()
    tiny_llama(weights.parent, words=[*WORDS, *NUMBERS], seed=1)
    code, document = embed_items(workspace, items)
    weights.write_bytes(kept)
    assert code == 4 and "other weights" in document["error"]["message"]
    assert "`llmemb embed --without scft` again" in document["error"]["hint"]
    assert embed_items(workspace, items)[0] == 0
