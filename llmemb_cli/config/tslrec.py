"""`[tslrec]`: an LLM that learns users' tastes from item identities alone (TSLRec, Liu et al., arXiv 2406.00333)."""

from __future__ import annotations

from llmemb_cli.config.fields import Section, setting


class TslrecSettings(Section):
    groups: int = setting(64, "groups of items (k-means of collaborative embeddings), at most items / 20", ge=2)
    max_items: int = setting(50, "newest items of a user that are read", ge=1)
    epochs: float = setting(3.0, "passes over the users", gt=0)
    batch_size: int = setting(32, "users per step", ge=1, source="LLMEmb code")
    learning_rate: float = setting(2e-4, "Adam learning rate of LoRA and head", gt=0, source="LLMEmb code")
    checkpoint_minutes: float = setting(5.0, "time between checkpoints", unit="minutes", gt=0)
