"""One large float32 matrix on disk as safetensors: written some rows at a time in any order, read by memory map.

Ten million vectors are tens of gigabytes: they never stand in memory as a whole.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import IO

import numpy as np

from llmemb_cli.errors import BadDataError
from llmemb_cli.workspace.store import explain_os_error, read_tensors

ALIGNMENT = 8  # the header is padded to this many bytes, as the format asks
BLOCK_BYTES = 1 << 26


def blocks(rows: int, width: int) -> Iterator[slice]:
    """Consecutive slices of `rows` rows of `width` float32 numbers, each of some ten megabytes."""
    step = max(BLOCK_BYTES // (4 * max(width, 1)), 1)
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


class RowsFile:
    """A matrix being written; a file of the same name and shape is gone on with. Use as a context manager.

    It holds zeros, which take no room on most disks, where no row has been written yet.
    """

    def __init__(self, path: Path, name: str, rows: int, width: int) -> None:
        self.path, self.width = path, width
        self._header = _header(name, rows, width)
        self._size = len(self._header) + 4 * rows * width

    def __enter__(self) -> RowsFile:
        try:
            self._file = self._open()
        except OSError as error:
            raise explain_os_error(error, self.path) from error
        return self

    def _open(self) -> IO[bytes]:
        if self.path.is_file() and self.path.stat().st_size == self._size:
            file = self.path.open("r+b", buffering=0)
            if file.read(len(self._header)) == self._header:
                return file
            file.close()
        file = self.path.open("w+b", buffering=0)
        file.write(self._header)
        file.truncate(self._size)
        return file

    def write(self, rows: np.ndarray, values: np.ndarray) -> None:
        """Put `values` (n, width) float32 into `rows` (n,), in whatever order.

        Raises:
            LlmembError: the disk is full or cannot be written.
        """
        assert values.shape == (len(rows), self.width)
        order = np.argsort(rows, kind="stable")
        # Rows that follow each other are written at once.
        ends = np.flatnonzero(np.diff(rows[order]) != 1) + 1
        try:
            for run in np.split(order, ends) if len(rows) else ():
                self._file.seek(len(self._header) + 4 * self.width * int(rows[run[0]]))
                _write_all(self._file, np.ascontiguousarray(values[run], dtype="<f4"))
        except OSError as error:
            raise explain_os_error(error, self.path) from error

    def sync(self) -> None:
        """Return when what was written is on the disk."""
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise explain_os_error(error, self.path) from error

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.sync()
        self._file.close()


def _write_all(file: IO[bytes], values: np.ndarray) -> None:
    left = values.data.cast("B")
    while left:
        left = left[file.write(left) :]


def _header(name: str, rows: int, width: int) -> bytes:
    entry = {"dtype": "F32", "shape": [rows, width], "data_offsets": [0, 4 * rows * width]}
    text = json.dumps({name: entry}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def map_rows(path: Path, name: str) -> np.ndarray:
    """The matrix `name` of a safetensors file, (n, d) float32, read from the disk as it is looked at.

    Changes to it stay in memory. Another type than float32 is converted, in memory.

    Raises:
        BadDataError: the file is missing or damaged, or holds no such matrix.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            names = sorted(file.keys())
            if name not in names:
                raise BadDataError(f"no {name} in it, but {', '.join(names)}", where=str(path))
            about = file.get_slice(name)
            shape, dtype = about.get_shape(), about.get_dtype()
    except FileNotFoundError as error:
        raise BadDataError("file is missing", where=str(path)) from error
    except SafetensorError as error:
        raise BadDataError(f"not a safetensors file: {error}", where=str(path)) from error
    if len(shape) != 2:
        raise BadDataError(f"{name} has {len(shape)} dimensions, not two", where=str(path))
    if dtype != "F32" or 0 in shape:
        return read_tensors(path)[name].float().numpy()
    with path.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        offset = json.loads(opened.read(length))[name]["data_offsets"][0]
    return np.memmap(path, dtype="<f4", mode="c", offset=8 + length + offset, shape=tuple(shape))
