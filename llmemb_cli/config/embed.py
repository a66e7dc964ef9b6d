"""`[embed]`: LLM embeddings of all items and their PCA."""

from __future__ import annotations

from typing import Literal

from llmemb_cli.config.fields import Section, setting


class EmbedSettings(Section):
    pca: int = setting(1536, "width after PCA, or all there is", ge=1, source="LLMEmb section 4.1")
    batch_tokens: int = setting(0, "tokens that pass the model at once; 0: what suits the device", ge=0)
    shard_items: int = setting(4096, "items written at once; a crash costs no more than these", ge=1)
    precision: Literal["auto", "bf16", "fp16", "fp32"] = setting("auto", "arithmetic of the LLM")
    device: str = setting("auto", "auto, cpu, cuda, cuda:1, mps")
