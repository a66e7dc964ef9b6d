"""The LLM without its language-model head: tokens in, hidden states out."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from llmemb_cli.assets.architecture import RESERVED_POSITIONS
from llmemb_cli.assets.models import local_model
from llmemb_cli.config.scft import ScftSettings
from llmemb_cli.devices import pick_device, pick_dtype
from llmemb_cli.errors import BadDataError, LlmembError, MissingError, WrongUseError
from llmemb_cli.llm.memory import out_of_memory
from llmemb_cli.llm.quiet import import_bitsandbytes, quiet_transformers
from llmemb_cli.progress import Reporter


@dataclass
class LoadedModel:
    """A model on its device with its tokenizer."""

    model: Any
    tokenizer: Any
    device: str
    dtype: torch.dtype
    folder: Path

    @property
    def not_finite_hint(self) -> str:
        """What to try when its states are not finite."""
        if self.dtype == torch.float16:
            return "--precision bf16 or fp32, which hold larger numbers"
        return "lower scft.learning_rate; in the first step another model"


def load_model(
    settings: ScftSettings, report: Reporter, *, precision: str | None = None, device: str | None = None
) -> LoadedModel:
    """Load the LLM of `[scft]`, without its head, in the precision and on the device asked for.

    Raises:
        MissingError: the model, the device or bitsandbytes is not here.
        LlmembError: the weights do not fit into memory.
        BadDataError: the folder is damaged, or its weights, config and tokenizer do not belong together.
        WrongUseError: max_tokens is more than the model reads.
    """
    import_bitsandbytes()
    folder = local_model(settings.model, report)
    where = pick_device(device or settings.device)
    dtype = pick_dtype(precision or settings.precision, where)
    options: dict[str, Any] = {"dtype": dtype, "attn_implementation": "sdpa", "local_files_only": True}
    quantised = settings.load_in_8bit or settings.load_in_4bit
    if quantised:
        options["quantization_config"] = _quantisation(settings, where, dtype)
        # Where none is named, transformers takes the first card, also for a process that was given another.
        options["device_map"] = {"": where}
    bits = "8-bit weights, " if settings.load_in_8bit else "4-bit weights, " if settings.load_in_4bit else ""
    report.note(f"loading {Path(settings.model).name}: {bits}{str(dtype).removeprefix('torch.')} on {where}")
    tokenizer = load_tokenizer(folder)
    try:
        with quiet_transformers():
            model, info = _from_pretrained(folder, options)
            if not quantised:
                model = model.to(where)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, MemoryError) as error:
        if out_of_memory(error):
            raise LlmembError(
                f"the model's weights do not fit into the memory of {where}",
                where=str(folder),
                hint="--load-in-8bit, --load-in-4bit, or a smaller model; `llmemb models` says what each needs",
            ) from None
        raise BadDataError(f"cannot load the model: {_first_line(error)}", where=str(folder)) from error
    if getattr(model.config, "is_encoder_decoder", False):
        raise BadDataError(
            f"a {model.config.model_type} model encodes one text and decodes another; items have one",
            where=str(folder),
            hint="take a decoder (Llama, Qwen, Gemma, ...) or an encoder (BERT, ...)",
        )
    _check_weights(info, folder)
    _check_vocabulary(tokenizer, model, folder)
    positions = position_limit(model.config)
    if settings.max_tokens > positions:
        raise WrongUseError(
            f"scft.max_tokens is {settings.max_tokens}, this model reads {positions} tokens",
            where=str(folder),
            hint=f"--set scft.max_tokens={positions}",
        )
    model.requires_grad_(False)
    # Keys and values are kept only where a call asks for it: for the shared beginning of prompts.
    if hasattr(model.config, "use_cache"):
        model.config.use_cache = False
    return LoadedModel(model, tokenizer, where, dtype, folder)


def _from_pretrained(folder: Path, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The model and what transformers says of its loading; with plain attention where it knows no other for it."""
    from transformers import AutoModel

    read = partial(AutoModel.from_pretrained, str(folder), trust_remote_code=False, output_loading_info=True)
    try:
        return read(**options)
    except ValueError as error:
        # Some, such as MPNet and DeBERTa, have no attention through torch's fused function. Which is named always, as
        # a model's own config.json could ask for code from a hub.
        if 'attn_implementation="eager"' not in str(error):
            raise
        return read(**options | {"attn_implementation": "eager"})


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a model folder, padding on the right.

    Raises:
        BadDataError: it cannot be read.
    """
    from transformers import AutoTokenizer

    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # tokenizers raises nothing more precise
        raise BadDataError(f"cannot load the tokenizer: {_first_line(error)}", where=str(folder)) from error
    if tokenizer.pad_token_id is None:
        # Padding is masked everywhere, so any token serves.
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token or tokenizer.convert_ids_to_tokens(0)
    tokenizer.padding_side = "right"
    return tokenizer


def position_limit(config: Any) -> int:
    """Tokens a model reads at most, by its config; no limit known counts as a million."""
    positions = getattr(config.get_text_config(), "max_position_embeddings", None) or 1_000_000
    return int(positions) - RESERVED_POSITIONS.get(config.model_type, 0)


def _check_weights(info: dict[str, Any], folder: Path) -> None:
    """Refuse a model part of which would stay as randomly drawn; transformers only warns."""
    # An encoder's pooling layer is not used: llmemb pools the token states itself.
    missing = sorted(key for key in info["missing_keys"] if "pooler" not in key)
    if missing:
        raise BadDataError(
            f"the weights lack {len(missing)} of the model's tensors, for example {missing[0]}",
            where=str(folder),
            hint="weights and config.json do not belong together: copy or download the model again",
        )


def _check_vocabulary(tokenizer: Any, model: Any, folder: Path) -> None:
    rows = model.get_input_embeddings().num_embeddings
    highest = max(tokenizer.get_vocab().values(), default=0)
    if highest >= rows:
        raise BadDataError(
            f"the tokenizer has token numbers up to {highest}, the model only {rows} tokens: "
            "they do not belong together",
            where=str(folder),
            hint="put the tokenizer files of this very model into the folder",
        )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _quantisation(settings: ScftSettings, device: str, dtype: torch.dtype) -> Any:
    if settings.load_in_8bit and settings.load_in_4bit:
        raise WrongUseError("--load-in-8bit and --load-in-4bit exclude each other")
    if device == "mps":
        raise MissingError("bitsandbytes does not run on mps", hint="leave out --load-in-8bit / --load-in-4bit")
    if not import_bitsandbytes():
        raise MissingError(
            "8-bit and 4-bit loading need bitsandbytes", hint="pip install bitsandbytes, or leave the flag out"
        )
    from transformers import BitsAndBytesConfig

    if settings.load_in_8bit:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
