"""How much memory SCFT needs, and what passes the model at once in what is there."""

from __future__ import annotations

from typing import Any

import torch

from llmemb_cli.config.scft import ScftSettings
from llmemb_cli.errors import LlmembError
from llmemb_cli.llm.plan import AUTO_TOKENS, LEAST_TOKENS, MicroBatches
from llmemb_cli.progress import Reporter

GIB = 2**30


def activation_bytes(config: Any, settings: ScftSettings, width: int) -> int:
    """Bytes of activations a token leaves until its backward pass, from the model's sizes.

    A layer keeps its normalised inputs (in float32 and as they are), queries, keys, values, what attention returns,
    and gate, up and their product in the MLP; a LoRA module with dropout keeps its input once more and a byte mask.
    With gradient checkpointing a layer keeps its input alone.

    Args:
        config: the model's configuration.
        width: bytes of a number of the model's precision.
    """
    hidden = int(config.hidden_size)
    layers = int(config.num_hidden_layers)
    if settings.gradient_checkpointing:
        return layers * hidden * width
    inner = int(getattr(config, "intermediate_size", 4 * hidden))
    heads = int(config.num_attention_heads)
    head = int(getattr(config, "head_dim", None) or hidden // heads)
    groups = int(getattr(config, "num_key_value_heads", None) or heads)
    plain = width * (4 * hidden + 3 * heads * head + 4 * groups * head + 4 * inner) + 4 * 4 * hidden
    inputs = {"o_proj": heads * head, "down_proj": inner}  # others read the layer's width
    dropped = sum(inputs.get(name, hidden) for name in settings.target_modules)
    lora = dropped * (2 * width + 1) if settings.lora_dropout else 0
    return layers * (plain + lora)


def free_bytes(device: str) -> int:
    """Memory that activations may take: half of what is free on the machine, four fifths of it on a card."""
    if device.startswith("cuda"):
        return int(torch.cuda.mem_get_info(device)[0] * 0.8)
    import psutil

    return int(psutil.virtual_memory().available / 2)


def micro_batches(settings: ScftSettings, model: Any, device: str) -> MicroBatches:
    """What passes the model at once, and how many tokens' activations are kept, in the memory there is."""
    config = model.config
    width = 4 if model.dtype == torch.float32 else 2
    budget = settings.memory_gb * GIB if settings.memory_gb else free_bytes(device)
    fitting = int(budget // max(activation_bytes(config, settings, width), 1))
    if settings.micro_batch_size:
        return MicroBatches(settings.micro_batch_size, 0, fitting)
    tokens = max(min(AUTO_TOKENS[device.split(":")[0]], fitting), LEAST_TOKENS)
    return MicroBatches(0, tokens, fitting)


def make_room(micro: MicroBatches, lengths: list[int], report: Reporter) -> None:
    """After running out of memory with texts of these token counts: let less pass at once.

    Raises:
        LlmembError: a single text was too much, and nothing is left to give up.
    """
    if len(lengths) == 1 and micro.kept_tokens == 0:
        raise LlmembError(
            f"out of memory with a single text of {lengths[0]} tokens",
            hint="--gradient-checkpointing, --load-in-8bit, --load-in-4bit, lower scft.max_tokens, a smaller model",
        )
    left = micro.halve()
    while len(lengths) > 1 and micro.split(lengths) == [slice(0, len(lengths))]:
        left = micro.halve()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    report.warn(f"out of memory with {len(lengths)} texts at once; going on with {left} at most")
