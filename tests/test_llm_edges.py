"""The LLM stage at its edges: one item, no tokens, states not finite, other architectures, devices, limits."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from llmemb_cli import devices, diagnosis
from llmemb_cli.config.scft import ScftSettings
from llmemb_cli.devices import pick_device
from llmemb_cli.embeddings.pca import fit_pca, read_pca
from llmemb_cli.embeddings.table import read_table
from llmemb_cli.errors import BadDataError, InterruptedRunError, LlmembError, MissingError
from llmemb_cli.llm import load, scft
from llmemb_cli.llm.adapter import lora_targets
from llmemb_cli.llm.encode import run_embed
from llmemb_cli.llm.load import load_model
from llmemb_cli.llm.memory import free_bytes
from llmemb_cli.llm.plan import MicroBatches
from llmemb_cli.llm.scft import run_scft
from llmemb_cli.progress import Reporter
from llmemb_cli.prompts.stage import read_prompts
from tests.tiny_llm import WORDS, make_tiny, with_prompts


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("tiny"))


def test_one_item_is_embedded_and_its_pca_has_no_variance(tmp_path: Path, tiny: Path) -> None:
    workspace, settings = with_prompts(tmp_path / "w", tiny, items=1)
    summary = run_embed(workspace, settings, Reporter(), tuned=False).manifest["summary"]
    assert summary["pca"] == 1 and summary["explained"] == 0
    pca, table = read_pca(workspace.embeddings("base")), read_table(workspace.embeddings("base"))
    np.testing.assert_array_equal(pca.transform(table.vectors), [[0.0]])
    assert np.linalg.norm(fit_pca(np.ones((1, 3)), 5).components) == 1


@pytest.mark.parametrize("validation_share", [0.2, 0.0])
def test_a_model_whose_states_are_not_finite_is_never_measured_as_the_best(
    tmp_path: Path, tiny: Path, validation_share: float
) -> None:
    broken = Path(shutil.copytree(tiny, tmp_path / "broken"))
    tensors = load_file(broken / "model.safetensors")
    tensors["embed_tokens.weight"][2:] = torch.nan  # every word
    save_file(tensors, broken / "model.safetensors", {"format": "pt"})
    workspace, settings = with_prompts(tmp_path / "w", broken, validation_share=validation_share)
    with pytest.raises(LlmembError, match="not finite") as caught:
        run_scft(workspace, settings, Reporter())
    assert "another model" in (caught.value.hint or "")
    assert not workspace.scft().exists()


def test_a_text_without_tokens_is_named_not_turned_into_nan(tmp_path: Path, tiny: Path) -> None:
    from tokenizers import Tokenizer

    deaf = Path(shutil.copytree(tiny, tmp_path / "deaf"))
    document = json.loads((deaf / "tokenizer.json").read_text())
    # What SentencePiece does with some characters, done with all letters: the normaliser leaves nothing.
    document["normalizer"] = {"type": "Replace", "pattern": {"Regex": "."}, "content": ""}
    (deaf / "tokenizer.json").write_text(json.dumps(document))
    assert Tokenizer.from_file(str(deaf / "tokenizer.json")).encode("title is w1").ids == []
    workspace, settings = with_prompts(tmp_path / "w", deaf)
    with pytest.raises(BadDataError, match="no token of the prompts of 30 items, for example i0"):
        run_embed(workspace, settings, Reporter(), tuned=False)
    with pytest.raises(BadDataError, match="no token of 'title is"):
        run_scft(workspace, settings, Reporter())


def other_model(folder: Path, tiny: Path, model: Any) -> Path:
    """`model` saved beside the tokenizer of `tiny`."""
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny / name, folder / name)
    return folder


def test_a_model_that_needs_a_second_text_is_refused_by_name(tmp_path: Path, tiny: Path) -> None:
    from transformers import T5Config, T5Model

    t5 = T5Model(T5Config(vocab_size=len(WORDS) + 2, d_model=32, d_kv=16, d_ff=32, num_layers=1, num_heads=2))
    workspace, settings = with_prompts(tmp_path / "w", other_model(tmp_path / "t5", tiny, t5))
    with pytest.raises(BadDataError, match="a t5 model encodes one text and decodes another"):
        run_scft(workspace, settings, Reporter())


def test_gpt2_with_layers_of_its_own_kind_is_tuned_and_embeds_as_peft_alone_does(tmp_path: Path, tiny: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModel, AutoTokenizer, GPT2Config, GPT2Model

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=len(WORDS) + 2, n_embd=32, n_layer=2, n_head=2, n_positions=512)
    folder = other_model(tmp_path / "gpt2", tiny, GPT2Model(config))
    workspace, settings = with_prompts(tmp_path / "w", folder, instruction="title is w1 w2 w3", learning_rate=0.02)
    run_scft(workspace, settings, Reporter())
    run_embed(workspace, settings, Reporter())
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = PeftModel.from_pretrained(AutoModel.from_pretrained(folder), str(workspace.scft())).train(False)
    plain = AutoModel.from_pretrained(folder).train(False)
    vectors = read_table(workspace.embeddings("scft")).vectors
    with torch.no_grad():
        for prompt, vector in zip(read_prompts(workspace)[0]["prompt"], vectors, strict=True):
            ids = torch.tensor([tokenizer(prompt)["input_ids"]])
            mean = model(input_ids=ids).last_hidden_state[0].mean(dim=0)
            np.testing.assert_allclose(vector, mean.numpy(), rtol=1e-4, atol=1e-4)
            untuned = plain(input_ids=ids).last_hidden_state[0].mean(dim=0)
            assert not np.allclose(vector, untuned.numpy(), atol=1e-3)


def test_a_model_with_some_of_the_default_names_gets_lora_on_all_its_linear_layers() -> None:
    from transformers import LlamaConfig, LlamaModel, OPTConfig, OPTModel

    default = list(ScftSettings().target_modules)
    sizes: dict[str, Any] = {"vocab_size": 20, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    llama = LlamaModel(LlamaConfig(**sizes, intermediate_size=16))
    assert lora_targets(llama, default) == default
    opt = OPTModel(OPTConfig(**sizes, ffn_dim=16, word_embed_proj_dim=16, max_position_embeddings=32))
    layer = "decoder.layers.0"
    attention = [f"{layer}.self_attn.{name}" for name in ("k_proj", "v_proj", "q_proj", "out_proj")]
    assert sorted(lora_targets(opt, default)) == sorted([*attention, f"{layer}.fc1", f"{layer}.fc2"])
    assert lora_targets(opt, ["fc1"]) == ["fc1"]


@pytest.mark.parametrize("flag", ["load_in_8bit", "load_in_4bit"])
def test_quantised_weights_go_to_the_device_asked_for(
    tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch, flag: str
) -> None:
    from transformers import AutoModel

    class StopHereError(Exception):
        """Loading began."""

    asked: dict[str, Any] = {}

    def loading(folder: str, **options: Any) -> Any:
        asked.update(options)
        raise StopHereError

    _, settings = with_prompts(tmp_path / "w", tiny, **{flag: True})
    monkeypatch.setattr(AutoModel, "from_pretrained", loading)
    monkeypatch.setattr(load, "pick_device", lambda wanted: wanted)
    with pytest.raises(StopHereError):
        load_model(settings.scft, Reporter(), device="cuda:1")
    assert asked["device_map"] == {"": "cuda:1"}
    if flag == "load_in_4bit":
        assert asked["quantization_config"].bnb_4bit_compute_dtype == asked["dtype"] == torch.float32


def test_a_card_that_is_not_there_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device("cuda:1") == "cuda:1" and pick_device("cuda") == "cuda"
    for wrong in ("cuda:2", "cuda:x", "cuda:", "tpu"):
        with pytest.raises(MissingError, match=f"no device {wrong} on this machine"):
            pick_device(wrong)


def test_an_interrupted_training_goes_on_with_another_micro_batch_size_if_asked(
    tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace, settings = with_prompts(tmp_path / "w", tiny, micro_batch_size=16, lora_dropout=0.0)
    whole, _ = with_prompts(tmp_path / "whole", tiny, micro_batch_size=16, lora_dropout=0.0)
    run_scft(whole, settings, Reporter())
    seen: list[int] = []
    honest = MicroBatches.split

    def watched(self: MicroBatches, lengths: list[int]) -> list[slice]:
        seen.append(self.rows)
        return honest(self, lengths)

    class Ended(Reporter):
        """Ends the training at its third step, as a signal would."""

        def task(self, label: str, total: int, unit: str, done: int = 0) -> Any:
            task = super().task(label, total, unit, done=done)
            if label == "scft":
                requests[-1].requested = True
            return task

    requests: list[Any] = []
    made = scft.StopRequest

    def request(report: Reporter) -> Any:
        requests.append(made(report))
        return requests[-1]

    monkeypatch.setattr(scft, "StopRequest", request)
    with pytest.raises(InterruptedRunError):
        run_scft(workspace, settings, Ended())
    monkeypatch.setattr(scft, "StopRequest", made)
    monkeypatch.setattr(MicroBatches, "split", watched)
    smaller = settings.model_copy(update={"scft": settings.scft.model_copy(update={"micro_batch_size": 3})})
    run_scft(workspace, smaller, Reporter())
    assert set(seen) == {3}
    one, other = (load_file(w.scft() / "adapter_model.safetensors") for w in (whole, workspace))
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-3, atol=1e-5)


def write(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text + "\n")


def test_memory_of_a_container_or_job_counts_not_that_of_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the kernel's cgroup-v2 and cgroup-v1 documentation: the tightest limit up the tree holds."""
    groups, mounted = tmp_path / "cgroup", tmp_path / "sys"
    groups.write_text("0::/job/step\n")
    write(mounted)
    write(mounted / "job", memory__max="1000", memory__current="700", memory__stat="anon 400\ninactive_file 200")
    write(mounted / "job" / "step", memory__max="max", memory__current="600", memory__stat="inactive_file 0")
    assert devices._group_room(groups, mounted) == [500]
    write(mounted / "job" / "step", memory__max="900")
    assert sorted(devices._group_room(groups, mounted)) == [300, 500]
    # Version 1, in a container that shows only its own group.
    groups.write_text("5:cpu:/x\n4:memory:/docker/abc\n0::/\n")
    write(mounted / "memory", memory__limit_in_bytes="800", memory__usage_in_bytes="900")
    write(mounted / "memory", memory__stat="inactive_file 1\ntotal_inactive_file 50")
    assert devices._group_room(groups, mounted) == [0]
    assert devices._group_room(tmp_path / "none", mounted) == []
    assert devices.free_memory() > 0
    monkeypatch.setattr(devices, "_group_room", lambda *_: [700])
    assert diagnosis._machine()["memory_available"] == 700, "doctor shows what the container leaves"


def test_what_torch_keeps_of_a_card_for_later_is_free_to_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def counted(value: Any) -> Any:
        return lambda device: (asked.append(device), value)[1]

    # Of 10,000 bytes others hold 4,000 and this process 5,000, of which 3,500 hold nothing now.
    monkeypatch.setattr(torch.cuda, "mem_get_info", counted((1_000, 10_000)))
    monkeypatch.setattr(torch.cuda, "memory_reserved", counted(5_000))
    monkeypatch.setattr(torch.cuda, "memory_allocated", counted(1_500))
    assert free_bytes("cuda:1") == 3_600  # four fifths of 4,500
    assert asked and set(asked) == {"cuda:1"}
