"""The methods as data: what the item embedding is, where it starts, what is frozen, what is added to the loss.

Help, `llmemb run`, training and docs read this table; `srs/item_embedding.py` holds the embeddings it names and
`srs/methods/` the extra losses.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from llmemb_cli.workspace.locate import PLAIN_NAME

# Vectors that llmemb makes, the names of their directories in `embeddings/`; and what `rat.vectors` may say of them.
OWN_VECTORS = ("scft", "base", "said", "tslrec")
VECTOR_CHOICES = ("own", "scft")
MethodName = Literal["none", "llmemb", "llm2x", "said", "tslrec", "melt", "llmesr", "alphafuse"]


@dataclass(frozen=True)
class Method:
    """One method.

    Attributes:
        help: one line for people, with the source.
        embedding: `table` (a trainable row an item), `adapter` (LLM vectors through two linear layers), `dual` (a
            table beside an adapter) or `fused` (LLM vectors plus a table in their weakest dimensions).
        vectors: LLM vectors it reads, the name of a directory in `embeddings/`: `scft` (tuned on prompts), `base`
            (the untouched LLM), `said`, `tslrec`; or none. Of `scft` and `base` others may take the place.
        start: what a trainable table starts from: `random`, `pca` (of the vectors) or `trained` (the plain run).
        frozen: what does not train, in words.
        extra: loss added to the backbone's own, by its name in `srs/methods/`.
        options: how the names of its own settings in `[rat]` begin.
        freezable: whether `rat.freeze_vectors` may replace the table by frozen vectors and a linear layer.
        stages: what is trained, in order, in words.
    """

    help: str
    embedding: Literal["table", "adapter", "dual", "fused"]
    vectors: Literal["", "scft", "base", "said", "tslrec"] = ""
    start: Literal["random", "pca", "trained"] = "random"
    frozen: str = "nothing"
    extra: Literal["", "align", "melt", "distill"] = ""
    options: str = ""
    freezable: bool = False
    stages: tuple[str, ...] = ("recommender",)


METHODS: dict[MethodName, Method] = {
    "none": Method("a trainable embedding an item, the backbone as published", "table"),
    "llmemb": Method(
        "frozen LLM vectors, tuned on item prompts, through a linear adapter, aligned to a collaborative model "
        "(Liu et al., AAAI 2025)",
        "adapter",
        vectors="scft",
        frozen="LLM vectors, collaborative embeddings",
        extra="align",
        stages=("SCFT", "LLM vectors", "collaborative model", "recommender"),
    ),
    "llm2x": Method(
        "a trainable table that starts from the PCA of the untouched LLM's vectors (Harte et al., RecSys 2023)",
        "table",
        vectors="base",
        start="pca",
        stages=("LLM vectors", "recommender"),
    ),
    "said": Method(
        "starts from the PCA of vectors that make a frozen LLM write the item's text (Hu et al., WWW 2024)",
        "table",
        vectors="said",
        start="pca",
        freezable=True,
        stages=("vectors that make the LLM write the text", "recommender"),
    ),
    "tslrec": Method(
        "starts from the PCA of an LLM that learnt users' tastes from item identities alone "
        "(Liu et al., arXiv 2406.00333)",
        "table",
        vectors="tslrec",
        start="pca",
        stages=("collaborative model", "LLM on identity sequences", "recommender"),
    ),
    "melt": Method(
        "trains on from the plain model with a branch for short histories and one for rare items "
        "(Kim et al., SIGIR 2023)",
        "table",
        start="trained",
        extra="melt",
        options="melt_",
        stages=("collaborative model", "recommender with both branches"),
    ),
    "llmesr": Method(
        "an LLM view beside a collaborative one, with distillation from similar users (Liu et al., NeurIPS 2024)",
        "dual",
        vectors="base",
        start="pca",
        frozen="LLM vectors of the semantic view",
        extra="distill",
        options="esr_",
        stages=("LLM vectors", "recommender"),
    ),
    "alphafuse": Method(
        "frozen whitened LLM vectors, with a trainable table in their weakest dimensions (Hu et al., SIGIR 2025)",
        "fused",
        vectors="base",
        frozen="LLM vectors",
        options="alphafuse_",
        stages=("LLM vectors", "recommender"),
    ),
}


def external_name(name: str) -> str:
    """`name`, if vectors made elsewhere may be called that.

    Raises:
        ValueError: it is no plain name, or that of vectors that llmemb makes.
    """
    if not PLAIN_NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no name for vectors: letters, digits and -._+=, the first a letter or digit")
    if name in (*OWN_VECTORS, *VECTOR_CHOICES) or name.startswith("scft-") or name.endswith(".parts"):
        raise ValueError(f"{name} is the name of vectors that llmemb makes itself")
    return name


def methods_help() -> str:
    """One line a method, as a Markdown list."""
    return "\n".join(f"- `{name}`: {method.help}{_own(method)}" for name, method in METHODS.items())


def _own(method: Method) -> str:
    return f"; `--set rat.{method.options}...`" if method.options else ""
