"""The report: one self-contained HTML page from whatever stages a workspace has."""

from __future__ import annotations

from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from llmemb_cli.config.settings import Settings
from llmemb_cli.datasets.split import load_split
from llmemb_cli.devices import pick_device
from llmemb_cli.errors import WrongUseError
from llmemb_cli.pipeline import DATA_VERSION, report_stage
from llmemb_cli.progress import Reporter
from llmemb_cli.reporting.figures import Figure
from llmemb_cli.reporting.parts.data import data_part, page_tail, prompt_part
from llmemb_cli.reporting.parts.items import item_spaces, map_part, neighbour_part, user_part
from llmemb_cli.reporting.parts.results import result_parts
from llmemb_cli.reporting.parts.training import recommender_part, scft_part, similarity_part
from llmemb_cli.workspace.locate import Workspace
from llmemb_cli.workspace.make import StageResult, run_stage
from llmemb_cli.workspace.stage import read_manifest, require_stage
from llmemb_cli.workspace.store import write_json, write_text

LONGEST_TITLE = 100  # longer ones are cut: some catalogues have whole paragraphs


def make_report(workspace: Workspace, settings: Settings, report: Reporter, force: bool = False) -> StageResult:
    """Write `reports/report.html` (and the figures' data as JSON beside it).

    Raises:
        WrongUseError: there is not even data, or it was prepared by another version.
    """
    manifest = require_stage(workspace.data, made_by="llmemb init")
    if manifest["made_from"]["version"] != DATA_VERSION:
        raise WrongUseError(
            "the data was prepared by another version of llmemb",
            where=str(workspace.data),
            hint="`llmemb run` prepares it anew; what follows from it stays up to date where it comes out the same",
        )
    stage = report_stage(workspace, settings)

    def build(work: Any) -> dict[str, Any]:
        content = _content(workspace, settings, report, list(stage.inputs))
        write_text(work / "report.html", render_page(content))
        write_json(work / "figures.json", _numbers(content))
        return {"bytes": (work / "report.html").stat().st_size}

    return run_stage(stage, build, force=force, report=report)


def _content(workspace: Workspace, settings: Settings, report: Reporter, stages: list[str]) -> dict[str, Any]:
    """Everything on the page; a part whose stage is not there is empty."""
    data = load_split(workspace.data)
    device = pick_device(settings.eval.device)
    content: dict[str, Any] = {"workspace": workspace.root.name}
    with report.task("report", 5, "parts") as task:
        content["results"] = result_parts(workspace, settings)
        task.advance(1)
        tail = page_tail(data, settings, content["results"])
        content["data"] = data_part(workspace, data, tail, content["results"])
        content["prompts"] = prompt_part(workspace, settings)
        task.advance(1)
        content["scft"] = scft_part(workspace)
        content["similarity"] = similarity_part(workspace, data, settings)
        mains = content["results"][0]["mains"] if content["results"] else []
        content["training"] = recommender_part(workspace, mains)
        task.advance(1)
        spaces, content["spaces_left_out"] = item_spaces(workspace, data, mains)
        content["map"] = map_part(data, spaces, settings)
        task.advance(1)
        content["neighbours"] = neighbour_part(workspace, data, spaces, tail, settings)
        content["users"] = user_part(workspace, data, mains, tail, settings, device)
        content["stages"] = _stage_part(workspace, stages)
        task.advance(1)
    return content


def render_page(content: dict[str, Any]) -> str:
    """The page; every text from outside is escaped, figures are our own SVG."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("llmemb_cli.reporting"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["figure"] = lambda value: "–" if value is None else f"{value:.4f}"
    environment.filters["count"] = lambda value: f"{value:,}"
    environment.filters["short"] = _cut
    # A folder's name is enough: where it lies on this machine is nobody else's business.
    environment.filters["model"] = lambda name: Path(name).name if Path(name).is_absolute() else name
    return environment.get_template("report.html").render(content)


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_TITLE else f"{text[: LONGEST_TITLE - 1]}…"


def _numbers(value: Any) -> Any:
    """The page's content without its pictures, for other programs."""
    if isinstance(value, Figure):
        return {
            "title": value.title,
            "columns": {key: _numbers(list(column)) for key, column in value.columns.items()},
        }
    if is_dataclass(value) and not isinstance(value, type):
        return _numbers(asdict(value))
    if isinstance(value, dict):
        return {key: _numbers(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_numbers(one) for one in value]
    return value.item() if hasattr(value, "item") else value


def _stage_part(workspace: Workspace, stages: list[str]) -> list[dict[str, Any]]:
    """When each stage was made, how long it took, and where."""
    found = []
    for place in stages:
        manifest = read_manifest(workspace.root / place)
        if manifest is not None:
            keys = ("made", "seconds", "peak_memory_mb", "device", "llmemb")
            found.append({"path": place} | {key: manifest[key] for key in keys})
    return sorted(found, key=lambda entry: entry["made"])
