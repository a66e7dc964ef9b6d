"""Training over two processes equals training in one; only process 0 writes and speaks."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from llmemb_cli.cross_entropy import cross_entropy
from llmemb_cli.peers import ALONE
from llmemb_cli.progress import Reporter
from llmemb_cli.srs.train import run_rat
from llmemb_cli.workspace.locate import Workspace
from llmemb_cli.workspace.store import read_tensors
from tests.make_workspace import make_workspace
from tests.test_recommenders import SMALL
from tests.test_scft_processes import finish, free_port

# On a CPU: two processes with one card would both take it.
FEW = SMALL | {"rat__epochs": 3, "rat__batch_size": 13, "rat__dropout": 0.0, "rat__device": "cpu"}


def start(workspace: Workspace, *flags: str) -> list[subprocess.Popen[str]]:
    """`llmemb rat` in two processes, with the variables that torchrun and accelerate set."""
    shared = os.environ | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    shared |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent.parent)}
    command = [sys.executable, "-m", "llmemb_cli", "rat", "-w", str(workspace.root), "--json", *flags]
    return [
        subprocess.Popen(
            command,
            env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]


def records(workspace: Workspace, run: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (workspace.run(run) / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("method", "backbone", "loss", "more"),
    [
        ("llmemb", "sasrec", "bce", {}),
        ("melt", "gru4rec", "ce", {}),
        ("llmesr", "bert4rec", "ce", {"rat__start_decay": 2.0, "rat__averaging": 0.9}),
        ("none", "bsarec", "sce", {"rat__contrast": "cl4srec"}),
    ],
)
def test_two_processes_equal_one(tmp_path: Path, method: str, backbone: str, loss: str, more: dict[str, Any]) -> None:
    values = FEW | {"rat__method": method, "rat__backbone": backbone, "rat__loss": loss} | more
    # 144 histories in batches of 13: the last one has a single row, and the second process none.
    alone, settings = make_workspace(tmp_path / "alone", users=144, **values)
    summary = run_rat(alone, settings, Reporter()).manifest["summary"]
    together = Workspace(tmp_path / "together")
    shutil.copytree(alone.root, together.root)
    shutil.rmtree(together.root / "runs")
    ends = finish(start(together))
    assert [code for code, _, _ in ends] == [0, 0], ends
    assert ends[1][1] == "" and json.loads(ends[0][1])["runs"][0]["processes"] == 2
    run = f"{backbone}-{method}-42"
    for one, two in zip(records(alone, run), records(together, run), strict=True):
        assert one["loss"] == pytest.approx(two["loss"], rel=1e-4)
        assert one["NDCG@10"] == pytest.approx(two["NDCG@10"], abs=1e-9)
    mine, theirs = (read_tensors(w.run(run) / "model.safetensors") for w in (alone, together))
    # The bias of keys has no gradient but rounding, which Adam blows up: attention does not depend on it.
    for name in mine.keys() - {n for n in mine if n.endswith("key.bias") or ".to_" in n}:
        torch.testing.assert_close(mine[name], theirs[name], rtol=1e-3, atol=1e-4)
    assert summary["processes"] == 1


def test_two_processes_stop_and_go_on_together(tmp_path: Path) -> None:
    values = FEW | {"rat__method": "none", "rat__epochs": 60, "rat__patience": 60}
    workspace, settings = make_workspace(tmp_path / "ws", **values)
    processes = start(workspace)
    log = workspace.root / "runs" / ".sasrec-none-42.partial" / "log.jsonl"
    for _ in range(3000):  # a busy machine takes a minute to start two processes
        if log.exists() and len(log.read_text().splitlines()) > 3:
            break
        time.sleep(0.1)
    processes[0].send_signal(signal.SIGINT)
    assert [code for code, _, _ in finish(processes)] == [130, 130]
    assert [code for code, _, _ in finish(start(workspace))] == [0, 0]
    other, _ = make_workspace(tmp_path / "other", **values)
    run_rat(other, settings, Reporter(), peers=ALONE)
    got, expected = ([r["loss"] for r in records(w, "sasrec-none-42")] for w in (workspace, other))
    assert got == pytest.approx(expected, rel=1e-2)


def test_cross_entropy_leaves_frozen_tables_without_gradient() -> None:
    states, items = torch.randn(4, 3, requires_grad=True), torch.randn(5, 3)
    cross_entropy(states, torch.tensor([0, 1, 2, 3]), items).backward()
    assert states.grad is not None and items.grad is None
