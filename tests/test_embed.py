"""Embedding export: equal to independent loops, in parts, with the shared beginning computed once, offline."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from typer.testing import CliRunner

from llmemb_cli.app import app
from llmemb_cli.commands.embed import _share_of_process
from llmemb_cli.config.scft import ScftSettings
from llmemb_cli.config.settings import Settings, make_settings
from llmemb_cli.embeddings import pca as pca_module
from llmemb_cli.embeddings.pca import fit_pca, read_pca
from llmemb_cli.embeddings.table import read_table
from llmemb_cli.errors import BadDataError, LlmembError, MissingError
from llmemb_cli.llm import encode as encode_module
from llmemb_cli.llm import vectors as vectors_module
from llmemb_cli.llm.encode import merge_parts, run_embed, run_part
from llmemb_cli.llm.load import load_model
from llmemb_cli.llm.prefix import common_prefix
from llmemb_cli.llm.scft import run_scft
from llmemb_cli.llm.vectors import Encoder, embed_tokens, make_encoder
from llmemb_cli.pipeline import embed_stage
from llmemb_cli.progress import Reporter
from llmemb_cli.prompts.stage import read_prompts
from llmemb_cli.workspace import rows as rows_module
from llmemb_cli.workspace.stage import LOG, stage_state
from llmemb_cli.workspace.store import read_jsonl
from tests.offline import run_offline
from tests.tiny_llm import with_prompts
from tests.tiny_model import SIZES, WORDS, tiny_bert, tiny_llama, word_tokenizer


class Notes(Reporter):
    """Keeps what was said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, message: str) -> None:
        self.said.append(message)

    warn = note


def tiny(folder: Path, family: str) -> Path:
    """A random decoder or encoder of another family."""
    from transformers import (
        DebertaV2Config,
        DebertaV2Model,
        Gemma3TextConfig,
        Gemma3TextModel,
        MistralConfig,
        MistralModel,
        MPNetConfig,
        MPNetModel,
        Qwen3Config,
        Qwen3Model,
        RobertaConfig,
        RobertaModel,
    )

    if family == "llama":
        return tiny_llama(folder)
    folder.mkdir(parents=True)
    word_tokenizer(folder)
    torch.manual_seed(0)
    shared = {"vocab_size": len(WORDS) + 2, **SIZES}
    numbers = shared | {"num_key_value_heads": 1, "head_dim": 32}
    encoder = shared | {"max_position_embeddings": 66, "pad_token_id": 1}
    made = {
        "qwen3": lambda: Qwen3Model(Qwen3Config(**numbers)),
        # A window shorter than the prompts: its layers see less than the whole prefix.
        "gemma3": lambda: Gemma3TextModel(Gemma3TextConfig(**numbers, sliding_window=8)),
        "mistral": lambda: MistralModel(MistralConfig(**numbers, sliding_window=8)),
        "mpnet": lambda: MPNetModel(MPNetConfig(**encoder)),
        "roberta": lambda: RobertaModel(RobertaConfig(**encoder)),
        "deberta": lambda: DebertaV2Model(DebertaV2Config(**encoder, relative_attention=True)),
    }
    made[family]().save_pretrained(folder)
    return folder


def plain_loop(folder: Path, prompts: list[str], pooling: str, side: str) -> np.ndarray:
    """Vectors by transformers alone: one padded batch after another, padding on `side`, masked pooling."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side=side)
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).train(False)
    result = []
    for at in range(0, len(prompts), 7):
        batch = tokenizer(prompts[at : at + 7], padding=True, return_tensors="pt")
        mask = batch["attention_mask"]
        with torch.no_grad():
            states = model(
                input_ids=batch["input_ids"],
                attention_mask=mask,
                position_ids=(mask.cumsum(dim=1) - 1).clamp(min=0),
            ).last_hidden_state
        for row, kept in zip(states, mask.bool(), strict=True):
            result.append(row[kept].mean(dim=0) if pooling == "mean" else row[kept][-1])
    return torch.stack(result).numpy()


def with_instruction(settings: Settings) -> Settings:
    prompt = settings.prompt.model_copy(update={"instruction": "w1 w2 w3 w4 w5 w6 w7 w8 w9 w10 w11 w12"})
    return settings.model_copy(update={"prompt": prompt})


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("pooling", ["mean", "last"])
@pytest.mark.parametrize("family", ["llama", "bert"])
def test_vectors_are_those_of_a_plain_loop_with_padding_on_either_side(
    tmp_path: Path, family: str, pooling: str, side: str
) -> None:
    folder = tiny_bert(tmp_path / "m", positions=64) if family == "bert" else tiny_llama(tmp_path / "m")
    workspace, settings = with_prompts(tmp_path / "ws", folder, pooling=pooling, max_tokens=64)
    run_embed(workspace, settings, Reporter(), tuned=False)
    prompts = read_prompts(workspace)[0]["prompt"].to_list()
    ours = read_table(workspace.embeddings("base")).vectors
    np.testing.assert_allclose(ours, plain_loop(folder, prompts, pooling, side), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "mpnet", "roberta", "deberta"])
def test_vectors_are_those_of_sentence_transformers(tmp_path: Path, family: str) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling, Transformer

    folder = tiny(tmp_path / "m", family)
    workspace, settings = with_prompts(tmp_path / "ws", folder, max_tokens=64)
    run_embed(workspace, settings, Reporter(), tuned=False)
    words = Transformer(str(folder))
    theirs = SentenceTransformer(modules=[words, Pooling(SIZES["hidden_size"], "mean")], device="cpu").encode(
        read_prompts(workspace)[0]["prompt"].to_list(), show_progress_bar=False
    )
    np.testing.assert_allclose(read_table(workspace.embeddings("base")).vectors, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pooling", ["mean", "last"])
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3", "mistral"])
def test_the_shared_beginning_computed_once_changes_no_vector(tmp_path: Path, family: str, pooling: str) -> None:
    folder = tiny(tmp_path / "m", family)
    chosen = ScftSettings(model=str(folder), precision="fp32", device="cpu", pooling=pooling)
    loaded = load_model(chosen, Reporter())
    start = list(range(3, 15))
    tokens = [start + list(range(5, 5 + length)) for length in (1, 2, 9, 17, 4)]
    settings = make_settings({"scft.pooling": pooling})
    ahead = make_encoder(loaded, tokens, settings, Reporter())
    plain = make_encoder(loaded, tokens, settings, Reporter(), use_prefix=False)
    assert ahead.prefix is not None and ahead.prefix.length == 12 and plain.prefix is None
    with torch.no_grad():
        torch.testing.assert_close(embed_tokens(ahead, tokens), embed_tokens(plain, tokens), rtol=1e-4, atol=1e-5)


def test_an_encoder_is_never_read_with_a_beginning_computed_ahead(tmp_path: Path) -> None:
    chosen = ScftSettings(model=str(tiny_bert(tmp_path / "m")), precision="fp32", device="cpu", max_tokens=40)
    tokens = [[*range(3, 15), 20], [*range(3, 15), 21, 22]]
    assert make_encoder(load_model(chosen, Reporter()), tokens, make_settings(), Reporter()).prefix is None


@pytest.mark.parametrize("family", ["mpnet", "roberta", "deberta"])
def test_encoders_of_every_family_are_fine_tuned_to_tell_views_apart(tmp_path: Path, family: str) -> None:
    workspace, settings = with_prompts(
        tmp_path / "ws", tiny(tmp_path / "m", family), steps=20, max_tokens=64, learning_rate=0.01
    )
    run_scft(workspace, settings, Reporter())
    losses = [record["loss"] for record in read_jsonl(workspace.scft() / LOG)[0] if "loss" in record]
    assert np.mean(losses[-5:]) < np.mean(losses[:5])
    run_embed(workspace, settings, Reporter())
    assert np.isfinite(read_table(workspace.embeddings("scft")).vectors).all()


def test_an_encoder_is_fine_tuned_and_embeds_with_its_adapter(tmp_path: Path) -> None:
    workspace, settings = with_prompts(
        tmp_path / "ws", tiny_bert(tmp_path / "m", positions=64), steps=2, max_tokens=64, learning_rate=0.01
    )
    summary = run_scft(workspace, settings, Reporter()).manifest["summary"]
    # Two blocks of six linear layers, rank 8: 4 of 64x64, one of 64x96, one of 96x64.
    assert summary["parameters"] == 2 * 8 * (4 * 128 + 2 * 160)
    run_embed(workspace, settings, Reporter())
    run_embed(workspace, settings, Reporter(), tuned=False)
    tuned, base = (read_table(workspace.embeddings(name)).vectors for name in ("scft", "base"))
    assert np.isfinite(tuned).all() and np.abs(tuned - base).max() > 1e-3


def test_common_prefix_leaves_a_token_of_every_prompt() -> None:
    assert common_prefix([[1, 2, 3], [1, 2, 4, 5], [1, 2, 3, 9]]) == 2
    assert common_prefix([[1, 2], [1, 2, 3]]) == 1
    assert common_prefix([[1, 2, 3], [1, 2, 3]]) == 2
    assert common_prefix([[4], [5]]) == 0


def test_parts_in_any_order_are_the_whole(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "m")
    whole, settings = with_prompts(tmp_path / "whole", folder)
    run_embed(whole, settings, Reporter(), tuned=False)
    parted, settings = with_prompts(tmp_path / "parted", folder)
    for number, missing in ((3, [1, 2]), (1, [2])):
        run_part(parted, settings, Reporter(), number, 3, tuned=False)
        assert merge_parts(parted, settings, Reporter(), 3, tuned=False) == (None, missing)
    assert not parted.embeddings("base").exists()
    run_part(parted, settings, Reporter(), 2, 3, tuned=False)
    result, missing = merge_parts(parted, settings, Reporter(), 3, tuned=False)
    assert result is not None and result.built and missing == []
    one, other = (read_table(w.embeddings("base")) for w in (whole, parted))
    assert one.item_ids.to_list() == other.item_ids.to_list()
    np.testing.assert_allclose(one.vectors, other.vectors, rtol=1e-4, atol=1e-5)
    assert result.manifest["summary"]["items"] == 30
    assert stage_state(embed_stage(parted, settings, tuned=False)).state == "up-to-date"
    assert not run_embed(parted, settings, Reporter(), tuned=False).built
    assert sorted(path.name for path in (parted.root / "embeddings").iterdir()) == ["base"]


def test_parts_of_different_settings_are_never_mixed(tmp_path: Path) -> None:
    workspace, settings = with_prompts(tmp_path / "ws", tiny_llama(tmp_path / "m"))
    last = settings.model_copy(update={"scft": settings.scft.model_copy(update={"pooling": "last"})})
    run_part(workspace, settings, Reporter(), 1, 2, tuned=False)
    run_part(workspace, last, Reporter(), 2, 2, tuned=False)
    assert merge_parts(workspace, settings, Reporter(), 2, tuned=False) == (None, [2])
    assert merge_parts(workspace, last, Reporter(), 2, tuned=False) == (None, [1])
    run_part(workspace, settings, Reporter(), 2, 2, tuned=False)
    manifest = workspace.root / "embeddings" / "base.parts" / "1-of-2" / "manifest.json"
    text = json.loads(manifest.read_text())
    text["summary"]["precision"] = "bfloat16"
    manifest.write_text(json.dumps(text))
    with pytest.raises(BadDataError, match="different precisions: bfloat16, float32"):
        merge_parts(workspace, settings, Reporter(), 2, tuned=False)


def test_shards_on_the_command_line(tmp_path: Path) -> None:
    workspace, _ = with_prompts(tmp_path / "ws", tiny_llama(tmp_path / "m"))

    def call(*args: str) -> Any:
        done = CliRunner().invoke(app, ["embed", "--without", "scft", "-w", str(workspace.root), "--json", *args])
        return done.exit_code, json.loads(done.stdout)

    assert call("--shard", "3/2")[0] == 2
    assert call("--shard", "2/2") == (0, {"shard": "2/2", "merged": False, "missing": [1]})
    code, document = call("--shard", "1/2")
    assert code == 0 and document["items"] == 30 and document["parts"] == 2 and document["built"]
    code, document = call("--shard", "1/2")
    assert code == 0 and not document["built"]
    made = (workspace.embeddings("base") / "manifest.json").stat().st_mtime_ns
    assert call("--shard", "1/2", "--force")[0] == 0
    assert call("--shard", "2/2", "--force")[1]["built"]
    assert (workspace.embeddings("base") / "manifest.json").stat().st_mtime_ns > made


def test_processes_started_together_share_the_work_and_one_merges(tmp_path: Path) -> None:
    workspace, _ = with_prompts(tmp_path / "ws", tiny_llama(tmp_path / "m"))
    command = [sys.executable, "-m", "llmemb_cli", "embed", "--without", "scft", "-w", str(workspace.root), "--json"]
    running = [
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            env=os.environ | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"},
        )
        for rank in range(2)
    ]
    documents = [json.loads(process.communicate(timeout=300)[0]) for process in running]
    assert [process.returncode for process in running] == [0, 0]
    assert any(document.get("parts") == 2 for document in documents)
    assert len(read_table(workspace.embeddings("base")).item_ids) == 30


@pytest.mark.parametrize("how", ["crash", "full disk", "in the PCA"])
def test_a_broken_export_loses_one_shard_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    folder = tiny_llama(tmp_path / "m")
    small = {"embed.shard_items": 7, "scft.model": str(folder), "embed.precision": "fp32", "embed.device": "cpu"}
    workspace, _ = with_prompts(tmp_path / "ws", folder)
    settings = make_settings(small)
    run_embed(workspace, settings, Reporter(), tuned=False)
    whole = {path.name: path.read_bytes() for path in workspace.embeddings("base").iterdir()}
    shutil.rmtree(workspace.embeddings("base"))
    encode_shard, write_all = vectors_module._encode_shard, rows_module._write_all
    computed: list[int] = []

    def counted(encoder: Any, tokens: list[list[int]], stop: Any) -> torch.Tensor:
        computed.append(len(tokens))
        if how == "crash" and broken and len(computed) == 3:
            raise RuntimeError("the power failed")
        return encode_shard(encoder, tokens, stop)

    def full(file: Any, values: np.ndarray) -> None:
        if how == "full disk" and broken and len(computed) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        write_all(file, values)

    def no_pca(*args: Any) -> Any:
        if how == "in the PCA" and broken:
            raise RuntimeError("the power failed")
        return fit_pca(*args)

    monkeypatch.setattr(vectors_module, "_encode_shard", counted)
    monkeypatch.setattr(rows_module, "_write_all", full)
    monkeypatch.setattr(encode_module, "fit_pca", no_pca)
    broken = True
    with pytest.raises((RuntimeError, LlmembError), match=r"the power failed|no space left"):
        run_embed(workspace, settings, Reporter(), tuned=False)
    assert not workspace.embeddings("base").exists() and computed[:3] == [7, 7, 7]
    broken = False
    computed.clear()
    run_embed(workspace, settings, Reporter(), tuned=False)
    assert computed == ([] if how == "in the PCA" else [7, 7, 2])  # of 30 items the first 14 were on the disk, or all
    for name in ("embeddings.safetensors", "ids.parquet", "pca.safetensors"):
        assert (workspace.embeddings("base") / name).read_bytes() == whole[name]
    assert sorted(path.name for path in workspace.embeddings("base").iterdir()) == sorted(whole)


def test_prompts_cut_to_what_they_share_give_vectors_that_tell_nothing_apart(tmp_path: Path) -> None:
    model = tiny_llama(tmp_path / "m")
    for name, length, warned in (("all", 8, True), ("some", 30, False)):
        workspace, settings = with_prompts(
            tmp_path / name, model, instruction=" ".join(f"w{n}" for n in range(10)), max_tokens=length
        )
        notes = Notes()
        run_embed(workspace, settings, notes, tuned=False)
        assert any("vectors are the same" in message for message in notes.said) == warned


def test_another_pca_is_made_of_the_vectors_that_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace, settings = with_prompts(tmp_path / "ws", tiny_llama(tmp_path / "m"), max_tokens=8)
    run_embed(workspace, settings, Reporter(), tuned=False)
    directory = workspace.embeddings("base")
    before = {path.name: path.read_bytes() for path in directory.iterdir()}
    said = json.loads(before["manifest.json"])["summary"]
    narrow = settings.model_copy(update={"embed": settings.embed.model_copy(update={"pca": 5, "shard_items": 3})})
    loaded = []
    monkeypatch.setattr(encode_module, "load_model", lambda *args, **_: loaded.append(args))
    notes = Notes()
    result = run_embed(workspace, narrow, notes, tuned=False)
    assert result.built and not loaded and any("are kept" in message for message in notes.said)
    for name in ("embeddings.safetensors", "ids.parquet", "cut.json"):
        assert (directory / name).read_bytes() == before[name]
    pca, fresh = read_pca(directory), fit_pca(read_table(directory).vectors, 5)
    assert np.array_equal(pca.components, fresh.components) and pca.components.shape[0] == 5
    assert result.manifest["summary"]["pca"] == 5 and result.manifest["summary"]["tokens"] == said["tokens"]
    assert stage_state(embed_stage(workspace, narrow, tuned=False)).state == "up-to-date"
    # Whatever else changes, or where it is asked for, the LLM is read again.
    longer = narrow.model_copy(update={"scft": narrow.scft.model_copy(update={"max_tokens": 9})})
    for one, force in ((longer, False), (narrow, True)):
        with pytest.raises(AttributeError):  # what stands in for the LLM is none
            run_embed(workspace, one, Reporter(), force=force, tuned=False)
        assert len(loaded) == 1
        loaded.clear()


def test_an_export_does_not_depend_on_the_seed(tmp_path: Path) -> None:
    workspace, settings = with_prompts(tmp_path / "ws", tiny_llama(tmp_path / "m"))
    run_embed(workspace, settings, Reporter(), tuned=False)
    other = settings.model_copy(update={"seed": settings.seed + 1})
    assert stage_state(embed_stage(workspace, other, tuned=False)).state == "up-to-date"
    before = {p.name: p.read_bytes() for p in workspace.embeddings("base").iterdir() if p.name != "manifest.json"}
    run_embed(workspace, other, Reporter(), force=True, tuned=False)
    for name, content in before.items():
        assert (workspace.embeddings("base") / name).read_bytes() == content


def test_out_of_memory_halves_the_batch_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace, settings = with_prompts(tmp_path / "ws", tiny_llama(tmp_path / "m"))
    run_embed(workspace, settings, Reporter(), tuned=False)
    expected = read_table(workspace.embeddings("base")).vectors
    honest = vectors_module.embed_tokens

    def little_memory(encoder: Any, tokens: list[list[int]]) -> torch.Tensor:
        if len(tokens) > fits:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return honest(encoder, tokens)

    monkeypatch.setattr(vectors_module, "embed_tokens", little_memory)
    fits, notes = 4, Notes()
    run_embed(workspace, settings, notes, tuned=False, force=True)
    np.testing.assert_allclose(read_table(workspace.embeddings("base")).vectors, expected, rtol=1e-4, atol=1e-5)
    assert any("out of memory with" in line for line in notes.said)
    fits = 0
    with pytest.raises(LlmembError, match="out of memory with a single prompt"):
        run_embed(workspace, settings, Reporter(), tuned=False, force=True)


def test_memory_that_ran_out_once_is_known_to_all_batches_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    shards = [[list(range(at, at + int(rng.integers(1, 60)))) for at in range(300)] for _ in range(2)]
    done: list[int] = []
    failures = 0

    def small_card(encoder: Any, tokens: list[list[int]]) -> torch.Tensor:
        nonlocal failures
        if len(tokens) * max(map(len, tokens)) > 100:
            failures += 1
            raise torch.OutOfMemoryError("CUDA out of memory")
        done.extend(row[0] for row in tokens)
        return torch.tensor([[row[0], len(row)] for row in tokens], dtype=torch.float32)

    monkeypatch.setattr(vectors_module, "embed_tokens", small_card)
    notes, stop = Notes(), SimpleNamespace(requested=False)
    loaded: Any = SimpleNamespace(device="cpu")
    encoder = Encoder(loaded, "mean", 4096, None, notes)
    for shard in shards:
        done.clear()
        vectors = vectors_module._encode_shard(encoder, shard, stop)  # type: ignore[arg-type]
        assert vectors.tolist() == [[row[0], len(row)] for row in shard]
        assert sorted(done) == list(range(300)), "each prompt passes once"
    # 4096 tokens must be halved six times to be less than 100.
    assert 1 <= failures <= 6 and len(notes.said) == failures
    assert notes.said[-1].endswith(f"going on with {encoder.budget} tokens at most")


@pytest.mark.parametrize(
    ("asked", "given"), [("auto", "cuda:1"), ("cuda", "cuda:1"), ("cuda:0", "cuda:0"), ("cpu", "cpu")]
)
def test_each_process_of_a_machine_takes_a_card_of_its_own(
    monkeypatch: pytest.MonkeyPatch, asked: str, given: str
) -> None:
    for name, value in {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    shard, settings = _share_of_process(make_settings({"embed.device": asked}))
    assert (shard, settings.embed.device) == ("4/4", given)


def test_prompts_over_the_limit_are_cut_counted_and_listed(tmp_path: Path) -> None:
    workspace, settings = with_prompts(tmp_path / "ws", tiny_llama(tmp_path / "m"), max_tokens=16)
    summary = run_embed(workspace, settings, Reporter(), tuned=False).manifest["summary"]
    frame, _ = read_prompts(workspace)
    too_long = [i for i, text in zip(frame["item_id"], frame["prompt"], strict=True) if len(text.split()) > 16]
    listed = json.loads((workspace.embeddings("base") / "cut.json").read_text())
    assert summary["cut"] == len(listed) > 0
    assert set(listed) >= set(too_long)


def test_other_weights_in_the_same_folder_make_the_export_stale_and_do_not_fit_the_adapter(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "m")
    workspace, settings = with_prompts(tmp_path / "ws", folder, steps=1)
    run_scft(workspace, settings, Reporter())
    run_embed(workspace, settings, Reporter())
    run_embed(workspace, settings, Reporter(), tuned=False)
    shutil.rmtree(folder)
    tiny_llama(folder, seed=1)
    for tuned in (True, False):
        assert stage_state(embed_stage(workspace, settings, tuned=tuned)).reason == "file model changed"
    with pytest.raises(BadDataError, match="trained on other weights"):
        run_embed(workspace, settings, Reporter())
    assert run_embed(workspace, settings, Reporter(), tuned=False).built


def test_what_is_made_needs_no_model_any_more(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "m")
    workspace, settings = with_prompts(tmp_path / "ws", folder, steps=1)
    assert run_scft(workspace, settings, Reporter()).built
    assert run_embed(workspace, settings, Reporter()).built
    manifest = json.loads((workspace.scft() / "manifest.json").read_text())
    assert manifest["made_from"]["files"]["model"]["sha256"]
    shutil.rmtree(folder)
    assert not run_scft(workspace, settings, Reporter()).built
    assert not run_embed(workspace, settings, Reporter()).built
    with pytest.raises(MissingError):
        run_embed(workspace, settings, Reporter(), force=True)


def test_reading_otherwise_than_the_adapter_was_trained_is_wrong_use(tmp_path: Path) -> None:
    workspace, _ = with_prompts(tmp_path / "ws", tiny_llama(tmp_path / "m"), steps=1)

    def call(*args: str) -> tuple[int, Any]:
        done = CliRunner().invoke(app, [*args, "-w", str(workspace.root), "--json"])
        return done.exit_code, json.loads(done.stdout)

    assert call("scft")[0] == 0
    for flags in (["--pooling", "last"], ["--load-in-4bit"], ["--model", "smollm2-135m"]):
        code, document = call("embed", *flags)
        assert code == 2 and f"`llmemb scft {' '.join(flags)}`" in document["error"]["hint"]
    assert call("embed", "--pooling", "mean")[0] == 0
    code, document = call("embed", "--without", "scft", "--pooling", "last", "--load-in-8bit")
    assert code == 0 and document["pooling"] == "last"
    # What the hint says works.
    code, document = call("scft", "--pooling", "last")
    assert code == 0 and document["built"]
    code, document = call("embed", "--pooling", "last")
    assert code == 0 and document["pooling"] == "last"


@pytest.mark.parametrize("width", [3, 60])
def test_pca_in_blocks_exact_or_randomised_is_that_of_the_whole(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    rng = np.random.default_rng(0)
    scales = np.array([30.0, 10.0, 5.0, *np.full(297, 0.1)])
    vectors = (rng.normal(size=(500, 300)) * scales @ np.linalg.qr(rng.normal(size=(300, 300)))[0] + 7).astype("f4")
    whole = fit_pca(vectors, width)
    monkeypatch.setattr(pca_module, "SVD_UP_TO", 1)
    monkeypatch.setattr(rows_module, "BLOCK_BYTES", 4 * 300 * 7)
    monkeypatch.setattr(pca_module, "_by_svd", lambda *args: pytest.fail("not in blocks"))
    other = "_by_covariance" if width == 3 else "_by_subspace"
    monkeypatch.setattr(pca_module, other, lambda *args: pytest.fail("not the cheaper way"))
    blockwise = fit_pca(vectors, width)
    np.testing.assert_allclose(blockwise.mean, whole.mean, rtol=1e-5)
    np.testing.assert_allclose(blockwise.explained_variance, whole.explained_variance, rtol=1e-4)
    np.testing.assert_allclose(blockwise.components[:3], whole.components[:3], atol=1e-4)
    np.testing.assert_allclose(np.abs(blockwise.components @ whole.components.T), np.eye(width), atol=1e-2)
    assert blockwise.total_variance == pytest.approx(whole.total_variance, rel=1e-9)
    np.testing.assert_allclose(
        whole.transform(vectors), (vectors - whole.mean) @ whole.components.T, rtol=1e-4, atol=1e-3
    )


def test_nothing_touches_the_network_once_the_model_is_here(tmp_path: Path) -> None:
    # With an instruction, so that the shared beginning and its cache are used as well.
    instruction = "title is w1 w2 w3 w4"
    workspace, _ = with_prompts(
        tmp_path / "ws", tiny_llama(tmp_path / "m"), steps=1, instruction=instruction, gradient_checkpointing=True
    )
    # A package that some libraries fetch code with, as soon as it is installed.
    (tmp_path / "kernels.py").write_text(
        "def get_kernel(*args, **kwargs):\n    raise SystemExit('code from the hub')\n"
    )
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    keep = ("--set", "scft.gradient_checkpointing=false")
    commands = [
        [*given, "-w", str(workspace.root)] for given in (("prompt",), ("scft",), ("scft", *keep), ("embed",))
    ]
    done = run_offline(commands, HF_HOME=str(tmp_path / "hf"), PYTHONPATH=path)
    assert done.returncode == 0, done.stderr
    # Nothing that a library says to its programmers reaches the person.
    for word in ("kernels", "deprecated", "transformers", "Warning"):
        assert word not in done.stderr, done.stderr
    assert read_pca(workspace.embeddings()).components.shape[0] == 29


@pytest.mark.real
def test_all_minilm_is_fetched_and_gives_the_vectors_of_sentence_transformers(tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling, Transformer

    # In a process of its own, since nothing in this one may reach for the network.
    command = [sys.executable, "-m", "llmemb_cli", "models", "minilm-l6", "--fetch", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout
    folder = Path(json.loads(done.stdout)["path"])
    workspace, settings = with_prompts(tmp_path / "ws", Path("minilm-l6"))
    run_embed(workspace, settings, Reporter(), tuned=False)
    model = SentenceTransformer(modules=[Transformer(str(folder)), Pooling(384, "mean")], device="cpu")
    theirs = model.encode(read_prompts(workspace)[0]["prompt"].to_list(), show_progress_bar=False)
    np.testing.assert_allclose(read_table(workspace.embeddings("base")).vectors, theirs, rtol=1e-3, atol=1e-5)


def test_the_prompts_that_stand_for_all_share_what_all_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors_module, "TOKENISED_AT_ONCE", 7)
    chosen = ScftSettings(model=str(tiny_llama(tmp_path / "m")), precision="fp32", device="cpu")
    loaded = load_model(chosen, Reporter())
    rng = np.random.default_rng(0)
    prompts = [
        " ".join(["title", "is", *(f"w{i}" for i in rng.integers(3, size=int(rng.integers(1, 30))))])
        for _ in range(200)
    ]
    tokens = [loaded.tokenizer(prompt)["input_ids"] for prompt in prompts]
    lengths, some = vectors_module.survey(loaded, pl.Series(prompts), 20)
    assert lengths.tolist() == [len(ids) for ids in tokens]
    assert common_prefix(some) == common_prefix(tokens)
    assert min(map(len, some)) == min(map(len, tokens)) and max(map(len, some)) == 20
    assert len(some) < 100
