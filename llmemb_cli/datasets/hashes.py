"""What the files of a data set are, by their content: worked out while they are being read."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from threading import Thread
from typing import Any

from llmemb_cli.errors import LlmembError
from llmemb_cli.progress import Reporter
from llmemb_cli.workspace.store import sha256_file

SHOWN_EVERY = 0.2  # seconds


class FileHashes:
    """The SHA-256 of files, computed in another thread from the moment this is made.

    Reading a large file for its content and for its hash at the same time costs the disk little more than once.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        self._paths = list(paths)
        self._digests: list[str] = []
        self._bytes_done = 0
        self._error: OSError | None = None
        # A daemon: when reading fails, nobody waits for the hash.
        self._thread = Thread(target=self._work, name="hashes", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        try:
            for path in self._paths:
                self._digests.append(sha256_file(path, self._advance))
        except OSError as error:
            self._error = error

    def _advance(self, n: int) -> None:
        self._bytes_done += n

    def result(self, report: Reporter) -> list[dict[str, Any]]:
        """Name, bytes and sha256 of every file, in the order given; waits for what is not done.

        Raises:
            LlmembError: a file cannot be read.
        """
        self._thread.join(SHOWN_EVERY)
        if self._thread.is_alive():
            self._wait(report)
        if self._error is not None:
            raise LlmembError(f"cannot read: {self._error.strerror}", where=str(self._error.filename))
        return [
            {"name": path.name, "bytes": path.stat().st_size, "sha256": digest}
            for path, digest in zip(self._paths, self._digests, strict=True)
        ]

    def _wait(self, report: Reporter) -> None:
        shown = self._bytes_done
        total = sum(path.stat().st_size for path in self._paths)
        with report.task("hashing", total, "bytes", done=shown) as task:
            while self._thread.is_alive():
                self._thread.join(SHOWN_EVERY)
                task.advance(self._bytes_done - shown)
                shown = self._bytes_done
