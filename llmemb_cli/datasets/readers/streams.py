"""Unpacked content as streams that are bounded: a few kilobytes cannot become terabytes."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from llmemb_cli.errors import BadDataError, LlmembError

MAX_RATIO = 200  # text of this kind packs 3 to 30 times smaller
RATIO_FROM = 64 << 20  # bytes; below this any ratio is harmless
MAX_UNPACKED = 1 << 40  # bytes
BUFFER = 1 << 20
DAMAGE = (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, zipfile.BadZipFile, tarfile.TarError)
# By their first bytes, as names lie.
_UNPACKERS: dict[bytes, Callable[[Any], Any]] = {
    b"\x1f\x8b": lambda stream: gzip.GzipFile(fileobj=stream),
    b"\xfd7zXZ\x00": lzma.LZMAFile,
    b"BZh": bz2.BZ2File,
}


@dataclass(frozen=True)
class RawFile:
    """A file to read, wherever it lies.

    Attributes:
        name: its name for messages and the data card, without folders.
        path: the file on disk that holds it: itself, or the archive.
        open: gives a new binary stream of its content, unpacked.
        size: bytes that reading it goes through, as `bytes_read` counts them; None where that is not known.
    """

    name: str
    path: Path
    open: Callable[[], IO[bytes]]
    size: int | None = None

    @property
    def where(self) -> str:
        return str(self.path) if self.path.name == self.name else f"{self.path}: {self.name}"


class _Bounded(io.RawIOBase):
    """A stream that refuses to grow out of proportion to what it is unpacked from."""

    def __init__(
        self, stream: IO[bytes], packed_bytes: Callable[[], int], where: str, packed: IO[bytes] | None
    ) -> None:
        self._stream, self._packed, self._packed_bytes = stream, packed, packed_bytes
        self._where, self._done = where, 0

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._done

    def bytes_read(self) -> int:
        """What has been taken of the file as it lies there, packed."""
        return self._done if self._packed is None else self._packed_bytes()

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._stream.read(len(buffer))
        except DAMAGE as error:
            raise _damaged(error, self._where) from error
        except OSError as error:
            # bz2 says so of damaged data; only the system's own errors have a number.
            if error.errno is None:
                raise _damaged(error, self._where) from error
            raise LlmembError(f"cannot read: {error.strerror}", where=self._where) from error
        buffer[: len(data)] = data
        self._done += len(data)
        if (self._done > RATIO_FROM and self._done > MAX_RATIO * max(self._packed_bytes(), 1)) or (
            self._done > MAX_UNPACKED
        ):
            raise BadDataError(
                f"unpacks to more than {MAX_RATIO} times its size: this looks like an archive made to fill a disk",
                where=self._where,
                hint="unpack it yourself if you trust it, and pass the file",
            )
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._stream.close()
            if self._packed is not None:
                self._packed.close()
        super().close()


def _damaged(error: Exception, where: str) -> BadDataError:
    return BadDataError(
        f"the archive is damaged or cut off: {error}", where=where, hint="delete this file and get it again"
    )


def bounded(
    stream: IO[bytes], packed_bytes: Callable[[], int], where: str, packed: IO[bytes] | None = None
) -> io.BufferedReader:
    """`stream`, ended with an error once it has given more than `packed_bytes()` can stand for.

    Closing it closes what it is unpacked from, `packed`, as well.

    Reading raises:
        BadDataError: damaged, cut off, or out of all proportion.
        LlmembError: the system cannot read it.
    """
    return io.BufferedReader(_Bounded(stream, packed_bytes, where, packed), BUFFER)


def unpacked(stream: IO[bytes], where: str) -> IO[bytes]:
    """The content of `stream` (with `peek` and `tell`): unpacked where it is gzip, xz or bzip2, else itself."""
    head = stream.peek(6)[:6]  # type: ignore[attr-defined]
    for magic, unpack in _UNPACKERS.items():
        if head.startswith(magic):
            return bounded(unpack(stream), stream.tell, where, stream)
    return stream


def bytes_read(stream: IO[bytes]) -> int:
    """How far a stream that `RawFile.open` gave has come through the file, in the bytes of `RawFile.size`."""
    raw = getattr(stream, "raw", None)
    return raw.bytes_read() if isinstance(raw, _Bounded) else stream.tell()


def open_plain(path: Path) -> IO[bytes]:
    """The content of a file on disk, unpacked.

    Raises:
        LlmembError: the system does not let us.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise LlmembError(f"cannot read: {error.strerror}", where=str(path)) from error
    return unpacked(file, str(path))
