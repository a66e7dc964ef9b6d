"""The eval stage: `runs/<run>/eval/<protocol>/` with every user's rank and the metrics."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from llmemb_cli.config.settings import Settings
from llmemb_cli.datasets.split import SplitData, load_split
from llmemb_cli.devices import pick_device
from llmemb_cli.embeddings.table import read_ids, read_table, rows_for
from llmemb_cli.errors import BadDataError
from llmemb_cli.evaluation.beyond import beyond_accuracy
from llmemb_cli.evaluation.candidates import make_candidates, read_candidates, test_users
from llmemb_cli.evaluation.groups import Grouping, make_groupings
from llmemb_cli.evaluation.rank import full_ranking, sampled_ranks
from llmemb_cli.pipeline import candidates_stage, diversity_space, eval_stage, protocol_name
from llmemb_cli.progress import Reporter
from llmemb_cli.ranking import hit_rate, ndcg, recall, reciprocal_rank
from llmemb_cli.srs.recommender import load_recommender
from llmemb_cli.workspace.locate import Workspace
from llmemb_cli.workspace.make import StageResult, run_stage
from llmemb_cli.workspace.stage import require_stage, stage_state
from llmemb_cli.workspace.store import write_json, write_parquet

LIST = 10  # length of the lists that coverage, Gini, novelty and diversity look at; always among the cut-offs


def run_eval(
    workspace: Workspace, settings: Settings, run: str, report: Reporter, force: bool = False
) -> StageResult:
    """Rank the test item of every user with a run, or the validation item, and write metrics overall and by group.

    Raises:
        WrongUseError: there is no such run.
        BadDataError: the run was trained on other data, or nobody has an item to rank.
    """
    require_stage(workspace.run(run), made_by="llmemb rat")
    if settings.eval.protocol == "sampled":
        make_candidates(workspace, settings, report)

    def build(work: Path) -> dict[str, Any]:
        return _measure(workspace, settings, run, work, report)

    return run_stage(eval_stage(workspace, settings, run), build, force=force, report=report)


def is_evaluated(workspace: Workspace, settings: Settings, run: str) -> bool:
    """Whether a run has been ranked as `run_eval` would, with the same settings and inputs."""
    stages = [eval_stage(workspace, settings, run)]
    if settings.eval.protocol == "sampled":
        stages.append(candidates_stage(workspace, settings))
    return all(stage_state(stage).state == "up-to-date" for stage in stages)


def _measure(workspace: Workspace, settings: Settings, run: str, work: Path, report: Reporter) -> dict[str, Any]:
    chosen = settings.eval
    data = load_split(workspace.data)
    device = pick_device(chosen.device)
    model = load_recommender(workspace.run(run), data, device)
    validation = chosen.protocol == "validation"
    if validation:
        data = data.before_validation()
    users = users_to_rank(workspace, data, "validation" if validation else "test")
    beyond: dict[str, Any] | None = None
    if chosen.protocol != "sampled":
        exclude = chosen.history == "exclude"
        ranks, top = full_ranking(
            model,
            data,
            users,
            top=LIST,
            exclude_history=exclude,
            batch_users=chosen.batch_users,
            device=device,
        )
        beyond = _beyond(workspace, data, top, report)
    else:
        candidates = read_candidates(workspace.candidates(protocol_name(settings)))
        ranks = sampled_ranks(model, data, users, candidates, batch_users=chosen.batch_users, device=device)
    groupings = make_groupings(data, users, settings.data.tail_share, chosen.tail_threshold, chosen.bins)
    ks = sorted({*chosen.k, LIST})
    write_parquet(work / "ranks.parquet", user_table(data, users, ranks, groupings, ks))
    metrics = {
        "protocol": protocol_document(settings),
        "overall": figures(ranks, ks),
        "beyond": beyond,
        "groups": group_figures(groupings, ranks, ks),
        "definitions": {name: grouping.definition for name, grouping in groupings.items()},
    }
    write_json(work / "metrics.json", metrics)
    return metrics


def users_to_rank(workspace: Workspace, data: SplitData, what: str) -> np.ndarray:
    """(n,) int64: the users with an item to rank, in the present data.

    Raises:
        BadDataError: there are none; `what` is the item they lack.
    """
    users = test_users(data)
    if not len(users):
        raise BadDataError(f"no user has a {what} item", where=str(workspace.data), hint="see `llmemb data`")
    return users


def user_table(
    data: SplitData, users: np.ndarray, ranks: np.ndarray, groupings: Mapping[str, Grouping], ks: list[int]
) -> pl.DataFrame:
    """Every test user's result: ids, rank, the user's group in every grouping, every metric."""
    columns = {
        "user_id": data.user_ids.gather(users),
        "item_id": data.item_ids.gather(data.test[users] - 1),
        "rank": ranks,
        "train_count": data.train_counts[data.test[users]],
        "history": data.test_history().lengths()[users],
    } | {name: [grouping.names[label] for label in grouping.labels] for name, grouping in groupings.items()}
    return pl.DataFrame(columns | per_user(ranks, ks))


def group_figures(
    groupings: Mapping[str, Grouping], ranks: np.ndarray, ks: list[int]
) -> dict[str, list[dict[str, Any]]]:
    """Size and metrics of every group of every grouping; sizes add up to the number of users in each."""
    return {
        name: [
            {"name": group} | figures(ranks[grouping.labels == place], ks)
            for place, group in enumerate(grouping.names)
        ]
        for name, grouping in groupings.items()
    }


def _beyond(workspace: Workspace, data: SplitData, top: np.ndarray, report: Reporter) -> dict[str, Any]:
    """What all users' lists are like; diversity in the space of the LLM embeddings there are, tuned ones first."""
    space = diversity_space(workspace)
    if space is not None and not data.item_ids.is_in(read_ids(workspace.embeddings(space)).implode()).all():
        report.note(f"no diversity of the lists: embeddings/{space} lacks items of the data (`llmemb status`)")
        space = None
    vectors = None
    if space is not None:
        directory = workspace.embeddings(space)
        vectors = rows_for(read_table(directory), data.item_ids, str(directory))
    return {"k": LIST, "diversity_space": space} | beyond_accuracy(top, data.train_counts, vectors)


def protocol_document(settings: Settings) -> dict[str, Any]:
    """How ranks were made, as it stands beside every figure."""
    chosen = settings.eval
    if chosen.protocol != "sampled":
        return {"kind": chosen.protocol, "negatives": None, "seed": None, "history": chosen.history}
    return {
        "kind": "sampled",
        "negatives": chosen.negatives,
        "seed": chosen.candidate_seed,
        "candidates": chosen.candidates,
    }


def per_user(ranks: np.ndarray, ks: list[int]) -> dict[str, np.ndarray]:
    """Every user's metrics by name, (n,) float64 each."""
    result = {}
    for k in ks:
        result[f"HR@{k}"] = hit_rate(ranks, k)
        result[f"NDCG@{k}"] = ndcg(ranks, k)
        result[f"MRR@{k}"] = reciprocal_rank(ranks, k)
        result[f"Recall@{k}"] = recall(ranks, k)
    return result | {"MRR": reciprocal_rank(ranks)}


def figures(ranks: np.ndarray, ks: list[int]) -> dict[str, Any]:
    """Size and mean metrics of a group; metrics are null where nobody is in it."""
    means = {name: float(values.mean()) if len(ranks) else None for name, values in per_user(ranks, ks).items()}
    return {"n": len(ranks)} | means
