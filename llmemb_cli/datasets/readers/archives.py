"""The files in tar and zip archives, read in place: no path from inside an archive is ever opened or written."""

from __future__ import annotations

import re
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from llmemb_cli.datasets.readers.streams import DAMAGE, MAX_UNPACKED, RawFile, bounded, open_plain, unpacked
from llmemb_cli.errors import BadDataError

# What the standard library makes of damaged headers: negative offsets, versions of the future, names of no encoding.
_ODD = (*DAMAGE, OSError, ValueError, KeyError, RuntimeError)
_TAR_NAME = re.compile(r"\.(tar|tgz|txz|tbz2?|tar\.(gz|xz|bz2))$", re.IGNORECASE)
Open = Callable[[], IO[bytes]]
MAX_HEADER = 1 << 20  # bytes; what stands before a member, a long name and a few attributes, is not that long
MOST_HEADERS = 16  # before one member; tarfile calls itself for each
_MORE_HEADER = {
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
}


class _HeaderTooLong(tarfile.TarError):
    """Headers that tarfile would read into memory whole, several times over."""


class _Member(tarfile.TarInfo):
    """A member with bounded headers: tarfile's own methods for them, which it lets others replace."""

    def _proc_member(self, archive: _Tar) -> tarfile.TarInfo:
        if self.type not in _MORE_HEADER:
            archive.before_next = 0
        else:
            archive.before_next += max(self.size, MAX_HEADER // MOST_HEADERS)
            archive.for_all += self.size if self.type == tarfile.XGLTYPE else 0
            if self.size < 0 or max(archive.before_next, archive.for_all) > MAX_HEADER:
                raise _HeaderTooLong(f"it has headers of more than {MAX_HEADER >> 20} MiB")
        return super()._proc_member(archive)  # type: ignore[misc]

    def _proc_sparse(self, archive: _Tar) -> tarfile.TarInfo:
        """Skip the map of a sparse file, which may be of any length: such files are passed over."""
        more = bool(self._sparse_structs[1])  # type: ignore[attr-defined]
        while more:
            block = archive.fileobj.read(tarfile.BLOCKSIZE)
            more = len(block) == tarfile.BLOCKSIZE and bool(block[504])
        self.sparse = b""  # not None: it is sparse
        self.offset_data = archive.fileobj.tell()
        archive.offset = self.offset_data + self._block(self.size)  # type: ignore[attr-defined]
        return self

    def _proc_gnusparse_10(self, member: tarfile.TarInfo, headers: object, archive: _Tar) -> None:
        """Here the map is part of the content, which is skipped."""
        member.sparse = b""


class _Tar(tarfile.TarFile):
    """A tar that counts the bytes of headers: since the last member, and of those that hold for all members."""

    tarinfo = _Member
    before_next = for_all = 0


def is_archive(path: Path) -> bool:
    """Whether the file is a tar (plain or packed) or a zip; gzipped text is none.

    Raises:
        BadDataError: it was meant to be one and is damaged.
    """
    with path.open("rb") as file:
        head = file.read(4)
    try:
        if zipfile.is_zipfile(path) or _is_tar(path):
            return True
    except _ODD as error:
        raise _damaged(path, error) from error
    if head == b"PK\x03\x04" or _TAR_NAME.search(path.name):
        raise _damaged(path, "its table of contents cannot be read")
    return False


def _is_tar(path: Path) -> bool:
    """As `tarfile.is_tarfile`, with bounded headers."""
    try:
        _Tar.open(path).close()
    except _HeaderTooLong:
        raise
    except tarfile.TarError:
        return False
    return True


def walk_archive(path: Path) -> Iterator[RawFile]:
    """Every file in a zip or tar; a tar in a zip is looked into as well.

    Raises:
        BadDataError: the archive is damaged, or has a member that points outside its folder.
    """
    if zipfile.is_zipfile(path):
        yield from _walk_zip(path)
    else:
        # The unpacked tar: open_plain knows gzip, xz and bzip2.
        yield from _walk_tar(path, lambda: open_plain(path))


def _damaged(path: Path, error: object) -> BadDataError:
    return BadDataError(
        f"the archive is damaged or cut off: {error}", where=str(path), hint="delete this file and get it again"
    )


def _own_name(member: str, archive: Path) -> str:
    """The member's own name, fit for a terminal.

    Raises:
        BadDataError: its path leaves the archive's folder.
    """
    pure = PurePosixPath(member.replace("\\", "/"))
    if pure.is_absolute() or ".." in pure.parts or re.match(r"[a-zA-Z]:", member):
        raise BadDataError(
            f"a member points outside its folder: {member!r}", where=str(archive), hint="do not trust this archive"
        )
    return "".join(character if character.isprintable() else "?" for character in pure.name)


def _hidden(member: str) -> bool:
    """What macOS adds to archives: `__MACOSX/._name` and `._name`, beside the file of that name."""
    parts = PurePosixPath(member).parts
    return "__MACOSX" in parts or (bool(parts) and parts[-1].startswith("._"))


def _walk_zip(path: Path) -> Iterator[RawFile]:
    try:
        with zipfile.ZipFile(path) as archive:
            members = [info for info in archive.infolist() if not info.is_dir() and not _hidden(info.filename)]
    except _ODD as error:
        raise _damaged(path, error) from error
    for info in members:
        name = _own_name(info.filename, path)
        if stat.S_ISLNK(info.external_attr >> 16):
            continue
        opened = _zip_opener(path, info, f"{path}: {name}")
        if _TAR_NAME.search(name):
            yield from _walk_tar(path, opened)
        else:
            yield RawFile(name, path, opened, info.file_size)


def _zip_opener(path: Path, info: zipfile.ZipInfo, where: str) -> Open:
    # What the archive says of a member's size may be a lie; it is not larger than the archive.
    packed_bytes = min(info.compress_size, path.stat().st_size)

    def open_member() -> IO[bytes]:
        try:
            stream = zipfile.ZipFile(path).open(info)  # noqa: SIM115 (the caller closes it)
        except _ODD as error:
            raise BadDataError(f"cannot read this member: {error}", where=where) from error
        return unpacked(bounded(stream, lambda: packed_bytes, where), where)

    return open_member


def _tar_members(path: Path, opened: Open) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    """The regular files of a tar in its order, read as one stream.

    Links and devices are passed over, and sparse files, whose few bytes stand for as many zeros as they like.
    """
    try:
        with opened() as stream, _Tar.open(fileobj=stream, mode="r|") as archive:
            for member in archive:
                archive.members.clear()  # type: ignore[attr-defined]  # it would keep every member with its headers
                if member.isfile() and not member.issparse() and not _hidden(member.name):
                    yield archive, member
    except DAMAGE as error:
        raise _damaged(path, error) from error


def _walk_tar(path: Path, opened: Open) -> Iterator[RawFile]:
    for _, member in _tar_members(path, opened):
        name = _own_name(member.name, path)
        yield RawFile(name, path, _tar_opener(path, opened, member.name, f"{path}: {name}"), member.size)


def _tar_opener(path: Path, opened: Open, wanted: str, where: str) -> Open:
    def open_member() -> IO[bytes]:
        members = _tar_members(path, opened)
        for archive, member in members:
            if member.name == wanted:
                stream = archive.extractfile(member)
                assert stream is not None  # regular files only
                # The generator keeps the archive open; the stream keeps the generator.
                stream.members = members  # type: ignore[attr-defined]
                # What the tar is packed in is bounded already; this catches its damage.
                return unpacked(bounded(stream, lambda: MAX_UNPACKED, where), where)
        raise BadDataError("the archive changed while it was read", where=where)

    return open_member
