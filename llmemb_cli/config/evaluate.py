"""`[eval]`: how runs are measured."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from llmemb_cli.config.fields import Section, setting


class EvalSettings(Section):
    protocol: Literal["full", "sampled", "validation"] = setting(
        "full",
        "rank the test item among all items, or among sampled ones; validation: the validation item among all, to "
        "choose settings by",
        source="paper: sampled",
    )
    negatives: int = setting(100, "sampled: items drawn per test user", ge=1, source="LLMEmb section 4.1")
    candidates: Literal["uniform", "popularity"] = setting("uniform", "sampled: how items are drawn")
    candidate_seed: int = setting(42, "sampled: seed of the draw, the same for all runs")
    k: list[Annotated[int, Field(ge=1)]] = setting([10], "cut-offs of the metrics; 10 is always among them")
    history: Literal["exclude", "keep"] = setting(
        "exclude", "full: leave the items a user has had out of the ranking, or keep them"
    )
    groups: list[Literal["popularity", "length", "cold", "none"]] = setting(
        ["popularity"], "how test users are grouped"
    )
    bins: Literal["counts", "quantiles"] = setting(
        "counts",
        "popularity bins: 1-4, 5-9, 10-19, 20-39, 40+ training interactions, or five of about equal size",
        source="counts: LLMEmb Figure 5",
    )
    tail_threshold: int | None = setting(
        None, "tail: items with fewer training interactions; not set: the last tail_share of items", ge=1
    )
    batch_users: int = setting(512, "users scored at once", ge=1)
    device: str = setting("auto", "auto, cpu, cuda, cuda:1, mps")
