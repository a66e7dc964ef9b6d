"""How much memory SCFT needs, and what passes the model at once in what is there."""

from __future__ import annotations

import os
from typing import Any

import torch

from llmemb_cli.assets.architecture import (
    Bits,
    activation_bytes,
    checkpointed_bytes,
    peft_activation_bytes,
    read_architecture,
)
from llmemb_cli.config.scft import ScftSettings
from llmemb_cli.devices import free_memory
from llmemb_cli.errors import LlmembError
from llmemb_cli.llm.plan import AUTO_TOKENS, LEAST_TOKENS, MicroBatches
from llmemb_cli.peers import world_size
from llmemb_cli.progress import Reporter

GIB = 2**30
_OUT_OF_MEMORY = ("allocate memory", "not enough memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


def bytes_a_token(config: Any, settings: ScftSettings, width: int, length: int, *, lean: bool = True) -> int:
    """Bytes of activations a token leaves until its backward pass.

    Args:
        config: the model's configuration.
        width: bytes of a number of the model's precision.
        length: tokens of a text.
        lean: the LoRA layers are those of `fastlora`, not PEFT's own.
    """
    model = read_architecture(_named(config))
    held = activation_bytes(model, length, width)
    if not lean:
        bits: Bits = "8-bit" if settings.load_in_8bit else "4-bit"
        held = peft_activation_bytes(model, settings.lora_rank, bits) * width // 2
    return checkpointed_bytes(model, held, width) if settings.gradient_checkpointing else held


def _named(config: Any) -> dict[str, Any]:
    """The numbers of a configuration by the names most families use; others know them as attributes."""
    text = config.get_text_config()
    names = ("model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    found = {name: getattr(text, name, None) for name in (*names, "intermediate_size", "head_dim", "vocab_size")}
    # A family that does not say how wide its feed-forward part is makes it four times as wide as its states.
    return found | {"intermediate_size": found["intermediate_size"] or 4 * int(text.hidden_size)}


def free_bytes(device: str) -> int:
    """Memory that activations may take: half of what is free on the machine, four fifths of it on a card.

    Processes on one machine share its memory; each has its own card. What torch keeps of a card for later use is free
    to this process, though the card counts it as taken.
    """
    if device.startswith("cuda"):
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int((torch.cuda.mem_get_info(device)[0] + kept) * 0.8)
    beside = int(os.environ.get("LOCAL_WORLD_SIZE", world_size()))
    return free_memory() // (2 * beside)


def micro_batches(settings: ScftSettings, bytes_per_token: int, device: str, later: int = 0) -> MicroBatches:
    """What passes the model at once, and how many tokens' activations are kept, in the memory there is.

    Args:
        later: bytes that are free now and that training takes for other things than activations.
    """
    budget = settings.memory_gb * GIB if settings.memory_gb else max(free_bytes(device) - later, 0)
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
