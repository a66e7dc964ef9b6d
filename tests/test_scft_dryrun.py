"""`llmemb scft --dry-run` says what a training then does."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from llmemb_cli.commands.scft import app
from llmemb_cli.errors import LlmembError
from llmemb_cli.llm import dryrun
from llmemb_cli.llm.plan import split_items
from llmemb_cli.llm.scft import read_items, run_scft
from llmemb_cli.progress import Reporter
from llmemb_cli.prompts.views import random_drop
from llmemb_cli.seeds import numpy_rng
from tests.tiny_llm import make_tiny, with_prompts


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("tiny"))


def test_parameters_and_tokens_are_those_of_the_training(tmp_path: Path, tiny: Path) -> None:
    from transformers import AutoTokenizer

    workspace, settings = with_prompts(tmp_path / "w", tiny, steps=0, epochs=3.0, drop_ratio=0.4)
    found = dryrun.dry_run(workspace, settings, Reporter())
    assert not (workspace.root / "scft").exists()
    # An epoch by hand: whole words and separators are the tokens.
    items = read_items(workspace)
    train, _ = split_items(len(items), settings.scft, settings.seed)
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    order = numpy_rng(settings.seed, "scft-order", 0).permutation(train)
    total = 0
    for step in range(len(train) // 8):
        rng = numpy_rng(settings.seed, "views", step)
        for _ in range(2):
            for item in order[8 * step : 8 * step + 8]:
                kept = random_drop(items.parts[int(item)].to_list(), 0.4, rng)
                total += len(tokenizer(items.text(kept))["input_ids"])
    assert found["tokens"]["per_epoch"] == total
    summary = run_scft(workspace, settings, Reporter()).manifest["summary"]
    assert found["parameters"]["trained"] == summary["parameters"]
    assert found["steps"] == {"per_epoch": len(train) // 8, "total": summary["steps"]}
    assert found["items"]["held_out"] == summary["held_out"]["items"]


def test_the_command_prints_one_document_and_writes_nothing(tmp_path: Path, tiny: Path) -> None:
    workspace, _ = with_prompts(tmp_path / "w", tiny)
    before = sorted(path for path in workspace.root.rglob("*"))
    command = [sys.executable, "-m", "llmemb_cli", "scft", "--dry-run", "-w", str(workspace.root)]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True)
    document = json.loads(done.stdout)
    assert document["seconds"]["total"] > 0 and document["memory_mb"]["total"] >= 0
    text = CliRunner().invoke(app, ["--dry-run", "-w", str(workspace.root)]).stdout
    assert f"{document['parameters']['trained']:,} of" in text and "tokens an epoch" in text
    assert sorted(path for path in workspace.root.rglob("*")) == before


def test_a_model_larger_than_memory_is_refused_before_loading(
    tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace, settings = with_prompts(tmp_path / "w", tiny)
    monkeypatch.setattr(dryrun, "free_bytes", lambda device: 1000)
    monkeypatch.setattr(dryrun, "make_trainer", lambda *args: pytest.fail("loaded"))
    with pytest.raises(LlmembError, match="for its weights alone"):
        dryrun.dry_run(workspace, settings, Reporter())
