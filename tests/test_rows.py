"""A large matrix on disk: written in any order, gone on with, read by memory map, named when it cannot be."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file
from safetensors.torch import save_file

from llmemb_cli.embeddings.table import EmbeddingTable, check_vectors, rows_for
from llmemb_cli.errors import BadDataError, LlmembError
from llmemb_cli.workspace import rows as rows_module
from llmemb_cli.workspace.rows import RowsFile, blocks, map_rows


@given(st.integers(1, 40), st.integers(1, 7), st.randoms(use_true_random=False), st.integers(1, 5))
def test_rows_in_any_order_are_a_safetensors_file(
    tmp_path_factory: pytest.TempPathFactory, count: int, width: int, random: Any, parts: int
) -> None:
    values = np.random.default_rng(count).normal(size=(count, width)).astype(np.float32)
    order = list(range(count))
    random.shuffle(order)
    path = tmp_path_factory.mktemp("rows") / "m.safetensors"
    for number in range(parts):  # opened again for every part, as after an interruption
        with RowsFile(path, "m", count, width) as file:
            rows = np.array(order[number::parts], dtype=np.int64)
            file.write(rows, values[rows])
    np.testing.assert_array_equal(load_file(path)["m"], values)
    mapped = map_rows(path, "m")
    np.testing.assert_array_equal(mapped, values)
    assert isinstance(mapped, np.memmap)


@given(st.integers(0, 200), st.integers(1, 9), st.integers(1, 400))
def test_blocks_cover_every_row_once(count: int, width: int, size: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows_module, "BLOCK_BYTES", size)
        found = list(blocks(count, width))
    assert [row for rows in found for row in range(count)[rows]] == list(range(count))
    assert all(rows.stop - rows.start == 1 or 4 * width * (rows.stop - rows.start) <= size for rows in found)


def test_a_file_of_another_shape_is_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    with RowsFile(path, "m", 4, 3) as file:
        file.write(np.arange(4), np.ones((4, 3), dtype=np.float32))
    with RowsFile(path, "m", 3, 4) as file:
        file.write(np.array([1]), np.full((1, 4), 2, dtype=np.float32))
    assert map_rows(path, "m").tolist() == [[0] * 4, [2] * 4, [0] * 4]


def test_other_files_are_read_too_and_damaged_ones_named(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    values = torch.randn(3, 2)
    save_file({"other": torch.zeros(7, dtype=torch.int8), "m": values}, path)
    np.testing.assert_array_equal(map_rows(path, "m"), values.numpy())
    save_file({"m": values.bfloat16()}, path)
    np.testing.assert_array_equal(map_rows(path, "m"), values.bfloat16().float().numpy())
    with pytest.raises(BadDataError, match="no wanted in it, but m"):
        map_rows(path, "wanted")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BadDataError, match="not a safetensors file"):
        map_rows(path, "m")
    with pytest.raises(BadDataError, match="missing"):
        map_rows(tmp_path / "nowhere", "m")


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(rows_module, "_write_all", full)
    with pytest.raises(LlmembError, match="no space left"), RowsFile(tmp_path / "m", "m", 2, 2) as file:
        file.write(np.array([0]), np.ones((1, 2), dtype=np.float32))


def test_bad_vectors_are_named_wherever_they_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows_module, "BLOCK_BYTES", 4 * 2 * 3)
    vectors = np.ones((11, 2), dtype=np.float32)
    ids = pl.Series([f"i{row}" for row in range(11)])
    check_vectors(vectors, ids, "here")
    vectors[4, 1], vectors[10] = np.nan, 0
    with pytest.raises(BadDataError, match="2 vectors are zero or not finite, for items i4, i10"):
        check_vectors(vectors, ids, "here")


def test_vectors_are_found_by_id_in_whatever_order() -> None:
    table = EmbeddingTable(pl.Series(["a", "b", "c"]), np.arange(6, dtype=np.float32).reshape(3, 2))
    assert rows_for(table, pl.Series(["c", "a", "c"]), "here").tolist() == [[4, 5], [0, 1], [4, 5]]
    assert rows_for(table, pl.Series(["a", "b", "c"]), "here") is table.vectors
    with pytest.raises(BadDataError, match="1 items have no embedding, for example z"):
        rows_for(table, pl.Series(["a", "z"]), "here")
