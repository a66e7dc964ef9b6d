"""Training as a user meets it: planted rules, frozen vectors, resumed runs, no look at held-out items."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from llmemb_cli.app import app
from llmemb_cli.config.backbones import BACKBONES as TABLE
from llmemb_cli.config.methods import METHODS
from llmemb_cli.config.runs import collaborative_settings, rat_settings, run_name, vectors_needed
from llmemb_cli.config.settings import load_settings, update_settings
from llmemb_cli.datasets.prepare import prepare
from llmemb_cli.datasets.split import load_split
from llmemb_cli.errors import BadDataError, InterruptedRunError, LlmembError, WrongUseError
from llmemb_cli.pipeline import rat_stage
from llmemb_cli.progress import Reporter, Task
from llmemb_cli.srs import loop
from llmemb_cli.srs.batch import make_batch
from llmemb_cli.srs.recommender import load_recommender
from llmemb_cli.srs.sequences import training_rows
from llmemb_cli.srs.train import run_rat
from llmemb_cli.srs.validate import validation_ranks, validation_users
from llmemb_cli.srs.vectors import make_embedding
from llmemb_cli.workspace.stage import output_fingerprint, read_manifest, stage_state
from llmemb_cli.workspace.store import read_tensors, write_tensors
from tests.make_workspace import make_workspace
from tests.test_training_step import laid_out

BACKBONES = tuple(TABLE)


SMALL: dict[str, Any] = {
    "rat__hidden_size": 16,
    "rat__dropout": 0.0,
    "rat__max_length": 8,
    "rat__batch_size": 16,
    "rat__learning_rate": 0.005,
    "rat__epochs": 80,
    "rat__loss": "ce",
    "rat__mask_ratio": 0.3,
}


# Where two trainings are compared byte for byte: the order in which a card adds up is open.
EXACT = SMALL | {"rat__device": "cpu"}


def small(name: str, **values: Any) -> dict[str, Any]:
    """Settings that learn the rule. A backbone that learns from every beginning of a history needs fewer epochs."""
    epochs = 16 if TABLE[name].learns == "last" else 80  # type: ignore[index]
    return SMALL | {"rat__backbone": name, "rat__epochs": epochs} | values


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("method", ["none", "llmemb"])
def test_a_planted_rule_is_learned(tmp_path: Path, name: str, method: str) -> None:
    workspace, settings = make_workspace(tmp_path / "ws", **small(name, rat__method=method))
    result = run_rat(workspace, settings, Reporter())
    from llmemb_cli.evaluation.stage import run_eval

    measured = run_eval(workspace, settings, run_name(settings), Reporter()).manifest["summary"]
    assert measured["overall"]["HR@10"] > 0.95
    assert result.manifest["summary"]["embedding_scale"]["std"] > 0


def test_llm_vectors_are_not_copied_into_runs_and_ablations_differ_as_named(tmp_path: Path) -> None:
    workspace, settings = make_workspace(tmp_path / "ws", **(SMALL | {"rat__epochs": 2, "rat__hidden_size": 8}))
    source = (workspace.embeddings() / "embeddings.safetensors").read_bytes()
    for without in ([], ["freeze"], ["scft"], ["adapter"], ["align"]):
        rat = settings.rat.model_copy(update={"method": "llmemb", "without": without})
        one = settings.model_copy(update={"rat": rat})
        manifest = run_rat(workspace, one, Reporter()).manifest
        weights = read_tensors(workspace.run(run_name(one)) / "model.safetensors")
        assert ("embedding.vectors" in weights) == (without == ["freeze"])
        assert (manifest["summary"]["aligned_to"] is None) == (without in (["adapter"], ["align"]))
        assert ("embedding.inner.weight" in weights) == (without != ["adapter"])
        # The vectors are held by reference: which ones is in the manifest, and other ones make the run stale.
        used = workspace.embeddings("base" if without == ["scft"] else "scft")
        assert manifest["made_from"]["inputs"]["embeddings"] == output_fingerprint(used)
    assert (workspace.embeddings() / "embeddings.safetensors").read_bytes() == source


def test_other_llm_vectors_make_a_run_stale_and_leave_what_it_says_as_it_was(tmp_path: Path) -> None:
    workspace, settings = make_workspace(tmp_path / "ws", **(SMALL | {"rat__epochs": 1, "rat__method": "llm2x"}))
    run_rat(workspace, settings, Reporter())
    stage = rat_stage(workspace, settings, run_name(settings))
    data, run = load_split(workspace.data), workspace.run(run_name(settings))
    before = load_recommender(run, data).encode(torch.tensor([[1, 2, 3]]))
    assert stage_state(stage).state == "up-to-date"
    manifest = workspace.embeddings("base") / "manifest.json"
    manifest.write_text(manifest.read_text().replace(output_fingerprint(manifest.parent) or "", "0" * 64))
    assert stage_state(stage).reason == "input embeddings changed"
    assert torch.equal(load_recommender(run, data).encode(torch.tensor([[1, 2, 3]])), before)


def test_a_switch_turned_off_by_a_flag_is_another_run_than_that_of_the_settings_file(tmp_path: Path) -> None:
    _, settings = make_workspace(
        tmp_path / "ws",
        **(
            SMALL
            | {"rat__logit_adjustment": 0.5, "rat__contrast": "cl4srec", "rat__start_decay": 1.0}
            | {"rat__method": "llm2x", "rat__averaging": 0.99, "rat__logit_adjustment_share": 0.8}
        ),
    )
    assert run_name(settings, settings) == "sasrec-llm2x-42"
    switches = {"logit_adjustment": 0.0, "contrast": "none", "start_decay": 0.0, "averaging": 0.0}
    for key, off in (switches | {"logit_adjustment_share": 1.0}).items():
        rat = settings.rat.model_copy(update={key: off})
        assert run_name(settings.model_copy(update={"rat": rat}), settings) != run_name(settings, settings)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("more", [{}, {"without": ["freeze"]}, {"without": ["adapter"]}, {"freeze_vectors": True}])
def test_start_decay_counts_where_an_item_has_a_start_of_its_own(
    tmp_path: Path, method: str, more: dict[str, Any]
) -> None:
    values = {"rat__method": method, "rat__hidden_size": 8, "rat__vectors": "scft", "rat__alphafuse_dims": 4}
    workspace, settings = make_workspace(tmp_path / "ws", **values, **{f"rat__{key}": v for key, v in more.items()})
    kind = vectors_needed(settings)
    if kind in ("said", "tslrec"):
        shutil.copytree(workspace.embeddings("base"), workspace.embeddings(kind))
    data = load_split(workspace.data)
    embedding = make_embedding(workspace, settings, data, torch.zeros(data.n_items, 8))
    pulled = settings.model_copy(update={"rat": settings.rat.model_copy(update={"start_decay": 1.0})})
    tables = [one for one in embedding.with_start() if one.requires_grad and len(one) == data.n_items]
    assert ("start_decay" in rat_settings(pulled)) == bool(tables) and len(tables) < 2
    named = run_name(pulled, settings) != run_name(settings, settings)
    assert named == bool(tables) == (run_name(settings, pulled) != run_name(pulled, pulled))
    # It leaves the run alone that this one aligns to or starts from, and with it the floor.
    assert bool(tables) == (method != "none") or method in ("llmemb", "said")
    if (collaborative := collaborative_settings(pulled)) is not None:
        assert "start_decay" not in rat_settings(collaborative)


@pytest.mark.parametrize(
    ("switch", "on", "more"),
    [
        ("contrast", "cl4srec", {}),
        ("logit_adjustment", 0.5, {}),
        ("logit_adjustment_share", 0.8, {"rat__logit_adjustment": 0.5}),
        ("start_decay", 1.0, {}),
        ("averaging", 0.5, {}),
    ],
)
def test_a_switch_turned_on_or_off_in_the_settings_file_makes_the_run_stale(
    tmp_path: Path, switch: str, on: Any, more: dict[str, Any]
) -> None:
    values = SMALL | {"rat__epochs": 1, "rat__method": "llm2x"} | more
    workspace, settings = make_workspace(tmp_path / "ws", **values)
    switched = settings.model_copy(update={"rat": settings.rat.model_copy(update={switch: on})})
    for one, other in ((settings, switched), (switched, settings)):
        run_rat(workspace, one, Reporter(), in_file=one)
        states = [stage_state(rat_stage(workspace, chosen, "sasrec-llm2x-42", chosen)) for chosen in (one, other)]
        assert [state.state for state in states] == ["up-to-date", "stale"]
        before, now = (chosen.rat.model_dump()[switch] for chosen in (one, other))
        # Runs with a contrast are of another version.
        assert states[1].reason == f"setting {switch} changed: {before!r} -> {now!r}" or switch == "contrast"
        # Older runs say that it was off.
        manifest = workspace.run("sasrec-llm2x-42") / "manifest.json"
        made = json.loads(manifest.read_text())
        made["made_from"]["settings"].setdefault(switch, before)
        manifest.write_text(json.dumps(made))
        assert stage_state(rat_stage(workspace, one, "sasrec-llm2x-42", one)).state == "up-to-date"


def test_no_validation_or_test_item_reaches_training(tmp_path: Path) -> None:
    workspace, settings = make_workspace(tmp_path / "ws", **SMALL)
    data = load_split(workspace.data)
    rows, rng = training_rows(data.train, "sasrec"), np.random.default_rng(0)
    batch = make_batch(rows, np.arange(data.n_users), settings.rat, data.n_items, None, rng)
    # Eight items a user, the last two held out: five inputs, the sixth is the last target.
    assert len(batch.groups) == 1
    for user in range(data.n_users):
        inputs, targets = batch.groups[0].inputs[user], laid_out(batch.groups[0])[user]
        assert inputs[inputs > 0].tolist() == data.train.row(user)[:-1].tolist()
        assert targets[targets > 0].tolist() == data.train.row(user)[1:].tolist()


class StopAfter(Reporter):
    """Sends SIGINT to this process after some epochs."""

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def task(self, label: str, total: int | None = None, unit: str = "steps", done: int = 0) -> Task:
        owner = self

        class Counting(Task):
            def advance(self, n: int = 1, **figures: float | str) -> None:
                owner.epochs -= 1
                if owner.epochs == 0:
                    os.kill(os.getpid(), signal.SIGINT)

        return Counting()


@pytest.mark.parametrize(
    ("name", "method", "epochs", "more"),
    # melt and llmemb train the plain model first: its five epochs pass before theirs.
    [
        *((name, "none", 2, {}) for name in ("sasrec", "gru4rec", "bert4rec", "bsarec")),
        ("gru4rec", "melt", 7, {}),
        ("sasrec", "llmemb", 7, {}),
        ("bert4rec", "llmesr", 2, {}),
        ("sasrec", "llm2x", 2, {"rat__start_decay": 2.0, "rat__averaging": 0.9}),
        ("sasrec", "none", 2, {"rat__averaging": 0.9}),
    ],
)
def test_interrupted_and_resumed_training_equals_an_uninterrupted_one(
    tmp_path: Path, name: str, method: str, epochs: int, more: dict[str, Any]
) -> None:
    values = EXACT | {"rat__epochs": 5, "rat__backbone": name, "rat__method": method, "rat__dropout": 0.2} | more
    one, settings = make_workspace(tmp_path / "one", **values)
    run_rat(one, settings, Reporter())
    two, settings = make_workspace(tmp_path / "two", **values)
    with pytest.raises(InterruptedRunError):
        run_rat(two, settings, StopAfter(epochs))
    assert (two.root / "runs" / f".{run_name(settings)}.partial" / "checkpoint.safetensors").exists()
    run_rat(two, settings, Reporter())
    runs = [workspace.run(run_name(settings)) for workspace in (one, two)]
    for file in ("model.safetensors", "item_embeddings.safetensors"):
        assert (runs[0] / file).read_bytes() == (runs[1] / file).read_bytes()
    logs = [[json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()] for run in runs]
    assert all(record.pop("seconds") > 0 for log in logs for record in log)
    assert logs[0] == logs[1]


def test_averaging_keeps_a_moving_average_of_the_weights_and_changes_no_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = EXACT | {"rat__epochs": 3, "rat__method": "none", "rat__dropout": 0.2, "rat__learning_rate": 0.001}
    workspace, settings = make_workspace(tmp_path / "ws", **values)
    steps: list[np.ndarray] = []
    update = loop.update_average

    def watched(average: Any, trained: Any, *args: Any) -> None:
        steps.append(trained[0].detach().numpy().astype(np.float64).copy())
        update(average, trained, *args)

    monkeypatch.setattr(loop, "update_average", watched)
    plain = run_rat(workspace, settings, Reporter())
    unchanged, steps = steps, []
    rat = settings.rat.model_copy(update={"averaging": 0.9})
    kept = run_rat(workspace, settings.model_copy(update={"rat": rat}), Reporter(), name="kept", in_file=settings)
    np.testing.assert_array_equal(steps, unchanged)
    logs = [
        [json.loads(line) for line in (workspace.run(run) / "log.jsonl").read_text().splitlines()]
        for run in ("sasrec-none-42", "kept")
    ]
    assert [one["loss"] for one in logs[0]] == [one["loss"] for one in logs[1]]
    assert [one["NDCG@10"] for one in logs[0]] != [one["NDCG@10"] for one in logs[1]]
    # The table is the first of the weights. Step t (from 1) counts 1 - min(0.9, (1 + t) / (10 + t)).
    count = len(steps) // 3 * kept.manifest["summary"]["best_epoch"]
    weights = np.array([1 - min(0.9, (2 + at) / (11 + at)) for at in range(count)])
    after = np.array([np.prod(1 - weights[at + 1 :]) for at in range(count)])
    mean = sum(w * rest * table for w, rest, table in zip(weights, after, steps, strict=False))
    table = read_tensors(workspace.run("kept") / "item_embeddings.safetensors")["item_embeddings"].numpy()
    # What is left of the start is not more than the product of all decays.
    assert np.prod(1 - weights) < 1e-3
    np.testing.assert_allclose(table, mean, atol=np.prod(1 - weights) * 0.2 + 1e-5)
    assert np.abs(table - steps[count - 1]).max() > 1e-3
    assert plain.built and kept.built


@pytest.mark.parametrize("method", ["llm2x", "melt", "llmesr", "alphafuse", "llmemb"])
def test_start_decay_keeps_items_near_their_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """With the whole way back each step, what is left of a table's training is one step of Adam: the rate."""
    values = EXACT | {"rat__epochs": 4, "rat__method": method, "rat__hidden_size": 8, "rat__without": ["freeze"]}
    workspace, settings = make_workspace(tmp_path / "ws", **values, rat__vectors="scft", rat__alphafuse_dims=4)
    moved: list[float] = []

    def watched(t: loop.Training) -> Any:
        if t.settings.rat.method == "none":  # what the run starts from or aligns to
            return loop.train(t)
        starts = [own.detach().clone() for own in t.model.embedding.with_start()]
        assert starts and len(starts[0]) == t.data.n_items
        trained = loop.train(t)
        moved.append(float((t.model.embedding.with_start()[0].detach() - starts[0]).abs().max()))
        return trained

    monkeypatch.setattr("llmemb_cli.srs.train.train", watched)
    for decay in (0.0, 1.0, 1 / 0.005):
        rat = settings.rat.model_copy(update={"start_decay": decay})
        run_rat(workspace, settings.model_copy(update={"rat": rat}), Reporter(), in_file=settings)
    assert moved[2] < 3 * 0.005 < moved[1] < moved[0]


def test_a_signal_in_the_last_validation_stops_and_the_same_call_goes_on_behind_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = EXACT | {"rat__epochs": 3, "rat__method": "none"}
    one, settings = make_workspace(tmp_path / "one", **values)
    run_rat(one, settings, Reporter())
    two, settings = make_workspace(tmp_path / "two", **values)
    validations: list[int] = []

    def signalled(*args: Any) -> np.ndarray:
        validations.append(len(validations) + 1)
        if len(validations) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return validation_ranks(*args)

    monkeypatch.setattr(loop, "validation_ranks", signalled)
    with pytest.raises(InterruptedRunError):
        run_rat(two, settings, Reporter())
    assert not two.run("sasrec-none-42").exists()
    summary = run_rat(two, settings, Reporter()).manifest["summary"]
    assert validations == [1, 2, 3], "nothing is trained or validated again"
    runs = [workspace.run("sasrec-none-42") for workspace in (one, two)]
    for file in ("model.safetensors", "item_embeddings.safetensors"):
        assert (runs[0] / file).read_bytes() == (runs[1] / file).read_bytes()
    logged = [json.loads(line) for line in (runs[1] / "log.jsonl").read_text().splitlines()]
    assert [record["epoch"] for record in logged] == [1, 2, 3]
    mean = sum(record["seconds"] for record in logged) / 3
    assert summary["seconds_per_epoch"] == pytest.approx(mean, abs=0.002)


def test_data_with_nothing_to_learn_from_is_refused(tmp_path: Path) -> None:
    # Three items a user, the last two held out.
    workspace, settings = make_workspace(tmp_path / "ws", length=3, **(SMALL | {"rat__method": "none"}))
    with pytest.raises(BadDataError, match="no user has two items to train on") as error:
        run_rat(workspace, settings, Reporter())
    assert error.value.hint is not None and "--backbone bert4rec" in error.value.hint
    rat = settings.rat.model_copy(update={"backbone": "bert4rec", "epochs": 1})
    assert run_rat(workspace, settings.model_copy(update={"rat": rat}), Reporter()).built


def test_vectors_of_other_settings_are_used_and_said_to_be_old(tmp_path: Path) -> None:
    said: list[str] = []

    class Heard(Reporter):
        def note(self, message: str) -> None:
            said.append(message)

    values = SMALL | {"rat__method": "llm2x", "rat__vectors": "scft", "rat__epochs": 1}
    workspace, settings = make_workspace(tmp_path / "ws", **values)
    vectors = workspace.embeddings("scft") / "manifest.json"
    before = vectors.read_bytes()
    other = settings.model_copy(update={"embed": settings.embed.model_copy(update={"pca": 3})})
    run_rat(workspace, other, Heard())
    assert any("used as they are, though embed is stale" in message for message in said)
    assert vectors.read_bytes() == before


@pytest.mark.parametrize("method", ["llmemb", "llm2x"])
def test_missing_llm_vectors_are_told_before_a_collaborative_model_is_trained(tmp_path: Path, method: str) -> None:
    workspace, settings = make_workspace(tmp_path / "ws", **SMALL | {"rat__method": method, "rat__vectors": "scft"})
    shutil.rmtree(workspace.embeddings("scft"))
    with pytest.raises(WrongUseError) as caught:
        run_rat(workspace, settings, Reporter())
    assert "llmemb embed" in (caught.value.hint or "")
    assert not (workspace.root / "runs").exists()


@pytest.mark.parametrize("method", ["none", "llmemb", "llmesr"])
def test_heads_that_do_not_share_the_width_are_refused_before_anything_is_made(tmp_path: Path, method: str) -> None:
    workspace, settings = make_workspace(tmp_path / "ws", **(SMALL | {"rat__method": method, "rat__heads": 3}))
    with pytest.raises(WrongUseError, match=r"rat\.heads is 3 and rat\.hidden_size 16") as error:
        run_rat(workspace, settings, Reporter())
    assert error.value.hint is not None and "one of 1, 2, 4, 8, 16 heads" in error.value.hint
    assert not (workspace.root / "runs").exists()


def test_a_backbone_without_attention_takes_any_number_of_heads(tmp_path: Path) -> None:
    values = SMALL | {"rat__method": "none", "rat__heads": 3, "rat__backbone": "gru4rec", "rat__epochs": 1}
    assert run_rat(*make_workspace(tmp_path / "ws", **values), Reporter()).built


def test_a_run_with_the_contrast_is_loaded_with_and_without_its_mask_vector(tmp_path: Path) -> None:
    values = SMALL | {"rat__method": "none", "rat__contrast": "cl4srec", "rat__epochs": 1}
    workspace, settings = make_workspace(tmp_path / "ws", **values)
    run_rat(workspace, settings, Reporter())
    data, run = load_split(workspace.data), workspace.run(run_name(settings))
    weights = read_tensors(run / "model.safetensors")
    model = load_recommender(run, data)
    assert model.mask_vector is not None and torch.equal(model.mask_vector.detach(), weights["mask_vector"])
    history = torch.tensor([[1, 2, 3]])
    before = model.encode(history)
    # As runs were before backbones without [MASK] got a vector for it.
    write_tensors(run / "model.safetensors", {name: t for name, t in weights.items() if name != "mask_vector"})
    assert torch.equal(load_recommender(run, data).encode(history), before)


def test_a_disk_that_is_full_at_the_end_does_not_lose_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import llmemb_cli.srs.train as module

    values = EXACT | {"rat__epochs": 3, "rat__method": "none", "rat__checkpoint_minutes": 1e-6}
    one, settings = make_workspace(tmp_path / "one", **values)
    run_rat(one, settings, Reporter())
    two, settings = make_workspace(tmp_path / "two", **values)

    def full(path: Path, *rest: Any) -> None:
        raise OSError(28, "No space left on device")

    write = module.write_tensors
    monkeypatch.setattr(module, "write_tensors", full)
    with pytest.raises(OSError, match="No space left"):
        run_rat(two, settings, Reporter())
    log = two.root / "runs" / ".sasrec-none-42.partial" / "log.jsonl"
    first = log.read_text().splitlines()[0]
    monkeypatch.setattr(module, "write_tensors", write)
    run_rat(two, settings, Reporter())
    assert (two.run("sasrec-none-42") / "log.jsonl").read_text().splitlines()[0] == first, (
        "with its seconds: not again"
    )
    runs = [workspace.run("sasrec-none-42") / "model.safetensors" for workspace in (one, two)]
    assert runs[0].read_bytes() == runs[1].read_bytes()
    assert not list(two.run("sasrec-none-42").glob("checkpoint*"))


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
)
def test_memory_that_runs_out_is_said_with_what_to_lower(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fails(*args: Any) -> None:
        raise error

    monkeypatch.setattr(loop, "learn", fails)
    workspace, settings = make_workspace(tmp_path / "ws", **SMALL | {"rat__method": "none", "rat__epochs": 1})
    with pytest.raises(LlmembError, match="out of memory") as told:
        run_rat(workspace, settings, Reporter())
    assert told.value.hint is not None and "rat.batch_size" in told.value.hint
    # Any other error is a defect and stays one.
    error = RuntimeError("shapes do not match")
    with pytest.raises(RuntimeError, match="shapes do not match"):
        run_rat(workspace, settings, Reporter())


def test_a_search_goes_on_after_a_trial_that_was_out_of_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("optuna")
    from llmemb_cli.srs.tune import parse_space, run_tune

    whole, calls = loop.learn, []

    def fails_first(*args: Any) -> Any:
        calls.append(len(calls))
        if len(calls) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(*args)

    monkeypatch.setattr(loop, "learn", fails_first)
    workspace, _ = make_workspace(tmp_path / "ws", **SMALL | {"rat__method": "none", "rat__epochs": 1})
    found = run_tune(workspace, parse_space(["rat.dropout=0.1,0.2,0.3"]), {}, Reporter(), trials=2)
    assert [trial["NDCG@10"] is None for trial in found["trials"]] == [True, False]


def test_best_weights_are_kept_in_one_place_and_gradients_make_room_for_validation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = EXACT | {"rat__method": "none", "rat__checkpoint_minutes": 1e-9}
    kept: list[dict[str, int]] = []
    write, ranks = loop.save_checkpoint, iter([4, 3, 2, *[4, 3, 2, 6, 6]])

    def saved(work: Path, groups: dict[str, dict[str, torch.Tensor]], *rest: Any) -> None:
        kept.append({name: tensor.data_ptr() for name, tensor in groups["best"].items()})
        own = {tensor.data_ptr() for tensor in groups["model"].values()}
        assert not own & set(kept[-1].values()), "training goes on in tensors of its own"
        write(work, groups, *rest)

    def validated(model: torch.nn.Module, data: Any, users: np.ndarray, *rest: Any) -> np.ndarray:
        assert all(parameter.grad is None for parameter in model.parameters())
        return np.full(len(users), next(ranks))

    monkeypatch.setattr(loop, "validation_ranks", validated)
    short, settings = make_workspace(tmp_path / "short", **values | {"rat__epochs": 3})
    run_rat(short, settings, Reporter())
    monkeypatch.setattr(loop, "save_checkpoint", saved)
    long, settings = make_workspace(tmp_path / "long", **values | {"rat__epochs": 5})
    assert run_rat(long, settings, Reporter()).manifest["summary"]["best_epoch"] == 3
    assert kept[0] == {} and kept[-1].keys() > {"embedding.weight"}
    assert all(places in ({}, kept[-1]) for places in kept), "better weights are written over the earlier ones"
    # The best epoch's weights, whatever came after it: those of a training that ended there.
    runs = [workspace.run("sasrec-none-42") / "model.safetensors" for workspace in (short, long)]
    assert runs[0].read_bytes() == runs[1].read_bytes()


def test_loaded_recommender_scores_as_its_saved_table(tmp_path: Path) -> None:
    workspace, settings = make_workspace(tmp_path / "ws", **(SMALL | {"rat__epochs": 1, "rat__method": "llmemb"}))
    run_rat(workspace, settings, Reporter())
    data = load_split(workspace.data)
    model = load_recommender(workspace.run(run_name(settings)), data)
    saved = read_tensors(workspace.run(run_name(settings)) / "item_embeddings.safetensors")["item_embeddings"]
    torch.testing.assert_close(model.item_table[1:].detach(), saved)
    assert (model.item_table[0] == 0).all() and len(saved) == data.n_items


def test_without_validation_items_all_epochs_are_trained_and_the_last_weights_stay(tmp_path: Path) -> None:
    values = SMALL | {"rat__epochs": 3, "rat__patience": 1, "rat__method": "none"}
    workspace, settings = make_workspace(tmp_path / "ws", length=2, items=12, **values)
    assert (load_split(workspace.data).valid == 0).all()
    summary = run_rat(workspace, settings, Reporter()).manifest["summary"]
    assert summary["epochs"] == summary["best_epoch"] == 3 and summary["best_validation"] is None


def test_validation_users_are_capped_and_drawn_once(tmp_path: Path) -> None:
    workspace, _ = make_workspace(tmp_path / "ws", **SMALL)
    data = load_split(workspace.data)
    every, some = validation_users(data, 0, 1), validation_users(data, 20, 1)
    assert len(every) == data.n_users and len(set(some.tolist())) == 20
    assert some.tolist() == validation_users(data, 20, 1).tolist() != validation_users(data, 20, 2).tolist()


def test_set_holds_also_for_settings_that_have_a_flag_of_their_own(tmp_path: Path) -> None:
    workspace, _ = make_workspace(tmp_path / "ws", **(SMALL | {"rat__method": "none"}))
    call = ["rat", "-w", str(workspace.root), "--json", "--set", "rat.epochs=2"]
    (run,) = json.loads(CliRunner().invoke(app, call).stdout)["runs"]
    assert run["epochs"] == 2 and run["run"].startswith("sasrec-none-42-")
    (run,) = json.loads(CliRunner().invoke(app, [*call, "--epochs", "1"]).stdout)["runs"]
    assert run["epochs"] == 1


def test_a_flag_that_changes_nothing_is_told_and_makes_no_other_run(tmp_path: Path) -> None:
    workspace, _ = make_workspace(tmp_path / "ws", **(SMALL | {"rat__method": "none", "rat__epochs": 1}))
    call = ["rat", "-w", str(workspace.root), "--start-decay", "1", "--set", "rat.alpha=0.5"]
    done = CliRunner().invoke(app, call)
    assert "no effect on sasrec-none: alpha, start_decay" in done.stderr
    document = json.loads(CliRunner().invoke(app, [*call, "--json"]).stdout)
    assert document["no_effect"] == ["alpha", "start_decay"]
    assert [(run["run"], run["built"]) for run in document["runs"]] == [("sasrec-none-42", False)]
    assert "no effect" not in CliRunner().invoke(app, [*call[:3], "--averaging", "0.5"]).stderr


def test_what_the_data_do_not_depend_on_leaves_runs_up_to_date(tmp_path: Path) -> None:
    workspace, settings = make_workspace(tmp_path / "ws", **SMALL | {"rat__epochs": 1, "rat__method": "none"})
    run_rat(workspace, settings, Reporter())
    for key, value in (("seed", 43), ("data.tail_share", 0.7)):
        update_settings(workspace.settings_file, {key: value})
        changed = load_settings(workspace.settings_file)
        prepare(workspace, changed, Reporter())
        run = changed.model_copy(update={"seed": 42})
        assert stage_state(rat_stage(workspace, run, "sasrec-none-42", changed)).state == "up-to-date"
        load_recommender(workspace.run("sasrec-none-42"), load_split(workspace.data))
    assert (read_manifest(workspace.data) or {})["summary"]["tail"]["share_of_items"] == 0.7, "the card follows"
    update_settings(workspace.settings_file, {"data.max_users": 140})
    prepare(workspace, load_settings(workspace.settings_file), Reporter())
    assert stage_state(rat_stage(workspace, run, "sasrec-none-42", changed)).state == "stale"


def test_settings_that_a_run_does_not_use_leave_it_up_to_date(tmp_path: Path) -> None:
    changed = {
        "heads": 2,
        "layers": 3,
        "mask_ratio": 0.9,
        "negatives": 7,
        "negative_weight": 9.0,
        "compat": "official",
    }
    used = {
        ("gru4rec", "ce"): set(),
        ("sasrec", "bce"): {"heads", "layers", "negatives", "compat"},
        ("bert4rec", "auto"): {"heads", "layers", "mask_ratio"},
        ("sasrec", "sce"): {"heads", "layers", "negatives", "negative_weight", "compat"},
    }
    workspace, settings = make_workspace(tmp_path / "ws", **SMALL | {"rat__epochs": 1, "rat__method": "none"})
    for (backbone, loss), depended in used.items():
        chosen = settings.rat.model_copy(update={"backbone": backbone, "loss": loss})
        one = settings.model_copy(update={"rat": chosen})
        run_rat(workspace, one, Reporter(), force=True)
        manifest = workspace.run(run_name(one)) / "manifest.json"
        # As a version wrote it that counted them all.
        older = json.loads(manifest.read_text())
        older["made_from"]["settings"] |= {key: getattr(chosen, key) for key in changed}
        manifest.write_text(json.dumps(older))
        for key, value in changed.items():
            other = one.model_copy(update={"rat": chosen.model_copy(update={key: value})})
            state = stage_state(rat_stage(workspace, other, run_name(one))).state
            assert state == ("stale" if key in depended else "up-to-date"), (backbone, loss, key)


@pytest.mark.parametrize(
    ("chosen", "unused"),
    [
        ({"without": ["align"]}, {"alpha", "gamma", "align_loss", "align_to"}),
        ({"without": ["adapter"]}, {"alpha", "gamma", "align_loss", "align_to", "d_m"}),
        ({"alpha": 0.0}, {"gamma", "align_loss", "align_to"}),
        ({}, set()),
    ],
)
def test_what_an_ablation_leaves_out_has_no_settings(
    tmp_path: Path, chosen: dict[str, Any], unused: set[str]
) -> None:
    changed = {"alpha": 0.3, "gamma": 9.0, "align_loss": "soft", "align_to": "sasrec", "d_m": 7}
    workspace, settings = make_workspace(
        tmp_path / "ws", **SMALL | {"rat__epochs": 1, "rat__backbone": "gru4rec", "rat__hidden_size": 8}
    )
    one = settings.model_copy(update={"rat": settings.rat.model_copy(update=chosen)})
    run_rat(workspace, one, Reporter())
    table = (workspace.run(run_name(one)) / "item_embeddings.safetensors").read_bytes()
    for key, value in changed.items():
        other = one.model_copy(update={"rat": one.rat.model_copy(update={key: value})})
        state = stage_state(rat_stage(workspace, other, run_name(one))).state
        assert state == ("up-to-date" if key in unused else "stale"), key
        if key in unused:
            run_rat(workspace, other, Reporter(), name="again", force=True)
            assert (workspace.run("again") / "item_embeddings.safetensors").read_bytes() == table, key


def test_runs_that_start_from_other_runs_have_other_names(tmp_path: Path) -> None:
    path = tmp_path / "llmemb.toml"
    path.write_text(
        "[rat]\nhidden_size = 64\n[rat.llmemb]\nhidden_size = 32\n[rat.bert4rec]\nsimilarity = 'cosine'\n"
    )
    filed = load_settings(path)

    def name(method: str, backbone: str = "sasrec", **flags: Any) -> str:
        chosen = {"rat.method": method, "rat.backbone": backbone} | {
            f"rat.{k.replace('__', '.')}": v for k, v in flags.items()
        }
        return run_name(load_settings(path, chosen), filed)

    for method in METHODS:
        for backbone in BACKBONES:
            assert name(method, backbone) == f"{backbone}-{method}-42"
    # init_std counts for the collaborative run alone: melt starts from its table, llmemb aligns to it.
    assert len({name(method, init_std=std) for method in ("melt", "llmemb") for std in (0.02, 0.05, 0.08)}) == 6
    assert name("llmemb", without=["align"], init_std=0.05) == "sasrec-llmemb-no-align-42"
    # The same setting of llmemb, with a collaborative run that has it too, and with one that has not.
    assert len({name("llmemb"), name("llmemb", dropout=0.1), name("llmemb", llmemb__dropout=0.1)}) == 3
    assert name("none", llmemb__dropout=0.1) == "sasrec-none-42"
