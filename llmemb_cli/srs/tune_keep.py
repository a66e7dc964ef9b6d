"""What `llmemb tune --keep` leaves: the best settings in llmemb.toml, and every run under the name it has now."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

from llmemb_cli.config.rat import RatSettings
from llmemb_cli.config.runs import SWITCHES, is_adjusted, run_name
from llmemb_cli.config.settings import Settings, load_settings, rat_for, update_settings
from llmemb_cli.pipeline import ADJUSTED, made_stages
from llmemb_cli.progress import Reporter
from llmemb_cli.workspace.locate import Workspace
from llmemb_cli.workspace.stage import output_fingerprint, read_manifest, readable_manifest


def keep_best(workspace: Workspace, common: dict[str, Any], kept: dict[str, Any], report: Reporter) -> str:
    """Put the settings `kept` into llmemb.toml; the best run takes the plain name, which they now give it.

    Runs that have such a name from settings of before, with any seed, are kept under the name that these settings
    give them now: beside the best run they would look as if only their seed were another.

    Args:
        common: settings that differ from llmemb.toml in all trials.

    Returns:
        the name of the best run.
    """
    rest = {key: value for key, value in common.items() if key not in kept}
    filed = load_settings(workspace.settings_file)
    before = load_settings(workspace.settings_file, rest)
    # Not the name it was trained under: settings that were kept since give it another one.
    found = workspace.run(run_name(load_settings(workspace.settings_file, rest | kept), filed))
    update_settings(workspace.settings_file, kept)
    in_file = load_settings(workspace.settings_file)
    for run in _trained_runs(workspace):
        earlier = _settings_before(run, filed)
        if run.name == run_name(earlier):
            _rename(run, run_name(earlier, in_file), report)
    plain = workspace.run(run_name(load_settings(workspace.settings_file, rest), in_file))
    if found.exists() and found != plain:
        if plain.exists():  # flags that are not kept gave it a name with a digest
            _rename(plain, run_name(before, in_file), report)
        if not plain.exists():
            _move(found, plain)
    return plain.name


def _trained_runs(workspace: Workspace) -> list[Path]:
    """All runs but those of `llmemb adjust`, which follow the run that they were made from."""
    made = made_stages(workspace).items()
    return [path for path, run in made if path.parent == workspace.root / "runs" and not is_adjusted(run)]


def _settings_before(run: Path, filed: Settings) -> Settings:
    """What a run was trained with; what it did not depend on is as in `filed`, the llmemb.toml of before."""
    made = (read_manifest(run) or {})["made_from"]
    off = {key: RatSettings.model_fields[key].default for key in SWITCHES}
    values = off | {key: value for key, value in made["settings"].items() if key in RatSettings.model_fields}
    rat = rat_for(filed, **{key: values[key] for key in ("backbone", "method")}).model_copy(update=values)
    return filed.model_copy(update={"rat": rat, "seed": made["seed"]})


def _rename(run: Path, wanted: str, report: Reporter) -> None:
    """Give a run the name that its settings find, or one like it where that is taken."""
    if wanted == run.name:
        return
    names = (f"{wanted}-{number}" if number > 1 else wanted for number in itertools.count(1))
    free = next(path for path in map(run.with_name, names) if not path.exists())
    _move(run, free)
    report.note(f"{run.name} has other settings than llmemb.toml now: it is called {free.name}")


def _move(run: Path, target: Path) -> None:
    """Rename a run, and with it what `llmemb adjust` kept of it."""
    moved = output_fingerprint(run)
    run.rename(target)
    for other in sorted(run.parent.iterdir()):
        manifest = readable_manifest(other) if other.name.startswith(run.name + ADJUSTED) else None
        if manifest is not None and manifest["made_from"]["inputs"].get("adjust") == moved:
            new = target.with_name(target.name + other.name.removeprefix(run.name))
            if not new.exists():
                other.rename(new)
