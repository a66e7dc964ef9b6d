"""The report: complete, self-contained, and safe against the catalogue's own text."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from llmemb_cli.chain import chain, states
from llmemb_cli.config.runs import run_name
from llmemb_cli.evaluation.stage import run_eval
from llmemb_cli.progress import Reporter
from llmemb_cli.prompts.stage import make_prompts
from llmemb_cli.reporting.page import make_report
from llmemb_cli.reporting.parts.items import same_group_share
from llmemb_cli.srs.train import run_rat
from tests.make_workspace import make_workspace


def test_page_shows_results_escapes_titles_and_needs_no_network(tmp_path: Path) -> None:
    workspace, settings = make_workspace(tmp_path / "ws", rat__hidden_size=8, rat__epochs=2, rat__method="none")
    make_report(workspace, settings, Reporter())
    bare = (workspace.reports / "report.html").read_text()
    assert "150" in bare and "Results" not in bare
    make_prompts(workspace, settings, Reporter())
    run_rat(workspace, settings, Reporter())
    measured = run_eval(workspace, settings, run_name(settings), Reporter()).manifest["summary"]
    assert make_report(workspace, settings, Reporter()).built, "new stages make the page stale"
    page = (workspace.reports / "report.html").read_text()
    assert f"{measured['overall']['HR@10']:.4f}" in page
    assert "Thing <b>" not in page and "Thing &lt;b&gt;" in page
    links = set(re.findall(r"""(?:src|href)=["'](?!#|data:)([^"']+)""", page))
    assert not links and "@import" not in page and "url(http" not in page
    assert not make_report(workspace, settings, Reporter()).built


def test_neighbour_share_equals_a_loop() -> None:
    rng = np.random.default_rng(0)
    unit = rng.normal(size=(40, 4))
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    groups = rng.integers(0, 3, 40)
    expected = []
    for i in range(40):
        order = sorted((j for j in range(40) if j != i), key=lambda j: -float(unit[i] @ unit[j]))[:10]
        expected += [groups[j] == groups[i] for j in order]
    assert same_group_share(unit, groups) == np.mean(expected)


def test_status_names_what_is_missing_and_what_follows_from_it(tmp_path: Path) -> None:
    workspace, settings = make_workspace(tmp_path / "ws", rat__hidden_size=8, rat__epochs=1)
    found = {entry.step.name: entry.state for entry in states(chain(workspace, settings))}
    assert found["data"].state == "up-to-date"
    assert found["prompt"].state == "missing" and found["scft"].state == "missing"
    make_prompts(workspace, settings, Reporter())
    changed = settings.model_copy(update={"prompt": settings.prompt.model_copy(update={"separator": " | "})})
    found = {entry.step.name: entry.state for entry in states(chain(workspace, changed))}
    assert found["prompt"].state == "stale" and "separator" in found["prompt"].reason
