"""`llmemb data`: table, popularity curve, figures."""

from __future__ import annotations

import io
import json
import shutil
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from rich.console import Console
from typer.testing import CliRunner

from llmemb_cli.app import app
from llmemb_cli.commands.data import show_account, show_curve, show_sizes, show_source
from llmemb_cli.config.runs import run_name
from llmemb_cli.config.settings import Settings
from llmemb_cli.datasets.split import load_split
from llmemb_cli.evaluation.stage import run_eval
from llmemb_cli.progress import Reporter
from llmemb_cli.reporting.parts.data import data_part, page_tail
from llmemb_cli.reporting.parts.results import result_parts
from llmemb_cli.srs.train import run_rat
from llmemb_cli.workspace.locate import Workspace
from tests.make_workspace import make_workspace
from tests.test_data_card import amazon_beauty


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, Settings]:
    """Two evaluated runs, the second of them by both protocols, and one that is not evaluated."""
    workspace, settings = make_workspace(
        tmp_path_factory.mktemp("data") / "ws", rat__hidden_size=8, rat__epochs=2, eval__negatives=10
    )
    for seed in (1, 2, 3):
        one = settings.model_copy(
            update={"seed": seed, "rat": settings.rat.model_copy(update={"method": "none", "without": []})}
        )
        run_rat(workspace, one, Reporter(), in_file=settings)
        assert run_name(one, settings) == f"sasrec-none-{seed}"
    run_eval(workspace, settings, "sasrec-none-2", Reporter())
    sampled = settings.model_copy(update={"eval": settings.eval.model_copy(update={"protocol": "sampled"})})
    run_eval(workspace, sampled, "sasrec-none-2", Reporter())
    run_eval(workspace, settings, "sasrec-none-1", Reporter())
    return workspace, settings


def data(workspace: Workspace, *words: str) -> Any:
    return CliRunner().invoke(app, ["data", "-w", str(workspace.root), *words])


def test_a_runs_hits_by_bin_are_those_of_its_ranks(trained: tuple[Workspace, Settings]) -> None:
    workspace, _ = trained
    document = json.loads(data(workspace, "--json").stdout)
    curve = document["curve"]
    assert curve["run"]["name"] == "sasrec-none-1" and curve["run"]["protocol"]["kind"] == "full"
    ranks = pl.read_parquet(workspace.evaluation("sasrec-none-1", "full") / "ranks.parquet")
    split = load_split(workspace.data)
    popularity = dict(zip(split.item_ids.to_list(), split.train_counts[1:].tolist(), strict=True))
    rows = list(ranks.select("item_id", "rank").iter_rows())
    assert curve["run"]["users"] == len(rows)
    assert curve["run"]["HR@10"] == pytest.approx(sum(rank <= 10 for _, rank in rows) / len(rows))
    for entry in curve["bins"]:
        hits = [rank <= 10 for item, rank in rows if entry["low"] <= popularity[item] <= entry["high"]]
        assert entry["test_users"] == len(hits)
        assert entry["HR@10"] == (pytest.approx(sum(hits) / len(hits)) if hits else None)
    assert [{k: v for k, v in entry.items() if k != "HR@10"} for entry in curve["bins"]] == document["popularity"]


def test_the_run_and_its_protocol_can_be_chosen(trained: tuple[Workspace, Settings]) -> None:
    workspace, _ = trained
    chosen = json.loads(data(workspace, "--run", "sasrec-none-2", "--json").stdout)["curve"]["run"]
    assert (chosen["name"], chosen["protocol"]["kind"]) == ("sasrec-none-2", "sampled"), "the newest of its two"
    chosen = json.loads(data(workspace, "--run", "sasrec-none-2", "--protocol", "full", "--json").stdout)["curve"]
    assert chosen["run"]["protocol"]["kind"] == "full"
    assert json.loads(data(workspace, "--protocol", "sampled", "--json").stdout)["curve"]["run"]["name"].endswith("2")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--run", "sasrec-none-33"], "did you mean sasrec-none-3?"),
        (["--run", "sasrec-none-3"], "llmemb eval sasrec-none-3"),
        (["--run", "sasrec-none-1", "--protocol", "sampled"], "under the protocol sampled"),
        (["--figure", "curve.gif"], ".png, .svg, .pdf"),
    ],
)
def test_a_run_or_figure_that_cannot_be_is_refused(
    trained: tuple[Workspace, Settings], words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = data(trained[0], *words)
    assert done.exit_code == 2 and said in done.stderr and not list(tmp_path.iterdir())


def test_evaluations_of_other_data_are_no_longer_drawn(trained: tuple[Workspace, Settings], tmp_path: Path) -> None:
    workspace = Workspace(Path(shutil.copytree(trained[0].root, tmp_path / "copy")))
    manifest = workspace.data / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"fingerprint": "0" * 64}))
    assert json.loads(data(workspace, "--json").stdout)["curve"]["run"] is None
    done = data(workspace, "--run", "sasrec-none-1")
    assert done.exit_code == 2 and "has not been evaluated on this data" in done.stderr


def test_data_of_an_older_version_is_told_how_to_be_made_again(
    trained: tuple[Workspace, Settings], tmp_path: Path
) -> None:
    workspace = Workspace(Path(shutil.copytree(trained[0].root, tmp_path / "copy")))
    manifest = workspace.data / "manifest.json"
    older = json.loads(manifest.read_text())
    older["made_from"]["version"] = 1
    manifest.write_text(json.dumps(older))
    done = data(workspace)
    assert done.exit_code == 4 and "llmemb run" in done.stderr


def test_figures_are_what_their_ending_says_and_hold_the_bins(
    trained: tuple[Workspace, Settings], tmp_path: Path
) -> None:
    paths = [tmp_path / f"curve.{kind}" for kind in ("png", "svg", "pdf")]
    done = data(trained[0], *(word for path in paths for word in ("--figure", str(path))))
    assert done.exit_code == 0, done.output
    assert paths[0].read_bytes().startswith(b"\x89PNG\r\n\x1a\n") and paths[2].read_bytes().startswith(b"%PDF")
    drawn = "".join(ElementTree.parse(paths[1]).getroot().itertext())
    assert "sasrec-none-1" in drawn and "HR@10" in drawn
    for entry in json.loads(data(trained[0], "--json").stdout)["popularity"]:
        assert entry["bin"] in drawn and f"n={entry['test_users']}" in drawn
    again = tmp_path / "again.svg"
    data(trained[0], "--figure", str(again))
    assert again.read_bytes() == paths[1].read_bytes(), "equal figures are equal files"


def test_the_report_draws_the_same_bins(trained: tuple[Workspace, Settings]) -> None:
    workspace, settings = trained
    split = load_split(workspace.data)
    tail = page_tail(split, settings, [])
    (part,) = [one for one in result_parts(workspace, settings) if one["kind"] == "full"]
    columns = data_part(workspace, split, tail, [part])["bins"].columns
    first, second = (
        json.loads(data(workspace, "--run", f"sasrec-none-{seed}", "--protocol", "full", "--json").stdout)["curve"]
        for seed in (1, 2)
    )
    rates = columns["HR@10 SASRec, none"]
    for place, (one, other) in enumerate(zip(first["bins"], second["bins"], strict=True)):
        assert {name: columns[name][place] for name in one if name != "HR@10"} == {
            name: value for name, value in one.items() if name != "HR@10"
        }
        mean = None if one["HR@10"] is None else (one["HR@10"] + other["HR@10"]) / 2
        assert rates[place] == (None if mean is None else pytest.approx(mean)), "the mean over seeds"
    bare = data_part(workspace, split, tail, [])["bins"]
    assert not [name for name in bare.columns if name.startswith("HR@10")], "without results the items alone"


def drawn(show: Any, *what: Any, width: int, encoding: str = "utf-8") -> list[str]:
    """What is drawn on a console of this width, line by line."""
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="replace")
    console = Console(file=stream, width=width, highlight=False)
    show(console, *what)
    stream.flush()
    return stream.buffer.getvalue().decode(encoding).splitlines()  # type: ignore[attr-defined]


BINS = [
    {"bin": "0", "low": 0, "high": 0, "items": 0, "interactions": 0, "test_users": 0, "HR@10": None},
    {"bin": "1-4", "low": 1, "high": 4, "items": 12_000, "interactions": 1, "test_users": 40, "HR@10": 0.0},
    {"bin": "5-9", "low": 5, "high": 9, "items": 6_000, "interactions": 1, "test_users": 30, "HR@10": 0.1},
    {"bin": "10-19", "low": 10, "high": 19, "items": 3, "interactions": 1, "test_users": 20, "HR@10": 0.2},
]
RUN = {
    **{"name": "sasrec-llmemb-no-align-42", "users": 90, "HR@10": 0.08},
    "protocol": {"kind": "full", "history": "exclude"},
}


@pytest.mark.parametrize("width", [80, 120])
def test_bars_are_as_long_as_items_are_many_and_marks_as_far_as_hits_are_frequent(width: int) -> None:
    lines = drawn(show_curve, {"bins": BINS, "run": RUN}, width=width)
    assert all(len(line) <= width for line in lines)
    head, *rows = lines[1:6]
    none, rare, middle, popular = (row[27:] for row in rows)
    assert abs(rare.count("█") - 2 * middle.count("█")) <= 2, "a mark takes the place of a block"
    assert "▏" in popular, "three items of 12,000 are still seen"
    assert rare.index("◆") == 0 and middle.index("◆") == pytest.approx(popular.index("◆") / 2, abs=1)
    assert "◆" not in none and none.split() == ["0", "-"]
    assert [row.split()[-1] for row in rows] == ["-", "0.0000", "0.1000", "0.2000"]
    assert head.split()[-1] == "HR@10" and any("sasrec-llmemb-no-align-42" in line for line in lines)


def test_a_terminal_that_knows_no_blocks_gets_plain_characters() -> None:
    lines = drawn(show_curve, {"bins": BINS, "run": RUN}, width=80, encoding="ascii")
    assert "?" not in "".join(lines) and "o####" in "".join(lines)


def test_without_a_run_the_curve_says_how_to_get_one() -> None:
    bins = [entry | {"HR@10": None} for entry in BINS]
    lines = drawn(show_curve, {"bins": bins, "run": None}, width=80)
    assert "llmemb eval" in lines[-1] and "HR@10" not in lines[1]


@pytest.mark.parametrize("width", [80, 120])
def test_the_card_fits_the_terminal(tmp_path: Path, width: int) -> None:
    card = json.loads((amazon_beauty(tmp_path).data / "stats.json").read_text())
    for show in (show_sizes, show_source, show_account):
        lines = drawn(show, card, width=width)
        assert lines and all(len(line.rstrip()) <= width for line in lines)


def test_output_in_a_pipe_has_no_colour_and_one_document_with_json(trained: tuple[Workspace, Settings]) -> None:
    text = data(trained[0]).stdout
    assert "\x1b" not in text and "sasrec-none-1" in text
    done = data(trained[0], "--json")
    assert done.stderr == "" and set(json.loads(done.stdout)) >= {"users", "published", "curve", "rules", "workspace"}
