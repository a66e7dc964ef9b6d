"""`[rat]`: recommendation adaptation training and the recommenders (LLMEmb section 3.3)."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import field_validator, model_validator

from llmemb_cli.config.backbones import BackboneName
from llmemb_cli.config.fields import Section, setting
from llmemb_cli.config.methods import METHODS, VECTOR_CHOICES, MethodName, external_name

TrackerName = Literal["tensorboard", "wandb", "mlflow"]


# What the papers of the losses draw; with one negative, as bce and bpr have it, these learn next to nothing.
OWN_NEGATIVES = {"sce": 500, "gbce": 256, "sampled-softmax": 256, "infonce": 64}


class RatSettings(Section):
    backbone: BackboneName = setting("sasrec", "sequence model; `llmemb rat --help` has a line on each")
    method: MethodName = setting("llmemb", "where item embeddings come from; `llmemb rat --help` has a line on each")
    without: list[Literal["scft", "adapter", "freeze", "align"]] = setting(
        [], "parts left out", source="LLMEmb Table 2"
    )
    align_to: Literal["same", "sasrec"] = setting(
        "same", "backbone whose trained item embeddings LLMEmb aligns to", source="authors' code: sasrec"
    )
    loss: Literal["auto", "bce", "bpr", "ce", "sce", "sampled-softmax", "gbce", "infonce"] = setting(
        "auto",
        "bce, bpr, ce, sce, sampled-softmax, gbce or infonce; auto: the backbone's own (bce; bert4rec, bsarec: ce)",
    )
    similarity: Literal["dot", "cosine"] = setting(
        "dot", "what a score is: the inner product of state and item, or their cosine over rat.temperature (infonce)"
    )
    temperature: float = setting(0.07, "what cosines are divided by", gt=0, source="AlphaFuse")
    negatives: int = setting(
        0,
        "negatives per position, where the loss samples them (sce: per batch); 0: the loss's own (1; sce: 500; gbce, "
        "sampled-softmax: 256; infonce: 64)",
        ge=0,
    )
    negative_weight: float = setting(
        0.0, "sce: weight of a negative; 0: items / negatives, as if all were there", ge=0, source="Xu et al.: 100"
    )
    logit_adjustment: float = setting(
        0.0,
        "weight of an item's log popularity, added to its score in training alone; above 0 lifts rare items",
        ge=0,
        le=100,
        source="Menon et al., ICLR 2021",
    )
    logit_adjustment_share: float = setting(
        1.0,
        "share of items, least popular first, that the adjustment tells apart; more popular ones count as the last "
        "of them, so that popularity goes on counting among these",
        gt=0,
        le=1,
    )
    start_decay: float = setting(
        0.0,
        "pull of a table back to the LLM vectors or run it starts from: learning_rate * start_decay of it a step",
        ge=0,
        source="L2-SP, Li et al., ICML 2018",
    )
    averaging: float = setting(
        0.0,
        "decay of a moving average of the weights over steps, which is what is validated and kept; 0: the last ones",
        ge=0,
        lt=1,
        source="Polyak and Juditsky, 1992",
    )
    hidden_size: int = setting(128, "width of item embeddings and states", ge=1, source="LLMEmb code")
    layers: int = setting(2, "blocks (gru4rec and caser have one layer)", ge=1, source="LLMEmb code")
    heads: int = setting(1, "attention heads", ge=1, source="LLMEmb code")
    dropout: float = setting(0.5, "dropout", ge=0, lt=1, source="LLMEmb code")
    max_length: int = setting(200, "longest sequence; the newest items are kept", ge=1, source="LLMEmb code")
    mask_ratio: float = setting(0.6, "bert4rec: share of items masked", gt=0, lt=1, source="LLMEmb code")
    bsarec_alpha: float = setting(0.7, "bsarec: share of the filter beside attention", ge=0, le=1, source="BSARec")
    bsarec_cutoff: int = setting(5, "bsarec: c, of which c // 2 + 1 frequencies are slow", ge=1, source="BSARec")
    caser_window: int = setting(5, "caser: newest items that are read", ge=1, source="Caser")
    caser_horizontal: int = setting(16, "caser: horizontal filters of each height", ge=1, source="Caser")
    caser_vertical: int = setting(4, "caser: vertical filters", ge=1, source="Caser")
    batch_size: int = setting(128, "sequences per step", ge=1, source="LLMEmb code")
    learning_rate: float = setting(1e-3, "Adam learning rate", gt=0, source="LLMEmb code")
    weight_decay: float = setting(0.0, "weight decay", ge=0, source="LLMEmb code")
    epochs: int = setting(200, "most passes over the users", ge=1, source="LLMEmb code")
    patience: int = setting(20, "epochs without a better validation NDCG@10 before stopping", ge=1)
    validation_users: int = setting(0, "most users to validate on after an epoch, drawn once; 0: all", ge=0)
    alpha: float = setting(0.01, "weight of the alignment loss", ge=0, source="LLMEmb section 4.1")
    gamma: float = setting(2.0, "temperature of the alignment loss", gt=0, source="LLMEmb Eq. 7")
    align_loss: Literal["infonce", "paper", "soft"] = setting(
        "infonce", "alignment loss: infonce, paper (Eq. 7) or soft (the authors' code)"
    )
    d_m: int = setting(1536, "width of the adapter's input (PCA), or all there is", ge=1, source="LLMEmb section 4.1")
    vectors: str = setting(
        "own",
        "llm2x, llmesr, alphafuse: own: of the untouched LLM, as published; scft: of the tuned one. These and "
        "llmemb: the name of vectors made elsewhere (`llmemb embed --vectors`)",
    )
    init_std: float = setting(0.02, "standard deviation of a table at the start", gt=0)
    init_scale: Literal["table", "none"] = setting(
        "table", "tables that start from LLM vectors: scaled to rat.init_std, or as they are"
    )
    control: Literal["none", "permuted", "random"] = setting(
        "none", "LLM vectors dealt to the wrong items, or random ones of the same width: what a gain must not survive"
    )
    freeze_vectors: bool = setting(False, "said: vectors stay frozen and pass one trained linear layer")
    melt_user_weight: float = setting(0.1, "melt: weight of the user branch", ge=0, source="MELT, Beauty")
    melt_item_weight: float = setting(0.4, "melt: weight of the item branch", ge=0, source="MELT, Beauty")
    melt_tail_share: float = setting(
        0.8, "melt: quantile of history length above which a user is head; items 0.02 less", gt=0, lt=1, source="MELT"
    )
    melt_contexts: int = setting(16, "melt: most contexts of an item that are encoded; 0: all", ge=0)
    esr_distill_weight: float = setting(0.1, "llmesr: weight of the distillation", ge=0, source="LLM-ESR code")
    esr_align_weight: float = setting(0.1, "llmesr: weight of aligning both views of an item", ge=0)
    esr_similar_users: int = setting(10, "llmesr: similar users a user learns from", ge=1, source="LLM-ESR")
    alphafuse_dims: int = setting(64, "alphafuse: last dimensions with a trainable table", ge=1, source="AlphaFuse")
    contrast: Literal["none", "cl4srec"] = setting(
        "none", "added loss, with any method: two altered views of a history lead to like states", source="CL4SRec"
    )
    contrast_weight: float = setting(0.1, "weight of that loss", ge=0, source="CL4SRec")
    compat: Literal["none", "official"] = setting(
        "none", "official: sasrec without causal mask, as the authors' code; positions see their future"
    )
    precision: Literal["auto", "bf16", "fp32"] = setting(
        "auto",
        "bf16: backbone and adapter multiply in bfloat16; auto: on CUDA from a hidden_size of 512 on, below in TF32",
    )
    replay: bool = setting(
        True, "on a CUDA card, record a step once for every shape of batch and replay it (CUDA graphs)"
    )
    track: list[TrackerName] = setting([], "tools that get the curves too (extras)")
    device: str = setting("auto", "auto, cpu, cuda, cuda:1, mps")
    checkpoint_minutes: float = setting(2.0, "time between checkpoints", unit="minutes", gt=0)

    @model_validator(mode="before")
    @classmethod
    def _own_negatives(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("negatives", 0) == 0:
            return values | {"negatives": OWN_NEGATIVES.get(str(values.get("loss")), 1)}
        return values

    @field_validator("vectors")
    @classmethod
    def _named_vectors(cls, value: str) -> str:
        return value if value in VECTOR_CHOICES else external_name(value)

    @property
    def external_vectors(self) -> str | None:
        """The name of the vectors made elsewhere that the run is to read, if its method reads vectors of choice."""
        chosen = self.vectors not in VECTOR_CHOICES and METHODS[self.method].vectors in ("base", "scft")
        return self.vectors if chosen else None

    @property
    def scores_cosines(self) -> bool:
        """Whether a score is a cosine over the temperature."""
        return self.similarity == "cosine" or self.loss == "infonce"


def negatives_as_given(rat: RatSettings) -> int:
    """`negatives` as llmemb.toml has it: 0 for the loss's own, so that another loss has its own again."""
    return 0 if rat.negatives == OWN_NEGATIVES.get(rat.loss, 1) else rat.negatives


def settings_of_run(manifest: dict[str, Any]) -> RatSettings:
    """What a run was trained with, from its manifest; settings that this version does not know are left out."""
    made = manifest["made_from"]["settings"]
    return RatSettings.model_validate({key: value for key, value in made.items() if key in RatSettings.model_fields})
