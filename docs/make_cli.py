"""Write the reference of all commands, from their own help, to stdout: `make docs`."""

from __future__ import annotations

import os
import sys

os.environ.update(TERM="dumb", NO_COLOR="1", COLUMNS="100", TERMINAL_WIDTH="100")


def main() -> None:
    """Print every command's help as Markdown."""
    from typer.testing import CliRunner

    from llmemb_cli.app import COMMANDS, app

    runner = CliRunner()
    pages = ["# Commands\n", "Written by `make docs` from `llmemb COMMAND --help`.\n"]
    for args in ([], *([name] for name in COMMANDS)):
        text = runner.invoke(app, [*args, "--help"], prog_name="llmemb").output
        lines = "\n".join(line.rstrip() for line in text.strip("\n").splitlines())
        pages.append(f"## {' '.join(['llmemb', *args])}\n\n```text\n{lines}\n```\n")
    sys.stdout.write("\n".join(pages))


if __name__ == "__main__":
    main()
