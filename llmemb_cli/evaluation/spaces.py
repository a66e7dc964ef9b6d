"""Where items lie: the LLM embeddings and the runs of a workspace by name, and the items near one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl

from llmemb_cli.config.runs import is_adjusted
from llmemb_cli.embeddings.export import read_items
from llmemb_cli.embeddings.table import EmbeddingTable, rows_for
from llmemb_cli.errors import WrongUseError, unknown_id
from llmemb_cli.evaluation.document import known_runs, no_runs, unknown_run
from llmemb_cli.seeds import numpy_rng
from llmemb_cli.workspace.locate import Workspace
from llmemb_cli.workspace.stage import output_fingerprint, read_manifest
from llmemb_cli.workspace.store import read_parquet

PAIRS = 20_000
MOST_COMPARED = 20_000  # ids looked through for a near match


@dataclass(frozen=True)
class Space:
    """Vectors of all items: `vectors` (n, d) float32, row r belongs to `item_ids[r]`."""

    name: str
    kind: Literal["llm", "run"]
    item_ids: pl.Series
    vectors: np.ndarray


def llm_spaces(workspace: Workspace) -> list[str]:
    """Names of the LLM embeddings there are, tuned ones first."""
    folders = sorted((workspace.root / "embeddings").glob("*"))
    names = [path.name for path in folders if path.name[0] != "." and read_manifest(path) is not None]
    return sorted(names, key=lambda name: (name != "scft", name == "base"))


def open_space(workspace: Workspace, name: str | None = None) -> Space:
    """The vectors called `name`: LLM embeddings (`scft`, `base`) or a run's item embeddings.

    Args:
        name: default: the tuned LLM's, else the untouched LLM's, else those of the best run.

    Raises:
        WrongUseError: there is none, or none of that name.
    """
    _known(workspace)
    llm = llm_spaces(workspace)
    chosen = check_space(workspace, name) if name is not None else llm[0] if llm else best_run(workspace)
    kind: Literal["llm", "run"] = "llm" if chosen in llm else "run"
    table = read_items(directory_of(workspace, chosen))
    return Space(chosen, kind, table.item_ids, table.vectors)


def space_of_items(workspace: Workspace, name: str, item_ids: pl.Series) -> Space:
    """The vectors called `name` of some items: row r belongs to `item_ids[r]`.

    What was made before the data changed has other items, or the same in another order.

    Raises:
        BadDataError: an item has no vector in it.
        WrongUseError: as `open_space`.
    """
    space = open_space(workspace, name)
    vectors = rows_for(EmbeddingTable(space.item_ids, space.vectors), item_ids, str(directory_of(workspace, name)))
    return Space(name, space.kind, item_ids, vectors)


def _known(workspace: Workspace) -> list[str]:
    known = [*llm_spaces(workspace), *known_runs(workspace)]
    if not known:
        hint = "run `llmemb scft` and `llmemb embed`, or `llmemb rat`"
        raise no_runs(workspace, "there are no embeddings yet", hint)
    return known


def check_space(workspace: Workspace, name: str) -> str:
    """`name`, if there are LLM embeddings or a run of that name.

    Raises:
        WrongUseError: there are not.
        BadDataError: the run is damaged.
    """
    known = _known(workspace)
    if name not in known:
        raise unknown_run(workspace, name, "run or embeddings", known)
    return name


def directory_of(workspace: Workspace, name: str) -> Path:
    """The directory of LLM embeddings or of a run."""
    return workspace.embeddings(name) if name in llm_spaces(workspace) else workspace.run(name)


def best_run(workspace: Workspace, *, trained: bool = False) -> str:
    """The run with the best validation NDCG@10, of those trained on the present data if there are any.

    A run that had nothing to validate on comes last.

    Args:
        trained: without those that `llmemb adjust` kept.

    Raises:
        WrongUseError: there are no runs.
    """
    found = {name: read_manifest(workspace.run(name)) or {} for name in known_runs(workspace)}
    manifests = {name: one for name, one in found.items() if not (trained and is_adjusted(one))}
    if not manifests:
        raise no_runs(workspace)
    data = output_fingerprint(workspace.data)

    def rank(name: str) -> tuple[bool, float]:
        score = manifests[name]["summary"]["best_validation"]
        return manifests[name]["made_from"]["inputs"]["data"] == data, -1.0 if score is None else score

    return max(manifests, key=rank)


def unit_vectors(vectors: np.ndarray, *, centred: bool) -> np.ndarray:
    """(n, d) float32 of length 1 (0 for a zero vector), `centred` after their mean is taken away.

    LLM states share a large common direction; without taking it away every item looks like every other.
    """
    unit = vectors - vectors.mean(axis=0) if centred else vectors.astype(np.float32, copy=True)
    unit /= np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1e-12)
    return unit.astype(np.float32, copy=False)


def nearest(unit: np.ndarray, row: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The `k` rows nearest to `row` by cosine, itself aside, and their cosines; equal ones in row order."""
    cosine = unit @ unit[row]
    cosine[row] = -np.inf
    best = np.argsort(-cosine, kind="stable")[: min(k, len(unit) - 1)]
    return best, cosine[best]


def background(unit: np.ndarray, seed: int = 0) -> dict[str, float]:
    """How alike two items drawn at random are: mean cosine, and the level that one pair in twenty exceeds."""
    if len(unit) < 2:
        return {"mean": 0.0, "high": 0.0}
    rng = numpy_rng(seed, "background")
    first = rng.integers(0, len(unit), PAIRS)
    second = (first + rng.integers(1, len(unit), PAIRS)) % len(unit)
    cosine = np.einsum("ij,ij->i", unit[first], unit[second])
    return {"mean": float(cosine.mean()), "high": float(np.quantile(cosine, 0.95))}


def item_titles(workspace: Workspace) -> dict[str, str]:
    """Title of every item by id; its id where it has none."""
    items = read_parquet(workspace.data / "items.parquet", columns=["item_id", "title"])
    return {item: title or item for item, title in items.iter_rows()}


def find_item(titles: dict[str, str], item: str | None, text: str | None) -> tuple[str, list[str]]:
    """The item meant, and other items that `text` may have meant.

    Args:
        titles: title by id.
        item: an id; or
        text: words of a title, whatever their case. A title that equals it wins, then the shortest with all words.

    Raises:
        WrongUseError: neither or both are given, or nothing is found.
    """
    if (item is None) == (text is None):
        raise WrongUseError("name an item by its id, or by --text", hint='for example --text "toy story"')
    if item is not None:
        if item in titles:
            return item, []
        hint = unknown_id(item, list(titles)[:MOST_COMPARED]) + '; search titles with --text "words"'
        raise WrongUseError(f"no item {item}", hint=hint)
    wanted = (text or "").casefold()
    words = wanted.split()
    found = [one for one, title in titles.items() if all(word in title.casefold() for word in words)] if words else []
    if not found:
        raise WrongUseError(f"no title has all words of {text!r}", hint="fewer words, or the item's id")
    found.sort(key=lambda one: (titles[one].casefold() != wanted, len(titles[one])))
    return found[0], found[1:]


def similar_items(
    workspace: Workspace, space: Space, item: str, k: int, *, centred: bool, seed: int = 0
) -> dict[str, Any]:
    """The document of `llmemb similar --json`."""
    titles = item_titles(workspace)
    ids = space.item_ids.to_list()
    if item not in (rows := {one: row for row, one in enumerate(ids)}):
        raise WrongUseError(f"item {item} has no vector in {space.name}", hint="run `llmemb embed` or `llmemb rat`")
    unit = unit_vectors(space.vectors, centred=centred)
    best, cosine = nearest(unit, rows[item], k)
    neighbours = [
        {"rank": place + 1, "item_id": ids[row], "title": titles.get(ids[row], ids[row]), "cosine": float(value)}
        for place, (row, value) in enumerate(zip(best.tolist(), cosine.tolist(), strict=True))
    ]
    return {
        "item_id": item,
        "title": titles[item],
        "space": space.name,
        "kind": space.kind,
        "centred": centred,
        "background": background(unit, seed),
        "neighbours": neighbours,
    }
