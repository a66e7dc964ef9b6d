"""Which card a process takes, on machines that are not here: with one card, with several, with old ones."""

from __future__ import annotations

import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
import torch

from llmemb_cli.config.settings import make_settings
from llmemb_cli.devices import cuda_has_bf16, pick_device
from llmemb_cli.errors import MissingError
from llmemb_cli.peers import own_device
from llmemb_cli.reporting import grid
from llmemb_cli.reporting.grid import Cell
from llmemb_cli.workspace.locate import Workspace


def cards(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


def test_each_process_has_a_card_of_its_own_or_is_told_that_there_are_too_few(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cards(2, monkeypatch)
    assert own_device("auto") == "cuda", "alone"
    monkeypatch.setenv("WORLD_SIZE", "2")
    for number in ("0", "1"):
        monkeypatch.setenv("LOCAL_RANK", number)
        assert own_device("auto") == own_device("cuda") == f"cuda:{number}"
    assert own_device("cpu") == "cpu"
    cards(1, monkeypatch)
    with pytest.raises(MissingError, match="no device cuda:1"):
        own_device("auto")


def test_float32_is_float32_on_a_card_unless_training_asks_for_less(monkeypatch: pytest.MonkeyPatch) -> None:
    cards(1, monkeypatch)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    assert pick_device("auto") == "cuda"
    assert not torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize(("capability", "has"), [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_bf16_is_asked_of_the_card_that_computes(
    capability: tuple[int, int], has: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = {"cuda:0": (7, 0), "cuda:1": capability}
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: other[device])
    assert cuda_has_bf16("cuda:1") == has and not cuda_has_bf16("cuda:0")


def cell(root: Path, device: str) -> Cell:
    settings = make_settings({"rat.device": device})
    return Cell(Workspace(root), settings, settings)


def test_a_grid_shares_out_the_cards_unless_the_settings_name_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    cards(3, monkeypatch)
    assert grid._cards([cell(tmp_path, "auto"), cell(tmp_path, "cuda")]) == ["0", "1", "2"]
    assert grid._cards([cell(tmp_path, "auto"), cell(tmp_path, "cuda:1")]) == []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    assert grid._cards([cell(tmp_path, "auto")]) == ["5", "7"]
    cards(1, monkeypatch)
    assert grid._cards([cell(tmp_path, "auto")]) == []


def visible(seconds: float) -> tuple[int, str | None]:
    time.sleep(seconds)  # until the other worker has taken the next one
    return os.getpid(), os.environ.get("CUDA_VISIBLE_DEVICES")


def test_workers_see_different_cards() -> None:
    context = multiprocessing.get_context("spawn")
    counter = context.Value("i", 0)
    with ProcessPoolExecutor(2, context, grid._start_worker, (1, ["5", "7"], counter)) as pool:
        seen = set(pool.map(visible, [1.0] * 6))
    assert {card for _, card in seen} <= {"5", "7"} and counter.value == 2
    assert len({pid for pid, _ in seen}) == len(seen), "a worker keeps its card"
    if len(seen) == 2:
        assert {card for _, card in seen} == {"5", "7"}
