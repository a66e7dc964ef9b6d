"""What settings say of a run: what it is called, which other runs it reads, and which settings it depends on."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from llmemb_cli.config.backbones import BACKBONES, SHARED
from llmemb_cli.config.methods import METHODS, Method
from llmemb_cli.config.rat import RatSettings, settings_of_run
from llmemb_cli.config.settings import Settings, own_tables, rat_for
from llmemb_cli.workspace.store import sha256_json

# Settings that change how a result is reached, not what it is. Not embed.shard_items: finished shards of an
# interrupted export must not be read with another size.
HOW = {"device", "micro_batch_size", "memory_gb", "checkpoint_minutes", "checkpoint_steps", "batch_tokens"}
# The same of `[rat]`.
HOW_OF_RAT = HOW | {"precision", "replay", "track"}
# Settings of `[rat]` that a run does not depend on while they are off. Off where llmemb.toml has them on is a change.
SWITCHES = ("contrast", "logit_adjustment", "logit_adjustment_share", "start_decay", "averaging")
# Of a run that `llmemb adjust` kept: what the run was trained with that it was made from.
TRAINED_ADJUSTMENT = {key: f"trained_{key}" for key in ("logit_adjustment", "logit_adjustment_share")}


def method_of(settings: Settings) -> Method:
    """The entry of the run's method in the table of methods."""
    return METHODS[settings.rat.method]


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


def tslrec_source(settings: Settings) -> Settings:
    """The collaborative run that TSLRec's groups of items come from: always SASRec's [choice]."""
    return plain_settings(settings, "sasrec")


def runs_read(settings: Settings) -> list[Settings]:
    """The collaborative runs that a run reads, itself or through its LLM vectors."""
    collaborative = collaborative_settings(settings)
    read = [] if collaborative is None else [collaborative]
    return [*read, tslrec_source(settings)] if vectors_needed(settings) == "tslrec" else read


def vectors_needed(settings: Settings) -> str | None:
    """Which vectors a run reads, of the LLM or made elsewhere: the name of a directory in `embeddings/`, or None."""
    vectors = method_of(settings).vectors
    if settings.rat.external_vectors is not None:
        return settings.rat.external_vectors
    if vectors == "scft" and "scft" in settings.rat.without:
        return "base"
    return "scft" if vectors == "base" and settings.rat.vectors == "scft" else vectors or None


def vectors_settings(settings: Settings, in_file: Settings | None) -> Settings:
    """What LLM vectors are made with: the seed and the `[rat]` of llmemb.toml, which runs of all seeds share."""
    return settings if in_file is None else settings.model_copy(update={"rat": in_file.rat, "seed": in_file.seed})


def rat_settings(settings: Settings) -> dict[str, Any]:
    """The settings of `[rat]` that a run depends on."""
    off = switched_off(settings.rat)
    return {key: value for key, value in _with_switches(settings).items() if key not in off}


def _with_switches(settings: Settings) -> dict[str, Any]:
    """`rat_settings`, and the switches that the run depends on and that are off."""
    unused = unused_settings(settings.rat) | HOW_OF_RAT
    return {key: value for key, value in settings.rat.model_dump(mode="json").items() if key not in unused}


def used_settings(manifest: dict[str, Any]) -> dict[str, Any]:
    """The settings of `[rat]` that a trained run depends on; an older manifest holds others too."""
    rat = settings_of_run(manifest)
    unused = unused_settings(rat) | switched_off(rat)
    return {key: value for key, value in manifest["made_from"]["settings"].items() if key not in unused}


def is_adjusted(manifest: dict[str, Any]) -> bool:
    """Whether a run was not trained, but made from another one by `llmemb adjust --keep`."""
    return "adjust" in manifest["made_from"]["inputs"]


def vectors_read(manifest: dict[str, Any]) -> str | None:
    """The fingerprint of the LLM vectors that a run was trained on; None where it read none."""
    # A run kept by `llmemb adjust` was made from another run, and says what that was trained on.
    kept: str | None = manifest["summary"].get("vectors_read")
    return kept or manifest["made_from"]["inputs"].get("embeddings")


def made_with(made: dict[str, Any], key: str, otherwise: Any = None) -> Any:
    """A setting of `[rat]` that a run was `made` from: a switch that is not among them was off.

    Args:
        otherwise: what counts where the run did not depend on the setting.
    """
    return made.get(key, RatSettings.model_fields[key].default if key in SWITCHES else otherwise)


def without_effect(settings: Settings) -> list[str]:
    """Settings of `[rat]` that flags give and that change neither the run nor the collaborative run it reads."""

    def given(rat: RatSettings) -> set[str]:
        tables = ("", *own_tables(rat.backbone, rat.method))
        return {key for table in tables for key in settings.rat_flags.get(table, {})}

    used = {key for run in [settings, *runs_read(settings)] for key in given(run.rat) & set(_with_switches(run))}
    return sorted(given(settings.rat) - used - HOW_OF_RAT)


def unused_settings(rat: RatSettings) -> set[str]:
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
    if method.vectors != "base" and rat.external_vectors is None:
        unused.add("vectors")
    if method.embedding == "adapter" or method.start == "trained":
        unused.add("init_std")
    if method.embedding not in ("adapter", "dual") and not (method.freezable and rat.freeze_vectors):
        unused.add("d_m")
    frozen = method.freezable and rat.freeze_vectors
    if method.start != "pca" or method.embedding == "fused" or frozen:
        unused.add("init_scale")
    if frozen or ("init_scale" not in unused and rat.init_scale == "none"):
        unused.add("init_std")
    if not rat.esr_distill_weight:
        unused.add("esr_similar_users")
    if not method.freezable:
        unused.add("freeze_vectors")
    prefixes = {entry.options for table in (METHODS, BACKBONES) for entry in table.values()}
    for prefix in prefixes - {"", method.options, BACKBONES[rat.backbone].options}:
        unused |= {key for key in RatSettings.model_fields if key.startswith(prefix)}
    if rat.contrast == "none":
        unused.add("contrast_weight")
    if not _has_start(rat):
        unused.add("start_decay")
    if not rat.logit_adjustment:
        unused.add("logit_adjustment_share")
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


def switched_off(rat: RatSettings) -> set[str]:
    """The switches that are off. They stand in no manifest; unlike what is unused they count: on is another run."""
    return {key for key in SWITCHES if getattr(rat, key) == RatSettings.model_fields[key].default}
