"""Models: the table and its memory figures, folders that cannot be used, the hub and a mirror, no network later."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from llmemb_cli.assets import models as models_module
from llmemb_cli.assets.architecture import (
    Architecture,
    lora_parameters,
    peft_activation_bytes,
    read_architecture,
    weight_bytes,
)
from llmemb_cli.assets.catalogue import describe_all, describe_model
from llmemb_cli.assets.identity import model_identity
from llmemb_cli.assets.models import local_model
from llmemb_cli.assets.presets import MODELS
from llmemb_cli.config.scft import ScftSettings
from llmemb_cli.config.settings import load_settings
from llmemb_cli.errors import BadDataError, LlmembError, MissingError, WrongUseError
from llmemb_cli.llm.adapter import attach_adapter
from llmemb_cli.llm.load import load_model
from llmemb_cli.progress import Reporter
from tests.tiny_model import WORDS, tiny_bert, tiny_llama, word_tokenizer

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def load(folder: Path, **settings: Any) -> Any:
    return load_model(ScftSettings(model=str(folder), precision="fp32", device="cpu", **settings), Reporter())


def config_of(model: Architecture) -> Any:
    from transformers import CONFIG_MAPPING

    return CONFIG_MAPPING[model.family](
        vocab_size=model.vocabulary,
        hidden_size=model.hidden,
        intermediate_size=model.intermediate,
        num_hidden_layers=model.layers,
        num_attention_heads=model.heads,
        num_key_value_heads=model.kv_heads,
        head_dim=model.head_dim,
        max_position_embeddings=model.positions,
    )


@pytest.mark.parametrize("name", sorted(MODELS))
def test_parameters_of_every_preset_are_those_of_the_real_module(name: str) -> None:
    from transformers import AutoModel

    with torch.device("meta"):
        model = AutoModel.from_config(config_of(MODELS[name].architecture))
    assert MODELS[name].architecture.loaded == sum(p.numel() for p in model.parameters())


# Of the models' own pages; the embedding models come without an output layer.
@pytest.mark.parametrize(
    ("name", "published"),
    [("smollm2-1.7b", 1_711_376_384), ("llama-7b", 6_738_415_616), ("llama-3.1-8b", 8_030_261_248)],
)
def test_published_parameter_counts(name: str, published: int) -> None:
    assert MODELS[name].architecture.parameters == published


@pytest.mark.parametrize(
    ("flag", "bits"), [({}, "bf16"), ({"load_in_8bit": True}, "8-bit"), ({"load_in_4bit": True}, "4-bit")]
)
def test_weight_bytes_are_those_of_a_loaded_model(tmp_path: Path, flag: dict[str, bool], bits: Any) -> None:
    folder = tiny_llama(tmp_path / "m", hidden_size=256, intermediate_size=512)
    loaded = load_model(ScftSettings(model=str(folder), precision="bf16", device="cpu", **flag), Reporter())
    real = 0
    for parameter in loaded.model.parameters():
        real += parameter.untyped_storage().nbytes()
        state = getattr(parameter, "quant_state", None)
        scales = state.absmax if state is not None else getattr(parameter, "SCB", None)
        real += 0 if scales is None else scales.untyped_storage().nbytes()
    expected = weight_bytes(read_architecture(json.loads((folder / "config.json").read_text())), bits)
    assert expected == pytest.approx(real, rel=0.01)


def test_lora_parameters_and_saved_activations_are_those_of_a_training_step(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaModel

    folder = tiny_llama(tmp_path / "m", hidden_size=96, intermediate_size=160, num_hidden_layers=3)
    model = get_peft_model(
        LlamaModel.from_pretrained(folder, dtype=torch.bfloat16).requires_grad_(False),
        LoraConfig(r=4, lora_dropout=0.1, target_modules=TARGETS),
    ).train()
    numbers = read_architecture(json.loads((folder / "config.json").read_text()))
    assert lora_parameters(numbers, 4) == sum(p.numel() for p in model.parameters() if p.requires_grad)
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    tokens = 4 * 64
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t), torch.autocast("cpu", dtype=torch.bfloat16):
        states = model(input_ids=torch.zeros(4, 64, dtype=torch.long)).last_hidden_state
    assert states.requires_grad
    expected = tokens * peft_activation_bytes(numbers, 4) + 2 * lora_parameters(numbers, 4)
    # A little more than is kept: nothing is kept for the first block's input, which has no gradient.
    assert 0.9 * expected <= sum(kept.values()) <= expected


def test_every_preset_says_licence_and_memory_and_less_of_it_in_fewer_bits() -> None:
    for entry in describe_all():
        assert entry["licence"] and entry["hub_id"] and entry["path"] is None
        needs = [entry["memory"][bits]["embed"] for bits in ("bf16", "8-bit", "4-bit")]
        assert needs == sorted(needs, reverse=True)
        assert all(entry["memory"][bits]["scft"] > entry["memory"][bits]["embed"] for bits in entry["memory"])


def test_the_table_in_the_docs_is_what_the_command_says() -> None:
    text = (Path(__file__).parent.parent / "docs" / "llm.md").read_text(encoding="utf-8")
    for entry in describe_all():
        needs = [entry["memory"][bits] for bits in ("bf16", "8-bit", "4-bit")]
        cells = " | ".join(f"{need['embed'] / 1e9:.1f} / {need['scft'] / 1e9:.1f}" for need in needs)
        assert f"| {entry['name']} | {cells} |" in text


def test_a_folder_and_a_folder_put_into_the_cache_by_hand_are_described_and_used(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "own")
    entry = describe_model(str(folder))
    assert entry["path"] == str(folder) and entry["hidden_size"] == 64 and entry["memory"]["bf16"]["embed"] > 0
    shutil.copytree(folder, describe_model("llama-3.2-1b")["by_hand"])
    assert describe_model("llama-3.2-1b")["path"] == str(local_model("llama-3.2-1b", Reporter()))
    shutil.copytree(folder, describe_model("someone/some-llm")["by_hand"])
    assert local_model("someone/some-llm", Reporter()).name == "someone--some-llm"


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "m", shard="40KB")
    shards = sorted(folder.glob("*.safetensors"))
    assert len(shards) > 1
    assert local_model(str(folder), Reporter()) == folder
    shards[1].unlink()
    with pytest.raises(BadDataError, match=f"lacks: {shards[1].name}"):
        local_model(str(folder), Reporter())


def test_cut_off_and_pickled_weights_are_refused(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "m")
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100])
    with pytest.raises(BadDataError, match="cut off"):
        local_model(str(folder), Reporter())
    weights.write_bytes(b"not weights at all, but a page that says Access Denied")
    with pytest.raises(BadDataError, match="not a safetensors file"):
        local_model(str(folder), Reporter())
    weights.rename(folder / "pytorch_model.bin")
    with pytest.raises(BadDataError, match="lacks: weights") as caught:
        local_model(str(folder), Reporter())
    assert "convert them to safetensors" in (caught.value.hint or "")


def test_weights_of_another_architecture_are_an_error_not_random_numbers(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(BadDataError, match=r"lack \d+ of the model's tensors"):
        load(folder)


def test_a_tokenizer_without_padding_token_works_and_a_larger_one_is_refused(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "m")
    word_tokenizer(folder, pad=None)
    assert load(folder).tokenizer.pad_token_id is not None
    word_tokenizer(folder, [*WORDS, "extra"])
    with pytest.raises(BadDataError, match="do not belong together"):
        load(folder)


def test_more_tokens_than_an_encoder_has_positions_for_are_wrong_use(tmp_path: Path) -> None:
    folder = tiny_bert(tmp_path / "m", positions=40)
    with pytest.raises(WrongUseError, match="reads 40 tokens"):
        load(folder, max_tokens=41)
    assert load(folder, max_tokens=40).model.config.model_type == "bert"


@pytest.mark.parametrize("change", [{"num_hidden_layers": 1}, {"num_hidden_layers": 3}, {"hidden_size": 32}])
def test_an_adapter_of_another_base_is_refused(tmp_path: Path, change: dict[str, int]) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaModel

    first, other = tiny_llama(tmp_path / "first"), tiny_llama(tmp_path / "other", **change)
    adapter = tmp_path / "adapter"
    get_peft_model(LlamaModel.from_pretrained(first), LoraConfig(target_modules=TARGETS)).save_pretrained(adapter)
    attach_adapter(load(first), adapter)
    with pytest.raises(BadDataError, match="the adapter"):
        attach_adapter(load(other), adapter)


def test_identity_is_content_and_not_time_or_place(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "m", hidden_size=256, intermediate_size=2048)
    assert (folder / "model.safetensors").stat().st_size > 1 << 20
    before = model_identity(str(folder))
    assert model_identity(str(shutil.copytree(folder, tmp_path / "copy"))) == before
    os.utime(folder / "model.safetensors", ns=(1, 1))
    assert model_identity(str(folder)) == before
    weights = folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert model_identity(str(folder)) != before
    assert model_identity("someone/nowhere") == {"missing": True}


def test_a_cache_that_cannot_be_written_does_not_stand_in_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_llama(tmp_path / "m", hidden_size=256, intermediate_size=2048)
    before = model_identity(str(folder))
    (tmp_path / "file").write_text("not a directory")
    monkeypatch.setenv("LLMEMB_CACHE", str(tmp_path / "file"))
    assert model_identity(str(folder)) == before


def llama_gguf(path: Path, folder: Path) -> Path:
    """Write a tiny Llama as GGUF in float32, with its tokenizer as a byte-pair vocabulary of whole words."""
    import gguf
    from transformers import LlamaModel

    model = LlamaModel.from_pretrained(folder)
    config, state = model.config, model.state_dict()
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["<unk>", "<pad>", "w", "0", "w0", *WORDS][: config.vocab_size])
    writer.add_token_merges(["w 0"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    places = {
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }
    for name, tensor in state.items():
        values = tensor.numpy()
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
        if heads:
            # GGUF keeps the two halves of each head's rotation interleaved.
            rows = values.shape[0] // heads // 2
            values = values.reshape(heads, 2, rows, -1).swapaxes(1, 2).reshape(values.shape)
        if name.startswith("layers."):
            _, number, rest = name.split(".", 2)
            target = f"blk.{number}.{places[rest.removesuffix('.weight')]}.weight"
        else:
            target = {"embed_tokens.weight": "token_embd.weight", "norm.weight": "output_norm.weight"}[name]
        if values.ndim == 2 and target != "token_embd.weight":
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(target, gguf.quants.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(target, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_gguf_and_safetensors_of_one_model_agree_within_quantisation_error(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "m", hidden_size=128, intermediate_size=256)
    converted = local_model(str(llama_gguf(tmp_path / "m.gguf", folder)), Reporter())
    ids = torch.arange(2, 20)[None]
    with torch.no_grad():
        ours, theirs = (
            load(where, max_tokens=128).model(input_ids=ids).last_hidden_state for where in (converted, folder)
        )
    # Q8_0 keeps blocks of 32 weights at 8 bits; the norms of the states are about 11.
    assert float((ours - theirs).norm() / theirs.norm()) < 0.02


def test_processes_that_start_together_convert_a_gguf_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = llama_gguf(tmp_path / "m.gguf", tiny_llama(tmp_path / "m"))
    begun: list[str] = []
    honest = models_module._convert_gguf

    def counted(*args: Any) -> None:
        begun.append("")
        time.sleep(0.2)
        honest(*args)

    monkeypatch.setattr(models_module, "_convert_gguf", counted)
    with ThreadPoolExecutor(3) as pool:
        folders = list(pool.map(lambda _: local_model(str(path), Reporter()), range(3)))
    assert len(set(folders)) == len(begun) == 1 and (folders[0] / "config.json").is_file()


def test_a_full_disk_or_memory_is_not_taken_for_a_damaged_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers

    path = llama_gguf(tmp_path / "m.gguf", tiny_llama(tmp_path / "m"))
    for error, words in (
        (OSError(errno.ENOSPC, "No space left on device"), "no space left"),
        (torch.OutOfMemoryError("out of memory"), "out of memory"),
    ):

        def fail(*args: Any, error: Exception = error, **kwargs: Any) -> None:
            raise error

        with monkeypatch.context() as changed:
            changed.setattr(transformers.PreTrainedModel, "save_pretrained", fail)
            with pytest.raises(LlmembError, match=words) as caught:
                local_model(str(path), Reporter())
        assert not isinstance(caught.value, BadDataError)
    assert local_model(str(path), Reporter()).is_dir()


def test_a_gguf_of_the_same_name_and_size_but_other_content_is_converted_anew(tmp_path: Path) -> None:
    first = llama_gguf(tmp_path / "m.gguf", tiny_llama(tmp_path / "a", seed=0))
    folder = local_model(str(first), Reporter())
    size = first.stat().st_size
    other = llama_gguf(tmp_path / "other.gguf", tiny_llama(tmp_path / "b", seed=1))
    assert other.stat().st_size == size
    other.replace(first)
    again = local_model(str(first), Reporter())
    assert again != folder
    digest = [hashlib.sha256((f / "model.safetensors").read_bytes()).hexdigest() for f in (folder, again)]
    assert digest[0] != digest[1]


def test_copies_that_two_versions_of_a_library_converted_from_one_gguf_are_the_same_model(tmp_path: Path) -> None:
    path = llama_gguf(tmp_path / "m.gguf", tiny_llama(tmp_path / "m"))
    folder = local_model(str(path), Reporter())
    before = model_identity(str(folder))
    config = json.loads((folder / "config.json").read_text())
    assert config["transformers_version"]
    (folder / "config.json").write_text(json.dumps(config | {"transformers_version": "9.9.9"}))
    assert model_identity(str(folder)) == before == model_identity(str(path))
    other = local_model(str(llama_gguf(tmp_path / "other.gguf", tiny_llama(tmp_path / "o", seed=1))), Reporter())
    assert model_identity(str(other)) != before


def test_a_file_that_is_no_gguf_is_bad_data(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"hello" * 100)
    with pytest.raises(BadDataError, match="not a GGUF file"):
        local_model(str(tmp_path / "model.gguf"), Reporter())


def test_a_path_that_is_not_there_and_a_mistyped_preset_are_explained(tmp_path: Path) -> None:
    for name in (str(tmp_path / "nowhere"), "./nowhere", "model.gguf"):
        with pytest.raises(MissingError, match="no such model folder or GGUF file"):
            local_model(name, Reporter())
    with pytest.raises(MissingError) as caught:
        local_model("smollm2-135", Reporter())
    assert "did you mean smollm2-135m?" in (caught.value.hint or "")


def test_a_relative_path_is_from_the_workspace_in_its_file_and_from_here_in_a_flag(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ws").mkdir()
    (tmp_path / "here").mkdir()
    for place in ("models/one", "here/two"):
        (tmp_path / place).mkdir(parents=True)
    file = tmp_path / "ws" / "llmemb.toml"
    file.write_text('[scft]\nmodel = "../models/one"\n')
    monkeypatch.chdir(tmp_path / "here")
    assert load_settings(file).scft.model == str(tmp_path / "models" / "one")
    assert load_settings(file, {"scft.model": "./two"}).scft.model == str(tmp_path / "here" / "two")
    for name in ("smollm2-135m", "Qwen/Qwen3-0.6B", "../nowhere"):
        assert load_settings(file, {"scft.model": name}).scft.model == name


def test_a_directory_called_as_a_preset_is_not_taken_for_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "llama-7b").mkdir()
    assert describe_model("llama-7b")["path"] is None
    tiny_llama(tmp_path / "llama-7b")
    assert describe_model("llama-7b")["path"] == "llama-7b"


def test_a_model_whose_position_table_has_rows_for_no_token_reads_fewer() -> None:
    about = {"model_type": "mpnet", "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12}
    about |= {"intermediate_size": 3072, "vocab_size": 30527, "max_position_embeddings": 514}
    # 514 rows, the first two of which are padding's and before it (transformers, MPNet).
    assert read_architecture(about).reads == 512
