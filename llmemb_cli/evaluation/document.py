"""The document of `llmemb eval --json`: runs with the same protocol, side by side."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from llmemb_cli.config.settings import Settings
from llmemb_cli.errors import BadDataError, LlmembError, WrongUseError, near_match
from llmemb_cli.pipeline import ADJUSTED, protocol_name
from llmemb_cli.workspace.locate import Workspace
from llmemb_cli.workspace.stage import output_fingerprint, read_manifest, readable_manifest

SHOWN = 6  # names in a hint


def known_runs(workspace: Workspace) -> list[str]:
    """Names of the complete runs, `none` runs first; without those whose manifest is damaged."""
    found = {path.name: readable_manifest(path) for path in _run_folders(workspace)}
    names = [name for name, manifest in found.items() if manifest is not None]
    return sorted(names, key=lambda name: (found[name] or {})["summary"]["method"] != "none")


def damaged_runs(workspace: Workspace) -> dict[str, BadDataError]:
    """By name, runs whose manifest cannot be read, and why."""
    found = {}
    for path in _run_folders(workspace):
        try:
            read_manifest(path)
        except BadDataError as error:
            hint = f"run `llmemb runs remove {path.name}`, and train it again"
            found[path.name] = BadDataError(f"{path.name} is damaged: {error.message}", where=error.where, hint=hint)
    return found


def _run_folders(workspace: Workspace) -> list[Path]:
    return sorted((workspace.root / "runs").glob("[!.]*"))


def check_runs(workspace: Workspace, names: list[str], besides: Collection[str] = ()) -> list[str]:
    """The runs asked for, or all.

    Args:
        besides: names of others that will do as well: unfinished or damaged ones.

    Raises:
        WrongUseError: there are none, or one is not there.
        BadDataError: one is damaged.
    """
    known = list(dict.fromkeys([*known_runs(workspace), *besides]))
    for name in names:
        if name not in known:
            raise unknown_run(workspace, name, "run", known)
    if not known:
        raise no_runs(workspace)
    return names or known


def no_runs(
    workspace: Workspace, what: str = "there are no runs yet", hint: str = "run `llmemb rat` first"
) -> LlmembError:
    """What to say where no run can be used: there is none, or the first is damaged."""
    first = next(iter(damaged_runs(workspace).values()), None)
    return first or WrongUseError(what, where=str(workspace.root), hint=hint)


def unknown_run(workspace: Workspace, name: str, kind: str, known: list[str]) -> LlmembError:
    """What to say of a name that means none of the `known`: a damaged run has it, or nothing has."""
    damaged = damaged_runs(workspace).get(name)
    if damaged is not None or not known:
        return damaged or no_runs(workspace)
    return WrongUseError(f"no {kind} {name}", hint=near_or_some(name, known))


def trained_on(workspace: Workspace, names: list[str]) -> tuple[list[str], list[str]]:
    """Of these runs those that were trained on the present data, and the others."""
    data = output_fingerprint(workspace.data)
    present = [
        name for name in names if (read_manifest(workspace.run(name)) or {})["made_from"]["inputs"]["data"] == data
    ]
    return present, [name for name in names if name not in present]


def older_data(workspace: Workspace, name: str) -> str | None:
    """What to say where a run's vectors are those of other data than the present; None where they are not."""
    if read_manifest(workspace.run(name)) is None or trained_on(workspace, [name])[0]:
        return None
    return f"{name} was trained on other data than there is now: items that came since have no vector in it"


def seedless(run: str, seed: int) -> str:
    """`sasrec-llmemb` of `sasrec-llmemb-42`."""
    name, *adjustment = run.rpartition(ADJUSTED) if ADJUSTED in run else (run,)
    return re.sub(rf"-{seed}(?=-|$)", "", name, count=1) + "".join(adjustment)


def adjusted_from(manifest: dict[str, Any], fingerprints: Mapping[str, str | None]) -> str | None:
    """What the run is called now that `llmemb adjust` made a run from; None where it is no longer there.

    Args:
        fingerprints: of all runs, by name.
    """
    made = manifest["made_from"]["inputs"].get("adjust")
    return next((run for run, one in fingerprints.items() if one == made), None) if made is not None else None


def named_runs(workspace: Workspace, names: list[str]) -> list[str]:
    """The runs that names mean: runs themselves, variants (a run's name without the seed), methods or backbones.

    Raises:
        WrongUseError: one means nothing.
        BadDataError: one is a damaged run.
    """
    known = known_runs(workspace)
    families: dict[str, list[str]] = {run: [run] for run in known}
    for run in known:
        summary = (read_manifest(workspace.run(run)) or {})["summary"]
        for family in dict.fromkeys((seedless(run, summary["seed"]), summary["method"], summary["backbone"])):
            if family not in known:
                families.setdefault(family, []).append(run)
    for name in names:
        if name not in families:
            raise unknown_run(workspace, name, "run, variant or method", list(families))
    return list(dict.fromkeys(run for name in names for run in families[name]))


def near_or_some(name: str, known: list[str]) -> str:
    """A hint for a name that is not there: the one that was meant, or some of those there are."""
    close = near_match(name, known)
    more = ", ... (`llmemb runs` lists the runs)" if len(known) > SHOWN else ""
    return f"did you mean {close}?" if close else ", ".join(known[:SHOWN]) + more


def eval_document(workspace: Workspace, settings: Settings, runs: list[str] | None = None) -> dict[str, Any]:
    """The evaluations of `runs` (all that have one) under the protocol of `[eval]`.

    Raises:
        BadDataError: nothing has been evaluated under it.
    """
    entries = []
    for name in runs or known_runs(workspace):
        manifest = read_manifest(workspace.evaluation(name, protocol_name(settings)))
        if manifest is None:
            continue
        metrics = manifest["summary"]
        trained = (read_manifest(workspace.run(name)) or {})["summary"]
        entries.append(
            {
                "run": name,
                "method": trained["method"],
                "backbone": trained["backbone"],
                "seed": trained["seed"],
                "without": trained["without"],
                "protocol": metrics["protocol"],
                "overall": metrics["overall"],
                "beyond": metrics["beyond"],
                "groups": _chosen_groups(metrics["groups"], settings.eval.groups),
                "definitions": metrics["definitions"],
            }
        )
    if not entries:
        raise BadDataError("nothing has been evaluated under this protocol", hint="run `llmemb eval`")
    return {"workspace": str(workspace.root), "runs": entries}


def _chosen_groups(groups: dict[str, Any], wanted: list[Any]) -> dict[str, Any]:
    with_bins = {"popularity": ["popularity", "popularity_bins"], "none": []}
    return {name: groups[name] for one in wanted for name in with_bins.get(one, [one])}
