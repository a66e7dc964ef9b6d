"""Progress as people see it: a table of epochs on a terminal, plain lines elsewhere."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from llmemb_cli import console
from llmemb_cli.console import LiveReporter, PlainReporter


def test_a_live_table_keeps_the_newest_epochs_and_the_best_one_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    monkeypatch.setattr(console, "stderr", lambda: Console(file=shown, force_terminal=True, width=100))
    with LiveReporter().task("rat sasrec none", 30, "epochs") as task:
        for epoch in range(1, 21):
            task.row({"epoch": str(epoch), "loss": f"{2 / epoch:.4f}", "NDCG@10": "0.1"}, best=epoch in (1, 3))
            task.advance(1)
    # What stays on the screen comes after the last time the live display was taken away.
    last = re.sub(r"\x1b\[[0-9;]*m", "", shown.getvalue().rsplit("\x1b[2K", 1)[-1])
    left = [line.split() for line in last.splitlines()]
    numbers = [line for line in left if len(line) >= 3 and line[-1] == "0.1"]
    assert [line[-3] for line in numbers] == ["3", "14", "15", "16", "17", "18", "19", "20"]
    assert [line[0] == "*" for line in numbers] == [True] + [False] * 7
    assert any(line[-3:] == ["epoch", "loss", "NDCG@10"] for line in left)
    assert any("20 epochs in" in " ".join(line) for line in left)


def test_elsewhere_epochs_are_plain_lines_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter(range(0, 1000, 4))
    monkeypatch.setattr(console.time, "monotonic", lambda: next(clock))
    with PlainReporter().task("rat sasrec none", 30, "epochs") as task:
        for epoch in range(1, 7):
            task.row({"epoch": str(epoch), "loss": "0.5"}, best=epoch == 3)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "rat sasrec none: epoch 3  loss 0.5  (best so far)"
    assert "\x1b" not in "".join(lines) and lines[-1].startswith("rat sasrec none: ")
