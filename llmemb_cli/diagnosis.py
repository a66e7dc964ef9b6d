"""What this machine has and what works on it, for `llmemb doctor`."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from llmemb_cli import __version__
from llmemb_cli.assets.catalogue import describe_all, models_here
from llmemb_cli.assets.fetch import cache_root
from llmemb_cli.devices import cpu_has_bf16, cuda_has_bf16, free_memory
from llmemb_cli.workspace.make import PACKAGES

VARIABLES = ("LLMEMB_CACHE", "LLMEMB_WORKSPACE", "HF_HOME", "HF_ENDPOINT", "HF_HUB_OFFLINE", "OMP_NUM_THREADS")


def diagnose() -> dict[str, Any]:
    """Machine, libraries, devices, cache and models as JSON values; `checks`: what works, else what to do."""
    cache = cache_root()
    here = models_here()
    machine = _machine()
    devices = _gpus()
    fits = [
        entry["name"]
        for entry in describe_all()
        if entry["memory"] is not None and _needed(entry["memory"], machine, devices) <= _room(machine, devices)
    ]
    return {
        "llmemb": __version__,
        "machine": machine,
        "packages": _packages(),
        "gpus": devices,
        "cache": {"path": str(cache), "used": _used(cache), "free": _free(cache)},
        "directory": {"path": str(Path.cwd()), "free": _free(Path.cwd())},
        "variables": {name: os.environ[name] for name in VARIABLES if os.environ.get(name)}
        | ({"HF_TOKEN": "set"} if os.environ.get("HF_TOKEN") else {}),
        "models_here": here,
        "models_that_fit_for_scft": fits,
        "checks": _checks(machine, devices, cache, here),
    }


def _machine() -> dict[str, Any]:
    import psutil
    import torch

    memory = psutil.virtual_memory()
    return {
        "system": platform.platform(),
        "python": sys.version.split()[0],
        "cores": psutil.cpu_count(logical=False) or os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory": memory.total,
        "memory_available": free_memory(),
        "cpu_bf16": cpu_has_bf16(),
    }


def _gpus() -> list[dict[str, Any]]:
    import torch

    gpus: list[dict[str, Any]] = []
    for number in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        facts = torch.cuda.get_device_properties(number)
        free, total = torch.cuda.mem_get_info(number)
        gpus.append(
            {
                "device": f"cuda:{number}",
                "name": facts.name,
                "memory": total,
                "memory_available": free,
                "bf16": cuda_has_bf16(f"cuda:{number}"),
            }
        )
    if torch.backends.mps.is_available():
        gpus.append({"device": "mps", "name": "Apple", "memory": None, "memory_available": None, "bf16": False})
    return gpus


def _room(machine: dict[str, Any], gpus: list[dict[str, Any]]) -> int:
    """Bytes a model may take now on the device that `--device auto` picks."""
    sizes = [gpu["memory_available"] for gpu in gpus if gpu["memory_available"] is not None]
    return int(sizes[0] if sizes else machine["memory_available"])


def _needed(memory: dict[str, Any], machine: dict[str, Any], gpus: list[dict[str, Any]]) -> int:
    """Bytes that SCFT takes in the precision that `--precision auto` picks: twice as many in float32."""
    bf16 = gpus[0]["bf16"] if gpus else machine["cpu_bf16"]
    return int(memory["bf16"]["scft"] * (1 if bf16 else 2))


def _packages() -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for name in (*PACKAGES, "accelerate", "huggingface_hub", "gguf"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def _free(path: Path) -> int:
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def _used(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file() and not file.is_symlink())


def _checks(
    machine: dict[str, Any], gpus: list[dict[str, Any]], cache: Path, here: list[str]
) -> list[dict[str, str | bool]]:
    def check(what: str, works: bool, otherwise: str) -> dict[str, str | bool]:
        return {"what": what, "works": works, "otherwise": "" if works else otherwise}

    return [
        check("GPU", bool(gpus), "everything runs on the CPU; models up to about 1B are practical"),
        check(
            "bf16",
            machine["cpu_bf16"] or any(gpu["bf16"] for gpu in gpus),
            "--precision auto takes float32, which needs twice the memory",
        ),
        check("8-bit and 4-bit loading", quantised_layers_work(), "pip install bitsandbytes; not for Apple GPUs"),
        check("cache can be written", _writable(cache), "set LLMEMB_CACHE to a directory of yours"),
        check("5 GB free for models", _free(cache) > 5 * 10**9, "set LLMEMB_CACHE to a larger disk"),
        check("an LLM is here", bool(here), "llmemb models smollm2-135m --fetch"),
    ]


def _writable(path: Path) -> bool:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(path, os.W_OK)


def quantised_layers_work() -> bool:
    """Whether bitsandbytes multiplies with 8-bit and 4-bit weights on this machine: tried on a small layer."""
    import torch

    from llmemb_cli.llm.quiet import import_bitsandbytes

    try:
        import_bitsandbytes()
        import bitsandbytes as bnb

        device = "cuda" if torch.cuda.is_available() else "cpu"
        states = torch.ones(2, 64, dtype=torch.bfloat16, device=device)
        for layer in (bnb.nn.Linear4bit(64, 64, bias=False), bnb.nn.Linear8bitLt(64, 64, has_fp16_weights=False)):
            with torch.no_grad():
                if not bool(torch.isfinite(layer.to(device)(states)).all()):
                    return False
    except (ImportError, OSError, RuntimeError, AttributeError):
        return False
    return True
