"""An LLM's folder with safetensors and tokenizer: found here, fetched, or converted from GGUF, once."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from llmemb_cli.assets.fetch import cache_root, fetch, fetch_bundle, one_at_a_time
from llmemb_cli.assets.presets import MODELS, ModelPreset
from llmemb_cli.errors import BadDataError, LlmembError, MissingError, near_match
from llmemb_cli.progress import Reporter
from llmemb_cli.workspace.store import disk_is_full, explain_os_error, read_json, write_json

TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.txt", "vocab.json")
HUB_FILES = ["*.safetensors", "*.json", "tokenizer.model", "*.txt"]
# Other formats of the same weights, in folders of their own or, with Mistral, beside them.
NOT_FROM_HUB = ["*/*", "consolidated*"]
# In a folder that was converted from a GGUF file: which one it was.
CONVERTED_FROM = ".converted.json"
HUB = "https://huggingface.co"


def local_model(name: str, report: Reporter) -> Path:
    """A folder with the model `name`: a preset, a folder, a GGUF file or a hub id; fetched if it is not here.

    Raises:
        MissingError: it is not here and cannot be fetched; says what to do by hand.
        BadDataError: a folder that lacks a file, or a damaged GGUF.
    """
    path = _own_path(name)
    if path is not None and path.is_dir():
        return check_folder(path)
    if path is not None:
        from llmemb_cli.assets.identity import content_hash

        # Named by content: another file of the same name and size must not get this one's converted copy.
        return convert_gguf(path, cache_root() / "models" / f"gguf-{content_hash(path)[:20]}", report)
    if name.startswith((".", "/", "~")) or name.endswith(".gguf"):
        raise MissingError("no such model folder or GGUF file", where=name, hint="check the path")
    preset = MODELS.get(name)
    here = by_hand(name)
    if (here / "config.json").is_file():
        return check_folder(here)
    if preset is not None and preset.gguf is not None:
        return convert_gguf(fetch(preset.gguf, report), here, report)
    if preset is not None and preset.bundle is not None:
        return check_folder(fetch_bundle(preset.bundle, here, report))
    return _from_hub(preset.hub_id if preset else name, name, preset, report)


def find_model(name: str) -> Path | None:
    """Where the model's files are on this machine, or None: nothing is fetched, converted or checked.

    For a GGUF file the file itself, since its converted copy follows from it.
    """
    path = _own_path(name)
    if path is not None:
        return path
    if (by_hand(name) / "config.json").is_file():
        return by_hand(name)
    preset = MODELS.get(name)
    return _hub_snapshot(preset.hub_id if preset else name)


def _own_path(name: str) -> Path | None:
    """The folder or file that `name` is a path of, or None; a workspace called as a preset is no model."""
    path = Path(name).expanduser()
    if name in MODELS and not (path / "config.json").is_file():
        return None
    return path if path.exists() else None


def by_hand(name: str) -> Path:
    """The folder in the cache where a person may put the files of a preset or a hub id."""
    return cache_root() / "models" / name.replace("/", "--")


def check_folder(path: Path) -> Path:
    """`path`, if it holds a model that can be loaded.

    Raises:
        BadDataError: a file is missing or cut off; names it.
    """
    shards = _weight_files(path)
    missing = [] if (path / "config.json").is_file() else ["config.json"]
    if not shards:
        missing.append("weights")
    if not any((path / name).is_file() for name in TOKENIZERS):
        missing.append("tokenizer")
    missing += [shard for shard in shards if not (path / shard).is_file()]
    if missing:
        hint = "a folder made by save_pretrained of model and tokenizer, with safetensors, is expected"
        if "weights" in missing and [*path.glob("*.bin"), *path.glob("*.pt*")]:
            hint = "there are only pickled weights, which can run any code: convert them to safetensors"
        raise BadDataError(f"the model folder lacks: {', '.join(missing)}", where=str(path), hint=hint)
    for shard in shards:
        _check_safetensors(path / shard)
    return path


def _weight_files(path: Path) -> list[str]:
    """The weight files a folder has or, by its index, should have."""
    index = path / "model.safetensors.index.json"
    if not index.is_file():
        return sorted(file.name for file in path.glob("*.safetensors") if not file.name.startswith("adapter"))
    try:
        return sorted(set(read_json(index)["weight_map"].values()))
    except (KeyError, AttributeError, TypeError):
        raise BadDataError("not an index of weights: it has no weight_map", where=str(index)) from None


def _check_safetensors(path: Path) -> None:
    """Compare the file's length with what its header promises: a broken download shows here, not as NaN."""
    try:
        promised = max((tensor["data_offsets"][1] for tensor in _header(path).values()), default=0)
        with path.open("rb") as file:
            start = 8 + int.from_bytes(file.read(8), "little")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadDataError(f"not a safetensors file: {error}", where=str(path)) from None
    if path.stat().st_size != start + promised:
        raise BadDataError(
            f"the weights are cut off: {path.stat().st_size:,} bytes of {start + promised:,}",
            where=str(path),
            hint="copy or download this file again",
        )


def _header(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > path.stat().st_size:
            raise ValueError("its header is longer than the file")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return dict(header)


def _hub_snapshot(hub_id: str) -> Path | None:
    """The newest snapshot of a model in the hub's own cache, looked up without importing the hub's library."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "huggingface"
    hub = Path(os.environ.get("HF_HUB_CACHE") or Path(os.environ.get("HF_HOME") or home) / "hub").expanduser()
    ref = hub / f"models--{hub_id.replace('/', '--')}" / "refs" / "main"
    if not ref.is_file():
        return None
    snapshot = ref.parent.parent / "snapshots" / ref.read_text(encoding="utf-8").strip()
    return snapshot if (snapshot / "config.json").is_file() and _weight_files(snapshot) else None


def _hub_token() -> str | bool | None:
    """What to show the hub: a login made for the hub never goes to a mirror, only a token set in HF_TOKEN does."""
    endpoint = os.environ.get("HF_ENDPOINT", HUB).rstrip("/")
    return None if endpoint == HUB else os.environ.get("HF_TOKEN") or False


def _from_hub(hub_id: str, name: str, preset: ModelPreset | None, report: Reporter) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    wanted: dict[str, Any] = {"allow_patterns": HUB_FILES, "ignore_patterns": NOT_FROM_HUB}
    try:
        return check_folder(Path(snapshot_download(hub_id, **wanted, local_files_only=True)))
    except (LocalEntryNotFoundError, BadDataError, ValueError):
        report.note(f"fetching {hub_id} from {os.environ.get('HF_ENDPOINT', HUB)}")
    page = f"{HUB}/{hub_id}"
    hand = f"put config.json, the tokenizer and *.safetensors into {by_hand(name)}, or pass a folder with --model"
    try:
        return check_folder(Path(snapshot_download(hub_id, **wanted, token=_hub_token())))
    except GatedRepoError:
        raise MissingError(
            f"{hub_id} is gated: its licence has to be accepted first",
            where=page,
            hint=f"accept it on that page and set HF_TOKEN to a token of the account; or {hand}",
        ) from None
    except RepositoryNotFoundError:
        close = near_match(name, list(MODELS))
        raise MissingError(
            f"cannot get the model {name}: the hub has no such model, or not for this account",
            where=page,
            hint=f"did you mean {close}?" if close else "`llmemb models` lists the presets; or set HF_TOKEN",
        ) from None
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError, KeyError, TypeError) as error:
        if disk_is_full(error):
            raise explain_os_error(error, by_hand(name)) from None
        # A mirror that answers with something else shows as a KeyError or TypeError in the hub's library.
        close = near_match(name, list(MODELS)) if preset is None else None
        guess = f"did you mean {close}? else " if close else ""
        accept = f"accept the licence on {page} and set HF_TOKEN; " if preset is not None and preset.gated else ""
        raise MissingError(
            f"cannot get the model {name}: {str(error).splitlines()[0]}",
            where=page,
            hint=f"{guess}{accept}behind a firewall set HF_ENDPOINT to a mirror; or {hand}",
        ) from None


def convert_gguf(gguf: Path, target: Path, report: Reporter) -> Path:
    """Convert a GGUF file once to a folder with bf16 safetensors and tokenizer; whole or not at all.

    Raises:
        BadDataError: transformers cannot read the file.
        LlmembError: memory or the disk is full.
    """
    if not (target / "config.json").is_file():
        with one_at_a_time(target, report):
            if not (target / "config.json").is_file():
                _convert_gguf(gguf, target, report)
    return check_folder(target)


def _convert_gguf(gguf: Path, target: Path, report: Reporter) -> None:
    with gguf.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise BadDataError(
                "not a GGUF file", where=str(gguf), hint="a model is a folder, a GGUF file or a hub id"
            )
    import torch
    from transformers import AutoModel, AutoTokenizer

    from llmemb_cli.assets.identity import content_hash
    from llmemb_cli.llm.memory import out_of_memory
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
        write_json(part / CONVERTED_FROM, {"sha256": content_hash(gguf)})
        part.chmod(0o755)
        part.replace(target)
    except Exception as error:  # tokenizers raises nothing more precise
        if disk_is_full(error):
            raise explain_os_error(error, target) from error
        if out_of_memory(error):
            raise LlmembError(
                "out of memory converting the GGUF file, which needs six bytes a parameter",
                where=str(gguf),
                hint="convert it on a larger machine, or take the model's safetensors",
            ) from None
        raise BadDataError(f"cannot read the GGUF file: {error}", where=str(gguf)) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
