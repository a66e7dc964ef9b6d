"""A grid of runs over workspaces, backbones, methods and seeds: resumable, and one failure does not stop the rest."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from llmemb_cli import pipeline
from llmemb_cli.chain import Step, chain, variants
from llmemb_cli.config.runs import collaborative_settings, run_name
from llmemb_cli.config.settings import Settings, rat_for
from llmemb_cli.devices import give_back_memory
from llmemb_cli.errors import InterruptedRunError, LlmembError
from llmemb_cli.interrupt import StopRequest, terminate_as_interrupt
from llmemb_cli.progress import Reporter
from llmemb_cli.workspace.locate import Workspace
from llmemb_cli.workspace.lock import write_lock
from llmemb_cli.workspace.stage import Stage, stage_state

Status = Literal["waiting", "up-to-date", "done", "failed"]
Failure = dict[str, str | None]  # message, where and hint of an error


@dataclass
class Cell:
    """One run of the grid and what became of it.

    Attributes:
        workspace: where it is trained.
        settings: of the run, with backbone, method, seed and protocol.
        filed: the settings of llmemb.toml; a run that differs from them has a name of its own.
        error: message, place and hint, where it failed.
    """

    workspace: Workspace
    settings: Settings
    filed: Settings
    status: Status = "waiting"
    seconds: float = 0.0
    error: Failure | None = None
    locks: set[Path] = field(default_factory=set)

    @property
    def run(self) -> str:
        return run_name(self.settings, self.filed)

    def describe(self) -> dict[str, Any]:
        """The cell as `--json` shows it."""
        rat = self.settings.rat
        return {
            "workspace": str(self.workspace.root),
            "run": self.run,
            "backbone": rat.backbone,
            "method": rat.method,
            "without": list(rat.without),
            "seed": self.settings.seed,
            "status": self.status,
            "seconds": round(self.seconds, 3),
            "error": self.error,
        }


def is_done(cell: Cell) -> bool:
    """Whether the run and its evaluation are up to date, and all that they were made from."""
    trained = pipeline.rat_stage(cell.workspace, cell.settings, cell.run, cell.filed)
    measured = pipeline.eval_stage(cell.workspace, cell.settings, cell.run)
    own = all(stage_state(stage).state == "up-to-date" for stage in (trained, measured))
    return own and not _run_before(cell) and not steps_before(cell)


def _run_before(cell: Cell) -> Path | None:
    """The collaborative run that comes with the training of the cell's run, where it is not up to date."""
    needed = collaborative_settings(cell.settings)
    if needed is None:
        return None
    name = run_name(needed, cell.filed)
    state = stage_state(pipeline.rat_stage(cell.workspace, needed, name, cell.filed)).state
    return None if state == "up-to-date" else cell.workspace.run(name)


def run_grid(cells: list[Cell], report: Reporter, jobs: int = 1) -> None:
    """Bring every cell up to date; each cell's `status` and `error` say what became of it.

    Args:
        jobs: processes that train at once; each has its share of the processor cores, and one of the cards.

    Raises:
        InterruptedRunError: a signal came; finished cells stay, unfinished ones go on from their checkpoints.
    """
    with ExitStack() as locks:
        for root in dict.fromkeys(cell.workspace.root for cell in cells):
            locks.enter_context(write_lock(Workspace(root)))
        for cell in cells:
            cell.status = "up-to-date" if is_done(cell) else "waiting"
        todo = [cell for cell in cells if cell.status == "waiting"]
        # Plain runs first: others start from them or align to them.
        todo.sort(key=lambda cell: cell.settings.rat.method != "none")
        with report.task("grid", len(cells), "runs", done=len(cells) - len(todo)) as task:
            _prepare(todo, report)
            give_back_memory()
            todo = [cell for cell in todo if cell.status == "waiting"]
            for cell in _trained(todo, report, jobs):
                if cell.status == "failed":
                    report.warn(f"{cell.run}: {(cell.error or {}).get('message')}")
                task.advance(1, run=cell.run)


def steps_before(cell: Cell) -> list[Step]:
    """What has to be made before the cell's recommender, in order.

    In the settings and with the seed of llmemb.toml: data, prompts and LLM are shared by all runs of the grid.
    """
    rat = cell.settings.rat
    chosen = {"backbone": rat.backbone, "method": rat.method, "without": list(rat.without)}
    plan = {"backbones": [rat.backbone], "methods": [rat.method], "seeds": [cell.settings.seed]}
    planned = cell.filed.model_copy(
        update={"rat": rat_for(cell.filed, **chosen), "run": cell.filed.run.model_copy(update=plan)}
    )
    return _before(chain(cell.workspace, planned), run_name(variants(planned)[-1]))


def _prepare(cells: list[Cell], report: Reporter) -> None:
    """Make what comes before the recommenders, once a workspace; a cell whose inputs cannot be made has failed.

    What failed is told at once, and what it costs: the recommenders may take days.
    """
    made: dict[Path, Failure | None] = {}
    wanted = [(cell, _inputs(cell, report)) for cell in cells]
    for cell, inputs in wanted:
        for path, (name, make) in inputs.items():
            # Nothing more is made for a cell that has failed by what another one needed as well.
            if path not in made and not any(made.get(other) for other in inputs):
                made[path] = _attempt(make)
                if error := made[path]:
                    _warn(name, error, [other.run for other, needed in wanted if path in needed], report)
        if error := next((made[path] for path in inputs if made.get(path)), None):
            cell.status, cell.error = "failed", error


def _inputs(cell: Cell, report: Reporter) -> dict[Path, tuple[str, Callable[[], object]]]:
    """What has to be made before the cell is trained: where, what it is called, and how; in order."""
    steps = {step.stage.path: (step.name, partial(step.make, report, False)) for step in steps_before(cell)}
    inputs: dict[Path, tuple[str, Callable[[], object]]] = {
        path: step for path, step in steps.items() if path == cell.workspace.data
    }
    if cell.settings.eval.protocol == "sampled":
        # A matter of seconds, which must not fail after the hours of an LLM.
        path = cell.workspace.candidates(pipeline.protocol_name(cell.settings))
        inputs[path] = "candidates", partial(_candidates, cell, report)
    return inputs | steps


def _warn(name: str, error: Failure, runs: list[str], report: Reporter) -> None:
    shown = ", ".join(runs[:3]) + (f" and {len(runs) - 3} more" if len(runs) > 3 else "")
    parts = [part for part in (error["where"], error["message"]) if part]
    hint = f" ({error['hint']})" if error["hint"] else ""
    report.warn(f"{name} failed: {': '.join(parts)}{hint}; left out for it: {shown}")


def _before(steps: list[Step], run: str) -> list[Step]:
    """The steps that `run` depends on and that have to be made, in order; vectors may be made from a run themselves.

    One that is missing is left out where all that was made from it is up to date: embeddings serve without the
    adapter they came from.
    """
    own = [step for step in steps if step.stage.name == "rat" and step.stage.path.name == run]
    # The run that it starts from or aligns to has the settings of the cell, and comes with the training.
    roles = [item for step in own for item in step.stage.inputs.items()]
    wanted = {path for role, path in roles if role not in ("align", "start")}
    needed: list[Step] = []
    for step in reversed([step for step in steps if step.stage.name not in ("eval", "report")]):
        if step.stage.path in wanted and step not in own:
            wanted |= set(step.stage.inputs.values())
            needed.insert(0, step)
    made = _made_again([step.stage for step in needed])
    return [step for step in needed if step.stage.path in made]


def _made_again(stages: list[Stage]) -> set[Path]:
    """Which of the stages have to be made: what is stale or missing, and what follows from it."""
    states = {stage.path: stage_state(stage).state for stage in stages}
    made = {path for path, state in states.items() if state == "stale"}
    before: set[Path] | None = None
    while made != before:
        before = set(made)
        for stage in stages:
            readers = {other.path for other in stages if stage.path in other.inputs.values()}
            missed = states[stage.path] == "missing" and (not readers or bool(readers & made))
            if missed or made & set(stage.inputs.values()):
                made.add(stage.path)
    return made


def _candidates(cell: Cell, report: Reporter) -> None:
    from llmemb_cli.evaluation.candidates import make_candidates

    make_candidates(cell.workspace, cell.settings, report)


def _attempt(action: Callable[[], object]) -> Failure | None:
    """Do it; what went wrong comes back as data, since an exception holds all that the failed run had in memory."""
    try:
        action()
    except InterruptedRunError:
        raise
    except LlmembError as error:
        return {"message": error.message, "where": error.where, "hint": error.hint}
    except Exception as error:
        # Whatever went wrong in one run must not cost the others of a grid that takes days.
        return {"message": f"{type(error).__name__}: {error}", "where": None, "hint": None}
    return None


def _trained(cells: list[Cell], report: Reporter, jobs: int) -> Iterator[Cell]:
    """Yield the cells as they are finished."""
    if jobs == 1:
        for cell in cells:
            _take(cell, _train(*_work(cell), report))
            yield cell
        return
    threads = max(1, (os.cpu_count() or 1) // jobs)
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(jobs, context, _start_worker, (threads, _cards(cells), context.Value("i", 0)))
    waiting, running = list(cells), dict[Future, Cell]()
    try:
        with StopRequest() as stop:
            while waiting or running:
                if not stop.requested:
                    _start(pool, waiting, running, jobs)
                for future in wait(running, timeout=1.0, return_when=FIRST_COMPLETED).done:
                    cell = running.pop(future)
                    _take(cell, _outcome(future))
                    yield cell
                if stop.requested:
                    raise InterruptedRunError("interrupted", hint="run the same command again to go on")
    finally:
        for child in multiprocessing.active_children() if running else []:
            # They stand in process groups of their own, so that they get this one signal and save what they have.
            os.kill(child.pid or 0, signal.SIGTERM)
        pool.shutdown(wait=True, cancel_futures=True)


def _start(pool: ProcessPoolExecutor, waiting: list[Cell], running: dict[Future, Cell], jobs: int) -> None:
    """Start cells while there is room; two cells never make the same directory at once."""
    for cell in list(waiting):
        if len(running) >= jobs:
            return
        cell.locks = _directories(cell)
        if any(cell.locks & other.locks for other in running.values()):
            continue
        waiting.remove(cell)
        running[pool.submit(_train_in_worker, *_work(cell))] = cell


def _directories(cell: Cell) -> set[Path]:
    """What training the cell may write: its run, and the collaborative run that it needs."""
    before = _run_before(cell)
    return {cell.workspace.run(cell.run)} | ({before} if before is not None else set())


def _cards(cells: list[Cell]) -> list[str]:
    """The CUDA cards that workers are shared out among; none where there is one at most, or the settings name one."""
    import torch

    wanted = {device for cell in cells for device in (cell.settings.rat.device, cell.settings.eval.device)}
    if wanted - {"auto", "cuda"} or torch.cuda.device_count() < 2:
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",") if visible else [str(number) for number in range(torch.cuda.device_count())]


def _start_worker(threads: int, cards: list[str], started: Any) -> None:
    """Set up a process that trains: its threads, its card.

    Args:
        cards: what is shared out; none: all that is visible.
        started: a counter that all workers share.
    """
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)
    # One that waits for work must not die holding the queue that the others wait for.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with started.get_lock():
        number, started.value = started.value, started.value + 1
    if cards:
        os.environ["CUDA_VISIBLE_DEVICES"] = cards[number % len(cards)]
    os.environ["OMP_NUM_THREADS"] = str(threads)
    import torch

    torch.set_num_threads(threads)


def _work(cell: Cell) -> tuple[str, str, str, str]:
    """What another process needs to know of a cell."""
    return str(cell.workspace.root), cell.settings.model_dump_json(), cell.filed.model_dump_json(), cell.run


def _train_in_worker(root: str, settings: str, filed: str, run: str) -> dict[str, Any]:
    """`_train`, which a SIGTERM ends: outside it a worker has nothing to lose and is told otherwise when to end."""
    with terminate_as_interrupt():
        return _train(root, settings, filed, run)


def _train(root: str, settings: str, filed: str, run: str, report: Reporter | None = None) -> dict[str, Any]:
    """Train and evaluate one run, in whatever process; errors come back as data.

    Args:
        filed: the settings of llmemb.toml as they were when the grid began: whoever edits it meanwhile must not
            change what the runs before are called.
    """
    workspace, chosen = Workspace(Path(root)), Settings.model_validate_json(settings)
    in_file = Settings.model_validate_json(filed)
    started = time.monotonic()

    def work() -> None:
        from llmemb_cli.evaluation.stage import run_eval
        from llmemb_cli.srs.train import run_rat

        run_rat(workspace, chosen, report or Reporter(), name=run, in_file=in_file)
        run_eval(workspace, chosen, run, report or Reporter())

    error = _attempt(work)
    return {"seconds": time.monotonic() - started, "error": error}


def _outcome(future: Future) -> dict[str, Any]:
    from concurrent.futures.process import BrokenProcessPool

    try:
        return dict(future.result())
    except BrokenProcessPool:
        raise LlmembError(
            "a worker process was killed, perhaps for want of memory", hint="fewer --jobs; finished runs are kept"
        ) from None


def _take(cell: Cell, outcome: dict[str, Any]) -> None:
    cell.seconds, cell.error = outcome["seconds"], outcome["error"]
    cell.status = "done" if cell.error is None else "failed"
