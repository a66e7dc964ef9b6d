"""Files as people have them: plain, packed, in a folder, in an archive. Read as streams, never unpacked on disk."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from llmemb_cli.datasets.readers.archives import is_archive, walk_archive
from llmemb_cli.datasets.readers.streams import RawFile, open_plain
from llmemb_cli.errors import BadDataError, LlmembError, WrongUseError


def plain_file(path: Path) -> RawFile:
    """A file that is itself the data, possibly packed.

    Raises:
        WrongUseError: it is not there or is a directory.
        BadDataError: it is empty.
        LlmembError: the system does not let us look.
    """
    status = _status(path)
    if status is None:
        raise WrongUseError("no such file", where=str(path))
    if stat.S_ISDIR(status.st_mode):
        raise WrongUseError("a file is expected here, this is a directory", where=str(path))
    if not stat.S_ISREG(status.st_mode):
        raise WrongUseError("a file is expected here, this is a device or pipe", where=str(path))
    if status.st_size == 0:
        raise BadDataError("the file is empty", where=str(path))
    return RawFile(path.name, path, partial(open_plain, path), status.st_size)


def find_files(source: Path, roles: dict[str, str], *, expected: str) -> dict[str, RawFile]:
    """The files of a data set in a folder or archive, or beside a single file, by role.

    Args:
        source: a folder, a tar (plain or packed), a zip, or one of the files (the others are looked for beside it).
        roles: for every role a regular expression that the whole file name, without folders, must match.
        expected: what a person should have passed, for messages.

    Raises:
        WrongUseError: nothing is there, or a role fits no file or several.
        BadDataError: the archive is damaged, or has a member that points outside its folder.
        LlmembError: the system does not let us look.
    """
    status = _status(source)
    if status is None:
        raise WrongUseError("no such file or folder", where=str(source), hint=f"expected {expected}")
    is_folder = stat.S_ISDIR(status.st_mode)
    named = None
    if not is_folder and not _is_archive(source):
        named, source, is_folder = source, source.parent, True
    found: dict[str, RawFile] = {}
    seen: list[str] = []
    for file in _files_in(source) if is_folder else walk_archive(source):
        seen.append(file.name)
        for role, pattern in roles.items():
            if not re.fullmatch(pattern, file.name, re.IGNORECASE):
                continue
            # A file that was passed by name is the one that is meant.
            if role not in found or file.path == named:
                found[role] = file
            elif found[role].path != named:
                raise WrongUseError(
                    f"several files could be the {role}: {found[role].name}, {file.name}",
                    where=str(source),
                    hint="leave only one of them there",
                )
        # A packed tar is read from its start for every look: stop when all is found.
        if len(found) == len(roles) and not is_folder:
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


def _status(path: Path) -> os.stat_result | None:
    """What the system says of a path; None where nothing is."""
    try:
        return path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise LlmembError(f"cannot read: {error.strerror}", where=str(path)) from error


def _is_archive(path: Path) -> bool:
    plain_file(path)
    try:
        return is_archive(path)
    except OSError as error:
        raise LlmembError(f"cannot read: {error.strerror or error}", where=str(path)) from error


def _files_in(folder: Path) -> Iterator[RawFile]:
    """Every file in a folder, two levels deep, in order of name."""
    for path in _entries(folder):
        for file in _entries(path) if _is_a(stat.S_ISDIR, path) else [path]:
            if _is_a(stat.S_ISREG, file):
                yield RawFile(file.name, file, partial(open_plain, file), file.stat().st_size)


def _is_a(kind: Callable[[int], bool], path: Path) -> bool:
    status = _status(path)
    return status is not None and kind(status.st_mode)


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise LlmembError(f"cannot look into this folder: {error.strerror}", where=str(folder)) from error
