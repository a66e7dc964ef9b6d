"""The document of `llmemb eval --json`: runs with the same protocol, side by side."""

from __future__ import annotations

from typing import Any

from llmemb_cli.config.settings import Settings
from llmemb_cli.errors import BadDataError, WrongUseError, near_match
from llmemb_cli.pipeline import protocol_name
from llmemb_cli.workspace.locate import Workspace
from llmemb_cli.workspace.stage import read_manifest


def known_runs(workspace: Workspace) -> list[str]:
    """Names of the complete runs, `none` runs first."""
    folder = workspace.root / "runs"
    found = {path.name: read_manifest(path) for path in sorted(folder.glob("*")) if not path.name.startswith(".")}
    names = [name for name, manifest in found.items() if manifest is not None]
    return sorted(names, key=lambda name: (found[name] or {})["summary"]["method"] != "none")


def check_runs(workspace: Workspace, names: list[str]) -> list[str]:
    """The runs asked for, or all.

    Raises:
        WrongUseError: there are none, or one is not there.
    """
    known = known_runs(workspace)
    if not known:
        raise WrongUseError("there are no runs yet", where=str(workspace.root), hint="run `llmemb rat` first")
    for name in names:
        if name not in known:
            close = near_match(name, known)
            raise WrongUseError(f"no run {name}", hint=f"did you mean {close}?" if close else ", ".join(known))
    return names or known


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
