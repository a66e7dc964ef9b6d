"""The runs of a workspace: what each is, what depends on it, and removing it."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

from llmemb_cli.config.rat import settings_of_run
from llmemb_cli.config.runs import is_adjusted, run_name
from llmemb_cli.config.settings import Settings, rat_for
from llmemb_cli.errors import BadDataError
from llmemb_cli.evaluation.document import adjusted_from
from llmemb_cli.pipeline import made_stages, rat_stage
from llmemb_cli.workspace.locate import Workspace
from llmemb_cli.workspace.stage import LOG, MARKER, PARTIAL, partial_of, require_stage, stage_state
from llmemb_cli.workspace.store import read_json, read_jsonl

# The manifests of all finished stages by their directories: read once, however many runs there are.
Made = dict[Path, dict[str, Any]]


def describe_runs(workspace: Workspace, settings: Settings, names: list[str]) -> list[dict[str, Any]]:
    """Runs with their settings, size, evaluations, and whether they are still what they would be if trained now.

    Args:
        settings: of llmemb.toml.
    """
    made = made_stages(workspace)
    return [_describe(workspace, settings, name, made) for name in names]


def _fingerprints(workspace: Workspace, made: Made) -> dict[str, str | None]:
    runs = workspace.root / "runs"
    return {path.name: manifest["fingerprint"] for path, manifest in made.items() if path.parent == runs}


def _describe(workspace: Workspace, settings: Settings, name: str, made: Made) -> dict[str, Any]:
    directory = workspace.run(name)
    manifest = require_stage(directory, made_by="llmemb rat")
    evaluations = sorted(path.parent.name for path in (directory / "eval").glob("*/manifest.json"))
    return {
        "run": name,
        **manifest["summary"],
        **(
            {"adjusted_from": adjusted_from(manifest, _fingerprints(workspace, made))}
            if is_adjusted(manifest)
            else {}
        ),
        "state": _state(workspace, settings, name, manifest, made),
        "evaluated": [one for one in evaluations if not one.startswith(".")],
        "needed_by": _uses(workspace, name, made),
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
        epochs = [record["epoch"] for record in read_jsonl(path / LOG, {"epoch"})[0]]
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


def _state(workspace: Workspace, settings: Settings, name: str, manifest: dict[str, Any], made: Made) -> str:
    """`current`, or what is another one now: an input, or a setting where its name says that it is llmemb.toml's."""
    folders = {workspace.root / folder for folder in ("data", "runs", "embeddings")}
    there: dict[str, list[str]] = {folder.name: [] for folder in folders}
    for path, other in made.items():
        folder = path if path in folders else path.parent
        if folder in folders:
            there[folder.name].append(other["fingerprint"])
    for role, fingerprint in manifest["made_from"]["inputs"].items():
        kind = {"data": "data", "align": "runs", "start": "runs", "adjust": "runs"}.get(role, "embeddings")
        if fingerprint not in there[kind]:
            return f"other {'source' if role == 'adjust' else role} now"
    before = settings_of_run(manifest)
    rat = rat_for(settings, backbone=before.backbone, method=before.method, without=list(before.without))
    chosen = settings.model_copy(update={"rat": rat, "seed": manifest["made_from"]["seed"]})
    if run_name(chosen, settings) != name:
        return "current"
    state = stage_state(rat_stage(workspace, chosen, name, settings))
    return "current" if state.state == "up-to-date" else f"stale: {state.reason}"


def needed_by(workspace: Workspace, names: list[str]) -> dict[str, list[str]]:
    """What else was made from each of the runs, in words; these runs and their evaluations aside."""
    made = made_stages(workspace)
    return {name: _uses(workspace, name, made, names) for name in names}


def _uses(workspace: Workspace, name: str, made: Made, besides: Collection[str] = ()) -> list[str]:
    if workspace.run(name) not in made:  # begun and never finished
        return []
    fingerprint = made[workspace.run(name)]["fingerprint"]
    uses = []
    for path, manifest in made.items():
        place = path.relative_to(workspace.root)
        if place.parts[0] == "runs" and (place.parts[1] == name or place.parts[1] in besides):
            continue
        for role, value in manifest["made_from"]["inputs"].items():
            if value == fingerprint:
                uses.append(_use(place, role))
    return uses


def _use(place: Path, role: str) -> str:
    if role in ("align", "start"):
        how = "was aligned to it" if role == "align" else "started from it"
        return f"{place.name} {how}; that run stays usable, but training it again trains this one first"
    if role == "adjust":
        return f"{place.name} is it with another logit adjustment, and stays usable"
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
