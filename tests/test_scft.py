"""SCFT on a tiny random Llama: negatives, validation, the best checkpoint, precision, memory, adapters."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from typer.testing import CliRunner

from llmemb_cli.app import app
from llmemb_cli.config.scft import ScftSettings
from llmemb_cli.contrastive import contrastive_loss
from llmemb_cli.errors import BadDataError, LlmembError
from llmemb_cli.llm import load
from llmemb_cli.llm import step as step_module
from llmemb_cli.llm.adapter import attach_adapter
from llmemb_cli.llm.load import load_model
from llmemb_cli.llm.memory import out_of_memory
from llmemb_cli.llm.plan import MicroBatches, learning_rate, step_items, total_steps
from llmemb_cli.llm.scft import make_trainer, read_items, run_scft
from llmemb_cli.llm.step import contrast
from llmemb_cli.llm.trainer import draw_views, share_texts
from llmemb_cli.llm.validate import ranks_of_own
from llmemb_cli.peers import ALONE
from llmemb_cli.progress import Reporter
from llmemb_cli.prompts.views import not_negatives, other_drop
from llmemb_cli.seeds import numpy_rng, stream_seed
from llmemb_cli.workspace.locate import Workspace
from llmemb_cli.workspace.store import read_tensors
from tests.tiny_llm import make_tiny, with_prompts


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("tiny"))


class Heard(Reporter):
    """Keeps what a stage said."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, message: str) -> None:
        self.warnings.append(message)


def log_of(workspace: Workspace) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (workspace.scft() / "log.jsonl").read_text().splitlines()]


@given(st.data())
def test_views_that_keep_the_same_attributes_are_no_negatives(data: st.DataObject) -> None:
    texts = st.lists(st.sampled_from(["a", "b", "c", "d"]), min_size=1, max_size=3, unique=True)
    count = data.draw(st.integers(1, 6))
    first, second = (data.draw(st.lists(texts, min_size=count, max_size=count)) for _ in range(2))
    prompts = data.draw(st.lists(st.sampled_from("xyz"), min_size=count, max_size=count))
    found = not_negatives(first, second, prompts)
    for i in range(count):
        for j in range(count):
            expected = i == j or prompts[i] == prompts[j]
            for mine in (first[i], second[i]):
                for others in (first[j], second[j]):
                    expected = expected or sorted(mine) == sorted(others)
            assert found[i, j] == expected


def test_the_paper_loss_without_negatives_is_an_error_and_skips_items_without_any() -> None:
    left, right = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    tau = torch.tensor(2.0)
    with pytest.raises(BadDataError, match="all its prompts are equal"):
        contrastive_loss("paper", left, right, tau, torch.ones(3, 3, dtype=torch.bool))
    same = torch.tensor([[True, True, True], [True, True, False], [True, False, True]])
    scores = (left @ right.T / tau).tolist()
    # Items 1 and 2 are each other's only negatives, item 0 has none.
    expected = [scores[1][2] - scores[1][1], scores[2][1] - scores[2][2]]
    loss = contrastive_loss("paper", left.requires_grad_(), right, tau, same)
    assert float(loss.detach()) == pytest.approx(sum(expected) / 2, rel=1e-5)
    loss.backward()
    assert torch.isfinite(left.grad).all()  # type: ignore[arg-type]


def test_items_that_all_look_alike_are_named_as_the_cause(tmp_path: Path, tiny: Path) -> None:
    workspace, settings = with_prompts(tmp_path / "w", tiny, drop_ratio=0.9)
    prompts = workspace.prompts / "prompts.parquet"
    import polars as pl

    frame = pl.read_parquet(prompts)
    one = frame["parts"][0].to_list()
    frame.with_columns(pl.Series("parts", [one] * len(frame)), pl.lit("same").alias("prompt")).write_parquet(prompts)
    for loss in ("paper", "infonce", "soft"):
        scft = settings.scft.model_copy(update={"loss": loss})
        with pytest.raises(BadDataError, match="nothing to contrast"):
            run_scft(workspace, settings.model_copy(update={"scft": scft}), Reporter())


@pytest.mark.parametrize(
    ("loss", "given_start", "start"),
    [("infonce", 0.0, 0.07), ("soft", 0.0, 3.0), ("paper", 0.0, 3.0), ("soft", 0.5, 0.5)],
)
def test_the_temperature_starts_as_the_loss_needs_it(
    tmp_path: Path, tiny: Path, loss: str, given_start: float, start: float
) -> None:
    chosen = {"loss": loss, "temperature": given_start, "steps": 2, "learning_rate": 1e-4, "warmup": 0.0}
    workspace, settings = with_prompts(tmp_path / "w", tiny, **chosen)
    summary = run_scft(workspace, settings, Reporter()).manifest["summary"]
    # Adam moves the logarithm of the temperature by at most the learning rate a step.
    assert summary["temperature"] != start
    assert abs(math.log(summary["temperature"] / start)) < 2.1e-4
    assert json.loads((workspace.scft() / "temperature.json").read_text())["temperature"] == summary["temperature"]


def test_ranks_are_those_of_a_loop() -> None:
    generator = torch.Generator().manual_seed(4)
    similarity = torch.randint(0, 5, (12, 12), generator=generator).float()
    same = torch.rand(12, 12, generator=generator) < 0.2
    same |= same.T.clone() | torch.eye(12, dtype=torch.bool)
    ranks = ranks_of_own(similarity, same)
    for i in range(12):
        others = [float(similarity[i, j]) for j in range(12) if not same[i, j]]
        own = float(similarity[i, i])
        assert ranks[i] == 1 + sum(o > own for o in others) + sum(o == own for o in others) / 2


def test_validation_views_differ_where_they_can() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        assert other_drop(["a", "b"], 0.5, rng, ["a"]) == ["b"]
        assert set(other_drop(["a", "b"], 0.4, rng, ["b", "a"])) == {"a", "b"}
        assert other_drop(["a"], 0.5, rng, ["a"]) == ["a"]


def test_the_best_checkpoint_is_kept_not_the_last(tmp_path: Path, tiny: Path) -> None:
    # With a wild constant rate the curve goes up and down; the adapter must be that of its best point.
    chosen = {"learning_rate": 0.05, "schedule": "constant", "validate_every": 1, "validation_share": 0.4}
    workspace, settings = with_prompts(tmp_path / "w", tiny, steps=8, lora_dropout=0.0, **chosen)
    summary = run_scft(workspace, settings, Reporter()).manifest["summary"]
    records = log_of(workspace)
    curve = {record["step"]: record["mrr"] for record in records}
    assert list(curve) == list(range(9))
    best = max(range(1, 9), key=lambda step: curve[step])
    held_out = summary["held_out"]
    assert (held_out["best_step"], held_out["best_by"]) == (best, "mrr")
    assert held_out["after"]["mrr"] == curve[best] and held_out["before"]["mrr"] == curve[0]
    assert held_out["last"]["mrr"] == curve[8] < curve[best]
    # Trained only as far as that point the adapter is the same.
    settings = settings.model_copy(update={"scft": settings.scft.model_copy(update={"steps": best})})
    other, _ = with_prompts(tmp_path / "short", tiny)
    run_scft(other, settings, Reporter())
    mine, short = (read_tensors(w.scft() / "adapter_model.safetensors") for w in (workspace, other))
    for name in mine:
        torch.testing.assert_close(mine[name], short[name], rtol=0, atol=0)
    assert summary["temperature"] == records[best]["temperature"]


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_learning_rate_warms_up_and_ends_as_its_schedule_says(tiny: Path, schedule: str) -> None:
    settings = ScftSettings(schedule=schedule, warmup=0.1, learning_rate=1.0)  # type: ignore[arg-type]
    rates = [learning_rate(settings, step, 100) for step in range(100)]
    assert rates[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    expected = {"linear": [1 - i / 90 for i in range(90)], "constant": [1.0] * 90}
    expected["cosine"] = [0.5 + 0.5 * math.cos(math.pi * i / 90) for i in range(90)]
    assert rates[10:] == pytest.approx(expected[schedule])


def test_an_epoch_sees_every_item_once() -> None:
    settings = ScftSettings(batch_size=8, epochs=2.0)
    items = np.arange(3, 43)
    assert total_steps(settings, len(items)) == 10
    for epoch in (0, 1):
        seen = np.concatenate([step_items(items, settings, 1, 5 * epoch + i) for i in range(5)])
        assert sorted(seen.tolist()) == items.tolist()


@given(
    st.lists(st.integers(1, 50), min_size=1, max_size=40), st.integers(0, 5), st.integers(0, 120), st.integers(0, 900)
)
def test_micro_batches_cover_the_texts_within_their_limits(
    lengths: list[int], rows: int, tokens: int, room: int
) -> None:
    micro = MicroBatches(rows, tokens, room)
    batches = micro.split(lengths)
    assert [i for batch in batches for i in range(len(lengths))[batch]] == list(range(len(lengths)))
    for batch in batches:
        part = lengths[batch]
        assert part and (not rows or len(part) <= rows)
        assert not tokens or len(part) == 1 or max(part) * len(part) <= tokens
    sizes = [max(lengths[batch]) * len(lengths[batch]) for batch in batches]
    kept = micro.kept(lengths, batches)
    if kept:
        again = max(sizes[kept:], default=0)
        assert sum(sizes[:kept]) + again <= room


def test_fp16_skips_a_step_that_overflows_and_trains_on(
    tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load, "pick_dtype", lambda precision, device: torch.float16)
    workspace, settings = with_prompts(tmp_path / "w", tiny, steps=12, precision="fp16", learning_rate=0.01)
    summary = run_scft(workspace, settings, Reporter()).manifest["summary"]
    assert summary["precision"] == "float16" and 0 <= summary["skipped_steps"] < 6
    losses = [record["loss"] for record in log_of(workspace)[1:]]
    assert np.isfinite(losses).all() and np.mean(losses[-3:]) < np.mean(losses[:3])
    assert all(torch.isfinite(t).all() for t in read_tensors(workspace.scft() / "adapter_model.safetensors").values())


@pytest.mark.parametrize("micro", ["auto", 16])
def test_out_of_memory_halves_the_micro_batch_and_goes_on(
    tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch, micro: str | int
) -> None:
    from transformers import LlamaModel

    honest = LlamaModel.forward

    def small_machine(self: Any, *args: Any, **kwargs: Any) -> Any:
        if len(kwargs["input_ids"]) > 5:
            raise torch.OutOfMemoryError("CUDA out of memory (as a card would say)")
        return honest(self, *args, **kwargs)

    plain, settings = with_prompts(tmp_path / "plain", tiny, lora_dropout=0.0, micro_batch_size=4)
    run_scft(plain, settings, Reporter())
    monkeypatch.setattr(LlamaModel, "forward", small_machine)
    heard = Heard()
    small, settings = with_prompts(tmp_path / "small", tiny, lora_dropout=0.0, micro_batch_size=micro)
    run_scft(small, settings, heard)
    assert heard.warnings and "out of memory with" in heard.warnings[0]
    one, other = ([record["loss"] for record in log_of(w)[1:]] for w in (plain, small))
    assert one == pytest.approx(other, rel=1e-5)


@pytest.mark.parametrize(
    "chosen", [{}, {"gradient_checkpointing": True}, {"load_in_8bit": True}, {"instruction": "title is w1 w2 w3 w4"}]
)
def test_gradients_are_the_plain_ones_with_dropout_whatever_is_kept(
    tmp_path: Path, tiny: Path, chosen: dict[str, Any]
) -> None:
    workspace, settings = with_prompts(tmp_path / "w", tiny, lora_dropout=0.3, micro_batch_size=3, **chosen)
    trainer = make_trainer(read_items(workspace), settings, Reporter(), "cpu", ALONE)
    assert trainer.shares_prefix == ("instruction" in chosen)
    for parameter in trainer.trained:
        torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(0))
    trainer.model.train()
    leaves, items, step = [*trainer.trained, trainer.log_temperature], np.arange(8), 4
    found = []
    for kept in (0, 40, 10**6):  # tokens whose activations are kept: none, those of some micro-batches, all
        trainer.micro.kept_tokens = kept
        loss = contrast(trainer, items, step, torch.amp.GradScaler("cpu", enabled=False), Reporter())
        found.append([torch.tensor(loss), *(leaf.grad.clone() for leaf in leaves if leaf.grad is not None)])
    # One graph over all micro-batches, the loss driven backwards through it as it stands.
    for leaf in leaves:
        leaf.grad = None
    views = draw_views(trainer.items, items, settings.scft.drop_ratio, numpy_rng(trainer.seed, "views", step))
    share = share_texts(trainer.tokens(views.texts), ALONE, "cpu")
    vectors = []
    for number, batch in enumerate(trainer.micro.split(share.lengths)):
        torch.manual_seed(stream_seed(trainer.seed, "lora-dropout", step, number))
        vectors.append(trainer.embed(share.tokens[batch]))
    assert len(vectors) > 4
    same = torch.from_numpy(not_negatives(views.first, views.second, views.prompts))
    left, right = torch.cat(vectors)[share.place].chunk(2)
    plain = contrastive_loss("infonce", left, right, trainer.log_temperature.exp(), same)
    plain.backward()
    expected = [plain.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]
    assert len(expected) == len(leaves) + 1
    for one in found:
        for mine, theirs, first in zip(one, expected, found[0], strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)
            assert torch.equal(mine, first)  # so that a resumed run with more or less free memory is the same


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_training_that_is_ended_goes_on_bit_for_bit(tmp_path: Path, tiny: Path, number: signal.Signals) -> None:
    # Saved by step, or by time: here after every step.
    saved = {"checkpoint_steps": 10} if number == signal.SIGTERM else {"checkpoint_minutes": 1e-6}
    chosen = {"steps": 120, "validate_every": 40, **saved}
    whole, settings = with_prompts(tmp_path / "whole", tiny, **chosen)
    run_scft(whole, settings, Reporter())
    ended, settings = with_prompts(tmp_path / "ended", tiny, **chosen)
    command = [sys.executable, "-m", "llmemb_cli", "scft", "-w", str(ended.root), "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    partial = ended.root / "scft" / ".default.partial"
    until = time.monotonic() + 300
    while not (partial / "checkpoint.safetensors").is_file() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.005)
    process.send_signal(number)
    out, error = process.communicate(timeout=300)
    assert not ended.scft().exists(), out
    if number == signal.SIGTERM:
        assert process.returncode == 130 and json.loads(out)["error"]["code"] == "interrupted", error
        # It saved before it ended: not a step that was made is made again.
        with safe_open(partial / "checkpoint.safetensors", framework="pt") as file:
            step = json.loads(file.metadata()["record"])["state"]["step"]
        assert len((partial / "log.jsonl").read_text().splitlines()) == step + 1
    else:
        assert process.returncode == -signal.SIGKILL
    run_scft(ended, settings, Reporter())
    for name in ("adapter_model.safetensors", "log.jsonl", "temperature.json"):
        assert (whole.scft() / name).read_bytes() == (ended.scft() / name).read_bytes(), name


def test_memory_that_ran_out_is_told_from_other_errors() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(10**15)
    assert out_of_memory(caught.value)
    for error in (torch.OutOfMemoryError("CUDA out of memory."), MemoryError(), OSError("Cannot allocate memory")):
        assert out_of_memory(error)
    for other in (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), OSError("No such file"), KeyError("x")):
        assert not out_of_memory(other)


def test_weights_or_a_loss_that_do_not_fit_say_so(
    tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import LlamaModel

    def no_memory(*args: Any, **kwargs: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    workspace, settings = with_prompts(tmp_path / "w", tiny)
    with monkeypatch.context() as changed:
        changed.setattr(LlamaModel, "to", no_memory)
        with pytest.raises(LlmembError, match="do not fit into the memory of cpu") as caught:
            run_scft(workspace, settings, Reporter())
        assert "--load-in-4bit" in (caught.value.hint or "")
    monkeypatch.setattr(step_module, "contrastive_loss", no_memory)
    with pytest.raises(LlmembError, match="comparing 16 vectors") as caught:
        run_scft(workspace, settings.model_copy(update={"scft": without_validation(settings.scft)}), Reporter())
    assert "batch_size" in (caught.value.hint or "")


def without_validation(scft: ScftSettings) -> ScftSettings:
    return scft.model_copy(update={"validation_share": 0.0})


def test_out_of_memory_in_the_backward_pass_does_the_step_again(
    tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llmemb_cli.llm import trainer

    honest = trainer.embed_batch

    def heavy_gradients(model: Any, ids: torch.Tensor, mask: torch.Tensor, pooling: str) -> torch.Tensor:
        vectors = honest(model, ids, mask, pooling)
        if vectors.requires_grad and len(vectors) > 3:

            def run_out(gradient: torch.Tensor) -> None:
                raise torch.OutOfMemoryError("out of memory")

            vectors.register_hook(run_out)
        return vectors

    plain, settings = with_prompts(tmp_path / "plain", tiny, lora_dropout=0.0, micro_batch_size=3)
    run_scft(plain, settings, Reporter())
    monkeypatch.setattr(trainer, "embed_batch", heavy_gradients)
    heard = Heard()
    small, settings = with_prompts(tmp_path / "small", tiny, lora_dropout=0.0, micro_batch_size=16, memory_gb=1e-9)
    run_scft(small, settings, heard)
    assert len(heard.warnings) == 3  # 16 -> 8 -> 4 -> 2
    one, other = (read_tensors(w.scft() / "adapter_model.safetensors") for w in (plain, small))
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-3, atol=1e-5)


def test_out_of_memory_with_one_text_is_the_end(tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import LlamaModel

    def no_memory(self: Any, *args: Any, **kwargs: Any) -> Any:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(LlamaModel, "forward", no_memory)
    workspace, settings = with_prompts(tmp_path / "w", tiny)
    with pytest.raises(LlmembError, match="out of memory with a single text") as caught:
        run_scft(workspace, settings, Reporter())
    assert "--load-in-4bit" in (caught.value.hint or "")


def test_no_gradient_at_lora_is_an_error(tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from llmemb_cli.llm import trainer

    honest = trainer.embed_batch

    def cut_off(*args: Any) -> torch.Tensor:
        vectors = honest(*args)
        return vectors.detach() + 0 * vectors

    monkeypatch.setattr(trainer, "embed_batch", cut_off)
    workspace, settings = with_prompts(tmp_path / "w", tiny)
    with pytest.raises(LlmembError, match="no gradient reaches the LoRA matrices"):
        run_scft(workspace, settings, Reporter())


def test_a_full_disk_leaves_the_earlier_checkpoint(
    tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors import SafetensorError
    from safetensors import torch as storage

    whole, settings = with_prompts(tmp_path / "whole", tiny, checkpoint_steps=2)
    run_scft(whole, settings, Reporter())
    honest, written = storage.save_file, []

    def full(*args: Any) -> None:
        written.append(1)
        if len(written) > 1:
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
        honest(*args)

    workspace, settings = with_prompts(tmp_path / "w", tiny, checkpoint_steps=2)
    monkeypatch.setattr(storage, "save_file", full)
    with pytest.raises(LlmembError, match="no space left"):
        run_scft(workspace, settings, Reporter())
    assert not workspace.scft().exists()
    assert (workspace.root / "scft" / ".default.partial" / "checkpoint.safetensors").is_file()
    monkeypatch.setattr(storage, "save_file", honest)
    run_scft(workspace, settings, Reporter())
    for name in ("adapter_model.safetensors", "log.jsonl"):
        assert (whole.scft() / name).read_bytes() == (workspace.scft() / name).read_bytes()


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        ({"seed": 1}, "its weights are not"),
        ({"hidden_size": 32}, "its width is 32"),
        ({"extra_words": 3}, "vocabulary size"),
    ],
)
def test_an_adapter_of_another_base_is_refused(
    tmp_path: Path, tiny: Path, other: dict[str, int], difference: str
) -> None:
    workspace, settings = with_prompts(tmp_path / "w", tiny, steps=1)
    run_scft(workspace, settings, Reporter())
    for precision in ("fp32", "bf16"):
        attach_adapter(load_model(settings.scft, Reporter(), precision=precision), workspace.scft())
    foreign = make_tiny(tmp_path / "other", **other)
    loaded = load_model(settings.scft.model_copy(update={"model": str(foreign)}), Reporter())
    with pytest.raises(BadDataError, match=difference):
        attach_adapter(loaded, workspace.scft())


@pytest.mark.parametrize("change", ["lacks", "has"])
def test_an_adapter_with_a_missing_or_unexpected_tensor_is_refused(tmp_path: Path, tiny: Path, change: str) -> None:
    from safetensors.torch import save_file

    workspace, settings = with_prompts(tmp_path / "w", tiny, steps=1)
    run_scft(workspace, settings, Reporter())
    path = workspace.scft() / "adapter_model.safetensors"
    tensors = read_tensors(path)
    name = sorted(tensors)[3]
    if change == "lacks":
        del tensors[name]
    else:
        name = name.replace("layers.0", "layers.7")
        tensors[name] = torch.zeros(2, 2)
    save_file(tensors, path)
    with pytest.raises(BadDataError, match=f"the adapter {change}") as caught:
        attach_adapter(load_model(settings.scft, Reporter()), workspace.scft())
    assert name in caught.value.message


def test_every_choice_has_a_flag_that_reaches_the_training(tmp_path: Path, tiny: Path) -> None:
    workspace, _ = with_prompts(tmp_path / "w", tiny)
    flags = [
        "--loss",
        "soft",
        "--temperature",
        "2",
        "--fixed-temperature",
        "--pooling",
        "last",
        "--drop-ratio",
        "0.5",
    ]
    flags += ["--max-tokens", "40", "--lora-rank", "3", "--lora-alpha", "5", "--lora-dropout", "0.2"]
    flags += ["--target-modules", "q_proj, v_proj", "--batch-size", "6", "--steps", "2", "--learning-rate", "0.01"]
    flags += ["--schedule", "cosine", "--warmup", "0.5", "--clip-norm", "0.3", "--micro-batch-size", "4"]
    flags += [
        "--gradient-checkpointing",
        "--validate-every",
        "1",
        "--best-by",
        "retrieval",
        "--checkpoint-steps",
        "1",
    ]
    done = CliRunner().invoke(app, ["scft", "-w", str(workspace.root), "--json", *flags])
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    # Two layers, q 64x64 and v 64x32, each a pair of matrices.
    assert document["parameters"] == 2 * 3 * ((64 + 64) + (64 + 32))
    assert document["temperature"] == pytest.approx(2) and document["held_out"]["best_by"] == "retrieval"
    made = json.loads((workspace.scft() / "manifest.json").read_text())["made_from"]["settings"]
    expected = {"loss": "soft", "train_temperature": False, "pooling": "last", "drop_ratio": 0.5, "max_tokens": 40}
    expected |= {"lora_rank": 3, "lora_alpha": 5, "lora_dropout": 0.2, "target_modules": ["q_proj", "v_proj"]}
    expected |= {"batch_size": 6, "steps": 2, "learning_rate": 0.01, "schedule": "cosine", "warmup": 0.5}
    expected |= {"clip_norm": 0.3, "gradient_checkpointing": True, "validate_every": 1}
    assert expected.items() <= made.items()
    done = CliRunner().invoke(app, ["scft", "-w", str(workspace.root), "--json", "--target-modules", "no_such"])
    assert done.exit_code == 4 and "LoRA does not fit" in json.loads(done.stdout)["error"]["message"]


@pytest.mark.parametrize("wrong", ["zero", "-3", "1.5"])
def test_a_wrong_micro_batch_size_is_named(tmp_path: Path, tiny: Path, wrong: str) -> None:
    workspace, _ = with_prompts(tmp_path / "w", tiny)
    done = CliRunner().invoke(app, ["scft", "-w", str(workspace.root), "--json", f"--micro-batch-size={wrong}"])
    assert done.exit_code == 2
    message = json.loads(done.stdout)["error"]["message"]
    assert message.startswith("setting scft.micro_batch_size:") and "auto or a whole number" in message


def test_an_adapter_is_read_onto_the_device_of_its_model(
    tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peft import peft_model

    workspace, settings = with_prompts(tmp_path / "w", tiny, steps=1)
    run_scft(workspace, settings, Reporter())
    loaded, read, devices = load_model(settings.scft, Reporter()), peft_model.load_peft_weights, []

    def watched(folder: str, device: str, **options: Any) -> Any:
        devices.append(device)
        return read(folder, device="cpu", **options)

    # A machine with a card, on which PEFT puts an adapter unless told.
    monkeypatch.setattr(peft_model, "infer_device", lambda: "cuda")
    monkeypatch.setattr(peft_model, "load_peft_weights", watched)
    attach_adapter(loaded, workspace.scft())
    assert devices == ["cpu"]


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError()])
def test_an_adapter_without_room_does_not_count_as_one_of_another_model(
    tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    from peft import peft_model

    def no_memory(*args: Any, **options: Any) -> Any:
        raise error

    workspace, settings = with_prompts(tmp_path / "w", tiny, steps=1)
    run_scft(workspace, settings, Reporter())
    monkeypatch.setattr(peft_model, "load_peft_weights", no_memory)
    with pytest.raises(LlmembError, match="into the memory of cpu") as caught:
        attach_adapter(load_model(settings.scft, Reporter()), workspace.scft())
    assert not isinstance(caught.value, BadDataError) and "--device" in (caught.value.hint or "")
