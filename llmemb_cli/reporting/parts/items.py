"""The report's parts on items: a map of their embeddings, nearest items, and what five users would be shown."""

from __future__ import annotations

from typing import Any

import numpy as np

from llmemb_cli.config.settings import Settings
from llmemb_cli.datasets.split import SplitData
from llmemb_cli.errors import BadDataError
from llmemb_cli.evaluation.candidates import test_users
from llmemb_cli.evaluation.groups import BINS
from llmemb_cli.evaluation.rank import full_ranking
from llmemb_cli.evaluation.spaces import Space, item_titles, llm_spaces, nearest, space_of_items, unit_vectors
from llmemb_cli.reporting import figures
from llmemb_cli.reporting.figures import Figure
from llmemb_cli.reporting.parts.training import pair_cosines, uniformity
from llmemb_cli.reporting.variants import BACKBONES, Variant, of_one_backbone
from llmemb_cli.seeds import numpy_rng
from llmemb_cli.srs.recommender import load_recommender
from llmemb_cli.workspace.locate import Workspace

TSNE_ITEMS = 2000
TSNE_STEPS = 500
NEIGHBOURS = 10
SHOWN = 5
HISTORY = 10


def item_spaces(workspace: Workspace, data: SplitData, mains: list[Variant]) -> tuple[dict[str, Space], list[str]]:
    """The spaces shown, by title, rows as in the data: LLM embeddings, then the runs of one backbone, a method each.

    And the titles of those left out, as they do not have a vector for every item of the data.
    """
    words = {"scft": "LLM, fine-tuned", "base": "LLM, untouched", "said": "LLM, SAID", "tslrec": "LLM, TSLRec"}
    names = {words.get(name, name): name for name in reversed(llm_spaces(workspace))}
    names |= {title(one): one.runs[0] for one in of_one_backbone(mains)}
    found, left_out = {}, []
    for shown, name in names.items():
        try:
            found[shown] = space_of_items(workspace, name, data.item_ids)
        except BadDataError:
            left_out.append(shown)
    return found, left_out


def title(one: Variant) -> str:
    """How a variant is called in pictures and lists."""
    return f"{BACKBONES[one.backbone]}, {one.method}"


def map_part(data: SplitData, spaces: dict[str, Space], settings: Settings) -> dict[str, Any] | None:
    """t-SNE of each space coloured by popularity bin (LLMEmb Figure 6), with numbers that say what the eye sees."""
    from sklearn.manifold import TSNE

    if not spaces or data.n_items <= NEIGHBOURS:  # every item would be a neighbour of every other
        return None
    rng = numpy_rng(settings.seed, "report-map")
    items = np.sort(rng.choice(data.n_items, size=min(TSNE_ITEMS, data.n_items), replace=False))
    groups = bins_of(data.train_counts[1:])[items]
    names = [name for _, _, name in BINS]
    panels, rows = [], []
    columns: dict[str, list[Any]] = {
        "item_id": data.item_ids.gather(items).to_list(),
        "training_interactions": data.train_counts[items + 1].tolist(),
        "bin": [names[group] for group in groups],
    }
    for name, space in spaces.items():
        unit = unit_vectors(space.vectors, centred=space.kind == "llm")
        same, even = same_group_share(unit[items], groups), uniformity(pair_cosines(unit, settings.seed))
        rows.append({"space": name, "same_bin": same, "uniformity": even})
        tsne = TSNE(
            perplexity=min(30, max(2, len(items) // 4)), init="pca", random_state=settings.seed, max_iter=TSNE_STEPS
        )
        xy = tsne.fit_transform(unit[items])
        panels.append(figures.scatter(f"{name}\nsame bin {same:.2f}, uniformity {even:.2f}", xy, groups, names))
        columns |= {f"{name} {axis}": xy[:, at].astype(float).round(3).tolist() for at, axis in enumerate("xy")}
    sizes = np.bincount(groups)
    chance = float(((sizes * (sizes - 1)).sum()) / max(len(items) * (len(items) - 1), 1))
    figure = Figure("item-map", "Item embeddings by popularity (t-SNE)", panels, columns)
    return {"figure": figure, "rows": rows, "chance": chance, "items": len(items), "neighbours": NEIGHBOURS}


def bins_of(counts: np.ndarray) -> np.ndarray:
    """(n,) int: the popularity bin (evaluation/groups.py) of each training count."""
    return np.searchsorted([low for low, _, _ in BINS], counts, side="right") - 1


def same_group_share(unit: np.ndarray, groups: np.ndarray) -> float:
    """Share of the ten nearest neighbours (cosine) that are in an item's own popularity bin.

    Near chance means the space is not organised by popularity.
    """
    similarity = unit @ unit.T
    np.fill_diagonal(similarity, -np.inf)
    count = min(NEIGHBOURS, len(unit) - 1)
    nearest_rows = np.argpartition(-similarity, count - 1, axis=1)[:, :count]
    return float((groups[nearest_rows] == groups[:, None]).mean())


def neighbour_part(
    workspace: Workspace, data: SplitData, spaces: dict[str, Space], tail: np.ndarray, settings: Settings
) -> list[dict[str, Any]]:
    """For two head and three tail items, the five nearest in each space.

    Args:
        tail: (n_items + 1,) bool, of the page (parts/data.py).
    """
    if not spaces:
        return []
    titles = item_titles(workspace)
    rng = numpy_rng(settings.seed, "report-neighbours")
    ids = data.item_ids.to_list()
    counts = data.train_counts[1:]
    examples: list[dict[str, Any]] = []
    rows: list[int] = []
    for kind, chosen, count in (("head", ~tail[1:], 2), ("tail", tail[1:], 3)):
        some = np.flatnonzero(chosen)
        rows += sorted(rng.choice(some, size=min(count, len(some)), replace=False).tolist())
        examples += [
            {"item_id": ids[row], "title": titles[ids[row]], "kind": kind, "count": int(counts[row]), "lists": []}
            for row in rows[len(examples) :]
        ]
    for name, space in spaces.items():
        unit = unit_vectors(space.vectors, centred=space.kind == "llm")
        for row, example in zip(rows, examples, strict=True):
            best, cosine = nearest(unit, row, SHOWN)
            found = [
                {"title": titles[ids[one]], "count": int(counts[one]), "cosine": float(value)}
                for one, value in zip(best.tolist(), cosine.tolist(), strict=True)
            ]
            example["lists"].append({"space": name, "items": found})
    return examples


def user_part(
    workspace: Workspace,
    data: SplitData,
    mains: list[Variant],
    tail: np.ndarray,
    settings: Settings,
    device: str,
) -> list[dict[str, Any]]:
    """Five test users, three of them with a tail target: history, target, and the top ten of each method."""
    users = test_users(data)
    if not mains or not len(users):
        return []
    titles = item_titles(workspace)
    in_tail = tail[data.test[users]]
    rng = numpy_rng(settings.seed, "report-users")
    chosen = np.concatenate(
        [
            rng.choice(some, size=min(count, len(some)), replace=False)
            for some, count in ((users[in_tail], 3), (users[~in_tail], 2))
        ]
    )
    ids = data.item_ids.to_list()

    def item(number: int, target: int) -> dict[str, Any]:
        name = ids[number - 1]
        return {"title": titles[name], "count": int(data.train_counts[number]), "hit": number == target}

    history = data.test_history()
    examples = [
        {
            "user_id": data.user_ids[int(user)],
            "length": len(history.row(int(user))),
            "history": [item(int(one), 0) for one in history.row(int(user))[-HISTORY:]],
            "target": item(int(data.test[user]), 0),
            "lists": [],
        }
        for user in chosen
    ]
    for one in of_one_backbone(mains):
        model = load_recommender(workspace.run(one.runs[0]), data, device)
        ranking = full_ranking(model, data, chosen, top=10, device=device)
        for place, example in enumerate(examples):
            target = int(data.test[chosen[place]])
            found = [item(int(number), target) for number in ranking.top[place] if number]
            example["lists"].append({"space": title(one), "rank": int(ranking.ranks[place]), "items": found})
    return examples
