"""`llmemb doctor`: what this machine has and what works on it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llmemb_cli.commands.common import command
from llmemb_cli.console import Output, counted, table

if TYPE_CHECKING:
    from rich.console import Console


def doctor(output: Output) -> None:
    """Check this machine: processor, memory, GPUs, libraries, cache, models, and what works. Touches no network.

    Example: `llmemb doctor --json`, to go with a bug report
    """
    from llmemb_cli.diagnosis import diagnose
    from llmemb_cli.llm.quiet import quiet_transformers

    with quiet_transformers():
        found = diagnose()
    output.result(found, lambda console: _show(console, found))


def _show(console: Console, found: dict[str, Any]) -> None:
    machine, cache = found["machine"], found["cache"]
    packages = ", ".join(f"{name} {version or 'missing'}" for name, version in found["packages"].items())
    rows = [
        ["llmemb", f"{found['llmemb']}, Python {machine['python']}, {machine['system']}"],
        ["processor", f"{counted(machine['cores'], 'core')}, {counted(machine['threads'], 'thread')}"],
        ["memory", f"{_gb(machine['memory'])} GB, {_gb(machine['memory_available'])} GB available"],
        *([gpu["device"], f"{gpu['name']}, {_gb(gpu['memory'])} GB"] for gpu in found["gpus"]),
        ["packages", packages],
        ["cache", f"{cache['path']}: {_gb(cache['used'])} GB used, {_gb(cache['free'])} GB free"],
        *([name, value] for name, value in found["variables"].items()),
        ["models here", ", ".join(found["models_here"]) or "none"],
        ["fit for scft now", ", ".join(found["models_that_fit_for_scft"]) or "none"],
    ]
    console.print(table(["", ""], rows, left=2))
    checks = [[c["what"], "works" if c["works"] else "no", c["otherwise"]] for c in found["checks"]]
    console.print(table(["", "", "what to do"], checks, left=3))


def _gb(size: int | None) -> str:
    return "?" if size is None else f"{size / 1e9:.1f}"


app = command(doctor)
