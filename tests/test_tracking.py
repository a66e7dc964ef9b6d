"""Curves in other tools: what TensorBoard reads back, and what stand-ins for W&B and MLflow are told."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llmemb_cli.config.runs import run_name
from llmemb_cli.errors import InterruptedRunError, MissingError
from llmemb_cli.pipeline import rat_stage
from llmemb_cli.progress import Reporter
from llmemb_cli.srs.train import run_rat
from llmemb_cli.tracking import open_trackers
from llmemb_cli.workspace.stage import stage_state
from tests.make_workspace import make_workspace
from tests.test_recommenders import SMALL, StopAfter

FEW = SMALL | {"rat__epochs": 4, "rat__method": "none"}


class FakeWandb:
    """Stands for the module `wandb`, as far as it is used."""

    def __init__(self) -> None:
        self.inits: list[dict[str, Any]] = []
        self.logged: list[tuple[dict[str, float], int]] = []

    def init(self, **given: Any) -> Any:
        self.inits.append(given)
        return SimpleNamespace(id=given["id"] or f"id{len(self.inits)}", log=self._log, finish=lambda: None)

    def _log(self, figures: dict[str, float], step: int) -> None:
        self.logged.append((figures, step))


class FakeMlflow:
    """Stands for the module `mlflow`: a client that keeps experiments, parameters and metrics."""

    def __init__(self) -> None:
        self.experiments: dict[str, str] = {}
        self.params: dict[tuple[str, str], Any] = {}
        self.metrics: list[tuple[str, str, float, int]] = []
        self.runs: list[str] = []
        self.uris: list[str] = []

    def MlflowClient(self, tracking_uri: str) -> FakeMlflow:  # noqa: N802
        self.uris.append(tracking_uri)
        return self

    def get_experiment_by_name(self, name: str) -> Any:
        known = self.experiments.get(name)
        return None if known is None else SimpleNamespace(experiment_id=known)

    def create_experiment(self, name: str) -> str:
        return self.experiments.setdefault(name, str(len(self.experiments)))

    def create_run(self, experiment: str, run_name: str) -> Any:
        self.runs.append(run_name)
        return SimpleNamespace(info=SimpleNamespace(run_id=f"run{len(self.runs)}"))

    def log_param(self, run: str, key: str, value: Any) -> None:
        self.params[run, key] = value

    def log_metric(self, run: str, key: str, value: float, step: int) -> None:
        assert "@" not in key
        self.metrics.append((run, key, value, step))

    def set_terminated(self, run: str) -> None:
        assert run in {f"run{n + 1}" for n in range(len(self.runs))}


def test_tensorboard_reads_back_the_curve_of_the_log(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    workspace, settings = make_workspace(tmp_path / "ws", **FEW, rat__track=["tensorboard"])
    run = run_name(settings)
    run_rat(workspace, settings, Reporter())
    log = [json.loads(line) for line in (workspace.run(run) / "log.jsonl").read_text().splitlines()]
    for _ in range(2):  # made again from the start, it replaces the curve
        found = EventAccumulator(str(workspace.root / "tracking" / "tensorboard" / run))
        found.Reload()
        for tag, key in (("loss", "loss"), ("NDCG_10", "NDCG@10"), ("HR_10", "HR@10")):
            curve = [(event.step, event.value) for event in found.Scalars(tag)]
            assert curve == [(one["epoch"], pytest.approx(one[key], rel=1e-5)) for one in log]
        run_rat(workspace, settings, Reporter(), force=True)


@pytest.mark.parametrize("tool", ["wandb", "mlflow"])
def test_an_interrupted_run_goes_on_in_its_curve(tmp_path: Path, tool: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeWandb() if tool == "wandb" else FakeMlflow()
    monkeypatch.setitem(sys.modules, tool, fake)
    workspace, settings = make_workspace(tmp_path / "ws", **FEW, rat__track=[tool])
    with pytest.raises(InterruptedRunError):
        run_rat(workspace, settings, StopAfter(2))
    run_rat(workspace, settings, Reporter())
    log = [json.loads(line) for line in (workspace.run(run_name(settings)) / "log.jsonl").read_text().splitlines()]
    losses = [one["loss"] for one in log]
    if isinstance(fake, FakeWandb):
        assert [given["id"] for given in fake.inits] == [None, "id1"] and fake.inits[1]["resume"] == "allow"
        assert fake.inits[0]["project"] == "llmemb" and fake.inits[0]["config"]["seed"] == 42
        assert [step for _, step in fake.logged] == [1, 2, 3, 4]
        assert [figures["loss"] for figures, _ in fake.logged] == losses
    else:
        assert fake.runs == [run_name(settings)] and fake.params["run1", "hidden_size"] == 16
        assert [(v, s) for _, key, v, s in fake.metrics if key == "loss"] == [
            (v, i + 1) for i, v in enumerate(losses)
        ]
        assert fake.uris[0].startswith("file://") and str(workspace.root) in fake.uris[0]


def test_a_tool_that_is_not_installed_is_missing_and_named_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(MissingError) as caught:
        open_trackers(["wandb"], tmp_path, "run", {}, fresh=True)
    assert caught.value.hint == "pip install 'llmemb[wandb]'"


def test_tracking_and_precision_do_not_make_a_run_stale(tmp_path: Path) -> None:
    workspace, settings = make_workspace(tmp_path / "ws", **(FEW | {"rat__epochs": 1}))
    run_rat(workspace, settings, Reporter())
    other = settings.model_copy(
        update={"rat": settings.rat.model_copy(update={"track": ["tensorboard"], "precision": "fp32"})}
    )
    assert run_name(other, settings) == run_name(settings)
    assert stage_state(rat_stage(workspace, other, run_name(other))).state == "up-to-date"
