"""A stage: a directory that is either complete, with a manifest, or does not exist for readers.

`describe` what the directory should hold (settings, seed, inputs), ask `stage_state` whether it
does, and `run_stage` in `make.py` to make it so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

from llmemb_cli.errors import BadDataError, WrongUseError
from llmemb_cli.workspace.store import made_again, read_json, sha256_file, sha256_json

MANIFEST = "manifest.json"
PARTIAL = ".partial"  # ends the name of a directory of unfinished work
LOG = "log.jsonl"  # of a stage that trains: a line a step or an epoch
MARKER = "partial.json"  # in unfinished work: what it is made from
SCHEMA_VERSION = 1
State = Literal["missing", "stale", "up-to-date"]

# What every manifest of this schema has, and what stands in its "made_from".
_FIELDS = {"made": str, "made_from": dict, "fingerprint": str, "outputs": dict, "summary": dict}
_ORIGINS = ("version", "seed", "settings", "inputs", "files")


@dataclass(frozen=True)
class Stage:
    """What a stage directory should hold.

    Attributes:
        name: the stage's name, as in `llmemb status` ("scft").
        path: its directory.
        version: raised when the meaning of its output changes; an older directory is stale then.
        settings: every setting its output depends on, JSON values only.
        seed: the seed of its random streams, or None.
        inputs: other stage directories it reads, by role.
        files: what it reads from outside the workspace, by role: a file, or an identity that the caller worked out
            ({"missing": True} while it is not here). A setting of the role's name says where it lies.
        hashed: keys that lead to a list in its summary of the files it read, each with its sha256. A file whose time
            alone has changed since, as by a copy, is the same if its content is among them.
        about: names of its files that only describe the others: no stage that reads it depends on them.
        told: keys of its summary that a stage that reads it depends on.
        unused: settings that do not count, which an older manifest may hold.
        off: what settings were that are not among those of a directory, or of `settings`: switches that were off.
    """

    name: str
    path: Path
    version: int
    settings: Mapping[str, Any]
    seed: int | None = None
    inputs: Mapping[str, Path] = field(default_factory=dict)
    files: Mapping[str, Path | dict[str, Any]] = field(default_factory=dict)
    hashed: tuple[str, ...] = ()
    about: tuple[str, ...] = ()
    told: tuple[str, ...] = ()
    unused: frozenset[str] = frozenset()
    off: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class StageState:
    """Whether a stage is there and why not."""

    state: State
    reason: str


def read_manifest(path: Path) -> dict[str, Any] | None:
    """The manifest of a stage directory, or None where there is none.

    Raises:
        BadDataError: the manifest cannot be read, or lacks what every manifest has.
    """
    file = path / MANIFEST
    try:
        return _checked(read_json(file), str(file)) if file.is_file() else None
    except BadDataError as error:
        raise BadDataError(error.message, where=error.where, hint=made_again(path)) from error


def _checked(manifest: Any, where: str) -> dict[str, Any]:
    if not isinstance(manifest, dict) or not isinstance(manifest.get("schema"), int):
        raise BadDataError("not a manifest of llmemb", where=where)
    if manifest["schema"] != SCHEMA_VERSION:  # of a version to come: stale, and its fields are not known
        return manifest
    lacking = [name for name, kind in _FIELDS.items() if not isinstance(manifest.get(name), kind)]
    lacking = lacking or [f"made_from.{name}" for name in _ORIGINS if name not in manifest["made_from"]]
    if lacking:
        raise BadDataError(f"not a manifest of llmemb: it lacks {', '.join(lacking)}", where=where)
    return manifest


def readable_manifest(path: Path) -> dict[str, Any] | None:
    """The manifest of a stage directory, or None where there is none or it is damaged.

    For what looks through all directories: one that is damaged is no reason to leave the others out.
    """
    try:
        return read_manifest(path)
    except BadDataError:
        return None


def output_fingerprint(path: Path) -> str | None:
    """One hash for all files of a complete stage directory, or None while it is missing."""
    manifest = read_manifest(path)
    return None if manifest is None else str(manifest["fingerprint"])


def require_stage(path: Path, *, made_by: str) -> dict[str, Any]:
    """The manifest of a stage that must be there.

    Raises:
        WrongUseError: it is missing; names the command that makes it.
    """
    manifest = read_manifest(path)
    if manifest is None:
        # Of a directory within another, as embeddings/scft, one name says too little.
        name = path.name if path.name in ("data", "prompts") else f"{path.parent.name}/{path.name}"
        raise WrongUseError(f"{name} is not there yet", where=str(path), hint=f"run `{made_by}` first")
    return manifest


def check_contents(path: Path) -> None:
    """Read all files of a finished stage directory and hold them against what was written.

    Raises:
        BadDataError: one is gone or another one than was written.
    """
    for name, output in (read_manifest(path) or {}).get("outputs", {}).items():
        file = path / name
        if not file.is_file() or sha256_file(file) != output["sha256"]:
            said = "the file is not as it was written" if file.is_file() else "file is missing"
            raise BadDataError(said, where=str(file), hint=made_again(path))


def _file_identity(path: Path | dict[str, Any]) -> dict[str, Any]:
    if isinstance(path, dict):
        return path
    # Size and time are enough to see without reading gigabytes that nothing changed.
    try:
        if path.is_dir():
            return {"path": str(path), "files": sha256_json(_files_in(path))}
        stat = path.stat()
    except OSError:
        return {"path": str(path), "missing": True}
    return {"path": str(path), "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}


def _files_in(folder: Path) -> list[list[Any]]:
    """Name, size and time of the files in a folder and below it, those that systems hide there aside."""
    inside = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    shown = [path for path in inside if not any(part.startswith(".") for part in path.parts)]
    stats = [(folder / path).stat() for path in shown]
    return [[path.as_posix(), stat.st_size, stat.st_mtime_ns] for path, stat in zip(shown, stats, strict=True)]


def wanted(stage: Stage) -> dict[str, Any]:
    """What the manifest of an up-to-date `stage` says about where it came from."""
    return {
        "version": stage.version,
        "seed": stage.seed,
        "settings": dict(stage.settings),
        "inputs": {role: output_fingerprint(path) for role, path in stage.inputs.items()},
        "files": {role: _file_identity(path) for role, path in stage.files.items()},
    }


def stage_state(stage: Stage) -> StageState:
    """Compare the directory with what it should hold; the reason names the first difference.

    A manifest or file that is damaged, gone or cut makes it stale: made again, it is whole.
    """
    try:
        manifest = read_manifest(stage.path)
    except BadDataError as error:
        return StageState("stale", f"its manifest is damaged: {error.message}")
    try:
        want = wanted(stage)
    except BadDataError as error:
        return StageState("stale", f"an input is damaged: {error.where}")
    if manifest is None:
        return StageState("missing", _why_missing(stage, want))
    if manifest["schema"] != SCHEMA_VERSION:
        return StageState("stale", "made by an incompatible version of llmemb")
    found = first_difference(stage, manifest["made_from"], want, manifest["summary"])
    return found or _lost_file(stage.path, manifest["outputs"]) or StageState("up-to-date", "nothing changed")


def _why_missing(stage: Stage, want: dict[str, Any]) -> str:
    begun = begun_from(stage)
    if begun is None:
        return "never made"
    if first_difference(stage, begun, want) is None:
        return "begun and not finished; goes on where it stopped"
    return "begun with other settings or inputs; starts afresh"


def begun_from(stage: Stage) -> dict[str, Any] | None:
    """What unfinished work on a stage is made from; None where there is none, or nobody can tell."""
    try:
        begun: dict[str, Any] = read_json(partial_path(stage) / MARKER)["made_from"]
    except (BadDataError, KeyError, TypeError):
        return None
    return begun


def _lost_file(path: Path, outputs: dict[str, Any]) -> StageState | None:
    """Whether a file that a stage wrote is gone or has another length; contents are not read."""
    for name, output in outputs.items():
        try:
            size = (path / name).stat().st_size
        except OSError:
            return StageState("stale", f"{name} is gone")
        if size != output["size"]:
            return StageState("stale", f"{name} has {size:,} bytes, and had {output['size']:,}")
    return None


def differs_in(stage: Stage, *settings: str) -> bool:
    """Whether its directory holds what it should but for these settings: what does not depend on them can be kept."""
    manifest = read_manifest(stage.path)
    if manifest is None or manifest.get("schema") != SCHEMA_VERSION:
        return False
    without = replace(stage, unused=stage.unused | {*settings})
    return first_difference(without, manifest["made_from"], wanted(stage), manifest["summary"]) is None


def first_difference(
    stage: Stage, had: dict[str, Any], want: dict[str, Any], summary: dict[str, Any] | None = None
) -> StageState | None:
    """The first difference between what a directory was made from and what it is to be made from.

    Args:
        summary: of the directory, where it is complete.
    """
    if had["version"] != want["version"]:
        return StageState("stale", f"llmemb makes {stage.name} differently now")
    if want["seed"] is not None and had["seed"] != want["seed"]:
        return StageState("stale", f"seed changed: {had['seed']} -> {want['seed']}")
    # Where a file known by its content lies does not count, so that models and workspaces can move.
    same = {role for role, now in want["files"].items() if "sha256" in now and had["files"].get(role) == now}
    for key in sorted((set(had["settings"]) | set(want["settings"])) - stage.unused - same):
        before, now = (made["settings"].get(key, stage.off.get(key)) for made in (had, want))
        if before != now:
            return StageState("stale", f"setting {key} changed: {before!r} -> {now!r}")
    for role in sorted(set(had["inputs"]) | set(want["inputs"])):
        if had["inputs"].get(role) != want["inputs"].get(role):
            return StageState("stale", f"input {role} changed")
    for role in sorted(set(had["files"]) | set(want["files"])):
        before, now = had["files"].get(role), want["files"].get(role)
        # A source that was moved away or lies on an unplugged disk does not make its result wrong, nor does one
        # that was only fetched while the stage was made.
        absent = any(identity is None or identity.get("missing") for identity in (before, now))
        if before != now and not absent and not (summary and _same_content(stage, before, now, summary)):
            return StageState("stale", f"file {role} changed")
    return None


def _same_content(stage: Stage, before: dict[str, Any], now: dict[str, Any], summary: dict[str, Any]) -> bool:
    """Whether a file differs in its time alone from one that was read, and has a content that was read."""
    if not stage.hashed or "mtime_ns" not in now or before | {"mtime_ns": now["mtime_ns"]} != now:
        return False
    read: Any = summary
    for key in stage.hashed:
        read = read[key]
    return _hash_of(now["path"], now["size"], now["mtime_ns"]) in {file["sha256"] for file in read}


@cache
def _hash_of(path: str, size: int, changed: int) -> str | None:
    """Of a file with this size and time, once a process: commands look at stages several times. None: unreadable."""
    try:
        return sha256_file(Path(path))
    except OSError:
        return None


def partial_path(stage: Stage) -> Path:
    """Where an unfinished stage keeps its work."""
    return partial_of(stage.path)


def partial_of(path: Path) -> Path:
    """Where the work on the directory of a stage lies until it is finished."""
    return path.with_name(f".{path.name}{PARTIAL}")
