"""Making a stage: what is built beside its place takes it once it is whole.

Work goes on in `.<name>.partial` beside the target, which survives an interruption: a builder that finds its
checkpoints there goes on from them.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from llmemb_cli import __version__
from llmemb_cli.errors import LlmembError
from llmemb_cli.progress import Reporter
from llmemb_cli.workspace.stage import (
    MANIFEST,
    MARKER,
    SCHEMA_VERSION,
    Stage,
    begun_from,
    first_difference,
    partial_path,
    read_manifest,
    readable_manifest,
    stage_state,
    wanted,
)
from llmemb_cli.workspace.store import read_json, sha256_file, sha256_json, write_json

PACKAGES = ("torch", "transformers", "peft", "polars", "numpy", "scikit-learn", "bitsandbytes")


@dataclass(frozen=True)
class StageResult:
    """What `run_stage` did."""

    built: bool
    seconds: float
    manifest: dict[str, Any]


def run_stage(
    stage: Stage,
    build: Callable[[Path], Mapping[str, Any]],
    *,
    force: bool = False,
    report: Reporter | None = None,
    device: str = "cpu",
    named: str = "",
) -> StageResult:
    """Make `stage` up to date: call `build(work_directory)` unless it already is.

    `build` writes every file into the directory it is given and returns a summary (JSON values) that
    is kept in the manifest. If it raises, the directory is kept for the next call; that call starts
    afresh when settings or inputs have changed meanwhile.

    Args:
        named: what it is called where it takes the place of another that somebody may miss; that is then said.
    """
    report = report or Reporter()
    _finish_earlier(stage)
    state = stage_state(stage)
    if named and state.state == "stale":
        report.warn(f"{named}: another takes the place of the one there, {state.reason}")
    if not force and state.state == "up-to-date":
        manifest = read_manifest(stage.path)
        assert manifest is not None
        return StageResult(False, 0.0, manifest)
    made_from = wanted(stage)
    work = _work_directory(stage, made_from, report)
    reset_peak_memory()
    started = time.monotonic()
    summary = dict(build(work))
    seconds = time.monotonic() - started + _earlier_seconds(work)
    if wanted(stage) != made_from:
        raise LlmembError(
            "an input changed while it was being read",
            where=str(stage.path),
            hint="run the same command again",
        )
    manifest = _manifest(stage, made_from, work, summary, seconds, device)
    # From here on the work is whole: whatever ends this call, the next one only puts it in its place.
    write_json(work / MANIFEST, manifest)
    _publish(work, stage.path)
    return StageResult(True, seconds, manifest)


def _work_directory(stage: Stage, made_from: dict[str, Any], report: Reporter) -> Path:
    work = partial_path(stage)
    marker = work / MARKER
    if work.exists():
        unfinished = begun_from(stage)
        if unfinished is not None and first_difference(stage, unfinished, made_from) is None:
            report.note(f"going on with the unfinished {stage.name} in {work.name}")
            return work
        if unfinished is not None:
            report.note(f"settings or inputs changed: starting {stage.name} afresh")
        shutil.rmtree(work)
    try:
        work.mkdir(parents=True)
    except OSError as error:
        raise LlmembError(f"cannot write: {error.strerror}", where=str(work)) from error
    write_json(marker, {"made_from": made_from})
    return work


def _earlier_seconds(work: Path) -> float:
    """Seconds spent by interrupted calls, if the builder kept count with `keep_seconds`."""
    marker = read_json(work / MARKER)
    return float(marker.get("seconds", 0.0))


def keep_seconds(work: Path, seconds: float) -> None:
    """Note in the work directory that `seconds` were spent before an interruption."""
    marker = read_json(work / MARKER)
    marker["seconds"] = float(marker.get("seconds", 0.0)) + seconds
    write_json(work / MARKER, marker)


def _manifest(
    stage: Stage,
    made_from: dict[str, Any],
    work: Path,
    summary: dict[str, Any],
    seconds: float,
    device: str,
) -> dict[str, Any]:
    outputs = {
        str(file.relative_to(work).as_posix()): {"size": file.stat().st_size, "sha256": sha256_file(file)}
        for file in sorted(work.rglob("*"))
        if file.is_file() and file.name not in (MANIFEST, MARKER)
    }
    return {
        "schema": SCHEMA_VERSION,
        "stage": stage.name,
        "llmemb": __version__,
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "made_from": made_from,
        "fingerprint": _fingerprint(stage, made_from["version"], outputs, summary),
        "outputs": outputs,
        "summary": summary,
        "seconds": round(seconds, 3),
        "peak_memory_mb": peak_memory_mb(),
        "device": device,
        "packages": _package_versions(),
    }


def _fingerprint(stage: Stage, version: int, outputs: dict[str, Any], summary: dict[str, Any]) -> str:
    """What stages that read this one compare; the former one where nothing that they read has changed."""

    def read(outputs: dict[str, Any], summary: dict[str, Any]) -> list[Any]:
        files = {name: output for name, output in outputs.items() if name not in stage.about}
        return [files, {key: summary.get(key) for key in stage.told}]

    content, former = read(outputs, summary), readable_manifest(stage.path) or {}
    comparable = former.get("made_from", {}).get("version") == version
    if comparable and read(former["outputs"], former["summary"]) == content:
        return str(former["fingerprint"])
    return sha256_json([*content, version] if stage.about else [outputs, version])


def _package_versions() -> dict[str, str]:
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def reset_peak_memory() -> None:
    """Start counting the peak anew, so that each stage of one process has its own figure (Linux only)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def peak_memory_mb() -> int:
    """The largest resident size since `reset_peak_memory`, in MiB (0 where the platform does not say)."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return _peak_of_process()
    peak = next((line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")), None)
    return _peak_of_process() if peak is None else int(peak) // 1024


def _peak_of_process() -> int:
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak / (1024 * 1024 if sys.platform == "darwin" else 1024))


def _finish_earlier(stage: Stage) -> None:
    """Put in its place what an earlier call completed, but was kept from putting there."""
    work = partial_path(stage)
    old = _aside(stage.path)
    if old.exists() and not stage.path.exists():
        old.replace(stage.path)
    manifest = readable_manifest(work)
    if manifest is not None and first_difference(stage, manifest["made_from"], wanted(stage)) is None:
        _publish(work, stage.path)


def _publish(work: Path, target: Path) -> None:
    """Put the complete `work` directory in the place of `target`."""
    (work / MARKER).unlink(missing_ok=True)
    old = _aside(target)
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.replace(old)
    work.replace(target)
    shutil.rmtree(old, ignore_errors=True)


def _aside(target: Path) -> Path:
    return target.parent / f".{target.name}.old"
