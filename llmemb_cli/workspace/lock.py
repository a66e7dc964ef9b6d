"""One writer a workspace. Commands that only read take no lock."""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from filelock import FileLock, Timeout

from llmemb_cli.errors import LlmembError
from llmemb_cli.workspace.locate import Workspace
from llmemb_cli.workspace.store import explain_os_error, write_text

_held: set[str] = set()


@contextmanager
def write_lock(workspace: Workspace, part: str = "", wait: float = 0) -> Iterator[None]:
    """Hold the workspace's lock, or that of a `part` which may be written beside others; `wait` seconds for it.

    The operating system frees it when the process ends, however it ends.
    Re-entrant within a process, so that `llmemb run` can call the stages' own commands.

    Raises:
        LlmembError: another process holds it (says which), or it cannot be written.
    """
    name = f".llmemb{'-' if part else ''}{part}.lock"
    path = workspace.root / name
    if str(path) in _held:
        yield
        return
    owner = workspace.root / f"{name}.json"
    lock = FileLock(path)
    try:
        lock.acquire(timeout=wait)
    except Timeout:
        try:
            text = owner.read_text(encoding="utf-8")
            who = json.loads(text)
            began = datetime.fromisoformat(who["since"]).astimezone()
            holder = f"{who['command']}, process {who['pid']} on {who['host']}, since {began:%Y-%m-%d %H:%M:%S}"
        except (OSError, ValueError, KeyError):
            holder = "another process"
        raise LlmembError(
            f"{part or 'the workspace'} is in use by {holder}",
            where=str(workspace.root),
            hint="wait for it or end it; the lock goes with the process",
        ) from None
    except OSError as error:
        raise explain_os_error(error, path) from error
    _held.add(str(path))
    try:
        since = datetime.now(UTC).isoformat(timespec="seconds")
        who = {"command": _command(), "pid": os.getpid(), "host": socket.gethostname(), "since": since}
        write_text(owner, json.dumps(who))
        yield
    finally:
        _held.discard(str(path))
        owner.unlink(missing_ok=True)
        lock.release()


def _command() -> str:
    """What this process was started as, without its options: `llmemb scft`."""
    words = [word for word in sys.argv[1:2] if not word.startswith("-")]
    return " ".join(["llmemb", *words])
