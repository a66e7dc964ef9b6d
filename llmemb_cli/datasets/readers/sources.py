"""Files as people have them: plain, gzipped, in a folder, in a tar or zip archive. Read as streams, never unpacked.

An archive's member is read where it is: no path from inside an archive is ever opened or written. What an
archive may unpack to is bounded, so that a few kilobytes cannot become terabytes.
"""

from __future__ import annotations

import gzip
import io
import lzma
import re
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from llmemb_cli.errors import BadDataError, LlmembError, WrongUseError

MAX_RATIO = 200  # text of this kind packs 3 to 30 times smaller
RATIO_FROM = 64 << 20  # bytes; below this any ratio is harmless
MAX_UNPACKED = 1 << 40  # bytes
DAMAGE = (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, zipfile.BadZipFile, tarfile.TarError)


@dataclass(frozen=True)
class RawFile:
    """A file to read, wherever it lies.

    Attributes:
        name: its name for messages and the data card, without folders.
        path: the file on disk that holds it: itself, or the archive.
        open: gives a new binary stream of its content, unpacked.
    """

    name: str
    path: Path
    open: Callable[[], IO[bytes]]

    @property
    def where(self) -> str:
        return str(self.path) if self.path.name == self.name else f"{self.path}: {self.name}"


class _Bounded(io.RawIOBase):
    """An unpacked stream that refuses to grow out of proportion to what it is unpacked from."""

    def __init__(self, stream: IO[bytes], packed_bytes: Callable[[], int], name: str) -> None:
        self._stream, self._packed, self._name, self._done = stream, packed_bytes, name, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._stream.read(len(buffer))
        except DAMAGE as error:
            raise BadDataError(f"the archive is damaged or cut off: {error}", where=self._name) from error
        except OSError as error:
            raise LlmembError(f"cannot read: {error.strerror or error}", where=self._name) from error
        buffer[: len(data)] = data
        self._done += len(data)
        if (self._done > RATIO_FROM and self._done > MAX_RATIO * max(self._packed(), 1)) or self._done > MAX_UNPACKED:
            raise BadDataError(
                f"unpacks to more than {MAX_RATIO} times its size: this looks like an archive made to fill a disk",
                where=self._name,
                hint="unpack it yourself if you trust it, and pass the file",
            )
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._stream.close()
        super().close()


def _bounded(stream: IO[bytes], packed_bytes: Callable[[], int], name: str) -> IO[bytes]:
    return io.BufferedReader(_Bounded(stream, packed_bytes, name), 1 << 20)


def _open_plain(path: Path) -> IO[bytes]:
    """The content of a plain or gzipped file; gzip is known by its first bytes, not its name."""
    try:
        file = path.open("rb")
    except OSError as error:
        raise LlmembError(f"cannot read: {error.strerror or error}", where=str(path)) from error
    zipped = file.read(2) == b"\x1f\x8b"
    file.seek(0)
    if not zipped:
        return file
    return _bounded(gzip.GzipFile(fileobj=file), file.tell, str(path))  # type: ignore[arg-type]


def plain_file(path: Path) -> RawFile:
    """A file that is itself the data, possibly gzipped.

    Raises:
        WrongUseError: it is not there or is a directory.
        BadDataError: it is empty.
    """
    if path.is_dir():
        raise WrongUseError("a file is expected here, this is a directory", where=str(path))
    if not path.is_file():
        raise WrongUseError("no such file", where=str(path))
    if path.stat().st_size == 0:
        raise BadDataError("the file is empty", where=str(path))
    return RawFile(path.name, path, lambda: _open_plain(path))


def find_files(source: Path, roles: dict[str, str], *, expected: str) -> dict[str, RawFile]:
    """The files of a data set in a folder or archive, or beside a single file, by role.

    Args:
        source: a folder, a tar (plain or packed), a zip, or one of the files (the others are looked for beside it).
        roles: for every role a regular expression that the whole file name, without folders, must match.
        expected: what a person should have passed, for messages.

    Raises:
        WrongUseError: nothing is there, or a role fits no file or several.
        BadDataError: the archive is damaged, or has a member that points outside its folder.
    """
    if not source.exists():
        raise WrongUseError("no such file or folder", where=str(source), hint=f"expected {expected}")
    if source.is_file() and not _is_archive(source):
        source = source.parent
    found: dict[str, RawFile] = {}
    seen: list[str] = []
    for file in _walk(source):
        seen.append(file.name)
        for role, pattern in roles.items():
            if re.fullmatch(pattern, file.name, re.IGNORECASE):
                if role in found:
                    raise WrongUseError(
                        f"several files could be the {role}: {found[role].name}, {file.name}",
                        where=str(source),
                        hint="leave only one of them there",
                    )
                found[role] = file
        # A packed tar is read from its start for every look: stop when all is found.
        if len(found) == len(roles) and not source.is_dir():
            break
    missing = [role for role in roles if role not in found]
    if missing:
        there = ", ".join(seen[:10]) + (" ..." if len(seen) > 10 else "")
        raise WrongUseError(
            f"no file with the {' and the '.join(missing)} there ({there or 'nothing'})",
            where=str(source),
            hint=f"expected {expected}",
        )
    return found


def _is_archive(path: Path) -> bool:
    try:
        return zipfile.is_zipfile(path) or tarfile.is_tarfile(path)
    except (OSError, EOFError, zlib.error) as error:
        raise BadDataError(f"cannot read: {error}", where=str(path)) from error


def _walk(source: Path) -> Iterator[RawFile]:
    """Every file in a folder (two levels deep), zip or tar; an archive in a zip is looked into as well."""
    if source.is_dir():
        for path in sorted([*source.glob("*"), *source.glob("*/*")]):
            if path.is_file() and not path.name.startswith("."):
                yield RawFile(path.name, path, _opener(path))
    elif zipfile.is_zipfile(source):
        yield from _walk_zip(source)
    else:
        yield from _walk_tar(source, lambda: source.open("rb"))


def _opener(path: Path) -> Callable[[], IO[bytes]]:
    return lambda: _open_plain(path)


def _check_member(name: str, archive: Path) -> str:
    """The member's own name, if its path stays inside the archive's folder."""
    pure = PurePosixPath(name.replace("\\", "/"))
    if pure.is_absolute() or ".." in pure.parts or re.match(r"[a-zA-Z]:", name):
        raise BadDataError(
            f"a member points outside its folder: {name!r}", where=str(archive), hint="do not trust this archive"
        )
    return pure.name


def _hidden(name: str) -> bool:
    return name.startswith("._") or "__MACOSX" in name


def _walk_zip(path: Path) -> Iterator[RawFile]:
    try:
        with zipfile.ZipFile(path) as archive:
            members = [info for info in archive.infolist() if not info.is_dir() and not _hidden(info.filename)]
    except DAMAGE as error:
        raise BadDataError(f"not a zip file, or damaged: {error}", where=str(path)) from error
    for info in members:
        name = _check_member(info.filename, path)
        opened = _zip_opener(path, info)
        if re.search(r"\.(tar|tgz|tar\.gz)$", name):
            yield from _walk_tar(path, opened)
        else:
            yield RawFile(name, path, _gunzip(opened, f"{path}: {name}"))


def _zip_opener(path: Path, info: zipfile.ZipInfo) -> Callable[[], IO[bytes]]:
    def open_member() -> IO[bytes]:
        try:
            stream = zipfile.ZipFile(path).open(info)  # noqa: SIM115 (the caller closes it)
        except (*DAMAGE, RuntimeError, NotImplementedError, KeyError) as error:
            raise BadDataError(f"cannot read this member: {error}", where=f"{path}: {info.filename}") from error
        return _bounded(stream, lambda: info.compress_size, f"{path}: {info.filename}")

    return open_member


def _gunzip(opened: Callable[[], IO[bytes]], name: str) -> Callable[[], IO[bytes]]:
    """As `opened`, unpacked once more where the member is gzipped itself."""

    def open_member() -> IO[bytes]:
        stream = opened()
        if stream.peek(2)[:2] != b"\x1f\x8b":  # type: ignore[attr-defined]
            return stream
        return _bounded(gzip.GzipFile(fileobj=stream), lambda: MAX_UNPACKED, name)  # type: ignore[arg-type]

    return open_member


def _tar_members(path: Path, opened: Callable[[], IO[bytes]]) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    """The regular files of a tar in its order, read as one stream; links and devices are passed over."""
    try:
        with opened() as stream:
            packed = _bounded_tar(stream, str(path))
            with tarfile.open(fileobj=packed, mode="r|") as archive:
                for member in archive:
                    if member.isfile() and not _hidden(member.name):
                        yield archive, member
    except DAMAGE as error:
        raise BadDataError(f"the tar archive is damaged or cut off: {error}", where=str(path)) from error


def _bounded_tar(stream: IO[bytes], name: str) -> IO[bytes]:
    head = stream.peek(6)[:6]  # type: ignore[attr-defined]
    if head[:2] == b"\x1f\x8b":
        return _bounded(gzip.GzipFile(fileobj=stream), stream.tell, name)  # type: ignore[arg-type]
    if head == b"\xfd7zXZ\x00":
        return _bounded(lzma.LZMAFile(stream), stream.tell, name)
    return stream


def _walk_tar(path: Path, opened: Callable[[], IO[bytes]]) -> Iterator[RawFile]:
    for _, member in _tar_members(path, opened):
        name = _check_member(member.name, path)
        yield RawFile(name, path, _gunzip(_tar_opener(path, opened, member.name), f"{path}: {name}"))


def _tar_opener(path: Path, opened: Callable[[], IO[bytes]], wanted: str) -> Callable[[], IO[bytes]]:
    def open_member() -> IO[bytes]:
        members = _tar_members(path, opened)
        for archive, member in members:
            if member.name == wanted:
                stream = archive.extractfile(member)
                assert stream is not None  # regular files only
                # The generator keeps the archive open; the stream keeps the generator.
                stream.members = members  # type: ignore[attr-defined]
                return _bounded(stream, lambda: MAX_UNPACKED, f"{path}: {wanted}")
        raise BadDataError(f"no {wanted} in this archive", where=str(path))

    return open_member
