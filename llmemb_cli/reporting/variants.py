"""Which runs of a workspace belong in which table: methods side by side, parts left out, one setting varied."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from llmemb_cli.config.backbones import BACKBONES as TABLE
from llmemb_cli.config.methods import METHODS
from llmemb_cli.config.runs import SWITCHES, TRAINED_ADJUSTMENT, made_with, used_settings, vectors_read
from llmemb_cli.config.settings import Settings
from llmemb_cli.evaluation.compare import compare_evaluated
from llmemb_cli.evaluation.document import known_runs
from llmemb_cli.evaluation.evaluated import Evaluated, NameKind
from llmemb_cli.pipeline import protocol_name
from llmemb_cli.workspace.locate import Workspace
from llmemb_cli.workspace.stage import read_manifest

BACKBONES: dict[str, str] = {name: backbone.title for name, backbone in TABLE.items()}
METHOD_PLACES = {str(name): place for place, name in enumerate(METHODS)}  # in the palette of figures


@dataclass(frozen=True)
class Variant:
    """Runs that differ in nothing but their seed.

    Attributes:
        label: their name without the seed.
        runs: their names, by seed.
        settings: what `[rat]` was.
        kind: how they are called, by the one whose name says least.
        entry: figures of all parts of the users (evaluation/compare.py).
        vectors: the fingerprint of the LLM vectors they read, or None.
    """

    label: str
    runs: list[str]
    settings: dict[str, Any]
    kind: NameKind
    entry: dict[str, Any]
    vectors: str | None = None

    @property
    def backbone(self) -> str:
        return str(self.settings["backbone"])

    @property
    def method(self) -> str:
        return str(self.settings["method"])

    def value(self, key: str) -> Any:
        """A setting of `[rat]`; one that is off is not among what the run was made from."""
        return made_with(self.settings, key)

    @property
    def adjusted(self) -> bool:
        """Whether `llmemb adjust` kept it: no training ended with these settings."""
        return not self.settings.keys().isdisjoint(TRAINED_ADJUSTMENT.values())

    @property
    def without(self) -> list[str]:
        return list(self.settings.get("without", []))


def protocols(workspace: Workspace, settings: Settings) -> list[Settings]:
    """Settings with each protocol that runs have been evaluated by on test items, that of `[eval]` first."""
    found: dict[str, Settings] = {}
    for run in known_runs(workspace):
        for path in sorted((workspace.run(run) / "eval").glob("[!.]*")):
            manifest = read_manifest(path)
            if manifest is None or path.name in found or manifest["summary"]["protocol"]["kind"] == "validation":
                continue
            made = manifest["made_from"]["settings"]
            chosen = {key: made[key] for key in ("protocol", "negatives", "candidates", "candidate_seed", "history")}
            evaluation = settings.eval.model_copy(update=chosen | {"groups": ["popularity"]})
            found[path.name] = settings.model_copy(update={"eval": evaluation})
    return sorted(found.values(), key=lambda one: protocol_name(one) != protocol_name(settings))


def variants_of(found: list[Evaluated], workspace: Workspace, settings: Settings) -> list[Variant]:
    """The variants of comparable runs, with their figures."""
    document = compare_evaluated(found, workspace, settings, correction="none")
    by_run = {one.run: one for one in found}
    made = []
    for entry in document["variants"]:
        trained = by_run[entry["runs"][0]].trained
        kind = max(by_run[run].name_kind for run in entry["runs"])
        vectors = vectors_read(trained)
        made.append(Variant(entry["variant"], entry["runs"], used_settings(trained), kind, entry, vectors))
    return made


def main_variants(variants: list[Variant]) -> list[Variant]:
    """One variant for each backbone and method, nothing left out: trained, with plain names, then most seeds.

    Of those with as many the one with the fewest settings changed, and of equal ones that whose name llmemb gave.
    """
    best: dict[tuple[str, str], Variant] = {}
    for one in variants:
        key = (one.backbone, one.method)
        if not one.without and (key not in best or _rank(one) > _rank(best[key])):
            best[key] = one
    order = list(BACKBONES)
    methods = list(dict.fromkeys(one.method for one in variants))
    methods.sort(key=lambda name: (name != "none", name == "llmemb"))  # the baseline first, the paper's method last
    return sorted(best.values(), key=lambda one: (order.index(one.backbone), methods.index(one.method)))


def of_one_backbone(mains: list[Variant]) -> list[Variant]:
    """The variants of the backbone with the most methods, the first of those with equally many."""
    counts = Counter(one.backbone for one in mains)
    return [one for one in mains if one.backbone == max(counts, key=lambda name: counts[name])]


def _rank(one: Variant) -> tuple[bool, bool, int, int, int]:
    plain = one.kind is NameKind.PLAIN
    return not one.adjusted, plain, len(one.runs), -len(one.entry["changed"]), -one.kind


def differing(one: Variant, other: Variant) -> set[str]:
    """The settings in which two variants differ, and `embeddings` where the same settings read other LLM vectors.

    A setting that one of them does not depend on follows from another in which they differ: no alignment, no alpha.
    """
    keys = one.settings.keys() & other.settings.keys() | {*SWITCHES, *TRAINED_ADJUSTMENT.values()}
    found = {key for key in keys if one.value(key) != other.value(key)}
    chosen = "vectors" in found or ("scft" in one.without) != ("scft" in other.without)
    return found if chosen or one.vectors == other.vectors else found | {"embeddings"}


def ablations(variants: list[Variant]) -> list[list[Variant]]:
    """For each whole method with some, main ones first: it, then those that differ in what they leave out alone.

    A part that fits several, since it does not depend on where they differ, makes no family of those after the first.
    """
    found = []
    shown: set[str] = set()
    mains = main_variants(variants)
    others = [one for one in variants if not one.without and one not in mains]
    for whole in [*mains, *others]:
        parts = [one for one in variants if one.without and differing(one, whole) == {"without"}]
        if not {one.label for one in parts} <= shown:
            found.append([whole, *sorted(parts, key=lambda one: one.without)])
            shown |= {one.label for one in parts}
    return found


def sweeps(variants: list[Variant]) -> list[tuple[str, list[Variant]]]:
    """(setting, variants by its value) wherever variants differ from a main one in one number and nothing else."""
    found = []
    for main in main_variants(variants):
        keys = {next(iter(keys)) for one in variants if len(keys := differing(one, main)) == 1}
        for key in sorted(keys):
            members = [one for one in variants if differing(one, main) <= {key}]
            if all(_number(one.value(key)) for one in members):
                found.append((key, _one_a_value(key, members)))
    return found


def _one_a_value(key: str, variants: list[Variant]) -> list[Variant]:
    """A variant for each value of a setting, by it: the same run under another name is no further point."""
    best = {float(one.value(key)): one for one in sorted(variants, key=_rank)}
    return [best[value] for value in sorted(best)]


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
