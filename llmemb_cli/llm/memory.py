"""How much memory SCFT needs, and what passes the model at once in what is there."""

from __future__ import annotations

import os
from typing import Any

import torch

from llmemb_cli.config.scft import ScftSettings
from llmemb_cli.errors import LlmembError
from llmemb_cli.llm.plan import AUTO_TOKENS, LEAST_TOKENS, MicroBatches
from llmemb_cli.peers import world_size
from llmemb_cli.progress import Reporter

GIB = 2**30
_OUT_OF_MEMORY = ("allocate memory", "not enough memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


def activation_bytes(config: Any, settings: ScftSettings, width: int, length: int, *, lean: bool = True) -> int:
    """Bytes of activations a token leaves until its backward pass, from the model's sizes.

    A layer of width d with h heads of d_h and an MLP of d_m keeps, in numbers of `width` bytes: the two inputs of its
    projections (2 d), queries and what attention returns (2 h d_h), keys and values, the attention weights (h numbers
    a token of the text), and gate, its activation, up and their product (4 d_m); and its two states in float32
    before the norms (8 d bytes). PEFT's own LoRA layers, used in 8 and 4 bits, keep every input once more after
    dropout, with its mask. With gradient checkpointing a layer keeps its input alone.

    Args:
        config: the model's configuration.
        width: bytes of a number of the model's precision.
        length: tokens of a text.
        lean: the LoRA layers are those of `fastlora`.
    """
    hidden = int(config.hidden_size)
    layers = int(config.num_hidden_layers)
    inner = int(getattr(config, "intermediate_size", 4 * hidden))
    heads = int(config.num_attention_heads)
    head = int(getattr(config, "head_dim", None) or hidden // heads)
    groups = int(getattr(config, "num_key_value_heads", None) or heads)
    layer = width * (2 * hidden + 2 * heads * head + 2 * groups * head + heads * length + 4 * inner) + 8 * hidden
    if not lean and settings.lora_dropout:
        inputs = {"o_proj": heads * head, "down_proj": inner}  # others read the layer's width
        layer += (width + 1) * sum(inputs.get(name, hidden) for name in settings.target_modules)
    return layers * hidden * width + layer if settings.gradient_checkpointing else layers * layer


def free_bytes(device: str) -> int:
    """Memory that activations may take: half of what is free on the machine, four fifths of it on a card.

    Processes on one machine share its memory; each has its own card.
    """
    if device.startswith("cuda"):
        return int(torch.cuda.mem_get_info(device)[0] * 0.8)
    import psutil

    beside = int(os.environ.get("LOCAL_WORLD_SIZE", world_size()))
    return int(psutil.virtual_memory().available / (2 * beside))


def micro_batches(settings: ScftSettings, bytes_per_token: int, device: str) -> MicroBatches:
    """What passes the model at once, and how many tokens' activations are kept, in the memory there is."""
    budget = settings.memory_gb * GIB if settings.memory_gb else free_bytes(device)
    fitting = int(budget // max(bytes_per_token, 1))
    if settings.micro_batch_size != "auto":
        return MicroBatches(settings.micro_batch_size, 0, fitting)
    return MicroBatches(0, max(min(AUTO_TOKENS[device.split(":")[0]], fitting), LEAST_TOKENS), fitting)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out.

    A card has an exception of its own; on a CPU and on an Apple GPU torch raises a plain RuntimeError, in other words
    on each system, and Python itself a MemoryError.
    """
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, (RuntimeError, OSError)) and any(words in str(error) for words in _OUT_OF_MEMORY)


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
