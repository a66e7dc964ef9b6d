"""Every stage described: where it lives, which settings and inputs it depends on.

Cheap to import: `llmemb status` asks these descriptions alone. What a stage does stands in its own package.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llmemb_cli.assets.identity import model_identity
from llmemb_cli.config.data import DATA_OFF
from llmemb_cli.config.prompt import PROMPT_OFF
from llmemb_cli.config.rat import RatSettings, settings_of_run
from llmemb_cli.config.runs import (
    HOW,
    SWITCHES,
    TRAINED_ADJUSTMENT,
    collaborative_settings,
    method_of,
    rat_settings,
    run_name,
    switched_off,
    tslrec_source,
    unused_settings,
    vectors_needed,
)
from llmemb_cli.config.settings import Settings
from llmemb_cli.workspace.locate import Workspace
from llmemb_cli.workspace.stage import LOG, Stage, read_manifest, readable_manifest, require_stage
from llmemb_cli.workspace.store import sha256_file

DATA_VERSION = 2
EVAL_VERSION = 3
ADJUSTED = "-adjusted-"  # between the name of a run and the adjustment that `llmemb adjust` kept it with


def _settings(section: Any) -> dict[str, Any]:
    return {key: value for key, value in section.model_dump(mode="json").items() if key not in HOW}


def data_stage(workspace: Workspace, settings: Settings) -> Stage:
    """`data/`: items, interactions, data card."""
    data = settings.data
    chosen = {key: value for key, value in _settings(data).items() if DATA_OFF.get(key) != value}
    files = {
        role: workspace.root / getattr(data, role)
        for role in ("source", "interactions", "items")
        if getattr(data, role)
    }
    # The seed draws a sample, and nothing else of it.
    seed = settings.seed if data.sample or data.max_users else None
    return Stage(
        "data",
        workspace.data,
        DATA_VERSION,
        chosen,
        seed,
        files=files,
        hashed=("source", "files"),
        about=("stats.json", "card.md", "rejected.jsonl"),
        told=("instruction", "attributes"),
        off=DATA_OFF,
    )


def prompt_stage(workspace: Workspace, settings: Settings) -> Stage:
    """`prompts/`: the text of every item."""
    chosen = {key: value for key, value in _settings(settings.prompt).items() if PROMPT_OFF.get(key) != value}
    return Stage("prompt", workspace.prompts, 1, chosen, inputs={"data": workspace.data}, off=PROMPT_OFF)


def scft_stage(workspace: Workspace, settings: Settings, run: str = "default") -> Stage:
    """`scft/<run>/`: the LoRA adapter."""
    return Stage(
        "scft",
        workspace.scft(run),
        2,
        _settings(settings.scft),
        settings.seed,
        {"prompts": workspace.prompts},
        {"model": model_identity(settings.scft.model)},
        unused=frozenset({"epochs"} if settings.scft.steps else ()),
    )


def embed_stage(workspace: Workspace, settings: Settings, *, tuned: bool = True, run: str = "default") -> Stage:
    """`embeddings/scft/` from the tuned LLM, or `embeddings/base/` from the untouched one."""
    chosen = _settings(settings.embed) | {
        key: getattr(settings.scft, key) for key in ("model", "pooling", "max_tokens", "load_in_8bit", "load_in_4bit")
    }
    inputs = {"prompts": workspace.prompts} | ({"scft": workspace.scft(run)} if tuned else {})
    name = "base" if not tuned else "scft" if run == "default" else f"scft-{run}"
    files = {"model": model_identity(settings.scft.model)}
    return Stage("embed", workspace.embeddings(name), 1, chosen, inputs=inputs, files=files)


def external_stage(workspace: Workspace, settings: Settings, name: str, file: Path, ids: Path | None = None) -> Stage:
    """`embeddings/<name>/`: vectors made elsewhere, from the file that holds them."""
    files = {"vectors": file.resolve()} | ({"ids": ids.resolve()} if ids else {})
    chosen, inputs, path = {"pca": settings.embed.pca}, {"data": workspace.data}, workspace.embeddings(name)
    return Stage("vectors", path, 1, chosen, inputs=inputs, files=dict(files), hashed=("files",))


def _llm(settings: Settings) -> dict[str, Any]:
    """The settings of `[scft]` that say which LLM is read."""
    return {key: getattr(settings.scft, key) for key in ("model", "load_in_8bit", "load_in_4bit")}


def said_stage(workspace: Workspace, settings: Settings) -> Stage:
    """`embeddings/said/`: vectors that make the LLM write the item's text."""
    chosen = _settings(settings.said) | _llm(settings) | {"pca": settings.embed.pca}
    files = {"model": model_identity(settings.scft.model)}
    inputs = {"prompts": workspace.prompts}
    return Stage("said", workspace.embeddings("said"), 1, chosen, settings.seed, inputs, files)


def tslrec_stage(workspace: Workspace, settings: Settings) -> Stage:
    """`embeddings/tslrec/`: from the LLM that learnt users' tastes from identities."""
    lora = ("lora_rank", "lora_alpha", "lora_dropout", "target_modules")
    chosen = _settings(settings.tslrec) | _llm(settings) | {"pca": settings.embed.pca}
    chosen |= {key: getattr(settings.scft, key) for key in lora}
    source = workspace.run(run_name(tslrec_source(settings), settings))
    files = {"model": model_identity(settings.scft.model)}
    inputs = {"data": workspace.data, "collaborative": source}
    return Stage("tslrec", workspace.embeddings("tslrec"), 1, chosen, settings.seed, inputs, files)


def rat_stage(workspace: Workspace, settings: Settings, name: str, in_file: Settings | None = None) -> Stage:
    """`runs/<name>/`: the trained recommender and its item embeddings."""
    inputs = {"data": workspace.data}
    if kind := vectors_needed(settings):
        inputs["embeddings"] = workspace.embeddings(kind)
    if collaborative := collaborative_settings(settings):
        role = "start" if method_of(settings).start == "trained" else "align"
        inputs[role] = workspace.run(run_name(collaborative, in_file))
    # Contrasted views of a backbone without a mask of its own had another item in its place.
    version = 3 if settings.rat.contrast != "none" and settings.rat.backbone != "bert4rec" else 2
    chosen, path = rat_settings(settings), workspace.run(name)
    off = {key: RatSettings.model_fields[key].default for key in SWITCHES}
    unused = frozenset(unused_settings(settings.rat))
    # The log tells times, which training again does not repeat.
    return Stage("rat", path, version, chosen, settings.seed, inputs, about=(LOG,), unused=unused, off=off)


def adjusted_name(run: str, weight: float, share: float) -> str:
    """What a run is called that ranks as `run` would with another logit adjustment."""
    numbers = [weight, share] if weight and share < 1 else [weight]
    return run + ADJUSTED + "-of-".join(repr(float(number)).removesuffix(".0") for number in numbers)


def adjusted_stage(workspace: Workspace, run: str, weight: float, share: float) -> Stage:
    """`runs/<run>-adjusted-<weight>/`: a trained run, ranking with another logit adjustment than it was trained with.

    Its settings are the run's, with the adjustment it ranks with, and that of its training in `trained_...`.
    """
    manifest = require_stage(workspace.run(run), made_by="llmemb rat")
    made, trained = manifest["made_from"], settings_of_run(manifest)
    ranked = trained.model_copy(update={"logit_adjustment": weight, "logit_adjustment_share": share})
    off = switched_off(ranked) | unused_settings(ranked)
    chosen = {key: value for key, value in made["settings"].items() if key not in TRAINED_ADJUSTMENT}
    chosen |= {key: getattr(ranked, key) for key in TRAINED_ADJUSTMENT if key not in off}
    chosen |= {before: getattr(trained, key) for key, before in TRAINED_ADJUSTMENT.items()}
    inputs = {"data": workspace.data, "adjust": workspace.run(run)}
    path = workspace.run(adjusted_name(run, weight, share))
    return Stage("rat", path, made["version"], chosen, made["seed"], inputs)


def protocol_name(settings: Settings) -> str:
    """The directory name of an evaluation: `full`, `full-keep`, `sampled-100-uniform-42`, `validation`."""
    chosen = settings.eval
    if chosen.protocol != "sampled":
        return chosen.protocol if chosen.history == "exclude" else f"{chosen.protocol}-keep"
    return f"sampled-{chosen.negatives}-{chosen.candidates}-{chosen.candidate_seed}"


def _known_histories(settings: Settings) -> dict[str, Any]:
    """With a split by time a user has had more than was trained on; evaluations did not always leave that out."""
    return {"left_out": "all a user has had"} if settings.data.split == "time" else {}


def candidates_stage(workspace: Workspace, settings: Settings) -> Stage:
    """`candidates/<protocol>/`: the sampled items of every test user, shared by all runs."""
    chosen: dict[str, Any] = {
        key: getattr(settings.eval, key) for key in ("negatives", "candidates", "candidate_seed")
    }
    chosen |= _known_histories(settings)
    return Stage(
        "candidates",
        workspace.candidates(protocol_name(settings)),
        5,
        chosen,
        inputs={"data": workspace.data},
    )


def diversity_space(workspace: Workspace) -> str | None:
    """The LLM embeddings in which the diversity of lists is measured: tuned ones, else the untouched LLM's."""
    return next((name for name in ("scft", "base") if read_manifest(workspace.embeddings(name)) is not None), None)


def unused_by_protocol(settings: Settings) -> set[str]:
    """Settings that an evaluation does not depend on: those of the other protocol, a share where a number counts."""
    chosen = settings.eval
    unused = {"history"} if chosen.protocol == "sampled" else {"negatives", "candidates", "candidate_seed"}
    return unused if chosen.tail_threshold is None else {*unused, "tail_share"}


def eval_stage(workspace: Workspace, settings: Settings, run: str) -> Stage:
    """`runs/<run>/eval/<protocol>/`: ranks and metrics."""
    sampled = settings.eval.protocol == "sampled"
    chosen = {key: v for key, v in _settings(settings.eval).items() if key not in ("batch_users", "groups")}
    chosen["tail_share"] = settings.data.tail_share
    chosen |= _known_histories(settings)
    inputs = {"run": workspace.run(run), "data": workspace.data}
    if sampled:
        inputs["candidates"] = workspace.candidates(protocol_name(settings))
    elif space := diversity_space(workspace):
        inputs["diversity"] = workspace.embeddings(space)
    return Stage(
        "eval",
        workspace.evaluation(run, protocol_name(settings)),
        EVAL_VERSION,
        chosen,
        inputs=inputs,
        unused=frozenset(unused_by_protocol(settings)),
    )


# The folders of a workspace that stages are in; whatever else is there is somebody's own.
_STAGES = ("data", "prompts", "scft", "embeddings", "candidates", "runs", "reports")


def made_stages(workspace: Workspace) -> dict[Path, dict[str, Any]]:
    """The directories of all finished stages in the order of their names, and their manifests.

    Those with a damaged manifest are left out.
    """
    found = (path.parent for folder in _STAGES for path in (workspace.root / folder).rglob("manifest.json"))
    shown = sorted(
        path for path in found if not any(part[0] == "." for part in path.relative_to(workspace.root).parts)
    )
    read = {path: readable_manifest(path) for path in shown}
    return {path: manifest for path, manifest in read.items() if manifest is not None}


def report_stage(workspace: Workspace, settings: Settings) -> Stage:
    """`reports/`: the HTML page, from whatever stages there are."""
    inputs = {
        path.relative_to(workspace.root).as_posix(): path
        for path in made_stages(workspace)
        if workspace.reports not in (path, *path.parents)
    }
    chosen = {
        "protocol": protocol_name(settings),
        "tail": [settings.data.tail_share, settings.eval.tail_threshold],
        "drop_ratio": settings.scft.drop_ratio,
        # Changed settings stand beside the names of runs.
        **{f"rat.{key}": value for key, value in settings.rat.model_dump(mode="json").items()},
        "rat_tables": settings.rat_tables,
        "rat_flags": settings.rat_flags,
    }
    # By its content: a copy of the workspace has it with another time.
    card = workspace.data / "card.md"
    files = {"card": {"sha256": sha256_file(card)} if card.is_file() else {"missing": True}}
    return Stage("report", workspace.reports, 6, chosen, settings.seed, inputs, files)
