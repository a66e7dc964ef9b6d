"""`llmemb prompt`: the template edited and previewed without touching the workspace, views, token counts."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from llmemb_cli.app import app
from llmemb_cli.config.prompt import PromptSettings
from llmemb_cli.config.settings import make_settings, write_settings
from llmemb_cli.errors import WrongUseError
from llmemb_cli.prompts import lengths
from llmemb_cli.prompts.lengths import describe_lengths
from llmemb_cli.prompts.template import item_parts
from llmemb_cli.workspace.locate import Workspace
from llmemb_cli.workspace.make import run_stage
from llmemb_cli.workspace.stage import Stage
from tests.tiny_model import tiny_llama

ITEMS = pl.DataFrame(
    {
        "item_id": ["a", "b", "c"],
        "title": ["w1 w2", "w3", "w4 w5 w6"],
        "genre": ["w7", None, "w8 w9"],
        "year": ["w10", "w11", "w12"],
    }
)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """Three items and a tiny model; at most 8 tokens."""
    root = tmp_path / "ws"
    root.mkdir()
    model = tiny_llama(tmp_path / "model")
    settings = make_settings({"scft.model": str(model), "scft.max_tokens": 8, "scft.drop_ratio": 0.4})
    made = Workspace(root)
    write_settings(made.settings_file, settings)

    def build(work: Path) -> dict[str, Any]:
        ITEMS.write_parquet(work / "items.parquet")
        return {"instruction": "", "attributes": ["title", "genre", "year"]}

    run_stage(Stage("data", made.data, 1, {}), build)
    return made


def call(workspace: Workspace, *args: str) -> dict[str, Any]:
    done = CliRunner().invoke(app, ["prompt", "--workspace", str(workspace.root), "--json", *args])
    assert done.exit_code == 0, done.output
    return dict(json.loads(done.stdout))


def test_preview_shows_an_edited_template_and_writes_nothing(workspace: Workspace) -> None:
    call(workspace)
    before = {path: path.read_bytes() for path in workspace.prompts.iterdir()}
    text = workspace.settings_file.read_text()
    text = text.replace('# separator = "; "', 'separator = " | "')
    text = text.replace("# attributes = []", 'attributes = ["year", "title"]', 2).replace(
        'attributes = ["year", "title"]', "# attributes = []", 1
    )
    text = text.replace("# rename = {}", 'rename = { year = "made" }')
    text = text.replace("# limits = {}", "limits = { title = 5 }")
    workspace.settings_file.write_text(text)
    shown = call(workspace, "c", "--preview")
    assert shown["prompt"] == "made is w12 | title is w4 w5"
    assert shown["changed"] and shown["preview"] and not shown["built"]
    assert {path: path.read_bytes() for path in workspace.prompts.iterdir()} == before
    assert call(workspace, "c")["built"]
    assert not call(workspace, "c", "--preview")["changed"]


def test_views_and_what_they_leave_out_make_up_the_item(workspace: Workspace) -> None:
    shown = call(workspace, "a")
    parts = Counter(["title is w1 w2", "genre is w7", "year is w10"])
    assert len(shown["views"]) == 2
    for view, dropped in zip(shown["views"], shown["dropped"], strict=True):
        assert len(dropped) == 1 and Counter(view) + Counter(dropped) == parts


def test_in_a_pipe_marks_show_what_a_view_leaves_out(workspace: Workspace) -> None:
    done = CliRunner().invoke(app, ["prompt", "a", "--workspace", str(workspace.root)])
    assert done.exit_code == 0, done.output
    assert len(re.findall(r"\[-\w+ is [\w ]+-\]", done.stdout)) == 2
    assert "\x1b" not in done.stdout


def test_tokens_are_counted_and_prompts_over_the_limit_are(workspace: Workspace) -> None:
    from transformers import AutoTokenizer

    shown = call(workspace)["tokens"]
    frame = pl.read_parquet(workspace.prompts / "prompts.parquet")
    settings = json.loads((workspace.prompts / "manifest.json").read_text())
    assert settings["summary"]["items"] == 3
    tokenizer = AutoTokenizer.from_pretrained(workspace.root.parent / "model")
    counted = [len(tokenizer(text)["input_ids"]) for text in frame["prompt"]]
    assert shown["total"] == sum(counted) and shown["max"] == max(counted)
    assert shown["cut"] == sum(length > 8 for length in counted) > 0
    assert shown["cut_share"] == shown["cut"] / 3
    assert call(workspace, "--no-tokens")["tokens"] is None


def test_without_the_model_there_are_no_token_counts_and_no_error(workspace: Workspace) -> None:
    shown = call(workspace, "--set", "scft.model=llama-7b")
    assert shown["tokens"] is None and shown["items"] == 3


def test_tokens_are_counted_in_parts_as_in_one(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = call(workspace)["tokens"]
    monkeypatch.setattr(lengths, "TOKENISED_AT_ONCE", 2)
    assert call(workspace)["tokens"] == whole


@pytest.mark.parametrize("high", [1, 9, 10, 11, 500])
def test_histogram_counts_every_prompt_once(high: int) -> None:
    drawn = np.random.default_rng(0).integers(1, high + 1, size=200)
    bins = describe_lengths(drawn, 5)["histogram"]
    assert sum(entry["items"] for entry in bins) == 200 and 1 <= len(bins) <= 10
    for entry in bins:
        assert entry["items"] == ((drawn >= entry["from"]) & (drawn <= entry["to"])).sum()


def test_limits_hold_for_one_attribute_and_unknown_ones_are_named() -> None:
    parts = item_parts(ITEMS, ["title", "year"], PromptSettings(limits={"title": 2}))
    assert parts[2] == ["title is w4", "year is w12"]
    for wrong in ({"limits": {"titel": 3}}, {"rename": {"titel": "x"}}):
        with pytest.raises(WrongUseError, match="items have no titel") as caught:
            item_parts(ITEMS, ["title"], PromptSettings(**wrong))
        assert "title" in (caught.value.hint or "")


def test_an_unknown_item_is_wrong_use(workspace: Workspace) -> None:
    done = CliRunner().invoke(app, ["prompt", "zz", "--workspace", str(workspace.root), "--json"])
    assert done.exit_code == 2 and "no item zz" in json.loads(done.stdout)["error"]["message"]
