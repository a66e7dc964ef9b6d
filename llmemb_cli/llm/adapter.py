"""The LoRA adapter: put on a model, written in PEFT's format, and never read onto a model it was not made for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from llmemb_cli.config.scft import ScftSettings
from llmemb_cli.errors import BadDataError, LlmembError
from llmemb_cli.llm.load import LoadedModel
from llmemb_cli.llm.memory import out_of_memory
from llmemb_cli.llm.quiet import quiet_transformers
from llmemb_cli.workspace.store import read_json, read_tensors, write_json, write_tensors

WEIGHTS = "adapter_model.safetensors"
BASE = "base.json"


def with_lora(loaded: LoadedModel, settings: ScftSettings) -> Any:
    """The model with fresh LoRA matrices, to be trained.

    Raises:
        BadDataError: the model has none of the target modules.
    """
    from peft import LoraConfig, TaskType, get_peft_model, prepare_model_for_kbit_training

    base = loaded.model
    once = {"use_reentrant": False}
    with quiet_transformers():  # PEFT uses names that newer versions of transformers warn of
        if settings.load_in_8bit or settings.load_in_4bit:
            base = prepare_model_for_kbit_training(
                base,
                use_gradient_checkpointing=settings.gradient_checkpointing,
                gradient_checkpointing_kwargs=once,
            )
        elif settings.gradient_checkpointing:
            # The second name is that of older versions.
            enable = getattr(base, "activation_checkpointing_enable", base.gradient_checkpointing_enable)
            enable(once)
            base.enable_input_require_grads()
    config = LoraConfig(
        task_type=TaskType.FEATURE_EXTRACTION,
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        target_modules=lora_targets(base, settings.target_modules),
    )
    try:
        with quiet_transformers():
            return get_peft_model(base, config)
    except ValueError as error:
        raise BadDataError(
            f"LoRA does not fit this model: {str(error).splitlines()[0]}", hint="set scft.target_modules"
        ) from error


def lora_targets(model: Any, wanted: list[str]) -> list[str]:
    """The modules that get LoRA matrices: those `wanted`, or where one of the defaults is missing all linear layers.

    The defaults are the names of all linear layers of Llama and its kin; BERT calls its layers otherwise, and Phi-3
    some of them. An encoder's pooling layer is left out, since vectors do not come from it.
    """
    from transformers.pytorch_utils import Conv1D  # what GPT-2 has for linear layers

    names = [name for name, module in model.named_modules() if isinstance(module, (torch.nn.Linear, Conv1D))]
    default = list(ScftSettings().target_modules)
    if list(wanted) != default or {name.rsplit(".", 1)[-1] for name in names}.issuperset(default):
        return list(wanted)
    return [name for name in names if "pooler" not in name]


def trained_tensors(model: Any) -> dict[str, torch.Tensor]:
    """The LoRA matrices by their names in the model."""
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


def save_adapter(folder: Path, loaded: LoadedModel, model: Any) -> None:
    """Write the adapter as PEFT reads it, and what tells its base model from others."""
    from peft import get_peft_model_state_dict

    # Without the embedding layer, which is not trained: asking would make PEFT look for the model on the hub.
    tensors = get_peft_model_state_dict(model, save_embedding_layers=False)
    write_tensors(folder / WEIGHTS, tensors, {"format": "pt"})
    config = model.peft_config["default"].to_dict()
    write_json(folder / "adapter_config.json", _plain(config | {"inference_mode": True}))
    write_json(folder / BASE, describe_base(loaded))


def _plain(value: Any) -> Any:
    """JSON values: sets sorted, enumerations by value, so that equal adapters are equal files."""
    if isinstance(value, dict):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted(map(str, value))
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    return value.value if hasattr(value, "value") else value


def describe_base(loaded: LoadedModel) -> dict[str, Any]:
    """What tells a base model from others, whatever precision it was loaded in.

    Sizes, the tokens at some places of the vocabulary, and some numbers of the embedding table, which no
    quantisation touches.
    """
    model = getattr(loaded.model, "get_base_model", lambda: loaded.model)()
    table = model.get_input_embeddings().weight
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(len(table), (32,), generator=generator)
    columns = torch.randint(table.shape[1], (32,), generator=generator)
    places = torch.linspace(0, len(loaded.tokenizer) - 1, 32).long().tolist()
    sample = table.detach()[rows.to(table.device), columns.to(table.device)].float().cpu()
    return {
        "hidden_size": int(table.shape[1]),
        "layers": int(getattr(model.config, "num_hidden_layers", 0)),
        "vocabulary": len(loaded.tokenizer),
        "tokens": [str(token) for token in loaded.tokenizer.convert_ids_to_tokens(places)],
        "embedding_sample": [float(f"{value:.6g}") for value in sample.tolist()],
    }


def check_base(adapter: Path, loaded: LoadedModel) -> None:
    """Compare the model with the one the adapter was trained on; an adapter of others carries no description.

    Raises:
        BadDataError: they differ; says in what.
    """
    if not (adapter / BASE).is_file():
        return
    trained, here = read_json(adapter / BASE), describe_base(loaded)
    for key, name in (("hidden_size", "width"), ("layers", "number of layers"), ("vocabulary", "vocabulary size")):
        if trained[key] != here[key]:
            raise _other_base(adapter, f"its {name} is {here[key]}, that of the adapter's model {trained[key]}")
    if trained["tokens"] != here["tokens"]:
        raise _other_base(adapter, "its vocabulary has other tokens than that of the adapter's model")
    one, other = (torch.tensor(values["embedding_sample"]) for values in (trained, here))
    # bf16 keeps 8 bits of a number.
    if not torch.allclose(one, other, rtol=0.02, atol=1e-6):
        raise _other_base(adapter, "its weights are not those of the adapter's model")


def _other_base(adapter: Path, difference: str) -> BadDataError:
    return BadDataError(
        f"the adapter was trained on another model: {difference}",
        where=str(adapter),
        hint="embed with the model the adapter was trained on, or run `llmemb scft` with this one",
    )


def attach_adapter(loaded: LoadedModel, adapter: Path) -> None:
    """Put a LoRA adapter on the model, every tensor of it and nothing else.

    Raises:
        BadDataError: it was trained on another model, or lacks tensors, or has some that fit nowhere.
        LlmembError: memory does not suffice.
    """
    from peft import PeftModel, get_peft_model_state_dict

    check_base(adapter, loaded)
    try:
        with quiet_transformers():
            # Where no device is named, PEFT reads the adapter onto the first card, whichever the model is on.
            model = PeftModel.from_pretrained(
                loaded.model, str(adapter), local_files_only=True, torch_device=loaded.device
            )
    except (RuntimeError, ValueError, OSError, KeyError, TypeError, MemoryError) as error:
        if out_of_memory(error):
            raise LlmembError(
                f"the adapter does not fit beside the model into the memory of {loaded.device}",
                where=str(adapter),
                hint="end what else takes memory there, or choose another --device",
            ) from None
        raise BadDataError(
            f"the adapter does not fit this model: {str(error).splitlines()[0]}",
            where=str(adapter),
            hint="run `llmemb scft` with the same model",
        ) from error
    stored = read_tensors(adapter / WEIGHTS)
    wanted = set(get_peft_model_state_dict(model, save_embedding_layers=False))
    wrong = sorted(wanted - set(stored)) or sorted(set(stored) - wanted)
    if wrong:
        verb = "lacks" if wanted - set(stored) else "has, without a place for it,"
        raise BadDataError(
            f"the adapter {verb} {wrong[0]}" + (f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""),
            where=str(adapter / WEIGHTS),
            hint="run `llmemb scft --force`",
        )
    loaded.model = model
