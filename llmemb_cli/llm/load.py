"""The LLM without its language-model head: tokens in, hidden states out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from llmemb_cli.assets.models import local_model
from llmemb_cli.config.scft import ScftSettings
from llmemb_cli.devices import pick_device, pick_dtype
from llmemb_cli.errors import BadDataError, MissingError, WrongUseError
from llmemb_cli.llm.quiet import quiet_transformers
from llmemb_cli.progress import Reporter


@dataclass
class LoadedModel:
    """A model on its device with its tokenizer."""

    model: Any
    tokenizer: Any
    device: str
    dtype: torch.dtype
    folder: Path


def load_model(
    settings: ScftSettings, report: Reporter, *, precision: str | None = None, device: str | None = None
) -> LoadedModel:
    """Load the LLM of `[scft]`, without its head, in the precision and on the device asked for.

    Raises:
        MissingError: the model, the device or bitsandbytes is not here.
        BadDataError: the folder is damaged.
    """
    from transformers import AutoModel, AutoTokenizer

    folder = local_model(settings.model, report)
    where = pick_device(device or settings.device)
    dtype = pick_dtype(precision or settings.precision, where)
    options: dict[str, Any] = {"dtype": dtype, "attn_implementation": "sdpa", "local_files_only": True}
    quantised = settings.load_in_8bit or settings.load_in_4bit
    if quantised:
        options["quantization_config"] = _quantisation(settings, where)
    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
            model = AutoModel.from_pretrained(str(folder), **options)
    except (OSError, ValueError, RuntimeError) as error:
        raise BadDataError(f"cannot load the model: {str(error).splitlines()[0]}", where=str(folder)) from error
    if tokenizer.pad_token_id is None:
        # Padding is masked everywhere, so any token serves.
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    tokenizer.padding_side = "right"
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        raise BadDataError(
            f"the tokenizer has {len(tokenizer)} tokens, the model only "
            f"{model.get_input_embeddings().num_embeddings}: they do not belong together",
            where=str(folder),
        )
    model.requires_grad_(False)
    return LoadedModel(model if quantised else model.to(where), tokenizer, where, dtype, folder)


def _quantisation(settings: ScftSettings, device: str) -> Any:
    if settings.load_in_8bit and settings.load_in_4bit:
        raise WrongUseError("--load-in-8bit and --load-in-4bit exclude each other")
    if device == "mps":
        raise MissingError("bitsandbytes does not run on mps", hint="leave out --load-in-8bit / --load-in-4bit")
    try:
        import bitsandbytes  # noqa: F401
    except ImportError:
        raise MissingError(
            "8-bit and 4-bit loading need bitsandbytes", hint="pip install bitsandbytes, or leave the flag out"
        ) from None
    from transformers import BitsAndBytesConfig

    if settings.load_in_8bit:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
