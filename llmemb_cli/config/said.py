"""`[said]`: vectors that make a frozen LLM write the item's text (SAID, Hu et al., WWW 2024 Companion)."""

from __future__ import annotations

from llmemb_cli.config.fields import Section, setting


class SaidSettings(Section):
    width: int = setting(
        0,
        "numbers an item in front of a linear projector to the LLM's width; 0: no projector, the vector itself",
        ge=0,
    )
    epochs: float = setting(20.0, "passes over the items", gt=0)
    batch_size: int = setting(32, "items per step", ge=1)
    learning_rate: float = setting(1e-3, "Adam learning rate", gt=0)
    max_tokens: int = setting(128, "longest text to be written; longer ones are cut", unit="tokens", ge=1)
    checkpoint_minutes: float = setting(5.0, "time between checkpoints", unit="minutes", gt=0)
