"""What an LLM's architecture numbers say: how many parameters it has and how much memory it needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from llmemb_cli.errors import BadDataError

Bits = Literal["bf16", "8-bit", "4-bit"]
# Measured on an H200 with a Llama of 1.2 B: 4.0 MB a token in 8 bits, where the count without those copies is 3.2.
EIGHT_BIT_FACTOR = 1.3
# RoBERTa and its kin number positions from padding_idx + 1, so two of their positions hold no token.
RESERVED_POSITIONS = {"roberta": 2, "xlm-roberta": 2, "camembert": 2, "mpnet": 2}
ENCODERS = ("bert", "roberta", "xlm-roberta", "distilbert", "mpnet", "electra", "camembert")
NF4_BLOCK = 64  # weights that share one float32 scale in bitsandbytes' 4-bit format
BYTES_PER_TRAINED = 18  # float32 weight and gradient, two float32 moments of AdamW, bf16 copy to compute with
TEXT_TOKENS = 64  # of an item's prompt, where a figure must do without knowing the prompts


@dataclass(frozen=True)
class Architecture:
    """The numbers of a transformer that decide its size; `family` is the hub's `model_type`.

    Attributes:
        intermediate: width of the feed-forward part.
        positions: rows of the position table, or positions it was trained for.
        tied: the output layer shares the input embeddings, so it is no weight of its own on the hub.
    """

    family: str
    hidden: int
    layers: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    positions: int
    tied: bool = True

    @property
    def encoder(self) -> bool:
        """Whether every token sees the whole text (BERT), so that a prefix cannot be computed ahead."""
        return self.family in ENCODERS

    @property
    def reads(self) -> int:
        """Longest input in tokens."""
        return self.positions - RESERVED_POSITIONS.get(self.family, 0)

    @property
    def linear_shapes(self) -> dict[str, tuple[int, int]]:
        """(in, out) of every linear layer of one block, under the names LoRA knows them by."""
        h, i, q, kv = self.hidden, self.intermediate, self.heads * self.head_dim, self.kv_heads * self.head_dim
        if self.encoder:
            attention = dict.fromkeys(("query", "key", "value", "attention.output.dense"), (h, h))
            return attention | {"intermediate.dense": (h, i), "output.dense": (i, h)}
        attention = {"q_proj": (h, q), "k_proj": (h, kv), "v_proj": (h, kv), "o_proj": (q, h)}
        return attention | {"gate_proj": (h, i), "up_proj": (h, i), "down_proj": (i, h)}

    @property
    def linear(self) -> int:
        """Weights of the blocks' linear layers: what 8 and 4 bits shrink."""
        return self.layers * sum(a * b for a, b in self.linear_shapes.values())

    @property
    def embedding(self) -> int:
        """Weights of the token table, and of an encoder's position and type tables."""
        extra = (self.positions + 2) * self.hidden if self.encoder else 0
        return self.vocabulary * self.hidden + extra

    @property
    def other(self) -> int:
        """Norms and biases, and an encoder's pooling layer, which llmemb does not use."""
        h = self.hidden
        if self.encoder:
            biases = sum(out for _, out in self.linear_shapes.values())
            return self.layers * (4 * h + biases) + 2 * h + h * h + h
        per_layer = {"gemma3_text": 4 * h + 2 * self.head_dim, "qwen3": 2 * h + 2 * self.head_dim}.get(
            self.family, 2 * h
        )
        biases = self.heads * self.head_dim + 2 * self.kv_heads * self.head_dim if self.family == "qwen2" else 0
        return self.layers * (per_layer + biases) + h

    @property
    def loaded(self) -> int:
        """Parameters that llmemb loads: all but the output layer, which embeddings do not need."""
        return self.linear + self.embedding + self.other

    @property
    def parameters(self) -> int:
        """Parameters of the whole model as published."""
        return self.loaded + (0 if self.tied or self.encoder else self.vocabulary * self.hidden)


def read_architecture(config: Mapping[str, Any], where: str = "") -> Architecture:
    """The architecture in a `config.json`.

    Raises:
        BadDataError: a number that decides the size is not there.
    """
    config = config.get("text_config") or config
    try:
        hidden, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
        family = str(config["model_type"])
        return Architecture(
            family="gemma3_text" if family == "gemma3" else family,
            hidden=hidden,
            layers=int(config["num_hidden_layers"]),
            intermediate=int(config["intermediate_size"]),
            heads=heads,
            kv_heads=int(config.get("num_key_value_heads") or heads),
            head_dim=int(config.get("head_dim") or hidden // heads),
            vocabulary=int(config["vocab_size"]),
            positions=int(config.get("max_position_embeddings") or 0),
            tied=bool(config.get("tie_word_embeddings", True)),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise BadDataError(
            f"config.json does not describe a transformer llmemb knows: {error}", where=where
        ) from None


def weight_bytes(model: Architecture, bits: Bits, *, training: bool = False) -> int:
    """Bytes of the frozen weights in memory.

    bf16: two bytes a parameter. 8-bit: one byte a linear weight and a float32 scale an output row. 4-bit (NF4): half
    a byte and a float32 scale for 64. Embeddings, norms and biases stay in bf16; PEFT puts them into float32 for
    training on 8- or 4-bit weights.
    """
    rest = model.embedding + model.other
    if bits == "bf16":
        return 2 * (model.linear + rest)
    rows = model.layers * sum(out for _, out in model.linear_shapes.values())
    linear = model.linear + 4 * rows if bits == "8-bit" else model.linear // 2 + 4 * model.linear // NF4_BLOCK
    return linear + rest * (4 if training else 2)


def lora_parameters(model: Architecture, rank: int, targets: list[str] | None = None) -> int:
    """LoRA parameters: rank * (in + out) for every linear layer in `targets` (all of them if None)."""
    chosen = [shape for name, shape in model.linear_shapes.items() if targets is None or name in targets]
    return model.layers * rank * sum(a + b for a, b in chosen)


def activation_bytes(model: Architecture, length: int, width: int = 2) -> int:
    """Bytes autograd keeps for one token of a training step through all blocks, with llmemb's own LoRA layers.

    A block of width d with h heads of d_h, groups of keys and values, and an MLP of d_m keeps, in numbers of `width`
    bytes: the two inputs of its projections (2 d), queries and what attention returns (2 h d_h), keys and values,
    the attention weights (h numbers a token of the text), and gate, its activation, up and their product (4 d_m); and
    its two states in float32 before the norms (8 d bytes).

    Args:
        length: tokens of a text.
    """
    q, kv = model.heads * model.head_dim, model.kv_heads * model.head_dim
    numbers = 2 * model.hidden + 2 * q + 2 * kv + model.heads * length + 4 * model.intermediate
    return model.layers * (width * numbers + 8 * model.hidden)


def peft_activation_bytes(model: Architecture, rank: int, bits: Bits = "4-bit") -> int:
    """The same with PEFT's LoRA layers under autocast to bf16, which are used on weights in 8 and 4 bits.

    Counted with saved-tensor hooks on Llama blocks (transformers 5, PEFT 0.21, fused attention): 38 bytes for each
    number of the hidden state, 10 of the queries, 4 of the keys, 12 of the feed-forward part, 14 a rank, 4 a head.
    On weights of 8 bits bitsandbytes keeps its own copies of the inputs as well.
    """
    q, kv = model.heads * model.head_dim, model.kv_heads * model.head_dim
    per_layer = 38 * model.hidden + 10 * q + 4 * kv + 12 * model.intermediate + 14 * rank + 4 * model.heads + 8
    return round(model.layers * per_layer * (EIGHT_BIT_FACTOR if bits == "8-bit" else 1))


def checkpointed_bytes(model: Architecture, activations: int, width: int = 2) -> int:
    """With gradient checkpointing: every block's input, and the activations of one block."""
    return model.layers * model.hidden * width + activations // model.layers


def forward_bytes(model: Architecture, tokens: int) -> int:
    """Bytes of the largest moment of a forward pass without gradients: one block, and pooling in float32."""
    q, kv = model.heads * model.head_dim, model.kv_heads * model.head_dim
    block = 2 * (4 * model.hidden + q + 2 * kv + 3 * model.intermediate)
    return tokens * (block + 8 * model.hidden)


def export_bytes(model: Architecture, bits: Bits, tokens: int = 4096) -> int:
    """Memory of `llmemb embed` with `tokens` passing the model at once, the libraries themselves not counted."""
    widest = max(a * b for a, b in model.linear_shapes.values())
    return weight_bytes(model, bits) + forward_bytes(model, tokens) + (0 if bits == "bf16" else 2 * widest)


def training_bytes(
    model: Architecture, bits: Bits, tokens: int = 1024, rank: int = 8, *, checkpointing: bool = False
) -> int:
    """Memory of `llmemb scft` with micro-batches of `tokens`, the libraries themselves not counted.

    Frozen weights, 18 bytes a LoRA parameter, and the activations of one micro-batch.
    """
    widest = max(a * b for a, b in model.linear_shapes.values())
    activations = activation_bytes(model, TEXT_TOKENS) if bits == "bf16" else peft_activation_bytes(model, rank, bits)
    if checkpointing:
        activations = checkpointed_bytes(model, activations)
    return (
        weight_bytes(model, bits, training=True)
        + BYTES_PER_TRAINED * lora_parameters(model, rank)
        + tokens * activations
        + forward_bytes(model, tokens)
        + (0 if bits == "bf16" else 2 * widest)
    )
