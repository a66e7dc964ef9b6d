"""Curves in other tools as well: TensorBoard, Weights & Biases, MLflow. `log.jsonl` has them in any case.

Each is an extra, off by default. What a tool needs to know beyond this (server, project, offline mode) it reads from
its own environment variables; without them everything stays in `tracking/` of the workspace.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from llmemb_cli.config.rat import TrackerName
from llmemb_cli.errors import MissingError
from llmemb_cli.workspace.store import read_json, write_json

_PROJECT = "llmemb"


class Tracker(Protocol):
    """Where a run's curve goes besides its log."""

    def log(self, epoch: int, figures: Mapping[str, float]) -> None:
        """The figures of a finished epoch, numbered from 1."""

    def close(self) -> None:
        """Write what is still held back."""


class Trackers:
    """Several, or none."""

    def __init__(self, trackers: Sequence[Tracker] = ()) -> None:
        self.trackers = trackers

    def log(self, epoch: int, figures: Mapping[str, float | None]) -> None:
        """As `Tracker.log`; what was not measured is left out."""
        known = {key: value for key, value in figures.items() if value is not None}
        for tracker in self.trackers:
            tracker.log(epoch, known)

    def close(self) -> None:
        for tracker in self.trackers:
            tracker.close()


def open_trackers(
    names: Sequence[TrackerName], folder: Path, run: str, settings: Mapping[str, Any], *, fresh: bool
) -> Trackers:
    """The trackers of a run.

    Args:
        folder: the workspace's `tracking/`.
        run: the run's name.
        settings: what it is trained with, shown beside the curve.
        fresh: whether it starts anew; else an interrupted run goes on in its old curves.

    Raises:
        MissingError: a tool is not installed.
    """
    return Trackers([_OPEN[name](folder / name, run, settings, fresh) for name in dict.fromkeys(names)])


def _need(name: TrackerName, module: str) -> Any:
    try:
        return import_module(module)
    except ImportError:
        raise MissingError(f"--track {name}: it is not installed", hint=f"pip install 'llmemb[{name}]'") from None


class _TensorBoard:
    """Event files in `tracking/tensorboard/<run>/`."""

    def __init__(self, folder: Path, run: str, settings: Mapping[str, Any], fresh: bool) -> None:
        _need("tensorboard", "tensorboard")
        from torch.utils.tensorboard import SummaryWriter

        if fresh:
            shutil.rmtree(folder / run, ignore_errors=True)
        self.writer = SummaryWriter(str(folder / run))
        self.writer.add_text("settings", "\n".join(f"    {key} = {value}" for key, value in settings.items()))

    def log(self, epoch: int, figures: Mapping[str, float]) -> None:
        for key, value in figures.items():
            self.writer.add_scalar(key.replace("@", "_"), value, epoch)

    def close(self) -> None:
        self.writer.close()


class _Wandb:
    """A run of the project `llmemb`, or of WANDB_PROJECT; `WANDB_MODE=offline` sends nothing."""

    def __init__(self, folder: Path, run: str, settings: Mapping[str, Any], fresh: bool) -> None:
        wandb = _need("wandb", "wandb")
        folder.mkdir(parents=True, exist_ok=True)
        kept = None if fresh else _kept_id(folder, run)
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", _PROJECT),
            name=run,
            id=kept,
            resume="allow" if kept else None,
            config=dict(settings),
            dir=str(folder),
        )
        _keep_id(folder, run, self.run.id)

    def log(self, epoch: int, figures: Mapping[str, float]) -> None:
        self.run.log({"epoch": epoch, **figures}, step=epoch)

    def close(self) -> None:
        self.run.finish()


class _MLflow:
    """A run of the experiment `llmemb`, or of MLFLOW_EXPERIMENT_NAME, at MLFLOW_TRACKING_URI."""

    def __init__(self, folder: Path, run: str, settings: Mapping[str, Any], fresh: bool) -> None:
        mlflow = _need("mlflow", "mlflow")
        folder.mkdir(parents=True, exist_ok=True)
        uri = os.environ.get("MLFLOW_TRACKING_URI", (folder / "store").resolve().as_uri())
        self.client = mlflow.MlflowClient(tracking_uri=uri)
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", _PROJECT)
        found = self.client.get_experiment_by_name(name)
        experiment = found.experiment_id if found is not None else self.client.create_experiment(name)
        self.id = None if fresh else _kept_id(folder, run)
        if self.id is None:
            self.id = self.client.create_run(experiment, run_name=run).info.run_id
            for key, value in settings.items():
                self.client.log_param(self.id, key, value)
            _keep_id(folder, run, self.id)

    def log(self, epoch: int, figures: Mapping[str, float]) -> None:
        for key, value in figures.items():
            # "@" is not allowed in a metric's name.
            self.client.log_metric(self.id, key.replace("@", "_"), value, step=epoch)

    def close(self) -> None:
        self.client.set_terminated(self.id)


def _kept_id(folder: Path, run: str) -> str | None:
    path = folder / f"{run}.json"
    return str(read_json(path)["id"]) if path.is_file() else None


def _keep_id(folder: Path, run: str, number: str) -> None:
    write_json(folder / f"{run}.json", {"id": number})


_OPEN: dict[TrackerName, Any] = {"tensorboard": _TensorBoard, "wandb": _Wandb, "mlflow": _MLflow}
