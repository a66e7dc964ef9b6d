"""Evaluations of runs as they are compared: found by name, read, and refused where they are not alike."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

import polars as pl

from llmemb_cli.config.runs import plain_name, used_settings, vectors_read
from llmemb_cli.config.settings import Settings
from llmemb_cli.errors import BadDataError, WrongUseError
from llmemb_cli.evaluation.document import known_runs, named_runs, seedless
from llmemb_cli.pipeline import EVAL_VERSION, protocol_name
from llmemb_cli.workspace.locate import Workspace
from llmemb_cli.workspace.stage import output_fingerprint, read_manifest, readable_manifest
from llmemb_cli.workspace.store import read_parquet, sha256_json


class NameKind(IntEnum):
    """How a run is called, the names that say most first."""

    PLAIN = 0  # backbone, method and seed
    DIGEST = 1  # and a digest of settings that flags changed
    OWN = 2  # its owner's choice


@dataclass(frozen=True)
class Evaluated:
    """One run's evaluation: where it comes from, and every user's result."""

    place: Path
    trained: dict[str, Any]
    evaluation: dict[str, Any]
    table: pl.DataFrame
    collaborative: dict[str, Any] | None  # settings of the run that it was aligned to or started from

    @property
    def run(self) -> str:
        return self.place.name

    @property
    def summary(self) -> dict[str, Any]:
        return self.trained["summary"]

    @property
    def variant(self) -> str:
        """What runs that differ in nothing but their seed have in common."""
        # A run trained on the vectors of an earlier fine-tuning, or aligned to another kind of run, differs in more
        # than its seed.
        read = [vectors_read(self.trained), self.collaborative]
        return sha256_json([str(self.place.parent), used_settings(self.trained), *read])

    @property
    def label(self) -> str:
        """The run's name without the seed."""
        return seedless(self.run, self.summary["seed"])

    @property
    def home(self) -> Path:
        """The workspace it is in, or else the folder."""
        folder = self.place.parent
        return folder.parent if folder.name == "runs" else folder

    @property
    def plain(self) -> str:
        """The name, without the seed, of a run of its backbone and method for which no flag changed a setting."""
        return plain_name(self.trained["made_from"]["settings"])

    @property
    def name_kind(self) -> NameKind:
        plain = f"{self.plain}-{self.summary['seed']}"
        if self.run == plain:
            return NameKind.PLAIN
        return NameKind.DIGEST if re.fullmatch(f"{re.escape(plain)}-[0-9a-f]{{6}}", self.run) else NameKind.OWN


def home_names(homes: Iterable[Path]) -> dict[Path, str]:
    """What workspaces are called beside each other: their name, with as many folders above as it takes to differ."""
    found = list(dict.fromkeys(homes))
    depth = 1
    while len({home.parts[-depth:] for home in found}) < len(found):
        depth += 1
    return {home: Path(*home.parts[-depth:]).as_posix() for home in found}


def comparable_runs(workspace: Workspace, settings: Settings) -> tuple[list[str], list[str]]:
    """Runs measured alike on the present data by the protocol of `[eval]`, and those measured otherwise."""
    data = output_fingerprint(workspace.data)
    kinds: dict[str, str] = {}
    others = []
    for run in known_runs(workspace):
        manifest = read_manifest(workspace.evaluation(run, protocol_name(settings)))
        if manifest is None:
            continue
        made, summary = manifest["made_from"], manifest["summary"]
        if made["version"] != EVAL_VERSION or made["inputs"]["data"] != data:
            others.append(run)
            continue
        kind = [made["inputs"].get("candidates"), summary["definitions"]]
        kinds[run] = sha256_json(kind)
    if not kinds:
        return [], others
    commonest = Counter(kinds.values()).most_common(1)[0][0]
    return [run for run, kind in kinds.items() if kind == commonest], [
        *others,
        *(run for run, kind in kinds.items() if kind != commonest),
    ]


def read_evaluated(workspace: Workspace, settings: Settings, names: list[str]) -> list[Evaluated]:
    """The evaluations of runs under the protocol of `[eval]`.

    Args:
        names: runs, variants (a run's name without the seed) or methods of this workspace, or run directories of
            another; empty: all that have been evaluated alike on the present data.

    Raises:
        WrongUseError: one is not there or has not been evaluated.
        BadDataError: they were measured on different data, users or candidates.
    """
    protocol = protocol_name(settings)
    found = [_read(place, protocol) for place in _places(workspace, settings, names)]
    check_comparable(found)
    return found


def left_out(workspace: Workspace, settings: Settings, shown: Collection[str]) -> dict[str, list[str]]:
    """Runs that are not among those `shown`: measured otherwise than these, or not by this protocol at all."""
    others = [run for run in known_runs(workspace) if run not in shown]
    protocol = protocol_name(settings)
    measured = [run for run in others if read_manifest(workspace.evaluation(run, protocol)) is not None]
    return {"measured_otherwise": measured, "not_evaluated": [run for run in others if run not in measured]}


def _flag(protocol: str) -> str:
    """What has `llmemb eval` rank by the protocol."""
    kind, _, keep = protocol.partition("-")
    said = "" if kind == "full" else f" --protocol {kind}"
    return said + (" --history keep" if keep == "keep" else "")


def _how_to_evaluate(workspace: Workspace, runs: list[str], protocol: str) -> str:
    """The command that evaluates by the protocol, and the other one where there are evaluations by that."""
    kinds = {path.name.partition("-")[0] for run in runs for path in (workspace.run(run) / "eval").glob("[!.]*")}
    others = sorted(kinds - {protocol.partition("-")[0]})
    return f"run `llmemb eval{_flag(protocol)}` first" + (f", or take --protocol {others[0]}" if others else "")


def _places(workspace: Workspace, settings: Settings, names: list[str]) -> list[Path]:
    known, protocol = known_runs(workspace), protocol_name(settings)
    measured = [one for one in known if read_manifest(workspace.evaluation(one, protocol)) is not None]
    if not names:
        if not measured:
            raise WrongUseError(
                f"nothing has been evaluated ({protocol})", hint=_how_to_evaluate(workspace, known, protocol)
            )
        alike, _ = comparable_runs(workspace, settings)
        # Where none was measured on the present data, what stands in the way is said below.
        return [workspace.run(one) for one in alike or measured]
    # A path to a run of this workspace means that run, wherever it was written down from.
    own = {workspace.run(one).resolve(): workspace.run(one) for one in known}
    places: list[Path] = []
    for name in names:
        if (Path(name) / "manifest.json").is_file() and name not in known:
            place = Path(name).resolve()
            places.append(own.get(place, place))
            continue
        # Of a family those that have been measured; a run named by itself has to be.
        found = [one for one in named_runs(workspace, [name]) if one == name or one in measured]
        places += [workspace.run(one) for one in found]
        if not found:
            raise WrongUseError(
                f"no run of {name} has been evaluated ({protocol})", hint=f"run `llmemb eval {name}{_flag(protocol)}`"
            )
    return list(dict.fromkeys(places))


def _read(run: Path, protocol: str) -> Evaluated:
    directory = run / "eval" / protocol
    evaluation, trained = read_manifest(directory), read_manifest(run)
    if evaluation is None or trained is None:
        raise WrongUseError(
            f"{run.name} has not been evaluated ({protocol})", hint=f"run `llmemb eval {run.name}{_flag(protocol)}`"
        )
    if evaluation["made_from"]["version"] != EVAL_VERSION:
        raise WrongUseError(f"{run.name} was evaluated by another version of llmemb", hint="run `llmemb eval`")
    return Evaluated(
        run, trained, evaluation, read_parquet(directory / "ranks.parquet"), _collaborative(run, trained)
    )


def _collaborative(run: Path, trained: dict[str, Any]) -> dict[str, Any] | None:
    """Settings of the run that a run read; of older runs, which do not say, those of the run of that name now."""
    summary = trained["summary"]
    told: dict[str, Any] | None = summary.get("collaborative")
    name = summary.get("aligned_to") or summary.get("started_from")
    if told is not None or name is None:
        return told
    read = readable_manifest(run.parent / name)
    return None if read is None else used_settings(read)


def check_comparable(found: list[Evaluated]) -> None:
    """Refuse evaluations whose figures must not stand in one table.

    Raises:
        BadDataError: they differ in protocol, data (and so in split), candidates, groups or users; names the run and
            what differs.
    """
    first = found[0]
    for other in found[1:]:
        inputs, theirs = first.evaluation["made_from"]["inputs"], other.evaluation["made_from"]["inputs"]
        pairs = {
            "protocol": (first.evaluation["summary"]["protocol"], other.evaluation["summary"]["protocol"]),
            "data or split": (inputs["data"], theirs["data"]),
            "candidates": (inputs.get("candidates"), theirs.get("candidates")),
            "groups": (first.evaluation["summary"]["definitions"], other.evaluation["summary"]["definitions"]),
        }
        differing = [name for name, (ours, other_) in pairs.items() if ours != other_]
        if not differing and not first.table[["user_id", "item_id"]].equals(other.table[["user_id", "item_id"]]):
            differing = ["test users"]
        if differing:
            raise BadDataError(
                f"{other.run} cannot be compared with {first.run}: other {' and '.join(differing)}",
                hint="`llmemb eval` measures all runs in one way; or name the runs that are alike",
            )
