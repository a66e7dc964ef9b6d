"""`[scft]`: supervised contrastive fine-tuning (LLMEmb section 3.2)."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import field_validator

from llmemb_cli.config.fields import Section, setting


class ScftSettings(Section):
    model: str = setting("smollm2-135m", "LLM: a preset of `llmemb models`, a hub id, a folder or a GGUF file")
    loss: Literal["infonce", "paper", "soft"] = setting(
        "infonce",
        "contrastive loss: infonce (cosines, the positive in the denominator), paper (Eq. 4: inner products, without "
        "the positive in the denominator, so that it has no lower bound and is not the default), soft (the authors' "
        "code: inner products, soft targets)",
    )
    temperature: float = setting(
        0.0,
        "start value of the trainable temperature; 0: by loss, 0.07 for cosines (infonce), 3 for raw inner "
        "products (paper, soft)",
        ge=0,
        source="LLMEmb code",
    )
    train_temperature: bool = setting(
        True, "train the temperature (its logarithm, so that it stays positive)", source="LLMEmb Eq. 4"
    )
    drop_ratio: float = setting(0.4, "share of attributes left out of each view", ge=0, lt=1, source="LLMEmb code")
    lora_rank: int = setting(8, "LoRA rank", ge=1, source="LLMEmb code")
    lora_alpha: int = setting(32, "LoRA alpha", ge=1, source="LLMEmb code")
    lora_dropout: float = setting(0.1, "LoRA dropout", ge=0, lt=1, source="LLMEmb code")
    target_modules: list[str] = setting(
        ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        "modules that get LoRA matrices; a model without any of the default ones: all its linear layers",
        min_length=1,
        source="LLMEmb code",
    )
    pooling: Literal["mean", "last"] = setting("mean", "token states to one vector", source="LLMEmb Eq. 2")
    learning_rate: float = setting(2e-4, "AdamW learning rate", gt=0, source="LLMEmb code")
    schedule: Literal["linear", "cosine", "constant"] = setting("linear", "learning-rate schedule")
    warmup: float = setting(0.0, "share of the steps that warm up", ge=0, lt=1)
    clip_norm: float = setting(1.0, "largest gradient norm; 0: no clipping", ge=0)
    weight_decay: float = setting(0.0, "AdamW weight decay", ge=0)
    batch_size: int = setting(64, "items contrasted with each other in a step", ge=2)
    micro_batch_size: int | Literal["auto"] = setting(
        "auto", "texts that pass the model at once; auto: what fits; gradients are those of one batch either way"
    )
    memory_gb: float = setting(
        0.0, "memory for activations; 0: half of what is free, four fifths on a card", unit="GiB", ge=0
    )
    epochs: float = setting(5.0, "passes over the items, unless steps is set", gt=0)
    steps: int = setting(0, "optimizer steps; 0: from epochs", ge=0)
    max_tokens: int = setting(512, "longest prompt; longer ones are cut and counted", unit="tokens", ge=8)
    precision: Literal["auto", "bf16", "fp16", "fp32"] = setting("auto", "arithmetic of the LLM")
    device: str = setting("auto", "auto, cpu, cuda, cuda:1, mps")
    gradient_checkpointing: bool = setting(False, "recompute activations to save memory")
    load_in_8bit: bool = setting(False, "frozen weights in 8 bits (bitsandbytes)")
    load_in_4bit: bool = setting(False, "frozen weights in 4 bits (bitsandbytes)")
    validation_share: float = setting(0.05, "share of items held out for the validation curve", ge=0, lt=0.5)
    validation_items: int = setting(1000, "most items held out", ge=0)
    validate_every: int = setting(0, "steps between validations; 0: ten in a run", ge=0)
    best_by: Literal["mrr", "retrieval", "validation_loss"] = setting(
        "mrr", "held-out figure that chooses the checkpoint which is kept as the adapter"
    )
    checkpoint_minutes: float = setting(5.0, "time between checkpoints", unit="minutes", gt=0)
    checkpoint_steps: int = setting(0, "steps between checkpoints; 0: by time only", ge=0)

    @field_validator("micro_batch_size", mode="before")
    @classmethod
    def _auto(cls, value: Any) -> Any:
        if value in (0, "auto"):
            return "auto"
        # Said here, since of two allowed types pydantic names the one that was not meant.
        if not str(value).isdigit() or int(value) < 1:
            raise ValueError("should be auto or a whole number from 1 on")
        return int(value)

    @field_validator("target_modules", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return [name.strip() for name in value.split(",")] if isinstance(value, str) else value
