"""Which weights these are: a hash over the content of a model's files, so that changed weights make results stale."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from llmemb_cli.assets.fetch import cache_root
from llmemb_cli.assets.models import CONVERTED_FROM, find_model
from llmemb_cli.errors import BadDataError, LlmembError
from llmemb_cli.workspace.store import read_json, sha256_file, sha256_json, write_json

SMALL = 1 << 20
KINDS = {".safetensors", ".json", ".model", ".txt"}


def model_identity(name: str) -> dict[str, Any]:
    """What a manifest says of the model `name`: {"sha256": ...}, or {"missing": True} while it is not here.

    The hash is over the full content of every safetensors, JSON and vocabulary file of its folder, or of the GGUF
    file that was converted to it, since a converted copy differs with the version of transformers. It is not over
    paths and times, so that a workspace can move to another machine.
    """
    path = find_model(name)
    if path is None:
        return {"missing": True}
    if path.is_file():
        return {"sha256": content_hash(path)}
    if (path / CONVERTED_FROM).is_file():
        return {"sha256": read_json(path / CONVERTED_FROM)["sha256"]}
    files = sorted(file for file in path.iterdir() if file.suffix in KINDS and not file.name.startswith("."))
    return {"sha256": sha256_json({file.name: content_hash(file) for file in files if file.is_file()})}


def content_hash(path: Path) -> str:
    """The SHA-256 of a file. Of a large one it is remembered for as long as path, size and time stay the same."""
    real = path.resolve()
    stat = real.stat()
    if stat.st_size <= SMALL:
        return sha256_file(real)
    known = cache_root() / "hashes.json"
    try:
        hashes = dict(read_json(known)) if known.is_file() else {}
    except BadDataError:
        hashes = {}
    identity = [stat.st_size, stat.st_mtime_ns]
    entry = hashes.get(str(real))
    if entry is None or entry[:2] != identity:
        entry = [*identity, sha256_file(real)]
        # A shared cache may be read-only: then the hash is worked out each time.
        with suppress(LlmembError, OSError):
            write_json(known, hashes | {str(real): entry})
    return str(entry[2])
