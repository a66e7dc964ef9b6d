"""What there is to know about a model before it is used: size, licence, memory, and whether it is here."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

from llmemb_cli.assets.architecture import Architecture, Bits, export_bytes, read_architecture, training_bytes
from llmemb_cli.assets.fetch import cache_root
from llmemb_cli.assets.models import by_hand, find_model
from llmemb_cli.assets.presets import MODELS
from llmemb_cli.errors import BadDataError
from llmemb_cli.workspace.store import read_json

# What Python, torch and the other libraries take themselves, measured on a CPU with a model of no size.
LIBRARIES_BYTES = 540 * 2**20


def describe_model(name: str) -> dict[str, Any]:
    """A preset, folder, GGUF file or hub id as JSON values; sizes are None while only its name is known.

    `memory` has bytes for `embed` (4,096 tokens at once) and `scft` (micro-batches of 1,024 tokens, LoRA rank 8) in
    bf16, 8-bit and 4-bit, libraries included.
    """
    preset = MODELS.get(name)
    here = find_model(name)
    architecture = preset.architecture if preset is not None else _architecture(here)
    return {
        "name": name,
        "preset": preset is not None,
        "hub_id": preset.hub_id if preset is not None else None if here is not None else name,
        "licence": preset.licence if preset is not None else None,
        "gated": preset.gated if preset is not None else None,
        "without_hub": preset is not None and (preset.gguf is not None or preset.bundle is not None),
        "note": preset.note if preset is not None else "",
        "path": None if here is None else str(here),
        "by_hand": str(by_hand(name)),
    } | _sizes(architecture)


def _sizes(model: Architecture | None) -> dict[str, Any]:
    if model is None:
        return dict.fromkeys(("family", "parameters", "hidden_size", "layers", "positions", "memory"))
    return {
        "family": model.family,
        "parameters": model.parameters,
        "hidden_size": model.hidden,
        "layers": model.layers,
        "positions": model.reads,
        "memory": {
            bits: {
                "embed": export_bytes(model, bits) + LIBRARIES_BYTES,
                "scft": training_bytes(model, bits) + LIBRARIES_BYTES,
            }
            for bits in get_args(Bits)
        },
    }


def _architecture(path: Path | None) -> Architecture | None:
    """The architecture of a model that is here, or None: of a GGUF file it is known once that is converted."""
    if path is None or not (path / "config.json").is_file():
        return None
    return read_architecture(read_json(path / "config.json"), str(path))


def models_here() -> list[str]:
    """Names of all models on this machine that llmemb knows of: presets, and others in its own cache."""
    found = [name for name in MODELS if find_model(name) is not None]
    folder = cache_root() / "models"
    others = sorted(path.parent.name for path in folder.glob("*/config.json")) if folder.is_dir() else []
    return found + [name for name in others if name not in MODELS and not name.startswith((".", "gguf-"))]


def describe_all() -> list[dict[str, Any]]:
    """Every preset, and what else lies in llmemb's cache; a damaged folder is left to `llmemb models NAME`."""
    entries = [describe_model(name) for name in MODELS]
    for name in models_here():
        if name in MODELS:
            continue
        try:
            entries.append(describe_model(name))
        except BadDataError:
            continue
    return entries
