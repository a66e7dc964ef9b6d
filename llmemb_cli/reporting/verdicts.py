"""Whether what the paper says about who beats whom comes out here too."""

from __future__ import annotations

from typing import Any

from llmemb_cli.evaluation.significance import DECIMALS


def judge(
    claims: list[dict[str, Any]], rows: list[dict[str, Any]], workspace: str, swept: list[str]
) -> list[dict[str, Any]]:
    """Whether each claim holds here, cell by cell.

    Args:
        claims: of a data file in `paper/`: `better` and `worse` (methods, or * for all others), or the `best` value
            of a `setting`; restricted to some parts, metrics, data sets and backbones.
        rows: our figures (reproduce.py), a row for each variant, part and metric.
        swept: the settings that a sweep varies.
    """
    verdicts: list[dict[str, Any]] = []
    for claim in claims:
        if "datasets" in claim and not {row["dataset"] for row in rows} & set(claim["datasets"]):
            continue
        for backbone in dict.fromkeys(row["backbone"] for row in rows):
            if backbone not in claim.get("backbones", [backbone]):
                continue
            for part in claim["parts"]:
                for metric in claim["metrics"]:
                    cells = [r for r in rows if (r["backbone"], r["part"], r["metric"]) == (backbone, part, metric)]
                    found = _best_value(claim, cells, swept) if "setting" in claim else _pairs(claim, cells)
                    place = {"workspace": workspace, "backbone": backbone, "part": part, "metric": metric}
                    verdicts += [place | {"says": claim["says"]} | one for one in found]
    return verdicts


def _pairs(claim: dict[str, Any], cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    better = next((row for row in cells if row["method"] == claim["better"] and not row["without"]), None)
    worse = claim["worse"]
    others = [row for row in cells if row is not better and (worse == "*" or row["method"] in worse)]
    found = []
    for other in others if better is not None else []:
        assert better is not None
        gap = other["mean"] - better["mean"] if claim.get("lower") else better["mean"] - other["mean"]
        gap = round(gap, DECIMALS)
        # Tests are against the baseline, so one of the two has to be it.
        p = other["p_corrected"] if better["baseline"] else better["p_corrected"] if other["baseline"] else None
        name = f"without {' and '.join(other['without'])}" if other["without"] else other["method"]
        found.append(
            {
                "compared": f"{claim['better']} and {name}",
                "ours": [better["mean"], other["mean"]],
                "paper": [better["paper"], other["paper"]],
                "p": p,
                "verdict": verdict(gap, p),
            }
        )
    return found


def verdict(gap: float, p: float | None) -> str:
    """In words: who is ahead, and whether that is significant."""
    if gap == 0:
        return "no difference"
    sure = "" if p is None else ", significantly" if p < 0.05 else ", not significantly"
    return f"{'holds' if gap > 0 else 'does not hold'}{sure}"


def _best_value(claim: dict[str, Any], cells: list[dict[str, Any]], swept: list[str]) -> list[dict[str, Any]]:
    """Whether the best value of a setting is the paper's, among runs that have every other swept setting alike."""
    key = claim["setting"]
    others = [name for name in swept if name != key]
    lines: dict[tuple[float, ...], list[dict[str, Any]]] = {}
    for row in cells:
        lines.setdefault(tuple(row[name] for name in others), []).append(row)
    line = max(lines.values(), key=len, default=[])
    if len(line) < 2:
        return []
    best = max(line, key=lambda row: float(row["mean"]))
    return [
        {
            "compared": f"{key} {', '.join(f'{value:g}' for value in sorted(float(row[key]) for row in line))}",
            "setting": key,
            "ours": [best[key]],
            "paper": [claim["best"]],
            "p": None,
            "verdict": "holds" if best[key] == claim["best"] else "does not hold",
        }
    ]
