"""The docs say what the tool does."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from llmemb_cli.app import COMMANDS

ROOT = Path(__file__).parent.parent


def test_command_reference_is_the_help() -> None:
    made = subprocess.run(
        [sys.executable, "docs/make_cli.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"LC_ALL": "C.UTF-8"},
    )
    assert made.stdout == (ROOT / "docs" / "cli.md").read_text(encoding="utf-8"), "run `make docs`"


def test_every_command_and_flag_in_the_docs_exists() -> None:
    reference = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    for page in (ROOT / "README.md", ROOT / "docs" / "quickstart.md", ROOT / "docs" / "datasets.md"):
        for line in re.findall(r"llmemb ([a-z]+[^`#\n]*)", page.read_text(encoding="utf-8")):
            name, *rest = line.split()
            if name not in COMMANDS:
                continue
            section = reference.split(f"## llmemb {name}\n", 1)[1].split("\n## ", 1)[0]
            for flag in re.findall(r"--[a-z][a-z-]+", " ".join(rest)):
                assert flag in section, f"{page.name}: llmemb {name} {flag}"


def test_links_between_pages_lead_somewhere() -> None:
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\((?!http)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
