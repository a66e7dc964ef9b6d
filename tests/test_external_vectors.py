"""`llmemb embed --vectors`: item vectors made elsewhere, in whatever file they come, and runs that read them."""

from __future__ import annotations

import gzip
import json
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file
from sklearn.decomposition import PCA
from typer.testing import CliRunner

from llmemb_cli.app import app
from llmemb_cli.config.settings import Settings, update_settings
from llmemb_cli.embeddings.export import WRITERS, ItemTable
from llmemb_cli.embeddings.external import numbered, read_blocks
from llmemb_cli.embeddings.table import read_table
from llmemb_cli.errors import BadDataError, LlmembError
from llmemb_cli.progress import Reporter
from llmemb_cli.workspace.locate import Workspace
from llmemb_cli.workspace.store import read_tensors
from tests.make_workspace import make_workspace

WIDTH = 12


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, np.ndarray]:
    """A workspace of 30 items, and a vector for each in the order of `ids`."""
    workspace, _ = make_workspace(tmp_path_factory.mktemp("given") / "ws")
    update_settings(workspace.settings_file, {"rat.epochs": 1, "rat.hidden_size": 8, "rat.max_length": 8})
    return workspace, np.random.default_rng(3).normal(size=(30, WIDTH)).astype(np.float32)


def call(workspace: Workspace, *args: str) -> tuple[int, dict[str, Any]]:
    done = CliRunner().invoke(app, [*args, "-w", str(workspace.root), "--json"])
    return done.exit_code, json.loads(done.stdout)


def ids_of(workspace: Workspace) -> list[str]:
    """The items in another order than the workspace has them, as files of other tools do."""
    items = pl.read_parquet(workspace.data / "items.parquet")["item_id"].to_list()
    return sorted(items, reverse=True)


def write(path: Path, ids: list[str], vectors: np.ndarray) -> list[str]:
    """The vectors in the format that the name says; returns the flags that read them."""
    rows = vectors.tolist()
    kind = path.name.split(".", 1)[1]
    if kind == "parquet":
        pl.DataFrame({"item_id": ids, "price": range(len(ids)), "embedding": rows}).write_parquet(path)
    elif kind == "array.parquet":
        frame = pl.DataFrame({"asin": ids, "v": pl.Series(vectors.astype(np.float64))})
        frame.write_parquet(path)
    elif kind == "jsonl.gz":
        lines = (json.dumps({"item_id": item, "vector": row, "x": [1]}) for item, row in zip(ids, rows, strict=True))
        path.write_bytes(gzip.compress("\n".join(lines).encode()))
    elif kind == "texts.jsonl":
        path.write_text(
            "\n".join(json.dumps({"id": i, "vector": str(row)}) for i, row in zip(ids, rows, strict=True))
        )
    elif kind in ("wide.csv", "wide.parquet"):
        # A column a number, in any order and beside others, as from a data frame.
        order = np.random.default_rng(0).permutation(vectors.shape[1])
        frame = pl.DataFrame({"item_id": ids, "price": range(len(ids))} | {f"d{n}": vectors[:, n] for n in order})
        if kind == "wide.csv":
            frame.write_csv(path)
        else:
            frame.write_parquet(path)
    elif kind == "csv":
        pl.DataFrame({"item_id": ids, "embedding": [str(row) for row in rows]}).write_csv(path)
    elif kind == "spaces.csv":  # as numpy prints an array, lines broken
        text = [np.array2string(row, precision=12, floatmode="unique") for row in vectors]
        pl.DataFrame({"item_id": ids, "embedding": text}).write_csv(path)
    elif kind in ("txt", "vec"):  # as gensim and fastText write it, the latter with a blank at the end of a line
        end = " " if kind == "vec" else ""
        lines = [f"{item} {' '.join(map(repr, row))}{end}" for item, row in zip(ids, rows, strict=True)]
        path.write_text("\n".join([f"{len(ids)} {vectors.shape[1]}", *lines]) + "\n")
    else:
        pl.DataFrame({"row": range(len(ids)), "item_id": ids}).write_parquet(path.parent / "ids.parquet")
        if kind == "npy":
            np.save(path, vectors)
        else:
            save_file({"item_embeddings": vectors, "item_bias": np.zeros(len(ids), np.float32)}, path)
    return ["--vectors", str(path)]


FORMATS = [
    *("v.parquet", "v.array.parquet", "v.wide.parquet", "v.jsonl.gz", "v.texts.jsonl", "v.csv", "v.spaces.csv"),
    *("v.wide.csv", "v.npy", "v.safetensors", "v.txt", "v.vec"),
]


@pytest.mark.parametrize("name", FORMATS)
def test_every_item_gets_its_own_vector_from_any_format(
    tmp_path: Path, ready: tuple[Workspace, np.ndarray], name: str
) -> None:
    workspace, vectors = ready
    ids = [*ids_of(workspace), "unknown"]
    flags = write(tmp_path / name, ids, np.concatenate([vectors, vectors[:1]]))
    code, document = call(workspace, "embed", *flags, "--name", "made", "--force")
    assert code == 0, document
    assert (document["items"], document["width"], document["others"]) == (30, WIDTH, 1)
    table = read_table(workspace.embeddings("made"))
    wanted = dict(zip(ids, vectors, strict=False))
    for item, row in zip(table.item_ids.to_list(), table.vectors, strict=True):
        np.testing.assert_array_equal(row, wanted[item])
    pca = read_tensors(workspace.embeddings("made") / "pca.safetensors")
    fitted = PCA(WIDTH).fit(table.vectors.astype(np.float64))
    np.testing.assert_allclose(np.abs(pca["components"].numpy()), np.abs(fitted.components_), atol=1e-4)


def test_an_export_can_be_taken_again(tmp_path: Path, ready: tuple[Workspace, np.ndarray]) -> None:
    workspace, _ = ready
    for format, ending in (
        ("parquet", "parquet"),
        ("npy", "npy"),
        ("safetensors", "safetensors"),
        ("word2vec", "txt"),
    ):
        code, document = call(workspace, "export", "scft", "--format", format, "-o", str(tmp_path / format))
        assert code == 0, document
        file = tmp_path / format / f"item_embeddings.{ending}"
        code, document = call(workspace, "embed", "--vectors", str(file), "--name", f"again-{format}")
        assert code == 0, document
        again = read_table(workspace.embeddings(f"again-{format}"))
        np.testing.assert_array_equal(again.vectors, read_table(workspace.embeddings("scft")).vectors)


def test_a_matrix_needs_ids_and_takes_them_from_the_users_own_table(
    tmp_path: Path, ready: tuple[Workspace, np.ndarray]
) -> None:
    workspace, vectors = ready
    np.save(tmp_path / "m.npy", vectors.astype(np.float16))
    code, document = call(workspace, "embed", "--vectors", str(tmp_path / "m.npy"))
    assert code == 2 and "--ids" in document["error"]["hint"]
    ids = ids_of(workspace)
    pl.DataFrame({"title": ["t"] * 30, "item_id": ids}).write_csv(tmp_path / "items.csv")
    flags = ["--vectors", str(tmp_path / "m.npy"), "--ids", str(tmp_path / "items.csv")]
    code, document = call(workspace, "embed", *flags)
    assert code == 0 and document["path"].endswith("embeddings/m")
    table = read_table(workspace.embeddings("m"))
    np.testing.assert_array_equal(
        table.vectors[table.item_ids.to_list().index(ids[4])], vectors.astype(np.float16)[4].astype(np.float32)
    )
    # Again: nothing to do. Other ids in the file: they are read again.
    assert call(workspace, "embed", *flags)[1]["built"] is False
    pl.DataFrame({"title": ["t"] * 30, "item_id": ids[::-1]}).write_csv(tmp_path / "items.csv")
    assert call(workspace, "embed", *flags)[1]["built"] is True
    pl.DataFrame({"item_id": ids[:-1]}).write_csv(tmp_path / "items.csv")
    code, document = call(workspace, "embed", *flags)
    assert code == 4 and "30 vectors for 29 ids" in document["error"]["message"]


@pytest.mark.parametrize("head", [[], ["code of the article"], ["item_id"]])
@pytest.mark.parametrize("name", ["ids.txt", "ids.csv"])
def test_ids_of_a_matrix_may_be_a_list(
    tmp_path: Path, ready: tuple[Workspace, np.ndarray], name: str, head: list[str]
) -> None:
    workspace, vectors = ready
    ids = ids_of(workspace)
    np.save(tmp_path / "listed.npy", vectors)
    listed = tmp_path / name
    listed.write_text("\n".join([*head, *ids]) + "\n")
    flags = ["embed", "--vectors", str(tmp_path / "listed.npy"), "--ids", str(listed), "--name", "listed"]
    code, document = call(workspace, *flags)
    assert code == 0, document
    table = read_table(workspace.embeddings("listed"))
    for item, row in zip(ids, vectors, strict=True):
        np.testing.assert_array_equal(table.vectors[table.item_ids.to_list().index(item)], row)
    listed.write_text("\n".join([*head, *ids[2:]]) + "\n")
    code, document = call(workspace, *flags)
    assert code == 4 and "30 vectors for 2" in document["error"]["message"]


def test_other_ids_for_the_same_matrix_are_read(tmp_path: Path, ready: tuple[Workspace, np.ndarray]) -> None:
    workspace, vectors = ready
    ids = ids_of(workspace)
    np.save(tmp_path / "mm.npy", vectors)
    pl.DataFrame({"item_id": ids}).write_parquet(tmp_path / "ids.parquet")
    pl.DataFrame({"item_id": ids[::-1]}).write_csv(tmp_path / "right.csv")
    flags = ["embed", "--vectors", str(tmp_path / "mm.npy")]
    assert call(workspace, *flags)[0] == 0 and call(workspace, *flags)[1]["built"] is False
    code, document = call(workspace, *flags, "--ids", str(tmp_path / "right.csv"))
    assert code == 0 and document["built"] is True
    table = read_table(workspace.embeddings("mm"))
    np.testing.assert_array_equal(table.vectors[table.item_ids.to_list().index(ids[-1])], vectors[0])
    pl.DataFrame({"item_id": ids, "embedding": vectors.tolist()}).write_parquet(tmp_path / "t.parquet")
    flags = ["embed", "--vectors", str(tmp_path / "t.parquet")]
    assert call(workspace, *flags)[0] == 0
    code, document = call(workspace, *flags, "--ids", str(tmp_path / "right.csv"))
    assert code == 2 and "--ids goes with a matrix" in document["error"]["message"]


def damaged(path: Path, ids: list[str], vectors: np.ndarray, how: str) -> None:
    """A file with one fault."""
    rows: list[Any] = vectors.tolist()
    if how == "missing":
        ids, rows = ids[1:], rows[1:]
    elif how == "twice":
        ids, rows = [*ids, ids[7]], [*rows, rows[7]]
    elif how == "no id":
        ids = [*ids[:3], None, *ids[4:]]  # type: ignore[list-item]
    elif how == "null":
        rows[5] = None
    elif how == "short":
        rows[5] = rows[5][:-1]
    elif how == "hole":
        rows[5] = [None, *rows[5][1:]]
    elif how == "nan":
        rows[5] = [float("nan"), *rows[5][1:]]
    elif how == "zero":
        rows[5] = [0.0] * WIDTH
    elif how == "huge":
        rows[5] = [1e300] * WIDTH
    pl.DataFrame({"item_id": ids, "embedding": rows}).write_parquet(path)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("missing", "1 of 30 items have no vector, for example {0}"),
        ("twice", "item {7} has two vectors"),
        ("no id", "a vector without an id"),
        ("null", "item {5} has no vector"),
        ("short", "item {5} has a vector of another width"),
        ("hole", "item {5} has a vector with something in it that is no number"),
        ("nan", "1 vectors are zero or not finite, for items {5}"),
        ("zero", "1 vectors are zero or not finite, for items {5}"),
        ("huge", "1 vectors are zero or not finite, for items {5}"),
    ],
)
def test_a_fault_names_its_item_and_leaves_what_was_there(
    tmp_path: Path, ready: tuple[Workspace, np.ndarray], how: str, words: str
) -> None:
    workspace, vectors = ready
    ids = ids_of(workspace)
    flags = write(tmp_path / "v.parquet", ids, vectors)
    assert call(workspace, "embed", *flags, "--name", "kept", "--force")[0] == 0
    before = (workspace.embeddings("kept") / "manifest.json").read_bytes()
    damaged(tmp_path / "bad.parquet", ids, vectors, how)
    code, document = call(workspace, "embed", "--vectors", str(tmp_path / "bad.parquet"), "--name", "kept")
    assert code == 4, document
    assert words.format(*ids) in document["error"]["message"]
    assert (workspace.embeddings("kept") / "manifest.json").read_bytes() == before
    assert not list(workspace.embeddings("kept").parent.glob(".kept*"))  # nothing lies about of what was refused


@pytest.mark.parametrize(
    ("content", "name", "code", "words"),
    [
        (b"PAR1 no", "x.parquet", 4, "not a readable Parquet file"),
        (b"\x93NUMPY no", "x.npy", 4, "not a matrix of numpy"),
        (b"\xff" * 40, "x.safetensors", 4, "not a safetensors file"),
        (b"", "x.csv", 4, "empty"),
        (b"item_id,a,b\ni1,1,2\n", "x.csv", 2, "which column holds the vectors? there are: a, b"),
        (b"thing,embedding\ni1,1 2\n", "x.csv", 4, "which column is the item's id?"),
        (b'item_id,embedding\ni1,"[1, two]"\n', "x.csv", 4, "item i1 has a vector with something in it"),
        (b'{"item_id": "i1", "embedding": [1, 2]}\n\n{"item_id"\n', "x.jsonl", 4, "line 3"),
        (b'{"item_id": "i1", "embedding": [1, 2]}\n{"embedding": [1, 2]}\n', "x.jsonl", 4, "line 2, field item_id"),
        (
            b'{"item_id": "i1", "embedding": [1, {"a": 2}]}\n',
            "x.jsonl",
            4,
            "item i1 has a vector with something in it",
        ),
        (b'{"item_id": "i1", "embedding": [1, 2]}\n{"item_id": "i2"}\n', "x.jsonl", 4, "item i2 has no vector"),
        (
            b'{"item_id": ' + b"[" * 200 + b"1" + b"]" * 200 + b', "embedding": [1]}\n',
            "x.jsonl",
            4,
            "nested too deeply",
        ),
    ],
)
def test_files_that_are_no_vectors(
    tmp_path: Path, ready: tuple[Workspace, np.ndarray], content: bytes, name: str, code: int, words: str
) -> None:
    workspace, _ = ready
    (tmp_path / name).write_bytes(content)
    pl.DataFrame({"item_id": ["i1"]}).write_parquet(tmp_path / "ids.parquet")
    found, document = call(workspace, "embed", "--vectors", str(tmp_path / name))
    said = f"{document['error']['message']} {document['error']['where']}"
    assert found == code and words in said, document
    assert not workspace.embeddings("x").exists()


def test_what_stands_in_the_way_is_named_by_the_users_own_file(
    tmp_path: Path, ready: tuple[Workspace, np.ndarray]
) -> None:
    workspace, vectors = ready
    code, document = call(workspace, "embed", "--vectors", str(tmp_path))
    assert code == 2 and "this is a directory" in document["error"]["message"]
    holed = np.concatenate([vectors, vectors[:1] * 0])
    ids = [*ids_of(workspace), "not an item"]  # whose vector is of no importance
    assert call(workspace, "embed", *write(tmp_path / "more.npy", ids, holed))[0] == 0
    holed[3, 2] = np.nan
    flags = write(tmp_path / "holed.npy", ids, holed)
    code, document = call(workspace, "embed", *flags)
    assert code == 4 and document["error"]["where"] == str(tmp_path / "holed.npy")


def test_numbered_columns_are_a_vector_only_where_that_is_plain() -> None:
    assert numbered(["d10", "x", *(f"d{n}" for n in range(10))]) == [f"d{n}" for n in range(11)]
    assert numbered(["2", "1", "3"]) == ["1", "2", "3"]
    for names in (["d0"], ["d0", "d2"], ["d5", "d6"], ["price", "stars"], ["a0", "a1", "b0", "b1"], []):
        assert numbered(names) == []


def test_a_pickle_in_a_matrix_is_never_opened(tmp_path: Path, ready: tuple[Workspace, np.ndarray]) -> None:
    workspace, _ = ready
    ran = tmp_path / "ran"

    class Trap:
        def __reduce__(self) -> Any:
            return (ran.write_text, ("x",))

    np.save(tmp_path / "t.npy", np.array([Trap()], dtype=object), allow_pickle=True)
    pl.DataFrame({"item_id": ["i1"]}).write_parquet(tmp_path / "ids.parquet")
    code, document = call(workspace, "embed", "--vectors", str(tmp_path / "t.npy"))
    assert code == 4 and not ran.exists(), document


@pytest.mark.parametrize("name", ["scft", "base", "said", "own", "../up", ".hidden", "scft-x", "a.parts", "a/b", ""])
def test_names_that_vectors_cannot_have(tmp_path: Path, ready: tuple[Workspace, np.ndarray], name: str) -> None:
    workspace, vectors = ready
    flags = write(tmp_path / "v.parquet", ids_of(workspace), vectors)
    code, document = call(workspace, "embed", *flags, "--name", name)
    assert code == 2, document
    if name not in ("scft", "own"):  # choices of rat.vectors
        code, document = call(workspace, "rat", "--method", "llm2x", "--set", f"rat.vectors={name}")
        assert code == 2, document


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--items", "x.csv"], "--items"),
        (["--without", "scft"], "--without"),
        (["--shard", "1/2"], "--shard"),
        (["--model", "x"], "--model"),
        (["--load-in-8bit"], "--load-in-8bit"),
        (["--out", "o"], "--out"),
        (["--run", "r", "--name", "n"], "--name"),
    ],
)
def test_flags_that_do_not_go_with_vectors_from_a_file(
    tmp_path: Path, ready: tuple[Workspace, np.ndarray], flags: list[str], words: str
) -> None:
    workspace, vectors = ready
    given = write(tmp_path / "v.parquet", ids_of(workspace), vectors)
    code, document = call(workspace, "embed", *given, *flags)
    assert code == 2 and words in document["error"]["message"], document


@pytest.mark.parametrize("method", ["llm2x", "alphafuse", "llmesr", "llmemb"])
def test_runs_read_the_vectors_they_name(tmp_path: Path, ready: tuple[Workspace, np.ndarray], method: str) -> None:
    workspace, vectors = ready
    flags = write(tmp_path / "v.parquet", ids_of(workspace), vectors)
    assert call(workspace, "embed", *flags, "--name", "made", "--force")[0] == 0
    rat = ["rat", "--method", method, "--learning-rate", "1e-12", "--set", "rat.alphafuse_dims=4"]
    code, document = call(workspace, *rat, "--set", "rat.vectors=made")
    assert code == 0, document
    trained = next(run for run in document["runs"] if run["method"] == method)
    assert trained["vectors"] == "made"
    run = workspace.run(trained["run"])
    table = read_tensors(run / "item_embeddings.safetensors")["item_embeddings"].numpy()
    ids = pl.read_parquet(run / "ids.parquet")["item_id"].to_list()
    mine = np.stack([dict(zip(ids_of(workspace), vectors, strict=True))[item] for item in ids]).astype(np.float64)
    if method == "llm2x":  # a table that starts from their PCA, times one number
        reduced = PCA(8).fit_transform(mine)
        ratio = np.abs(table) / np.abs(reduced)
        np.testing.assert_allclose(ratio, ratio.mean(), rtol=1e-3)
    # Another run than the one on the vectors of the LLM, which has the plain name.
    assert trained["run"] != f"sasrec-{method}-42"
    # The same again: nothing to do. Vectors that have changed since: it is made again.
    assert all(not run["built"] for run in call(workspace, *rat, "--set", "rat.vectors=made")[1]["runs"])
    write(tmp_path / "v.parquet", ids_of(workspace), vectors + 1)
    assert call(workspace, "embed", *flags, "--name", "made")[1]["built"] is True
    again = call(workspace, *rat, "--set", "rat.vectors=made")[1]["runs"]
    assert next(run for run in again if run["method"] == method)["built"] is True


def test_vectors_that_are_not_there_are_said_before_anything_is_trained(
    tmp_path: Path, ready: tuple[Workspace, np.ndarray]
) -> None:
    workspace, vectors = ready
    flags = write(tmp_path / "v.parquet", ids_of(workspace), vectors)
    assert call(workspace, "embed", *flags, "--name", "made", "--force")[0] == 0
    before = sorted((workspace.root / "runs").glob("*")) if (workspace.root / "runs").exists() else []
    for args in (
        ["rat", "--method", "llmemb", "--set", "rat.vectors=nowhere"],
        ["run", "--set", "rat.vectors=nowhere"],
    ):
        code, document = call(workspace, *args)
        assert code == 2 and "--name nowhere" in document["error"]["hint"], document
    code, document = call(workspace, "rat", "--method", "llm2x", "--set", "rat.vectors=maid")
    assert code == 2 and document["error"]["hint"] == "did you mean made?"
    code, document = call(workspace, "rat", "--without", "scft", "--set", "rat.vectors=nowhere")
    assert code == 2 and "--without scft" in document["error"]["message"]
    assert (sorted((workspace.root / "runs").glob("*")) if (workspace.root / "runs").exists() else []) == before


def test_a_method_with_vectors_of_its_own_is_told_that_the_choice_has_no_effect(
    ready: tuple[Workspace, np.ndarray],
) -> None:
    workspace, _ = ready
    flags = ["--set", "rat.vectors=made", "-w", str(workspace.root)]
    done = CliRunner().invoke(app, ["rat", "--method", "none", *flags])
    assert done.exit_code == 0 and "no effect on sasrec-none: vectors" in done.stderr


def test_new_items_with_given_vectors_pass_the_adapter_of_a_run(
    tmp_path: Path, ready: tuple[Workspace, np.ndarray]
) -> None:
    workspace, vectors = ready
    ids = ids_of(workspace)
    flags = write(tmp_path / "v.parquet", ids, vectors)
    assert call(workspace, "embed", *flags, "--name", "adapted", "--force")[0] == 0
    common = ["--set", "rat.vectors=adapted"]
    assert call(workspace, "rat", "--method", "llmemb", *common, "--name", "with-adapter")[0] == 0
    assert call(workspace, "rat", "--method", "llm2x", *common, "--name", "with-table")[0] == 0
    extra = np.random.default_rng(9).normal(size=(2, WIDTH)).astype(np.float32)
    new = write(tmp_path / "new.parquet", [ids[3], "n1", "n2"], np.concatenate([vectors[3:4], extra]))
    out = tmp_path / "out.parquet"
    code, document = call(workspace, "embed", *new, "--run", "with-adapter", "--out", str(out))
    assert code == 0, document
    assert document["items"] == 3 and document["known"] == 1
    found = pl.read_parquet(out)
    assert found.columns == ["item_id", "embeddings", "reduced", "item_embeddings"]
    run = workspace.run("with-adapter")
    place = pl.read_parquet(run / "ids.parquet")["item_id"].to_list().index(ids[3])
    own = read_tensors(run / "item_embeddings.safetensors")["item_embeddings"].numpy()[place]
    np.testing.assert_allclose(found["item_embeddings"].to_list()[0], own, atol=1e-5)
    # An affine map: worked out from the known items alone, it gives the embeddings of the new ones.
    table = read_table(workspace.embeddings("adapted"))
    known = np.c_[table.vectors.astype(np.float64), np.ones(len(table.vectors))]
    every = read_tensors(run / "item_embeddings.safetensors")["item_embeddings"].double().numpy()
    affine = np.linalg.lstsq(known, every, rcond=None)[0]
    np.testing.assert_allclose(found["item_embeddings"].to_list()[1:], np.c_[extra, np.ones(2)] @ affine, atol=1e-4)

    code, document = call(workspace, "embed", *new, "--run", "with-table")
    assert code == 2 and "embedding of its own for every item" in document["error"]["message"]
    items = tmp_path / "items.csv"
    pl.DataFrame({"item_id": ["n1"], "title": ["Thing"]}).write_csv(items)
    for flags in ([], ["--without", "scft"]):
        code, document = call(workspace, "embed", "--items", str(items), "--run", "with-adapter", *flags)
        assert code == 2 and "--vectors FILE" in document["error"]["hint"], document
    narrow = write(tmp_path / "narrow.parquet", ["n1"], extra[:1, :5])
    code, document = call(workspace, "embed", *narrow, "--run", "with-adapter")
    assert code == 4 and "vectors of 5 numbers, those of adapted have 12" in document["error"]["message"]
    twice = write(tmp_path / "twice.parquet", ["n1", "n1"], extra)
    code, document = call(workspace, "embed", *twice, "--run", "with-adapter")
    assert code == 4 and "item n1 has two vectors" in document["error"]["message"]


def test_a_run_on_the_llms_vectors_wants_new_items_not_vectors(
    tmp_path: Path, ready: tuple[Workspace, np.ndarray]
) -> None:
    workspace, vectors = ready
    assert call(workspace, "rat", "--without", "scft", "--name", "of-llm")[0] == 0
    flags = write(tmp_path / "v.parquet", ["n1"], vectors[:1])
    code, document = call(workspace, "embed", *flags, "--run", "of-llm")
    assert code == 2 and "--items" in document["error"]["hint"], document


def test_their_card_says_that_no_llm_of_ours_took_part(tmp_path: Path, ready: tuple[Workspace, np.ndarray]) -> None:
    workspace, vectors = ready
    flags = write(tmp_path / "v.parquet", ids_of(workspace), vectors)
    assert call(workspace, "embed", *flags, "--name", "carded", "--force")[0] == 0
    rat = ["rat", "--method", "llm2x", "--set", "rat.vectors=carded", "--name", "of-carded"]
    assert call(workspace, *rat)[0] == 0
    for name in ("carded", "of-carded"):
        code, document = call(workspace, "export", name)
        assert code == 0 and document["model"]["name"] == "vectors made elsewhere", document
    code, document = call(workspace, "similar", ids_of(workspace)[0], "--in", "carded")
    assert code == 0, document


def test_word2vec_text_of_ids_with_blanks_comes_back(tmp_path: Path) -> None:
    items = ["a b", "100%", "c%20d", "plain"]
    vectors = np.random.default_rng(1).normal(size=(4, 5)).astype(np.float32)
    WRITERS["word2vec"](tmp_path, ItemTable(pl.Series(items), vectors), "ip")
    (found,) = read_blocks(tmp_path / "item_embeddings.txt", None, Settings(), Reporter())
    assert found[0].to_list() == items
    np.testing.assert_array_equal(found[1], vectors)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("3 2\ni1 1 2\ni2 3 4\n", "2 vectors, where its first line says 3"),
        ("2 2\ni1 1 2\ni2 3\n", "item i2 has a vector of another width than 2"),
        ("2 2\ni1 1 2\ni2 3 x\n", "item i2 has a vector with something in it that is no number"),
        ("1 2\ni1\n", "item i1 has"),
    ],
)
def test_faults_of_word2vec_text(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "v.txt").write_text(text)
    with pytest.raises(BadDataError, match=said):
        list(read_blocks(tmp_path / "v.txt", None, Settings(), Reporter()))


numbers = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(st.lists(st.lists(numbers, min_size=3, max_size=3), min_size=1, max_size=5))
def test_numbers_written_as_json_are_read_to_the_last_bit(rows: list[list[float]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "v.jsonl"
        lines = [json.dumps({"item_id": f"i{n}", "embedding": row}) for n, row in enumerate(rows)]
        file.write_text("\n".join(lines))
        found = np.concatenate([block for _, block in read_blocks(file, None, Settings(), Reporter())])
    np.testing.assert_array_equal(found, np.array(rows, dtype=np.float32))


@given(st.binary(max_size=400), st.sampled_from(["npy", "safetensors", "parquet", "csv", "jsonl", "w2v"]))
def test_whatever_bytes_come_the_error_is_one_for_people(content: bytes, kind: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"v.{kind}"
        file.write_bytes(b"1 2\n" + content if kind == "w2v" else content)
        pl.DataFrame({"item_id": ["i1"]}).write_parquet(Path(folder) / "ids.parquet")
        try:
            for names, vectors in read_blocks(file, None, Settings(), Reporter()):
                assert len(names) == len(vectors) and vectors.dtype == np.float32
        except LlmembError as error:
            assert error.message


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Good files of two items, by their endings."""
    folder, vectors = tmp_path_factory.mktemp("whole"), np.arange(6, dtype=np.float32).reshape(2, 3) + 1
    for name in ("v.npy", "v.safetensors", "v.parquet"):
        write(folder / name, ["i1", "i2"], vectors)
    return {path.suffix: path.read_bytes() for path in folder.glob("v.*")}


@given(st.data())
def test_a_damaged_file_is_never_more_than_an_error_for_people(whole: dict[str, bytes], data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(sorted(whole)))
    content = bytearray(whole[kind])
    for place in data.draw(st.lists(st.integers(0, min(len(content), 300) - 1), min_size=1, max_size=3)):
        # Of Parquet its end: damaged anywhere it may end the process, see below.
        content[-1 - place if kind == ".parquet" else place] = data.draw(st.integers(0, 255))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"v{kind}"
        file.write_bytes(content)
        pl.DataFrame({"item_id": ["i1", "i2"]}).write_parquet(Path(folder) / "ids.parquet")
        try:
            list(read_blocks(file, None, Settings(), Reporter()))
        except LlmembError as error:
            assert error.message


READ_ALL = """
import sys
from pathlib import Path
from llmemb_cli.config.settings import Settings
from llmemb_cli.embeddings.external import read_blocks
from llmemb_cli.errors import LlmembError
from llmemb_cli.progress import Reporter
for name in sys.argv[1:]:
    print(name, flush=True)
    try:
        list(read_blocks(Path(name), None, Settings(), Reporter()))
    except LlmembError as error:
        assert error.message
"""


def test_a_parquet_file_damaged_anywhere_is_an_error_for_people(tmp_path: Path, whole: dict[str, bytes]) -> None:
    rng = np.random.default_rng(0)
    left = [str(tmp_path / f"{number}.parquet") for number in range(400)]
    for name in left:
        content = bytearray(whole[".parquet"])
        for place in rng.integers(len(content), size=rng.integers(1, 4)):
            content[place] = rng.integers(256)
        Path(name).write_bytes(content)
    aborted = 0
    while left:
        done = subprocess.run([sys.executable, "-c", READ_ALL, *left], capture_output=True, text=True)
        # At some damaged pages polars (2.1) aborts the process, which nothing here can prevent: on behind that file.
        assert done.returncode == 0 or (done.returncode == -signal.SIGABRT and "polars" in done.stderr), done.stderr
        aborted += done.returncode != 0
        left = left[len(done.stdout.splitlines()) :]
    assert aborted <= 20
