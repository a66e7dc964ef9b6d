"""Checkpoints of training loops: weights, optimizer state and position in one safetensors file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from llmemb_cli.workspace.store import read_tensors, write_tensors

FILE = "checkpoint.safetensors"

Tensors = dict[str, torch.Tensor]


def save_checkpoint(
    work: Path, groups: dict[str, Tensors], optimizer: torch.optim.Optimizer, state: dict[str, Any], log: Path
) -> None:
    """Write named groups of tensors, the optimizer's state and `state` (JSON values) as one file.

    One file, so that weights and position can never disagree. The length of `log` is kept as well: lines
    written after the checkpoint are made again by the run that goes on from it.
    """
    tensors = {f"{group}|{name}": tensor for group, content in groups.items() for name, tensor in content.items()}
    for index, values in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer|{index}|{name}": tensor for name, tensor in values.items()}
    record = {"state": state, "log_bytes": log.stat().st_size if log.exists() else 0}
    write_tensors(work / FILE, tensors, {"record": json.dumps(record)})


def load_checkpoint(
    work: Path, optimizer: torch.optim.Optimizer, log: Path
) -> tuple[dict[str, Tensors], dict[str, Any]] | None:
    """The groups and state of the last checkpoint, or None; fills the optimizer and cuts the log back."""
    from safetensors import safe_open

    path = work / FILE
    if not path.is_file():
        log.unlink(missing_ok=True)
        return None
    with safe_open(path, framework="pt") as file:
        record = json.loads(file.metadata()["record"])
    groups: dict[str, Tensors] = {}
    saved = optimizer.state_dict()
    for name, tensor in read_tensors(path).items():
        group, rest = name.split("|", 1)
        if group == "optimizer":
            index, key = rest.split("|", 1)
            saved["state"].setdefault(int(index), {})[key] = tensor
        else:
            groups.setdefault(group, {})[rest] = tensor
    optimizer.load_state_dict(saved)
    if log.exists():
        with log.open("r+b") as opened:
            opened.truncate(record["log_bytes"])
    return groups, record["state"]


def forget_checkpoint(work: Path) -> None:
    """Remove the checkpoint of a finished run."""
    (work / FILE).unlink(missing_ok=True)
