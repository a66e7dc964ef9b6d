"""SIGINT and SIGTERM as a flag that training loops look at between steps.

The first signal asks for a stop at the next safe point (the loop saves, then raises
InterruptedRunError); a second one stops at once.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType, TracebackType
from typing import Any

from llmemb_cli.errors import LlmembError
from llmemb_cli.progress import Reporter


class StopRequest:
    """Context manager; `requested` turns true when a signal has come in, and `report` is told at once.

    A step can take a minute: whoever hears nothing presses Ctrl-C again, and what was not saved is lost.
    """

    def __init__(self, report: Reporter | None = None) -> None:
        self.requested = False
        self.report = report or Reporter()
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        # Handlers can only be set in the main thread; elsewhere (a notebook's worker) Ctrl-C stays as it is.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        # RuntimeError: the signal came while that very stream was being written to.
        with suppress(RuntimeError):
            self.report.note("stopping at the next safe point; once more: at once")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)


@contextmanager
def terminate_as_interrupt() -> Iterator[None]:
    """SIGTERM raises KeyboardInterrupt, as Ctrl-C does: for work that is short and cleans up after itself.

    What fails after either, because a library that was being imported had caught it, ends as an interrupt too.
    """
    came = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal came
        came = True
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {signal.SIGTERM: signal.signal(signal.SIGTERM, handle)}
    # In the background of a shell it is ignored, and stays so.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        previous[signal.SIGINT] = signal.signal(signal.SIGINT, handle)
    try:
        yield
    except LlmembError:
        raise
    except Exception as error:
        if came:
            raise KeyboardInterrupt from error
        raise
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
