"""A stream cut into blocks of whole lines: what makes reading bounded in memory and fast."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, TypeVar

from llmemb_cli.datasets.readers.streams import RawFile, bytes_read
from llmemb_cli.progress import Reporter

if TYPE_CHECKING:
    import polars as pl

CHUNK = 8 << 20  # bytes of text in a block
USUAL_LINE = 64 << 10  # bytes; a line is seldom longer
MAX_LINE = 16 << 20  # bytes; a longer line is not a record
# The column with the line a row came from. No column of a file can be called so: those with NUL bytes are refused.
LINE = "\x00line"
BOM = b"\xef\xbb\xbf"
_PACKED = (b"\x1f\x8b", b"x\x01", b"x\x9c", b"x\xda", b"\x28\xb5\x2f\xfd")

Part = TypeVar("Part")
Done = TypeVar("Done")


@dataclass(frozen=True)
class Reject:
    """A line that was not used, and why."""

    file: str
    line: int
    reason: str
    text: str


@dataclass
class Batch:
    """Part of a table: its columns as text and `LINE` (Int64, 1-based), in the order of the file.

    `rows_read` counts the rows of the part, `rejects` those of them that could not be read.
    """

    frame: pl.DataFrame
    rows_read: int
    rejects: list[Reject]


@dataclass(frozen=True)
class Chunk:
    """Whole lines: `data` holds `lines` of them, the first being line `first` of the file. Too long: not kept."""

    data: bytes
    first: int
    lines: int
    too_long: bool = False

    def pieces(self, size: int) -> list[Chunk]:
        """The same lines in smaller blocks of about `size` bytes."""
        parts, start, first = [], 0, self.first
        while start < len(self.data):
            end = self.data.find(b"\n", start + size - 1) + 1 or len(self.data)
            data = self.data[start:end]
            parts.append(Chunk(data, first, data.count(b"\n") + (not data.endswith(b"\n"))))
            start, first = end, first + parts[-1].lines
        return parts

    @property
    def looks_packed(self) -> bool:
        """Whether polars would take it for gzip, zlib or zstd and unpack it, with no bound."""
        return self.data.startswith(_PACKED)


def line_chunks(file: RawFile, report: Reporter, size: int = CHUNK) -> Iterator[Chunk]:
    """The file's lines in blocks of about `size` bytes (at most `MAX_LINE`); line ends stay, a byte order mark goes.

    The last line may lack its line end. A line of more than `MAX_LINE` bytes comes alone, with its first bytes
    only, as `too_long`, whatever the size of the blocks.
    """
    # A block that cannot hold a line that is too long need not be looked through for one.
    size = max(min(size, MAX_LINE), len(BOM) + 1)
    number = 1
    with file.open() as stream, report.task(f"reading {file.name}", file.size, "bytes") as task:
        shown = 0
        block = _block(stream, size).removeprefix(BOM)
        while block:
            # The line that the block ends in is completed: no line is in two blocks, nothing is carried over.
            begun = len(block) - block.rfind(b"\n") - 1
            rest = stream.readline(MAX_LINE + 1 - begun) if begun else b""
            place = bytes_read(stream)
            task.advance(place - shown)
            shown = place
            too_long = begun + len(rest) > MAX_LINE and not rest.endswith(b"\n")
            data = block[: len(block) - begun] if too_long else block + rest if rest else block
            if data:
                chunk = Chunk(data, number, data.count(b"\n") + (not data.endswith(b"\n")))
                number += chunk.lines
                yield chunk
            if too_long:
                yield Chunk((block[len(block) - begun :] + rest)[:500], number, 1, too_long=True)
                number += 1
                _skip_line(stream, size)
            block = _block(stream, size)


def _block(stream: IO[bytes], size: int) -> bytes:
    """The next `size` bytes; of a file that can be wound, what is missing of their last line as well, if it is short.

    To look where that line ends is cheaper than to join two pieces, which costs half as much as parsing them.
    """
    if not stream.seekable():
        return stream.read(size)
    start = stream.tell()
    stream.seek(start + size - 1)
    missing = len(stream.readline(min(USUAL_LINE, MAX_LINE - size + 1))) - 1
    stream.seek(start)
    return stream.read(size + max(missing, 0))


def _skip_line(stream: IO[bytes], size: int) -> None:
    """Read to after the next line end."""
    while (piece := stream.readline(size)) and not piece.endswith(b"\n"):
        continue


def in_order(work: Callable[[Part], Done], chunks: Iterable[Part]) -> Iterator[Done]:
    """`work` on every block, one block ahead in another thread: reading and unpacking go on meanwhile."""
    pending: deque[Future[Done]] = deque()
    with ThreadPoolExecutor(1) as pool:
        try:
            for chunk in chunks:
                pending.append(pool.submit(work, chunk))
                if len(pending) > 1:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def printable(text: str | bytes) -> str:
    """The first 500 characters as valid UTF-8."""
    if isinstance(text, bytes):
        return text[:500].decode("utf-8", "replace")
    return text[:500].encode("utf-8", "replace").decode("utf-8")
