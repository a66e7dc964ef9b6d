"""SAID and TSLRec: their LLM stages on a tiny Llama, against examples worked by hand."""

from __future__ import annotations

import gc
import math
import os
import signal
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from llmemb_cli.chain import chain, states
from llmemb_cli.config.runs import run_name
from llmemb_cli.config.settings import Settings, load_settings
from llmemb_cli.datasets.split import Ragged, load_split
from llmemb_cli.embeddings.pca import read_pca
from llmemb_cli.embeddings.table import read_table
from llmemb_cli.errors import BadDataError, InterruptedRunError, LlmembError
from llmemb_cli.llm.fit import fit, fitting
from llmemb_cli.llm.load import load_model
from llmemb_cli.llm.memory import bytes_a_token
from llmemb_cli.llm.plan import MicroBatches
from llmemb_cli.llm.said import ItemVectors, Writer, output_matrix
from llmemb_cli.llm.tslrec import identity_rows, item_groups, taste
from llmemb_cli.progress import Reporter, Task
from llmemb_cli.srs.train import run_rat
from llmemb_cli.workspace.locate import Workspace
from llmemb_cli.workspace.stage import read_manifest
from llmemb_cli.workspace.store import read_tensors
from tests.make_workspace import make_workspace
from tests.test_recommenders import BACKBONES, SMALL, small
from tests.tiny_model import word_tokenizer

WORDS = ["title", "is", "Thing", "<", "b", ">", "</", *map(str, range(40)), "The", "user", "interacted", "with", ":"]


def tiny(folder: Path, **config: Any) -> Path:
    """A random Llama that reads the titles of the test workspace and shares its head with its embeddings."""
    from transformers import LlamaConfig, LlamaModel

    folder.mkdir(parents=True)
    word_tokenizer(folder, WORDS)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    values = (
        {"vocab_size": len(WORDS) + 2, "tie_word_embeddings": True, "pad_token_id": 1, "initializer_range": 0.3}
        | sizes
        | config
    )
    LlamaModel(LlamaConfig(**values)).save_pretrained(folder)
    return folder


def ready(tmp_path: Path, **values: Any) -> tuple[Workspace, Settings]:
    chosen = {
        "scft__model": str(tiny(tmp_path / "llm")),
        "scft__precision": "fp32",
        "scft__device": "cpu",
        "said__batch_size": 10,
        "said__learning_rate": 0.02,
        "said__epochs": 30,
        "tslrec__epochs": 1,
    }
    return make_workspace(tmp_path / "ws", **(SMALL | chosen | values))


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("method", ["said", "tslrec"])
def test_one_call_trains_the_llm_stage_and_a_recommender_that_learns_the_rule(
    tmp_path: Path, name: str, method: str
) -> None:
    from llmemb_cli.evaluation.stage import run_eval

    workspace, settings = ready(tmp_path, **small(name, rat__method=method, said__epochs=2.0))
    summary = run_rat(workspace, settings, Reporter()).manifest["summary"]
    measured = run_eval(workspace, settings, run_name(settings), Reporter()).manifest["summary"]
    assert measured["overall"]["HR@10"] > 0.95 and summary["vectors"] == method
    made = read_manifest(workspace.embeddings(method))
    run_rat(workspace, settings.model_copy(update={"seed": 7}), Reporter(), in_file=settings)
    assert read_manifest(workspace.embeddings(method)) == made, "another seed reads the same vectors"


def test_said_vectors_make_the_llm_write_their_own_items_text(tmp_path: Path) -> None:
    workspace, settings = ready(tmp_path, rat__method="said", rat__epochs=1)
    run_rat(workspace, settings, Reporter())
    manifest = read_manifest(workspace.embeddings("said")) or {}
    summary = manifest["summary"]
    assert summary["loss"]["last"] < summary["loss"]["first"]
    # The 30 titles differ in one token of nine: knowing which it is saves log(30) / 9 = 0.38 a token.
    assert summary["loss_with_another_vector"] > 0.2 + summary["loss_with_own_vector"]
    assert read_table(workspace.embeddings("said")).vectors.shape == (30, 32)


@pytest.mark.parametrize("width", [0, 6])
def test_said_loss_is_the_token_loss_of_the_text_after_instruction_and_vector(tmp_path: Path, width: int) -> None:
    workspace, settings = ready(tmp_path, said__width=width)
    loaded = load_model(settings.scft, Reporter())
    texts = ["title is Thing 3", "Thing 7 b"]
    torch.manual_seed(0)
    writer = Writer(loaded, "The user :", texts, settings)
    embed, expected, count = loaded.model.get_input_embeddings(), 0.0, 0
    for item, text in enumerate(texts):
        before = embed(torch.tensor(loaded.tokenizer("The user :")["input_ids"]))
        ids = loaded.tokenizer(text)["input_ids"]
        vector = writer.vectors(torch.tensor([item]))
        if not width:
            torch.testing.assert_close(vector[0], embed(torch.tensor(ids)).mean(dim=0))
        for at, token in enumerate(ids):
            read = torch.cat([before, vector, embed(torch.tensor(ids[:at], dtype=torch.int64))])
            state = loaded.model(inputs_embeds=read[None]).last_hidden_state[0, -1]
            expected -= float(torch.log_softmax(embed.weight @ state, dim=0)[token].detach())
            count += 1
    loss = writer.loss(np.array([0, 1]))
    assert loss.item() == pytest.approx(expected / count, rel=1e-4)
    parts = [writer.loss(np.array([item]), batch=np.array([0, 1])).item() for item in (0, 1)]
    assert sum(parts) == pytest.approx(expected / count, rel=1e-4), "parts of a batch add up to it"
    loss.backward()
    assert all(p.grad is not None for p in writer.vectors.parameters())
    assert all(p.grad is None for p in loaded.model.parameters()), "the LLM is frozen"
    assert len(list(ItemVectors(torch.randn(4, 5), width).parameters())) == (3 if width else 1)
    assert workspace.root.exists()


def test_said_says_when_a_model_cannot_write(tmp_path: Path) -> None:
    folder = tiny(tmp_path / "headless", tie_word_embeddings=False)
    settings = ready(tmp_path)[1]
    scft = settings.scft.model_copy(update={"model": str(folder)})
    headless = load_model(scft, Reporter())
    with pytest.raises(BadDataError, match="no language-model head"):
        output_matrix(headless)
    headless.model.config.model_type = "bert"
    headless.model.config.tie_word_embeddings = True
    with pytest.raises(BadDataError, match="encoder"):
        output_matrix(headless)


def test_identities_have_the_scale_of_what_the_llm_reads_for_a_token(tmp_path: Path) -> None:
    from transformers import Gemma3TextConfig, Gemma3TextModel

    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    model = Gemma3TextModel(Gemma3TextConfig(**sizes, num_key_value_heads=1, head_dim=32, vocab_size=300))
    loaded = load_model(ready(tmp_path)[1].scft, Reporter())
    loaded.model = model
    table = np.random.default_rng(0).normal(size=(200, 16)).astype(np.float32)
    read = model.get_input_embeddings()(torch.arange(300))
    assert read.std() > 5 * model.get_input_embeddings().weight.std(), "Gemma scales what it reads"
    assert identity_rows(table, loaded, 1).std().item() == pytest.approx(read.std().item(), rel=1e-3)
    assert item_groups(table, 4, 2**40).max() == 3, "any seed will do"


def test_tslrec_targets_are_shares_of_groups_worked_by_hand() -> None:
    train = Ragged(np.array([1, 2, 3, 1, 4, 4], dtype=np.int32), np.array([0, 4, 4, 6]))
    got = taste(train, np.array([0, 1, 0, 2]))  # items 1 and 3 are in group 0
    np.testing.assert_allclose(got, [[0.75, 0.25, 0], [0, 0, 0], [0, 0, 1]])
    points = np.concatenate([np.random.default_rng(0).normal(at, 0.1, size=(25, 3)) for at in (0, 5, 9)])
    groups = item_groups(points, 64, 1)
    assert groups.max() == 2, "at most one group for 20 items"
    assert [len(set(groups[at : at + 25])) for at in (0, 25, 50)] == [1, 1, 1]


def test_tslrec_reads_identities_of_training_items_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import llmemb_cli.llm.tslrec as module

    read: list[list[int]] = []
    original = module.Reader.read

    def spy(self: Any, histories: list[np.ndarray], *known: Any) -> torch.Tensor:
        if self.model.training:
            read.extend(items.tolist() for items in histories)
        return original(self, histories, *known)

    monkeypatch.setattr(module.Reader, "read", spy)
    workspace, settings = ready(tmp_path, rat__method="tslrec", rat__epochs=1, tslrec__max_items=4)
    run_rat(workspace, settings, Reporter())
    data = load_split(workspace.data)
    users = read[: data.n_users]
    assert sorted(users) == sorted(data.train.row(user)[-4:].tolist() for user in range(data.n_users))
    summary = (read_manifest(workspace.embeddings("tslrec")) or {})["summary"]
    assert summary["groups_from"] == "sasrec-none-42" and math.isfinite(summary["loss"]["last"])


def reader_of(tmp_path: Path, shared: bool, monkeypatch: pytest.MonkeyPatch, **values: Any) -> Any:
    """A reader of 30 items, with LoRA matrices that count: they start as nothing."""
    import llmemb_cli.llm.tslrec as module

    _, settings = ready(tmp_path, **values)
    loaded = load_model(settings.scft, Reporter())
    rows = torch.randn(30, 32, generator=torch.Generator().manual_seed(3)) * 0.1
    with monkeypatch.context() as patched:
        if not shared:
            patched.setattr(module.Reader, "_beginning", lambda self: None)
        reader = module.Reader(loaded, settings, rows, 4)
    torch.manual_seed(4)
    for parameter in reader.trained().values():
        torch.nn.init.normal_(parameter, std=0.2)
    assert reader.shares_beginning == shared, "the words before the items are read once"
    return reader


@pytest.mark.parametrize("shared", [True, False])
def test_tslrec_vector_of_an_item_is_the_last_state_after_prompt_and_item(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared: bool
) -> None:
    import llmemb_cli.llm.tslrec as module

    reader = reader_of(tmp_path, shared, monkeypatch)
    words = reader.loaded.model.get_input_embeddings()
    before, after = (words(torch.tensor(ids)).detach() for ids in (reader.before, reader.after))
    monkeypatch.setattr(module, "BATCH", 7)
    made = reader.items(pl.Series([f"i{row}" for row in range(30)]), tmp_path, Reporter())
    with torch.no_grad():
        for item in range(30):
            read = torch.cat([before, reader.rows[item : item + 1], after])[None]
            expected = reader.model(inputs_embeds=read).last_hidden_state[0, -1]
            np.testing.assert_allclose(made[item], expected.numpy(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("shared", [True, False])
def test_batches_in_parts_train_as_whole_ones_do_in_a_plain_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared: bool
) -> None:
    from peft import LoraConfig, get_peft_model

    from llmemb_cli.seeds import numpy_rng

    reader = reader_of(tmp_path / "ours", shared, monkeypatch, scft__lora_dropout=0.0)
    rng = np.random.default_rng(1)
    histories = [rng.integers(1, 31, size=rng.integers(1, 9)) for _ in range(12)]
    targets = torch.from_numpy(rng.random((12, 4), dtype=np.float32))

    scft = ready(tmp_path / "theirs")[1].scft
    base = load_model(scft, Reporter()).model
    chosen = LoraConfig(r=scft.lora_rank, lora_alpha=scft.lora_alpha, target_modules=list(scft.target_modules))
    plain = get_peft_model(base, chosen)
    head = torch.nn.Linear(32, 4)
    start = {name: tensor.detach().clone() for name, tensor in reader.trained().items()}
    theirs = {name: p for name, p in plain.named_parameters() if p.requires_grad}
    theirs |= {f"head.{name}": p for name, p in head.named_parameters()}
    with torch.no_grad():
        for name, parameter in theirs.items():
            parameter.copy_(start[name])

    def loss_of(part: np.ndarray, batch: np.ndarray) -> torch.Tensor:
        guess = reader.head(reader.read([histories[row] for row in part]))
        return (guess - targets[part]).square().sum() / (len(batch) * 4)

    lengths = reader.lengths(histories)
    kept = {"epochs": 2.0, "batch_size": 5, "learning_rate": 0.01, "checkpoint_minutes": 9.0, "seed": 3}
    ours = fit(
        "tslrec",
        reader.loaded,
        reader.trained(),
        lengths,
        loss_of,
        MicroBatches(2, 0),
        **kept,
        work=tmp_path,
        report=Reporter(),
    )

    words = base.get_input_embeddings()
    before, after = (words(torch.tensor(ids)).detach() for ids in (reader.before, reader.after))
    optimizer = torch.optim.Adam(theirs.values(), lr=0.01)
    losses = []
    for epoch in range(2):
        order = numpy_rng(3, "tslrec", epoch).permutation(12)
        for at in range(0, 12, 5):
            states = [
                plain(inputs_embeds=torch.cat([before, reader.rows[histories[row] - 1], after])[None])
                for row in order[at : at + 5]
            ]
            guess = head(torch.stack([state.last_hidden_state[0, -1] for state in states]))
            loss = torch.nn.functional.mse_loss(guess, targets[order[at : at + 5]])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert (ours["first"], ours["last"]) == pytest.approx((losses[0], losses[-1]), rel=1e-4)
    for name, parameter in reader.trained().items():
        torch.testing.assert_close(parameter, theirs[name], rtol=1e-3, atol=1e-4)


def test_a_signal_in_the_last_step_stops_and_the_same_call_goes_on_behind_it(tmp_path: Path) -> None:
    class InTheLast(Reporter):
        done = 0

        def task(self, label: str, total: int | None = None, unit: str = "steps", done: int = 0) -> Task:
            owner, last = self, total

            class Counting(Task):
                def advance(self, n: int = 1, **figures: float | str) -> None:
                    owner.done += label == "said"
                    if label == "said" and owner.done == last:
                        os.kill(os.getpid(), signal.SIGINT)

            return Counting()

    values = {"rat__method": "said", "rat__epochs": 1, "said__epochs": 2}
    one, settings = ready(tmp_path / "one", **values)
    run_rat(one, settings, Reporter())
    two, settings = ready(tmp_path / "two", **values)
    stopped = InTheLast()
    with pytest.raises(InterruptedRunError):
        run_rat(two, settings, stopped)
    assert stopped.done == 6, "the step under way was the last one"
    run_rat(two, settings, Reporter())
    vectors = [read_table(space.embeddings("said")).vectors for space in (one, two)]
    np.testing.assert_array_equal(*vectors)


def test_an_interruption_behind_the_llm_training_loses_neither_it_nor_the_vectors_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import llmemb_cli.llm.tslrec as module

    steps: list[int] = []
    vectors: list[int] = []

    class InTheSecondPart(Reporter):
        def task(self, label: str, total: int | None = None, unit: str = "steps", done: int = 0) -> Task:
            if label == "tslrec":
                steps.append((total or 0) - done)
            if label == "tslrec items":
                vectors.append((total or 0) - done)

            class Stopping(Task):
                parts = 0

                def advance(self, n: int = 1, **figures: float | str) -> None:
                    self.parts += label == "tslrec items"
                    if self.parts == 2 and len(vectors) == 1:
                        os.kill(os.getpid(), signal.SIGINT)

            return Stopping()

    monkeypatch.setattr(module, "BATCH", 7)
    workspace, settings = ready(tmp_path / "one", rat__method="tslrec", rat__epochs=1)
    with pytest.raises(InterruptedRunError):
        run_rat(workspace, settings, InTheSecondPart())
    run_rat(workspace, settings, InTheSecondPart())
    assert steps[0] > 0 and steps[1] == 0, "nothing was trained again"
    assert vectors == [30, 16], "of the 30 vectors, the 14 of the first two parts were kept"
    whole, _ = ready(tmp_path / "two", rat__method="tslrec", rat__epochs=1)
    run_rat(whole, settings, Reporter())
    one, two = (read_table(space.embeddings("tslrec")).vectors for space in (workspace, whole))
    np.testing.assert_array_equal(one, two)
    names = [{path.name for path in space.embeddings("tslrec").iterdir()} for space in (workspace, whole)]
    assert names[0] == names[1] and not [name for name in names[0] if name.startswith(("checkpoint", "done"))]


def test_vectors_start_the_table_and_said_can_keep_them_frozen(tmp_path: Path) -> None:
    workspace, settings = ready(tmp_path, rat__method="said", rat__epochs=1, said__epochs=1.0)
    summary = run_rat(workspace, settings, Reporter()).manifest["summary"]
    assert summary["embedding_scale"]["std"] == pytest.approx(0.02, rel=0.05) and summary["parameters"] == 3488
    rat = settings.rat.model_copy(update={"freeze_vectors": True})
    frozen = settings.model_copy(update={"rat": rat})
    run_rat(workspace, frozen, Reporter(), name="frozen")
    weights = read_tensors(workspace.run("frozen") / "model.safetensors")
    assert weights["embedding.linear.weight"].shape == (16, 29) and "embedding.weight" not in weights


def test_the_plan_makes_the_llm_stages_before_the_runs_that_read_them(tmp_path: Path) -> None:
    workspace, _ = ready(tmp_path, run__methods=["tslrec", "said", "llm2x"])
    settings = load_settings(workspace.settings_file)
    names = [step.name for step in chain(workspace, settings)]
    order = ["embed base", "said", "rat sasrec-none-42", "tslrec", "rat sasrec-tslrec-42"]
    assert [name for name in names if name in order] == order
    waiting = {entry.step.name: entry.state.state for entry in states(chain(workspace, settings))}
    assert waiting["said"] == waiting["tslrec"] == "missing"


@pytest.mark.parametrize("method", ["said", "tslrec"])
def test_gradients_that_float16_cannot_hold_still_train(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    from llmemb_cli.llm import fit as module
    from llmemb_cli.llm import load

    backward = module._backward
    losses = {}

    def faint(batch: Any, lengths: Any, loss_of: Any, micro: Any, scaler: Any) -> float:
        # As with a wide LLM and a large batch; Adam does not mind the factor where gradients survive.
        return backward(batch, lengths, lambda *rows: loss_of(*rows) * 1e-5, micro, scaler)

    monkeypatch.setattr(module, "_backward", faint)
    for dtype in (torch.float32, torch.float16):
        monkeypatch.setattr(load, "pick_dtype", lambda precision, device, dtype=dtype: dtype)
        workspace, settings = ready(tmp_path / str(dtype), rat__method=method, rat__epochs=1, scft__lora_dropout=0.0)
        run_rat(workspace, settings, Reporter())
        losses[dtype] = (read_manifest(workspace.embeddings(method)) or {})["summary"]["loss"]
    whole, half = losses[torch.float32], losses[torch.float16]
    assert half["first"] - half["last"] > 0.8 * (whole["first"] - whole["last"]) > 0


class Heard(Reporter):
    """Keeps the warnings, and how many of some losses, each with its graph, were in memory at each."""

    def __init__(self) -> None:
        self.warnings: list[str] = []
        self.losses: list[weakref.ref[torch.Tensor]] = []
        self.held: list[int] = []

    def warn(self, message: str) -> None:
        self.warnings.append(message)
        self.held.append(sum(ref() is not None for ref in self.losses))


def fit_line(work: Path, micro: MicroBatches, room: int, where: str, heard: Heard) -> tuple[torch.Tensor, bytes]:
    """Fit a line with dropout where at most `room` tokens pass at once; its weights and the log of its losses."""
    work.mkdir()
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 6, size=50)
    x = torch.from_numpy(rng.normal(size=(50, 4)).astype(np.float32))
    line = torch.nn.Parameter(torch.zeros(4))

    def run_out(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    def loss_of(part: np.ndarray, batch: np.ndarray) -> torch.Tensor:
        full = len(part) * int(lengths[part].max()) > room
        if full and where == "forward":
            run_out()
        kept = torch.rand(len(part), 4) > 0.3
        loss = ((x[part] * kept) @ line - x[part].sum(dim=1)).square().sum() / len(batch)
        if full:
            loss.register_hook(run_out)
        heard.losses.append(weakref.ref(loss))
        return loss

    loaded: Any = SimpleNamespace(device="cpu", dtype=torch.float32)
    chosen = {"epochs": 2.0, "batch_size": 16, "learning_rate": 0.1, "checkpoint_minutes": 9.0, "seed": 3}
    fit("line", loaded, {"line": line}, lengths, loss_of, micro, **chosen, work=work, report=heard)  # type: ignore[arg-type]
    return line.detach(), (work / "log.jsonl").read_bytes()


@pytest.mark.parametrize("where", ["forward", "backward"])
@pytest.mark.parametrize(
    ("micro", "enough", "halvings"),
    [(MicroBatches(16, 0), MicroBatches(2, 0), 3), (MicroBatches(0, 40), MicroBatches(0, 10), 2)],
)
def test_a_step_that_runs_out_of_memory_is_made_again_with_less_at_once(
    tmp_path: Path, micro: MicroBatches, enough: MicroBatches, halvings: int, where: str
) -> None:
    heard = Heard()
    # Rows of short texts pass before those of long ones fail: nothing of them may be left.
    gc.collect()
    gc.disable()
    try:
        found, log = fit_line(tmp_path / "small", MicroBatches(micro.rows, micro.tokens), 10, where, heard)
    finally:
        gc.enable()
    expected, whole = fit_line(tmp_path / "plain", enough, 10**9, where, Heard())
    assert torch.equal(found, expected) and log == whole
    assert len(heard.warnings) == halvings and all("out of memory with" in line for line in heard.warnings)
    assert len(heard.losses) > 8 and not any(heard.held), "what a part computed is given back before the next try"


def test_memory_that_does_not_suffice_for_a_row_ends_the_training_in_words(tmp_path: Path) -> None:
    with pytest.raises(LlmembError, match="out of memory with a single text of 5 tokens"):
        fit_line(tmp_path / "w", MicroBatches(16, 0), 4, "forward", Heard())


def test_errors_of_another_kind_are_not_taken_for_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*_: Any) -> torch.Tensor:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(torch, "rand", wrong)
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        fit_line(tmp_path / "w", MicroBatches(16, 0), 10**9, "forward", Heard())


@pytest.mark.parametrize("method", ["said", "tslrec"])
def test_another_pca_does_not_train_the_llm_stage_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    import llmemb_cli.llm.said as said
    import llmemb_cli.llm.tslrec as tslrec

    workspace, settings = ready(tmp_path, rat__method=method, rat__epochs=1, said__epochs=1.0)
    run_rat(workspace, settings, Reporter())
    before = read_table(workspace.embeddings(method)).vectors
    for module in (said, tslrec):
        monkeypatch.setattr(module, "fit", lambda *args, **_: pytest.fail("trained again"))
    narrow = settings.model_copy(update={"embed": settings.embed.model_copy(update={"pca": 5})})
    run_rat(workspace, narrow, Reporter())
    assert read_pca(workspace.embeddings(method)).components.shape[0] == 5
    assert np.array_equal(read_table(workspace.embeddings(method)).vectors, before)
    assert (read_manifest(workspace.embeddings(method)) or {})["summary"]["loss"]["steps"] > 0


@pytest.mark.parametrize("method", ["said", "tslrec"])
def test_room_is_left_for_gradients_and_moments_of_what_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    import llmemb_cli.llm.said as said
    import llmemb_cli.llm.tslrec as tslrec
    from llmemb_cli.llm import memory

    class StopHereError(Exception):
        """Training would begin."""

    asked: list[Any] = []

    def planned(*args: Any, **_: Any) -> Any:
        asked.extend(args)
        raise StopHereError

    workspace, settings = ready(tmp_path, rat__method=method)
    for module in (said, tslrec):
        monkeypatch.setattr(module, "fit", planned)
    free = 2_000_000
    monkeypatch.setattr(memory, "free_bytes", lambda device: free)
    with pytest.raises(StopHereError):
        run_rat(workspace, settings, Reporter())
    _, loaded, trained, lengths, _, micro = asked
    numbers = sum(math.prod(parameter.shape) for parameter in trained.values())
    if method == "said":
        assert numbers == 30 * 32, "a vector for each of the items"
    a_token = bytes_a_token(loaded.model.config, settings.scft, 4, int(lengths.max()))
    # In float32 a gradient and two moments: 12 bytes for each number.
    assert micro.tokens == (free - 12 * numbers) // a_token < free // a_token
    assert 64 < micro.tokens < 1024, "neither the least nor the most"
    assert micro.kept_tokens == 0, "a single text that does not fit is not tried again"
    given_room = settings.scft.model_copy(update={"memory_gb": free / 2**30})
    parameters = list(trained.values())
    assert fitting(loaded, given_room, int(lengths.max()), parameters, lean=True).tokens == free // a_token


@pytest.mark.parametrize(
    ("chosen", "kind"),
    [
        ({}, torch.float32),
        ({"scft__precision": "bf16"}, torch.bfloat16),
        ({"scft__precision": "bf16", "scft__load_in_8bit": True}, torch.float32),
    ],
)
def test_identities_are_kept_as_the_llm_reads_them(tmp_path: Path, chosen: dict[str, Any], kind: torch.dtype) -> None:
    from llmemb_cli.llm.tslrec import Reader

    _, settings = ready(tmp_path, **chosen)
    loaded = load_model(settings.scft, Reporter())
    rows = identity_rows(np.random.default_rng(0).normal(size=(30, 16)).astype(np.float32), loaded, 1)
    assert rows.dtype == torch.float32
    reader = Reader(loaded, settings, rows, 4)
    assert reader.rows.dtype == kind and torch.equal(reader.rows, rows.to(kind))


def test_the_items_of_a_batch_are_looked_up_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.utils._python_dispatch import TorchDispatchMode

    reader = reader_of(tmp_path, True, monkeypatch)
    looked_up: list[int] = []

    class Counting(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is torch.ops.aten.index.Tensor and args[0].shape == reader.rows.shape:
                looked_up.append(len(args[1][0]))
            return func(*args, **(kwargs or {}))

    histories = [
        np.array([3, 1, 30], dtype=np.int32),
        np.array([7], dtype=np.int32),
        np.array([2, 2], dtype=np.int32),
    ]
    with torch.no_grad(), Counting():
        embedded, mask = reader._embedded(reader.before, histories)
    assert looked_up == [6]
    words = reader.loaded.model.get_input_embeddings()
    before, after = (words(torch.tensor(ids)).detach() for ids in (reader.before, reader.after))
    around = len(before) + len(after)
    assert mask.sum(dim=1).tolist() == [around + 3, around + 1, around + 2]
    for row, items in enumerate(histories):
        expected = torch.cat([before, *(reader.rows[int(item) - 1][None] for item in items), after])
        assert torch.equal(embedded[row, : len(expected)], expected)
        assert not embedded[row, len(expected) :].any()


@pytest.fixture
def four_threads() -> Iterator[None]:
    """torch computes with four threads, whatever the machine has."""
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("four_threads")
def test_the_gradient_of_said_vectors_adds_up_in_one_order_whatever_the_threads() -> None:
    generator = torch.Generator().manual_seed(0)
    vectors = ItemVectors(torch.zeros(3, 64), 0)
    items = torch.randint(3, (4000,), generator=generator)
    # Of sizes so different that the order of the sum shows in its bits.
    sizes = 10.0 ** torch.randint(-4, 5, (4000, 1), generator=generator)
    gradient = torch.randn(4000, 64, generator=generator) * sizes
    vectors(items).backward(gradient)
    expected = torch.zeros(3, 64)
    for item, row in zip(items.tolist(), gradient, strict=True):
        expected[item] += row
    assert vectors.table.grad is not None and torch.equal(vectors.table.grad, expected)
