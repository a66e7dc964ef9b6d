"""Items by popularity, and how well a run finds those of each bin (LLMEmb Figure 1a)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from llmemb_cli.errors import WrongUseError
from llmemb_cli.evaluation.document import check_runs, known_runs
from llmemb_cli.reporting.tables import protocol_label
from llmemb_cli.workspace.locate import Workspace
from llmemb_cli.workspace.stage import output_fingerprint, read_manifest
from llmemb_cli.workspace.store import atomic_path, read_parquet

METRIC = "HR@10"  # every evaluation has it
FORMATS = {".png": "png", ".svg": "svg", ".pdf": "pdf"}


def popularity_curve(
    workspace: Workspace, bins: list[dict[str, Any]], run: str | None = None, protocol: str | None = None
) -> dict[str, Any]:
    """The data card's `popularity` with a run's HR@10 in every bin.

    Args:
        bins: `popularity` of the data stage's summary.
        run: the run; None: the one evaluated last, if any.
        protocol: "full" or "sampled"; None: either.

    Returns:
        `bins`: as given, each with `HR@10` (None where there is no run, or nobody's test item is in the bin);
        `run`: None, or its `name`, `protocol`, `users` and `HR@10` over all of them.

    Raises:
        WrongUseError: the run is not there, or has not been evaluated on the present data.
    """
    found = _newest_evaluation(workspace, run, protocol)
    if found is None:
        return {"bins": [entry | {METRIC: None} for entry in bins], "run": None}
    summary = (read_manifest(found) or {})["summary"]
    return {
        "bins": [entry | {METRIC: rate} for entry, rate in zip(bins, bin_rates(found, bins), strict=True)],
        "run": {
            "name": found.parent.parent.name,
            "protocol": summary["protocol"],
            "users": summary["overall"]["n"],
            METRIC: summary["overall"][METRIC],
        },
    }


def bin_rates(evaluation: Path, bins: list[dict[str, Any]]) -> list[float | None]:
    """A run's HR@10 in every bin; None where nobody's test item is."""
    ranks = read_parquet(evaluation / "ranks.parquet", columns=["train_count", METRIC])
    hits, counts = ranks[METRIC].to_numpy(), ranks["train_count"].to_numpy()
    inside = [(counts >= entry["low"]) & (counts <= entry["high"]) for entry in bins]
    return [float(hits[chosen].mean()) if chosen.any() else None for chosen in inside]


def mean_rates(evaluations: list[Path], bins: list[dict[str, Any]]) -> list[float | None]:
    """The mean of `bin_rates` over runs of the same users."""
    found = [bin_rates(one, bins) for one in evaluations]
    return [None if one[0] is None else float(np.mean(one)) for one in zip(*found, strict=True)]


def _newest_evaluation(workspace: Workspace, run: str | None, protocol: str | None) -> Path | None:
    """The evaluation made last of the present data and run, among those asked for."""
    data = output_fingerprint(workspace.data)
    wanted = ("full", "sampled") if protocol is None else (protocol,)
    found: list[tuple[str, int, Path]] = []
    for name in check_runs(workspace, [run]) if run else known_runs(workspace):
        trained = output_fingerprint(workspace.run(name))
        for path in sorted((workspace.run(name) / "eval").glob("[!.]*")):
            manifest = read_manifest(path)
            if manifest is None or manifest["summary"]["protocol"]["kind"] not in wanted:
                continue
            inputs = manifest["made_from"]["inputs"]
            if (inputs["data"], inputs["run"]) == (data, trained):
                # The clock of a manifest counts whole seconds.
                found.append((manifest["made"], (path / "ranks.parquet").stat().st_mtime_ns, path))
    if run and not found:
        how = f" under the protocol {protocol}" if protocol else ""
        raise WrongUseError(f"{run} has not been evaluated on this data{how}", hint=f"run `llmemb eval {run}` first")
    return max(found)[2] if found else None


def run_label(run: dict[str, Any]) -> str:
    """The run and how it was measured, in words."""
    return f"{METRIC} of {run['name']}, {protocol_label(run['protocol'])}"


def write_figure(path: Path, curve: dict[str, Any]) -> None:
    """The curve as a picture; the ending of `path` says which kind.

    Raises:
        WrongUseError: an ending that is none of PNG, SVG and PDF.
    """
    from llmemb_cli.reporting.figures import draw_popularity, save

    kind = figure_format(path)
    line = {run_label(curve["run"]): [entry[METRIC] for entry in curve["bins"]]} if curve["run"] else {}
    with atomic_path(path) as part:
        save(draw_popularity(curve["bins"], line, METRIC), part, kind)


def figure_format(path: Path) -> str:
    """The kind of picture that a file's ending says.

    Raises:
        WrongUseError: it says none.
    """
    if path.suffix.lower() not in FORMATS:
        raise WrongUseError(f"--figure {path}: its ending says no format", hint=f"end it with {', '.join(FORMATS)}")
    return FORMATS[path.suffix.lower()]
