"""Recipes: settings that go together, written into `llmemb.toml` by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from llmemb_cli.config.settings import SECTIONS

RecipeName = Literal["paper", "long-tail"]


@dataclass(frozen=True)
class Recipe:
    """Settings that go together.

    Attributes:
        about: what it is for, in a line.
        settings: "section.key" to value, also "rat.llmemb.key" for a method or backbone alone.
    """

    about: str
    settings: dict[str, Any]


RECIPES: dict[RecipeName, Recipe] = {
    "paper": Recipe("the defaults: loss, model and training as in LLMEmb", {}),
    # docs/results.md, "Popularity taken out of the tail alone".
    "long-tail": Recipe(
        "best in the full ranking of Amazon Beauty, for rare items above all; an item table that starts from a tuned "
        "sentence encoder's vectors and stays near them",
        {
            "scft.model": "minilm-l6",
            "scft.steps": 60,
            "scft.drop_ratio": 0.5,
            "scft.warmup": 0.05,
            "rat.method": "llm2x",
            "rat.vectors": "scft",
            "rat.loss": "sce",
            "rat.negatives": 2500,
            "rat.similarity": "cosine",
            # The value of the theory. 1.6 was better where the tail ends at 15 interactions, and ruinous at 114.
            "rat.logit_adjustment": 1.0,
            "rat.logit_adjustment_share": 0.8,
            "rat.start_decay": 1.0,
            "rat.averaging": 0.998,
            "rat.hidden_size": 256,
            "rat.dropout": 0.6,
            "rat.init_std": 0.05,
            "rat.max_length": 50,
            "rat.patience": 10,
            # An adapter over frozen vectors underfits where a table overfits.
            "rat.llmemb.dropout": 0.1,
            "rat.llmemb.learning_rate": 0.00073,
            # Which does not learn from cosines and much dropout.
            "rat.bert4rec.similarity": "dot",
            "rat.bert4rec.hidden_size": 64,
            "rat.bert4rec.dropout": 0.1,
            "rat.bert4rec.mask_ratio": 0.3,
            "rat.bert4rec.learning_rate": 0.002,
            "rat.bert4rec.batch_size": 256,
            "run.methods": ["none", "llm2x"],
        },
    ),
}


def recipe_changes(name: RecipeName, filed: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """What a recipe changes in an `llmemb.toml`: by setting, the value before (None: not set) and after.

    What another recipe would set and this one does not goes back to its default.

    Args:
        filed: the file's values, as TOML has them.
    """
    wanted = RECIPES[name].settings
    others = {key for recipe in RECIPES.values() for key in recipe.settings} - set(wanted)
    back = {key: _default(key) for key in sorted(others) if _value(filed, key) is not None}
    pairs = {key: (_value(filed, key), value) for key, value in {**wanted, **back}.items()}
    return {key: (before, after) for key, (before, after) in pairs.items() if before != after}


def _value(filed: dict[str, Any], key: str) -> Any:
    found: Any = filed
    for part in key.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    return found


def _default(key: str) -> Any:
    """The default of a setting; that of "rat.llmemb.dropout" is that of "rat.dropout"."""
    section, *_, name = key.split(".")
    return SECTIONS[section].model_fields[name].get_default(call_default_factory=True)
