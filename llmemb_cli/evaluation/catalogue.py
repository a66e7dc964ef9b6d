"""The runs of a workspace: what each is, what depends on it, and removing it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from llmemb_cli.config.rat import settings_of_run
from llmemb_cli.config.runs import run_name
from llmemb_cli.config.settings import Settings, rat_for
from llmemb_cli.errors import BadDataError
from llmemb_cli.evaluation.document import known_runs
from llmemb_cli.pipeline import made_stages, rat_stage
from llmemb_cli.workspace.locate import Workspace
from llmemb_cli.workspace.stage import (
    MARKER,
    PARTIAL,
    output_fingerprint,
    partial_of,
    read_manifest,
    require_stage,
    stage_state,
)
from llmemb_cli.workspace.store import read_json, read_jsonl


def describe_run(workspace: Workspace, settings: Settings, name: str) -> dict[str, Any]:
    """A run with its settings, size, evaluations, and whether it is still what it would be if trained now.

    Args:
        settings: of llmemb.toml.
    """
    directory = workspace.run(name)
    manifest = require_stage(directory, made_by="llmemb rat")
    evaluations = sorted(path.parent.name for path in (directory / "eval").glob("*/manifest.json"))
    return {
        "run": name,
        **manifest["summary"],
        "state": _state(workspace, settings, name, manifest),
        "evaluated": [one for one in evaluations if not one.startswith(".")],
        "needed_by": needed_by(workspace, name),
        "made": manifest["made"],
        "seconds": manifest["seconds"],
        "peak_memory_mb": manifest["peak_memory_mb"],
        "device": manifest["device"],
        "bytes": _size(directory),
        "path": str(directory),
        "settings": manifest["made_from"]["settings"],
    }


def begun_runs(workspace: Workspace) -> dict[str, dict[str, Any]]:
    """By name, runs whose training was interrupted: how far it came, and the settings with which it goes on.

    One that is too damaged to say has no settings.
    """
    names = [path.name[1:].removesuffix(PARTIAL) for path in sorted((workspace.root / "runs").glob(f".*{PARTIAL}"))]
    return {name: _begun(name, partial_of(workspace.run(name))) for name in names}


def _begun(name: str, path: Path) -> dict[str, Any]:
    try:
        made = read_json(path / MARKER)["made_from"]
        epochs = [record["epoch"] for record in read_jsonl(path / "log.jsonl", {"epoch"})[0]]
    except (BadDataError, KeyError, OSError):
        made, epochs = {"seed": None, "settings": {}}, []
    return {
        "run": name,
        "state": "begun",
        "seed": made["seed"],
        "epochs": max(epochs, default=0),
        "bytes": _size(path),
        "path": str(path),
        "settings": made["settings"],
    }


def _state(workspace: Workspace, settings: Settings, name: str, manifest: dict[str, Any]) -> str:
    """`current`, or what is another one now: an input, or a setting where its name says that it is llmemb.toml's."""
    runs: list[str | None] = [output_fingerprint(workspace.run(one)) for one in known_runs(workspace)]
    there: dict[str, list[str | None]] = {
        "data": [output_fingerprint(workspace.data)],
        "align": runs,
        "start": runs,
    }
    embeddings = [output_fingerprint(path) for path in (workspace.root / "embeddings").glob("[!.]*")]
    for role, fingerprint in manifest["made_from"]["inputs"].items():
        if fingerprint not in there.get(role, embeddings):
            return f"other {role} now"
    made = settings_of_run(manifest)
    rat = rat_for(settings, backbone=made.backbone, method=made.method, without=list(made.without))
    chosen = settings.model_copy(update={"rat": rat, "seed": manifest["made_from"]["seed"]})
    if run_name(chosen, settings) != name:
        return "current"
    state = stage_state(rat_stage(workspace, chosen, name, settings))
    return "current" if state.state == "up-to-date" else f"stale: {state.reason}"


def needed_by(workspace: Workspace, name: str, besides: list[str] | None = None) -> list[str]:
    """What else was made from the run, in words; its own evaluations, which go with it, aside.

    Args:
        besides: runs that are to go as well.
    """
    fingerprint = output_fingerprint(workspace.run(name))
    if fingerprint is None:  # begun and never finished
        return []
    uses = []
    for path in made_stages(workspace):
        place = path.relative_to(workspace.root)
        if place.parts[0] == "runs" and place.parts[1] in (name, *(besides or [])):
            continue
        inputs = (read_manifest(path) or {})["made_from"]["inputs"]
        for role, value in inputs.items():
            if value == fingerprint:
                uses.append(_use(place, role))
    return uses


def _use(place: Path, role: str) -> str:
    if role in ("align", "start"):
        how = "was aligned to it" if role == "align" else "started from it"
        return f"{place.name} {how}; that run stays usable, but training it again trains this one first"
    if place.parts[0] == "reports":
        return "the report shows it, until it is made again"
    return f"{place.as_posix()} was made from it and stays as it is"


def remove_runs(workspace: Workspace, names: list[str]) -> int:
    """Remove the runs, their evaluations and what is begun of them; an interruption leaves no half run.

    Returns:
        the bytes freed.
    """
    freed = 0
    for name in names:
        directory = workspace.run(name)
        for one in (partial_of(directory), directory):
            if not one.exists():
                continue
            freed += _size(one)
            # Renamed first: a directory with such a name is no run for anybody.
            going = directory.with_name(f".{name}.removed")
            shutil.rmtree(going, ignore_errors=True)
            one.rename(going)
            shutil.rmtree(going)
    return freed


def _size(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
