"""Reading that begins before its first block is asked for, as far as memory for it is meant to go."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Lock

from llmemb_cli.datasets.readers.chunks import Batch
from llmemb_cli.progress import Reporter, Task

AHEAD = 64 << 20  # bytes of blocks that wait to be used


def read_ahead(read: Callable[[Reporter], Iterator[Batch]], report: Reporter) -> Iterator[Batch]:
    """The batches of `read`, in order, which is begun at once in another thread.

    What comes meanwhile, such as the catalogue, keeps Python busy and one core only. Progress is shown, as there is
    one bar at a time, from when the first batch is asked for.
    """
    progress = _Progress()
    return _shown(_Ahead(read(progress)), progress, report)


def _shown(batches: _Ahead, progress: _Progress, report: Reporter) -> Iterator[Batch]:
    first = batches.take()
    if first is None:
        return
    shown = 0
    with report.task(progress.label, progress.total, progress.unit) as task:
        batch: Batch | None = first
        while batch is not None:
            task.advance(progress.done - shown)
            shown = progress.done
            yield batch
            batch = batches.take()
        task.advance(progress.done - shown)


class _Progress(Reporter, Task):
    """What the reading thread says of its task, for another one to show."""

    label, total, unit, done = "", None, "bytes", 0

    def task(self, label: str, total: int | None = None, unit: str = "steps", done: int = 0) -> Task:
        self.label, self.total, self.unit, self.done = label, total, unit, done
        return self

    def advance(self, n: int = 1, **figures: float | str) -> None:
        self.done += n


@dataclass(frozen=True)
class _Result:
    """A batch and its size; or the end, or the error that is the end."""

    batch: Batch | None
    size: int = 0
    error: BaseException | None = None


class _Ahead:
    """Takes batches from an iterator, one after the other in one thread, while `AHEAD` bytes of them wait at most.

    The thread works in short tasks of which the next is ordered when there is room: none waits for a consumer that
    has gone away.
    """

    def __init__(self, source: Iterator[Batch]) -> None:
        self._source = source
        self._results: SimpleQueue[_Result] = SimpleQueue()
        self._lock = Lock()
        self._waiting = 0  # bytes
        self._working = True
        self._pool = ThreadPoolExecutor(1, "read-ahead")
        self._pool.submit(self._step)

    def _step(self) -> None:
        try:
            batch = next(self._source, None)
        except BaseException as error:  # for the thread that asked, whatever it is
            self._results.put(_Result(None, error=error))
            return
        if batch is None:
            self._results.put(_Result(None))
            return
        size = int(batch.frame.estimated_size())
        with self._lock:
            self._waiting += size
            self._working = go_on = self._waiting < AHEAD
        self._results.put(_Result(batch, size))
        if go_on:
            self._pool.submit(self._step)

    def take(self) -> Batch | None:
        """The next batch, or None at the end."""
        result = self._results.get()
        if result.error is not None:
            raise result.error
        if result.batch is None:
            self._pool.shutdown()
            return None
        with self._lock:
            self._waiting -= result.size
            begin = not self._working and self._waiting < AHEAD
            self._working |= begin
        if begin:
            self._pool.submit(self._step)
        return result.batch
