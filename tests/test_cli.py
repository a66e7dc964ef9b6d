"""The command line as a whole: instant help, clean JSON, exit codes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from llmemb_cli.app import COMMANDS
from llmemb_cli.commands.common import parse_seeds, run_guarded
from llmemb_cli.console import Output
from llmemb_cli.errors import InterruptedRunError, WrongUseError
from llmemb_cli.interrupt import terminate_as_interrupt

HEAVY = ("torch", "transformers", "polars", "sklearn", "numpy", "matplotlib", "pydantic")


def llmemb(*args: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "llmemb_cli", *args], cwd=cwd, capture_output=True, text=True, timeout=120
    )


def imported_by(*args: str) -> set[str]:
    code = f"""
import sys
from llmemb_cli.app import app
sys.argv = ["llmemb", *{list(args)!r}]
try:
    app()
except SystemExit:
    print("MODULES", *sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    line = next(line for line in done.stdout.splitlines() if line.startswith("MODULES"))
    return {name.split(".")[0] for name in line.split()}


def test_top_help_imports_nothing_heavy_and_no_command() -> None:
    loaded = imported_by("--help")
    assert not loaded & set(HEAVY)


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_help_of_each_command_has_an_example_and_no_heavy_import(name: str) -> None:
    assert not imported_by(name, "--help") & {"torch", "transformers", "polars", "sklearn", "matplotlib"}
    done = llmemb(name, "--help")
    assert done.returncode == 0, done.stderr
    assert "Example:" in done.stdout


def test_unknown_command_and_flag_are_wrong_use(tmp_path: Path) -> None:
    assert llmemb("trian", cwd=tmp_path).returncode == 2
    assert llmemb("status", "--jsno", cwd=tmp_path).returncode == 2


def test_error_with_json_is_one_document_and_an_exit_code(tmp_path: Path) -> None:
    done = llmemb("status", "--json", cwd=tmp_path)
    assert done.returncode == 2
    error = json.loads(done.stdout)["error"]
    assert error["code"] == "usage" and "llmemb init" in error["hint"]
    assert done.stderr == ""


def test_expected_error_has_no_traceback_unless_debug(tmp_path: Path) -> None:
    assert "Traceback" not in llmemb("status", cwd=tmp_path).stderr
    assert "Traceback" in llmemb("status", "--debug", cwd=tmp_path).stderr


@pytest.fixture
def heeded() -> Iterator[None]:
    """A Ctrl-C counts, also where the tests were started in the background, where shells have it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heeded")
def test_an_end_from_outside_is_said_and_leaves_by_the_same_code(capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGTERM)
    for number in (signal.SIGTERM, signal.SIGINT):
        with pytest.raises(typer.Exit) as left:
            run_guarded(Output(), lambda number=number: os.kill(os.getpid(), number) or time.sleep(5))  # type: ignore[misc,func-returns-value]
        assert left.value.exit_code == 130 and "error: interrupted" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) == before


def test_version() -> None:
    from llmemb_cli import __version__

    assert llmemb("--version").stdout.strip() == f"llmemb {__version__}"


@pytest.mark.parametrize(
    ("call", "said", "hint"),
    [
        (["eval", "--json", "--protokol", "full"], "--protokol", "eval --help"),
        (["evall", "--json"], "evall", " --help"),
        (["reproduce", "table9", "--json"], "table9", "reproduce --help"),
    ],
)
def test_wrong_command_line_with_json_is_one_document_too(
    call: list[str], said: str, hint: str, tmp_path: Path
) -> None:
    done = llmemb(*call, cwd=tmp_path)
    error = json.loads(done.stdout)["error"]
    assert done.returncode == 2 and done.stderr == ""
    assert error["code"] == "usage" and said in error["message"] and error["hint"].endswith(hint)
    without = llmemb(*(one for one in call if one != "--json"), cwd=tmp_path)
    assert without.returncode == 2 and without.stdout == "" and said in without.stderr


def test_help_asked_for_with_json_is_help(tmp_path: Path) -> None:
    done = llmemb("eval", "--help", "--json", cwd=tmp_path)
    assert done.returncode == 0 and "Usage" in done.stdout


def test_seeds_are_whole_numbers_each_once_in_the_order_given() -> None:
    assert parse_seeds("43, 42,43,0") == [43, 42, 0]
    for text in ("-1", "42,", "1.5", "x", ""):
        with pytest.raises(WrongUseError, match="separated by commas"):
            parse_seeds(text)


@pytest.mark.parametrize("args", [["models"], ["models", "--json"], ["--help"], ["rat", "-h"]])
def test_a_reader_that_has_gone_ends_a_command_quietly(args: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        command = [sys.executable, "-m", "llmemb_cli", *args]
        done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=300)
    finally:
        os.close(writing)
    assert done.returncode == 141 and done.stderr == "", done


def test_an_interrupt_that_a_library_swallowed_is_one_all_the_same() -> None:
    with pytest.raises(KeyboardInterrupt), terminate_as_interrupt():
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise AttributeError("half imported") from None
    with pytest.raises(AttributeError), terminate_as_interrupt():
        raise AttributeError("no interrupt came")
    with pytest.raises(InterruptedRunError, match="kept"), terminate_as_interrupt():
        try:
            signal.raise_signal(signal.SIGTERM)
        except KeyboardInterrupt:
            raise InterruptedRunError("kept") from None
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
