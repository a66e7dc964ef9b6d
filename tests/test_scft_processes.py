"""SCFT over several processes equals one process on the same batches; only process 0 writes and speaks."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from llmemb_cli.llm.scft import run_scft
from llmemb_cli.progress import Reporter
from llmemb_cli.workspace.locate import Workspace
from llmemb_cli.workspace.store import read_tensors
from tests.tiny_llm import make_tiny, with_prompts


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("tiny"))


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def start(workspace: Workspace, count: int, *flags: str) -> list[subprocess.Popen[str]]:
    """`llmemb scft` in `count` processes, with the variables that torchrun and accelerate set."""
    port = str(free_port())
    shared = os.environ | {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    shared |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent.parent)}
    command = [sys.executable, "-m", "llmemb_cli", "scft", "-w", str(workspace.root), "--json", *flags]
    return [
        subprocess.Popen(
            command,
            env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]


def finish(processes: list[subprocess.Popen[str]]) -> list[tuple[int, str, str]]:
    return [(process.returncode, *said) for process in processes if (said := process.communicate(timeout=200))]


def adapters_agree(one: Workspace, other: Workspace) -> None:
    mine, theirs = (read_tensors(w.scft() / "adapter_model.safetensors") for w in (one, other))
    assert mine.keys() == theirs.keys()
    for name in mine:
        torch.testing.assert_close(mine[name], theirs[name], rtol=0, atol=1e-5)


def records(workspace: Workspace) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (workspace.scft() / "log.jsonl").read_text().splitlines()]


def test_two_processes_equal_one(tmp_path: Path, tiny: Path) -> None:
    # A batch of 7 items is 14 texts, 7 a process; held-out items share theirs as well.
    chosen = {"lora_dropout": 0.0, "batch_size": 7, "micro_batch_size": 3, "learning_rate": 1e-3, "steps": 5}
    # Room for the activations of some micro-batches, so that others pass twice.
    chosen |= {"memory_gb": 6e-4, "validation_share": 0.2, "validate_every": 1}
    alone, settings = with_prompts(tmp_path / "alone", tiny, **chosen)
    summary = run_scft(alone, settings, Reporter()).manifest["summary"]
    together, _ = with_prompts(tmp_path / "together", tiny, **chosen)
    ends = finish(start(together, 2))
    assert [code for code, _, _ in ends] == [0, 0], ends
    document = json.loads(ends[0][1])
    assert ends[1][1] == "" and document["processes"] == 2 and document["steps"] == 5
    adapters_agree(alone, together)
    assert document["temperature"] == pytest.approx(summary["temperature"], abs=1e-6)
    for mine, theirs in zip(records(alone), records(together), strict=True):
        assert mine.keys() == theirs.keys()
        for key in ("loss", "temperature", "validation_loss", "alignment", "mrr"):
            if key in mine:
                assert mine[key] == pytest.approx(theirs[key], abs=1e-5), (key, mine, theirs)
    # Nothing to do: both see it and end.
    again = finish(start(together, 2))
    assert [code for code, _, _ in again] == [0, 0] and json.loads(again[0][1])["built"] is False


def test_two_processes_stop_together_and_go_on(tmp_path: Path, tiny: Path) -> None:
    chosen = {"steps": 150, "validate_every": 1000, "lora_dropout": 0.0}
    broken, settings = with_prompts(tmp_path / "broken", tiny, **chosen)
    processes = start(broken, 2)
    log = broken.root / "scft" / ".default.partial" / "log.jsonl"
    until = time.monotonic() + 120
    while not (log.is_file() and len(log.read_text().splitlines()) > 3) and time.monotonic() < until:
        time.sleep(0.02)
    processes[1].send_signal(signal.SIGTERM)  # one of them alone is told to stop
    ends = finish(processes)
    assert [code for code, _, _ in ends] == [130, 130], ends
    assert not broken.scft().exists()
    assert [code for code, _, _ in finish(start(broken, 2))] == [0, 0]
    whole, _ = with_prompts(tmp_path / "whole", tiny, **chosen)
    run_scft(whole, settings, Reporter())
    mine, theirs = ([r["loss"] for r in records(w)[1:]] for w in (whole, broken))
    assert len(theirs) == 150
    assert mine[:20] == pytest.approx(theirs[:20], abs=1e-4)
    assert mine == pytest.approx(theirs, abs=0.02)


def test_both_processes_end_when_one_cannot_start(tmp_path: Path, tiny: Path) -> None:
    workspace, _ = with_prompts(tmp_path / "w", tiny)
    shutil.rmtree(workspace.prompts)
    ends = finish(start(workspace, 2))
    assert all(code != 0 for code, _, _ in ends)
    assert "llmemb prompt" in json.loads(ends[0][1])["error"]["hint"]
