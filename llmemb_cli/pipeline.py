"""Every stage described: where it lives, which settings and inputs it depends on.

Cheap to import: `llmemb status` asks these descriptions alone. What a stage does stands in its own package.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from llmemb_cli.assets.identity import model_identity
from llmemb_cli.config.backbones import BACKBONES, SHARED
from llmemb_cli.config.methods import METHODS, Method
from llmemb_cli.config.rat import RatSettings, settings_of_run
from llmemb_cli.config.settings import Settings, own_tables, rat_for
from llmemb_cli.workspace.locate import Workspace
from llmemb_cli.workspace.stage import Stage, read_manifest
from llmemb_cli.workspace.store import sha256_json

# Settings that change how a result is reached, not what it is. Not embed.shard_items: finished shards of an
# interrupted export must not be read with another size.
_HOW = {"device", "micro_batch_size", "memory_gb", "checkpoint_minutes", "checkpoint_steps", "batch_tokens"}
# The same of `[rat]`.
HOW = _HOW | {"precision", "track"}
# Settings of `[rat]` that a run does not depend on while they are off. Off where llmemb.toml has them on is a change.
SWITCHES = ("contrast", "logit_adjustment", "start_decay", "averaging")

DATA_VERSION = 2
EVAL_VERSION = 3


def _settings(section: Any) -> dict[str, Any]:
    return {key: value for key, value in section.model_dump(mode="json").items() if key not in _HOW}


def data_stage(workspace: Workspace, settings: Settings) -> Stage:
    """`data/`: items, interactions, data card."""
    data = settings.data
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
        _settings(data),
        seed,
        files=files,
        about=("stats.json", "card.md", "rejected.jsonl"),
        told=("instruction", "attributes"),
    )


def prompt_stage(workspace: Workspace, settings: Settings) -> Stage:
    """`prompts/`: the text of every item."""
    chosen = _settings(settings.prompt)
    if not chosen["limits"]:
        # Prompts made before there were limits are the same as without any.
        del chosen["limits"]
    return Stage("prompt", workspace.prompts, 1, chosen, inputs={"data": workspace.data})


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


def _llm(settings: Settings) -> dict[str, Any]:
    """The settings of `[scft]` that say which LLM is read."""
    return {key: getattr(settings.scft, key) for key in ("model", "load_in_8bit", "load_in_4bit")}


def said_stage(workspace: Workspace, settings: Settings) -> Stage:
    """`embeddings/said/`: vectors that make the LLM write the item's text."""
    chosen = _settings(settings.said) | _llm(settings) | {"pca": settings.embed.pca}
    files = {"model": model_identity(settings.scft.model)}
    inputs = {"prompts": workspace.prompts}
    return Stage("said", workspace.embeddings("said"), 1, chosen, settings.seed, inputs, files)


def tslrec_source(settings: Settings) -> Settings:
    """The collaborative run that TSLRec's groups of items come from: always SASRec's [choice]."""
    return plain_settings(settings, "sasrec")


def tslrec_stage(workspace: Workspace, settings: Settings) -> Stage:
    """`embeddings/tslrec/`: from the LLM that learnt users' tastes from identities."""
    lora = ("lora_rank", "lora_alpha", "lora_dropout", "target_modules")
    chosen = _settings(settings.tslrec) | _llm(settings) | {"pca": settings.embed.pca}
    chosen |= {key: getattr(settings.scft, key) for key in lora}
    source = workspace.run(run_name(tslrec_source(settings), settings))
    files = {"model": model_identity(settings.scft.model)}
    inputs = {"data": workspace.data, "collaborative": source}
    return Stage("tslrec", workspace.embeddings("tslrec"), 1, chosen, settings.seed, inputs, files)


def method_of(settings: Settings) -> Method:
    """The entry of the run's method in the table of methods."""
    return METHODS[settings.rat.method]


def _unused(rat: RatSettings) -> set[str]:
    """Settings of `[rat]` that a run does not depend on: those of other methods, losses and backbones."""
    method = METHODS[rat.method]
    unused = set()
    if method.extra != "align" or {"align", "adapter"} & set(rat.without):
        unused |= {"alpha", "gamma", "align_loss", "align_to"}
    elif not rat.alpha:
        unused |= {"gamma", "align_loss", "align_to"}
    if rat.method != "llmemb":
        unused.add("without")
    elif "adapter" in rat.without:
        unused.add("d_m")
    if not method.vectors:
        unused.add("control")
    if method.vectors != "base":
        unused.add("vectors")
    if method.embedding == "adapter" or method.start == "trained":
        unused.add("init_std")
    if method.embedding not in ("adapter", "dual") and not (method.freezable and rat.freeze_vectors):
        unused.add("d_m")
    if method.start != "pca":
        unused.add("init_scale")
    if not method.freezable:
        unused.add("freeze_vectors")
    prefixes = {entry.options for table in (METHODS, BACKBONES) for entry in table.values()}
    for prefix in prefixes - {"", method.options, BACKBONES[rat.backbone].options}:
        unused |= {key for key in RatSettings.model_fields if key.startswith(prefix)}
    if rat.contrast == "none":
        unused.add("contrast_weight")
    if not _has_start(rat):
        unused.add("start_decay")
    if not rat.scores_cosines:
        unused.add("temperature")
    if rat.loss == "infonce":
        unused.add("similarity")
    unused |= SHARED - BACKBONES[rat.backbone].reads
    loss = BACKBONES[rat.backbone].loss if rat.loss == "auto" else rat.loss
    if loss == "ce":
        unused.add("negatives")
    if loss != "sce":
        unused.add("negative_weight")
    return unused


def _has_start(rat: RatSettings) -> bool:
    """Whether items have trained numbers of their own that start from what is known of them.

    Those of method none start at random, and a pull back there would lower the floor that others are measured by.
    """
    method = METHODS[rat.method]
    if method.embedding == "table" and method.start == "random":
        return False
    if method.embedding == "adapter":
        return rat.method == "llmemb" and "freeze" in rat.without and "adapter" not in rat.without
    return not (method.freezable and rat.freeze_vectors)


def _off(rat: RatSettings) -> set[str]:
    """The switches that are off. They stand in no manifest; unlike what is unused they count: on is another run."""
    return {key for key in SWITCHES if getattr(rat, key) == RatSettings.model_fields[key].default}


def made_with(made: dict[str, Any], key: str, otherwise: Any = None) -> Any:
    """A setting of `[rat]` that a run was `made` from: a switch that is not among them was off.

    Args:
        otherwise: what counts where the run did not depend on the setting.
    """
    return made.get(key, RatSettings.model_fields[key].default if key in SWITCHES else otherwise)


def rat_settings(settings: Settings) -> dict[str, Any]:
    """The settings of `[rat]` that a run depends on."""
    off = _off(settings.rat)
    return {key: value for key, value in _with_switches(settings).items() if key not in off}


def _with_switches(settings: Settings) -> dict[str, Any]:
    """`rat_settings`, and the switches that the run depends on and that are off."""
    unused = _unused(settings.rat) | HOW
    return {key: value for key, value in _settings(settings.rat).items() if key not in unused}


def used_settings(manifest: dict[str, Any]) -> dict[str, Any]:
    """The settings of `[rat]` that a trained run depends on; an older manifest holds others too."""
    rat = settings_of_run(manifest)
    unused = _unused(rat) | _off(rat)
    return {key: value for key, value in manifest["made_from"]["settings"].items() if key not in unused}


def plain_name(made: dict[str, Any]) -> str:
    """Backbone, method and what is left out: how the name of a run begins that was `made` from these settings."""
    return "-".join([made["backbone"], made["method"], *(f"no-{part}" for part in sorted(made.get("without", [])))])


def run_name(settings: Settings, in_file: Settings | None = None) -> str:
    """The default name of a run: backbone, method, what is left out, seed.

    When flags changed other settings of `[rat]` from those in llmemb.toml (`in_file`), six hex digits of
    them are added, so that a sweep keeps every run.
    """
    rat = settings.rat
    parts = [plain_name(rat_settings(settings)), str(settings.seed)]
    if in_file is not None:
        filed = rat_for(in_file, backbone=rat.backbone, method=rat.method).model_dump(mode="json")
        changed = {
            key: value
            for key, value in _with_switches(settings).items()
            if key not in ("backbone", "method", "without") and value != filed[key]
        }
        changed |= _changed_before(settings, in_file, changed)
        if changed:
            parts.append(sha256_json(changed)[:6])
    return "-".join(parts)


def _changed_before(settings: Settings, in_file: Settings, changed: dict[str, Any]) -> dict[str, Any]:
    """Where the collaborative run that a run reads is not the one that its own changed settings tell of.

    Such are settings that count for the collaborative run alone, and those that were changed for the run alone.
    """
    rat = settings.rat
    named = {"backbone": rat.backbone, "method": rat.method, "without": rat.without, "align_to": rat.align_to}
    filed = collaborative_settings(in_file.model_copy(update={"rat": rat_for(in_file, **named)}))
    needed = collaborative_settings(settings)
    if filed is None or needed is None:
        return {}
    told = filed.rat.model_dump(mode="json") | changed
    return {f"collaborative.{key}": value for key, value in _with_switches(needed).items() if value != told[key]}


def plain_settings(settings: Settings, backbone: str | None = None, same: Collection[str] = ()) -> Settings:
    """The same training with method none: the collaborative model other methods start from or align to.

    Args:
        same: settings of `[rat]` that it must share with the run, whatever llmemb.toml says of method none.
    """
    shared = {key: getattr(settings.rat, key) for key in same}
    plain = rat_for(settings, backbone=backbone or settings.rat.backbone, method="none", without=[], **shared)
    return settings.model_copy(update={"rat": plain})


def collaborative_settings(settings: Settings) -> Settings | None:
    """The collaborative run whose item embeddings a run reads, or None."""
    rat = settings.rat
    if method_of(settings).start == "trained":
        options = BACKBONES[rat.backbone].options
        own = [key for key in RatSettings.model_fields if options and key.startswith(options)]
        return plain_settings(settings, same=["hidden_size", "layers", "heads", "max_length", *own])
    if method_of(settings).extra == "align" and not {"align", "adapter"} & set(rat.without) and rat.alpha > 0:
        return plain_settings(settings, None if rat.align_to == "same" else "sasrec", same=["hidden_size"])
    return None


def without_effect(settings: Settings) -> list[str]:
    """Settings of `[rat]` that flags give and that change neither the run nor the collaborative run it reads."""

    def given(rat: RatSettings) -> set[str]:
        tables = ("", *own_tables(rat.backbone, rat.method))
        return {key for table in tables for key in settings.rat_flags.get(table, {})}

    read = [collaborative_settings(settings), tslrec_source(settings) if settings.rat.method == "tslrec" else None]
    runs = [settings, *(run for run in read if run is not None)]
    used = {key for run in runs for key in given(run.rat) & set(_with_switches(run))}
    return sorted(given(settings.rat) - used - HOW)


def vectors_needed(settings: Settings) -> str | None:
    """Which LLM vectors a run reads: the name of a directory in `embeddings/`, or None."""
    vectors = method_of(settings).vectors
    if vectors == "scft" and "scft" in settings.rat.without:
        return "base"
    return "scft" if vectors == "base" and settings.rat.vectors == "scft" else vectors or None


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
    unused = frozenset(_unused(settings.rat))
    return Stage("rat", path, version, chosen, settings.seed, inputs, unused=unused, off=off)


def protocol_name(settings: Settings) -> str:
    """The directory name of an evaluation: `full`, `full-keep`, `sampled-100-uniform-42`."""
    chosen = settings.eval
    if chosen.protocol == "full":
        return "full" if chosen.history == "exclude" else "full-keep"
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


def eval_stage(workspace: Workspace, settings: Settings, run: str) -> Stage:
    """`runs/<run>/eval/<protocol>/`: ranks and metrics."""
    sampled = settings.eval.protocol == "sampled"
    unused = {"history"} if sampled else {"negatives", "candidates", "candidate_seed"}
    if settings.eval.tail_threshold is not None:
        unused.add("tail_share")
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
        unused=frozenset(unused),
    )


# The folders of a workspace that stages are in; whatever else is there is somebody's own.
_STAGES = ("data", "prompts", "scft", "embeddings", "candidates", "runs", "reports")


def made_stages(workspace: Workspace) -> list[Path]:
    """The directories of all finished stages, in the order of their names."""
    found = (path.parent for folder in _STAGES for path in (workspace.root / folder).rglob("manifest.json"))
    return sorted(
        path for path in found if not any(part.startswith(".") for part in path.relative_to(workspace.root).parts)
    )


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
        "of [rat]": sha256_json([settings.rat.model_dump(mode="json"), settings.rat_tables, settings.rat_flags])[:12],
    }
    files = {"card": workspace.data / "card.md"}
    return Stage("report", workspace.reports, 5, chosen, settings.seed, inputs, files)
