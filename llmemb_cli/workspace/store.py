"""The one place that writes files: whole or not at all, and flushed before they get their name."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmemb_cli.errors import BadDataError, LlmembError

if TYPE_CHECKING:
    import polars as pl
    import torch

HASH_BLOCK = 4 << 20  # bytes


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is flushed and renamed to `path`."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    except OSError as error:
        raise explain_os_error(error, path) from error
    os.close(handle)
    part = Path(name)
    try:
        yield part
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        part.chmod(0o644)
        part.replace(path)
    except OSError as error:
        raise explain_os_error(error, path) from error
    finally:
        part.unlink(missing_ok=True)


def disk_is_full(error: BaseException) -> bool:
    """Whether an error says that there is no room to write; safetensors says it in its text alone."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return f"os error {errno.ENOSPC}" in str(error) or os.strerror(errno.ENOSPC) in str(error)


def explain_os_error(error: Exception, path: Path) -> LlmembError:
    """What the system says when writing `path` fails, as an error for a person."""
    if disk_is_full(error):
        return LlmembError(
            "no space left on the device",
            where=str(path),
            hint="free some space and run the same command again",
        )
    return LlmembError(f"cannot write: {getattr(error, 'strerror', None) or error}", where=str(path))


def _system_error(error: Exception) -> OSError:
    """The system's error behind one of a library in Rust, where it stands in the text alone."""
    found = re.search(r"os error (\d+)", str(error))
    return OSError(int(found[1]) if found else None, str(error))


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text with Unix line ends."""
    with atomic_path(path) as part:
        part.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON; NaN and infinity are refused since JSON has no word for them."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file of ours.

    Raises:
        BadDataError: the file is missing or damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise BadDataError("file is missing", where=str(path)) from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise BadDataError(f"not valid JSON: {error}", where=str(path)) from error


def append_jsonl(path: Path, record: dict[str, Any]) -> None:
    """Append one line to a log; a line is written by one call, so a crash cannot cut two records."""
    line = json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n"
    try:
        with path.open("a", encoding="utf-8", newline="\n") as file:
            file.write(line)
    except OSError as error:
        raise explain_os_error(error, path) from error


def read_jsonl(path: Path, fields: Set[str] = frozenset()) -> tuple[list[dict[str, Any]], bool]:
    """The records of a log that `append_jsonl` wrote, and whether its last line was cut (by a full disk, a crash).

    Args:
        path: none if it is not there.
        fields: what every record has.

    Raises:
        BadDataError: another line is no record.
    """
    # Not splitlines(), for which a line also ends at characters that JSON leaves inside a text.
    lines = path.read_bytes().split(b"\n") if path.is_file() else [b""]
    cut = bool(lines.pop())  # after the last line end
    records = [_record(line, fields) for line in lines]
    if not cut and records and records[-1] is None:
        cut = True
        records.pop()
    if None in records:
        where = f"{path}, line {records.index(None) + 1}"
        raise BadDataError("not a line of this log", where=where, hint="remove this line")
    return [record for record in records if record is not None], cut


def _record(line: bytes, fields: Set[str]) -> dict[str, Any] | None:
    """What a line holds, or None where that is no record."""
    try:
        record = json.loads(line.decode())
    except ValueError:
        return None
    return record if isinstance(record, dict) and record.keys() >= fields else None


def write_parquet(path: Path, frame: pl.DataFrame) -> None:
    """Write a table; the rows stand in the order given."""
    from polars.exceptions import PolarsError

    with atomic_path(path) as part:
        try:
            frame.write_parquet(part, compression="zstd", statistics=False)
        except PolarsError as error:
            raise _system_error(error) from error


def made_again(directory: Path) -> str:
    """What to do about a directory of ours that something damaged."""
    return f"remove {directory}, and make it again"


@contextmanager
def parquet_faults(where: str, hint: str | None = None) -> Iterator[None]:
    """Within, what polars says of a damaged Parquet file is a BadDataError. At some damage its reader panics."""
    from polars.exceptions import PanicException, PolarsError

    try:
        yield
    except FileNotFoundError as error:
        raise BadDataError("file is missing", where=where) from error
    except (PolarsError, OSError) as error:
        said = f"not a readable Parquet file: {str(error).splitlines()[0]}"
        raise BadDataError(said, where=where, hint=hint) from error
    except PanicException as error:
        raise BadDataError("not a readable Parquet file: it is damaged", where=where, hint=hint) from error


def read_parquet(path: Path, columns: list[str] | None = None) -> pl.DataFrame:
    """Read a table of ours, or some columns of it.

    Raises:
        BadDataError: the file is missing or damaged, or has no such columns.
    """
    import polars as pl

    with parquet_faults(str(path), made_again(path.parent)):
        return pl.read_parquet(path, columns=columns)


def write_tensors(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write tensors as safetensors; `metadata` is kept in the file's header."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with atomic_path(path) as part:
        try:
            save_file({name: t.detach().contiguous().cpu() for name, t in tensors.items()}, part, metadata)
        except SafetensorError as error:
            raise _system_error(error) from error


def read_tensors(path: Path, hint: str | None = None) -> dict[str, torch.Tensor]:
    """Read a safetensors file into CPU tensors.

    Args:
        hint: what to do where it cannot be read.

    Raises:
        BadDataError: the file is missing or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except FileNotFoundError as error:
        raise BadDataError("file is missing", where=str(path), hint=hint) from error
    except SafetensorError as error:
        raise BadDataError(f"not a safetensors file: {error}", where=str(path), hint=hint) from error


def sha256_file(path: Path, advance: Callable[[int], None] | None = None) -> str:
    """The SHA-256 of a file's content, in hex; `advance` is told of the bytes done."""
    with path.open("rb") as file:
        if advance is None:
            return hashlib.file_digest(file, "sha256").hexdigest()
        digest = hashlib.sha256()
        while block := file.read(HASH_BLOCK):
            digest.update(block)
            advance(len(block))
        return digest.hexdigest()


def sha256_json(value: Any) -> str:
    """The SHA-256 of a JSON value in canonical form, in hex."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()
