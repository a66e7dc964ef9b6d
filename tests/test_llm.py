"""The LLM part on a tiny random Llama: pooling, gradient cache, SCFT with resume, embedding export."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llmemb_cli.config.settings import Settings, make_settings
from llmemb_cli.embeddings.pca import fit_pca, read_pca
from llmemb_cli.embeddings.table import read_table
from llmemb_cli.errors import InterruptedRunError
from llmemb_cli.llm.encode import run_embed, token_batches
from llmemb_cli.llm.gradcache import cached_backward
from llmemb_cli.llm.pooling import embed_batch, pad_tokens, pool
from llmemb_cli.llm.scft import run_scft
from llmemb_cli.progress import Reporter, Task
from llmemb_cli.prompts.stage import make_prompts, read_prompts
from llmemb_cli.workspace.locate import Workspace
from llmemb_cli.workspace.make import run_stage
from llmemb_cli.workspace.stage import Stage

WORDS = ["title", "is", "genre", "year", ";", *(f"w{i}" for i in range(40))]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random Llama of two layers and a tokenizer of whole words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny")
    vocabulary = {word: i for i, word in enumerate(["<unk>", "<pad>", *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", pad_token="<pad>").save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    LlamaModel(config).save_pretrained(folder)
    return folder


def prepared(root: Path, tiny: Path, **overrides: Any) -> tuple[Workspace, Settings]:
    """A workspace with 30 items and their prompts."""
    root.mkdir()
    workspace = Workspace(root)
    values = {"model": str(tiny), "precision": "fp32", "device": "cpu", "batch_size": 8, "steps": 6}
    chosen = {f"scft.{k}": v for k, v in (values | overrides).items()}
    settings = make_settings(chosen | {"embed.precision": "fp32", "embed.device": "cpu", "embed.shard_items": 7})

    def build(work: Path) -> dict[str, Any]:
        rng = np.random.default_rng(1)
        text = [" ".join(f"w{i}" for i in rng.integers(40, size=int(rng.integers(1, 9)))) for _ in range(30)]
        frame = pl.DataFrame({"item_id": [f"i{n}" for n in range(30)], "title": text, "genre": text[::-1]})
        frame.write_parquet(work / "items.parquet")
        return {"instruction": "", "attributes": ["title", "genre"]}

    run_stage(Stage("data", workspace.data, 1, {}), build)
    make_prompts(workspace, settings, Reporter())
    return workspace, settings


class StopAt(Reporter):
    """Sends SIGINT to this process after some steps."""

    def __init__(self, step: int) -> None:
        self.left = step

    def task(self, label: str, total: int | None = None, unit: str = "steps", done: int = 0) -> Task:
        reporter = self

        class Counting(Task):
            def advance(self, n: int = 1, **figures: float | str) -> None:
                reporter.left -= n
                if reporter.left == 0:
                    signal.raise_signal(signal.SIGINT)

        return Counting()


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_vectors_do_not_depend_on_padding(tiny: Path, side: str, pooling: str) -> None:
    from transformers import AutoModel

    model = AutoModel.from_pretrained(tiny).train(False)
    texts = [[5, 6, 7], [8, 9, 10, 11, 12, 13], [14]]
    ids, mask = torch.ones(3, 6, dtype=torch.long), torch.zeros(3, 6, dtype=torch.long)
    for row, text in enumerate(texts):
        place = slice(0, len(text)) if side == "right" else slice(6 - len(text), 6)
        ids[row, place], mask[row, place] = torch.tensor(text), 1
    with torch.no_grad():
        together = embed_batch(model, ids, mask, pooling)
        for row, text in enumerate(texts):
            states = model(input_ids=torch.tensor([text])).last_hidden_state[0]
            expected = states.mean(dim=0) if pooling == "mean" else states[-1]
            torch.testing.assert_close(together[row], expected, rtol=1e-4, atol=1e-5)


@given(st.lists(st.lists(st.integers(0, 2**40), max_size=12), min_size=1, max_size=8), st.integers(0, 2**40))
def test_padded_tokens_are_those_of_a_plain_loop(token_lists: list[list[int]], pad: int) -> None:
    longest = max(len(tokens) for tokens in token_lists)
    ids, mask = pad_tokens(token_lists, pad)
    assert ids.dtype == mask.dtype == torch.int64 and ids.shape == mask.shape == (len(token_lists), longest)
    assert ids.is_contiguous() and mask.is_contiguous()
    for row, tokens in enumerate(token_lists):
        assert ids[row].tolist() == tokens + [pad] * (longest - len(tokens))
        assert mask[row].tolist() == [1] * len(tokens) + [0] * (longest - len(tokens))


def test_half_precision_states_are_pooled_in_float32() -> None:
    states = torch.full((1, 400, 2), 300.0, dtype=torch.float16)
    assert pool(states, torch.ones(1, 400, dtype=torch.long), "mean").tolist() == [[300.0, 300.0]]


def test_gradient_cache_equals_one_large_batch_with_dropout() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 3)).double()
    batches = list(torch.randn(12, 5, dtype=torch.float64).split([5, 4, 3]))

    def loss_of(vectors: torch.Tensor) -> torch.Tensor:
        return torch.logsumexp(vectors @ vectors.T, dim=1).sum()

    loss = cached_backward(batches, model, loss_of, lambda number: number + 7)
    cached = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    parts = []
    for number, batch in enumerate(batches):
        torch.manual_seed(number + 7)
        parts.append(model(batch))
    plain = loss_of(torch.cat(parts))
    plain.backward()
    assert loss == pytest.approx(float(plain.detach()))
    for mine, parameter in zip(cached, model.parameters(), strict=True):
        torch.testing.assert_close(mine, parameter.grad)


@pytest.mark.parametrize("micro", [0, 5])
def test_scft_interrupted_and_resumed_is_the_same_bit_for_bit(tmp_path: Path, tiny: Path, micro: int) -> None:
    whole, settings = prepared(tmp_path / "whole", tiny, micro_batch_size=micro)
    summary = run_scft(whole, settings, Reporter()).manifest["summary"]
    broken, settings = prepared(tmp_path / "broken", tiny, micro_batch_size=micro)
    with pytest.raises(InterruptedRunError):
        run_scft(broken, settings, StopAt(3))
    assert not broken.scft().exists()
    resumed = run_scft(broken, settings, Reporter()).manifest["summary"]
    for name in ("adapter_model.safetensors", "log.jsonl", "temperature.json"):
        assert (whole.scft() / name).read_bytes() == (broken.scft() / name).read_bytes(), name
    assert resumed == summary
    assert summary["steps"] == 6
    assert summary["held_out"]["before"].keys() >= {"retrieval", "alignment", "uniformity"}
    steps = [json.loads(line)["step"] for line in (whole.scft() / "log.jsonl").read_text().splitlines()]
    assert steps == list(range(7))


def test_embeddings_are_those_of_peft_and_keep_the_item_order(tmp_path: Path, tiny: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModel, AutoTokenizer

    workspace, settings = prepared(tmp_path / "w", tiny, learning_rate=0.01)
    run_scft(workspace, settings, Reporter())
    run_embed(workspace, settings, Reporter())
    run_embed(workspace, settings, Reporter(), tuned=False)
    table = read_table(workspace.embeddings("scft"))
    frame, _ = read_prompts(workspace)
    assert table.item_ids.to_list() == frame["item_id"].to_list()
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    model = PeftModel.from_pretrained(AutoModel.from_pretrained(tiny), str(workspace.scft())).train(False)
    for row in (0, 13, 29):
        ids = torch.tensor([tokenizer(frame["prompt"][row])["input_ids"]])
        with torch.no_grad():
            expected = model(input_ids=ids).last_hidden_state[0].mean(dim=0)
        np.testing.assert_allclose(table.vectors[row], expected.numpy(), rtol=1e-3, atol=1e-4)
    assert np.abs(table.vectors - read_table(workspace.embeddings("base")).vectors).max() > 1e-3
    assert read_pca(workspace.embeddings("scft")).transform(table.vectors).shape == (30, 29)


def test_token_batches_cover_every_row_within_the_budget() -> None:
    lengths = np.random.default_rng(0).integers(1, 60, size=200)
    batches = token_batches(lengths, 100)
    assert sorted(np.concatenate(batches).tolist()) == list(range(200))
    assert all(len(batch) == 1 or lengths[batch].max() * len(batch) <= 100 for batch in batches)


def test_pca_equals_the_singular_values_and_is_clamped() -> None:
    vectors = np.random.default_rng(3).normal(size=(10, 20)).astype(np.float32)
    pca = fit_pca(vectors, 64)
    assert pca.components.shape == (9, 20)
    singular = np.linalg.svd(vectors - vectors.mean(axis=0), compute_uv=False)
    np.testing.assert_allclose(pca.explained_variance, singular[:9] ** 2 / 9, rtol=1e-3)
    largest = np.abs(pca.components).argmax(axis=1)
    assert (pca.components[np.arange(9), largest] > 0).all()


def test_embedding_uses_the_model_that_the_adapter_was_trained_on(tmp_path: Path, tiny: Path) -> None:
    workspace, settings = prepared(tmp_path / "ws", tiny, steps=1)
    run_scft(workspace, settings, Reporter())
    other = settings.model_copy(update={"scft": settings.scft.model_copy(update={"model": "no-such-model"})})
    summary = run_embed(workspace, other, Reporter()).manifest["summary"]
    assert summary["model"] == str(tiny) and summary["items"] == 30


def test_a_model_that_was_moved_is_read_where_it_is_and_trains_nothing_anew(tmp_path: Path, tiny: Path) -> None:
    before = Path(shutil.copytree(tiny, tmp_path / "before"))
    workspace, settings = prepared(tmp_path / "ws", before, steps=1)
    assert run_scft(workspace, settings, Reporter()).built
    assert run_embed(workspace, settings, Reporter()).built
    after = before.rename(tmp_path / "after")
    moved = settings.model_copy(update={"scft": settings.scft.model_copy(update={"model": str(after)})})
    assert not run_scft(workspace, moved, Reporter()).built
    assert not run_embed(workspace, moved, Reporter()).built
    assert run_embed(workspace, moved, Reporter(), tuned=False).built
    assert run_embed(workspace, moved, Reporter(), force=True).manifest["summary"]["model"] == str(after)


@pytest.mark.parametrize(("flag", "error"), [("load_in_8bit", 0.02), ("load_in_4bit", 0.2)])
def test_quantised_models_train_a_step_and_embed_within_their_error(
    tmp_path: Path, tiny: Path, flag: str, error: float
) -> None:
    workspace, settings = prepared(tmp_path / "ws", tiny, steps=1, learning_rate=0.02, **{flag: True})
    summary = run_scft(workspace, settings, Reporter()).manifest["summary"]
    assert np.isfinite(summary["loss"]["last"])
    run_embed(workspace, settings, Reporter())
    run_embed(workspace, settings, Reporter(), tuned=False)
    tuned, base = (read_table(workspace.embeddings(name)).vectors for name in ("scft", "base"))
    # The same adapter on the whole weights: what differs is the rounding of these weights alone.
    prompts = read_prompts(workspace)[0]["prompt"].to_list()
    apart = {}
    for name, vectors in (("base", base), ("scft", tuned)):
        whole = whole_vectors(tiny, prompts, workspace.scft() if name == "scft" else None)
        apart[name] = float((np.linalg.norm(vectors - whole, axis=1) / np.linalg.norm(whole, axis=1)).max())
    assert 0 < apart["base"] < error and 0 < apart["scft"] < error, apart
    assert np.linalg.norm(tuned - base, axis=1).min() > 0


def whole_vectors(folder: Path, prompts: list[str], adapter: Path | None) -> np.ndarray:
    """Vectors by transformers and PEFT alone, in float32, one prompt at a time."""
    from peft import PeftModel
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder)
    model = (model if adapter is None else PeftModel.from_pretrained(model, str(adapter))).train(False)
    with torch.no_grad():
        states = [
            model(input_ids=torch.tensor([tokenizer(text)["input_ids"]])).last_hidden_state[0] for text in prompts
        ]
    return torch.stack([state.mean(dim=0) for state in states]).numpy()


def test_four_bits_are_further_from_the_whole_weights_than_eight(tmp_path: Path, tiny: Path) -> None:
    workspace, settings = prepared(tmp_path / "ws", tiny)
    found = {}
    for flag in (None, "load_in_8bit", "load_in_4bit"):
        chosen = settings.scft.model_copy(update={} if flag is None else {flag: True})
        run_embed(workspace, settings.model_copy(update={"scft": chosen}), Reporter(), tuned=False)
        found[flag] = read_table(workspace.embeddings("base")).vectors.copy()
    eight, four = (np.linalg.norm(found[flag] - found[None]) for flag in ("load_in_8bit", "load_in_4bit"))
    assert 0 < 3 * eight < four < 0.2 * np.linalg.norm(found[None])


def test_a_vector_that_is_not_finite_is_named_and_nothing_is_written(
    tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llmemb_cli.errors import BadDataError
    from llmemb_cli.llm import vectors as encode

    workspace, settings = prepared(tmp_path / "ws", tiny)
    honest = encode.embed_batch
    monkeypatch.setattr(encode, "embed_batch", lambda *args: honest(*args) * float("nan"))
    with pytest.raises(BadDataError, match="no finite vector for"):
        run_embed(workspace, settings, Reporter(), tuned=False)
    assert not workspace.embeddings("base").exists()

    calls: list[int] = []

    def once(*args: Any) -> torch.Tensor:
        calls.append(1)
        return honest(*args) * (float("nan") if len(calls) == 1 else 1.0)

    monkeypatch.setattr(encode, "embed_batch", once)
    run_embed(workspace, settings, Reporter(), tuned=False)
    repaired = read_table(workspace.embeddings("base")).vectors
    monkeypatch.setattr(encode, "embed_batch", honest)
    run_embed(workspace, settings, Reporter(), tuned=False, force=True)
    np.testing.assert_allclose(repaired, read_table(workspace.embeddings("base")).vectors, atol=1e-5)


def test_a_folder_that_lacks_a_file_and_an_unknown_model_are_named(tmp_path: Path, tiny: Path) -> None:
    import shutil

    from llmemb_cli.assets.models import local_model
    from llmemb_cli.errors import BadDataError, MissingError

    broken = shutil.copytree(tiny, tmp_path / "broken")
    (broken / "tokenizer.json").unlink()
    with pytest.raises(BadDataError, match="lacks: tokenizer"):
        local_model(str(broken), Reporter())
    with pytest.raises(MissingError, match="cannot get the model nobody/nothing"):
        local_model("nobody/nothing", Reporter())


def test_interrupted_export_with_another_shard_size_starts_afresh(tmp_path: Path, tiny: Path) -> None:
    workspace, settings = prepared(tmp_path / "ws", tiny)
    resized = settings.model_copy(update={"embed": settings.embed.model_copy(update={"shard_items": 1})})
    stop = StopAt(2)
    with pytest.raises(InterruptedRunError):
        run_embed(workspace, resized, stop, tuned=False)
    run_embed(workspace, settings, Reporter(), tuned=False)
    resumed = read_table(workspace.embeddings("base")).vectors
    run_embed(workspace, settings, Reporter(), tuned=False, force=True)
    np.testing.assert_array_equal(resumed, read_table(workspace.embeddings("base")).vectors)
