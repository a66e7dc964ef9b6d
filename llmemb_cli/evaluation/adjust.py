"""Another logit adjustment for a trained run, without training: validation items ranked with it, a run kept so."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

from llmemb_cli.config.rat import settings_of_run
from llmemb_cli.config.runs import is_adjusted, vectors_read
from llmemb_cli.config.settings import Settings
from llmemb_cli.datasets.split import Ragged, SplitData, load_split
from llmemb_cli.devices import pick_device
from llmemb_cli.errors import WrongUseError
from llmemb_cli.evaluation.document import adjusted_from, known_runs
from llmemb_cli.evaluation.groups import make_groupings
from llmemb_cli.evaluation.rank import ranks_with
from llmemb_cli.evaluation.stage import LIST, figures, users_to_rank
from llmemb_cli.pipeline import adjusted_stage
from llmemb_cli.progress import Reporter
from llmemb_cli.ranking import ndcg
from llmemb_cli.srs.objective import popularity_offset
from llmemb_cli.srs.recommender import Recommender, load_recommender
from llmemb_cli.srs.validate import validation_ranks, validation_users
from llmemb_cli.workspace.locate import Workspace
from llmemb_cli.workspace.make import run_stage
from llmemb_cli.workspace.stage import Stage, output_fingerprint, partial_path, read_manifest, require_stage
from llmemb_cli.workspace.store import read_tensors, write_tensors

STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)


def adjusted(
    workspace: Workspace, settings: Settings, run: str, strengths: list[float] | None, share: float | None
) -> dict[str, Any]:
    """The document of `llmemb adjust --json`: figures on validation items for each adjustment, the run's own too.

    Training adds the adjustment to the scores and ranking does not, so that a model trained with another one has
    about these scores plus the difference of both (Menon et al., ICLR 2021: the same Bayes rule, after training).

    Args:
        strengths: weights to rank with; default: `STRENGTHS`.
        share: of the items whose popularity is told apart; default: the run's own, or, of one that was trained
            without an adjustment, that of llmemb.toml.

    Raises:
        WrongUseError: there is no such run.
        BadDataError: it was trained on other data, or nobody has a validation item.
    """
    manifest = require_stage(workspace.run(run), made_by="llmemb rat")
    trained = settings_of_run(manifest)
    data, model, device = _load(workspace, settings, run)
    before = data.before_validation()
    users = users_to_rank(workspace, before, "validation")
    own = trained.logit_adjustment, trained.logit_adjustment_share
    if share is None:
        share = own[1] if own[0] else settings.rat.logit_adjustment_share
    # Without a weight the share says nothing.
    asked = [(weight, share if weight else own[1]) for weight in strengths or STRENGTHS]
    wanted = sorted({own, *asked}, key=lambda one: (one[0], one != own))
    taken, *put = (_offset(data.train, data.n_items, *one) for one in (own, *wanted))
    ranks = ranks_with(
        model,
        before,
        users,
        [taken - offset for offset in put],
        exclude_history=settings.eval.history == "exclude",
        batch_users=settings.eval.batch_users,
        device=device,
    )
    grouping = make_groupings(before, users, settings.data.tail_share, settings.eval.tail_threshold)["popularity"]
    entries = []
    for (weight, of_items), row in zip(wanted, ranks, strict=True):
        parts = {"overall": row} | {name: row[grouping.labels == at] for at, name in enumerate(grouping.names)}
        entries.append(
            {
                "logit_adjustment": weight,
                "logit_adjustment_share": of_items,
                "own": (weight, of_items) == own,
                **{name: figures(some, [LIST]) for name, some in parts.items()},
            }
        )
    return {
        "run": run,
        "adjusted_from": _source(workspace, manifest),
        "history": settings.eval.history,
        "definition": grouping.definition,
        "adjustments": entries,
    }


def _source(workspace: Workspace, manifest: dict[str, Any]) -> str | None:
    """The run that one which was kept was made from, as it is called now."""
    runs = known_runs(workspace) if is_adjusted(manifest) else []
    return adjusted_from(manifest, {run: output_fingerprint(workspace.run(run)) for run in runs})


def keep_adjusted(
    workspace: Workspace, settings: Settings, run: str, adjustments: list[dict[str, Any]], report: Reporter
) -> list[dict[str, Any]]:
    """Make a run of `run` with each adjustment but its own: `runs/<run>-adjusted-<weight>`.

    The difference of both adjustments is a bias an item, which everything that reads a run adds to its scores.

    Args:
        adjustments: as `adjusted` has them.

    Returns:
        of each its name (`run`), whether it was `built`, and its `best_validation` NDCG@10.

    Raises:
        WrongUseError: the run is one that was kept so, there is no other adjustment than its own, or a trained run
            has the name of what is to be kept.
    """
    manifest = require_stage(workspace.run(run), made_by="llmemb rat")
    if is_adjusted(manifest):
        source = _source(workspace, manifest)
        hint = f"adjust that one: {source}" if source else "that one is no longer here"
        raise WrongUseError(f"{run} is another run with an adjustment of its own", hint=hint)
    others = [(one["logit_adjustment"], one["logit_adjustment_share"]) for one in adjustments if not one["own"]]
    if not others:
        raise WrongUseError(f"{run} was trained with this adjustment", hint="keep another one")
    load = cache(lambda: _load(workspace, settings, run))
    kept = []
    for weight, share in others:
        stage = adjusted_stage(workspace, run, weight, share)
        there = read_manifest(stage.path)
        if there is not None and not is_adjusted(there):
            raise WrongUseError(
                f"a run that was trained is called {stage.path.name}",
                hint="move it, or remove it with `llmemb runs remove`",
            )
        build = partial(_adjust, workspace.run(run), manifest, (weight, share), load)
        try:
            made = run_stage(stage, build, report=report, named=f"the run {stage.path.name}")
        finally:
            _forget_begun(stage)
        best = made.manifest["summary"]["best_validation"]
        kept.append({"run": stage.path.name, "built": made.built, "best_validation": best})
    return kept


def _forget_begun(stage: Stage) -> None:
    """Remove what an interrupted call began: it is made anew in seconds, and would look like unfinished training."""
    work = partial_path(stage)
    if read_manifest(work) is None:
        shutil.rmtree(work, ignore_errors=True)


def _load(workspace: Workspace, settings: Settings, run: str) -> tuple[SplitData, Recommender, str]:
    """The data, the run, and the device that it is on."""
    data, device = load_split(workspace.data), pick_device(settings.eval.device)
    return data, load_recommender(workspace.run(run), data, device), device


def _adjust(
    source: Path,
    manifest: dict[str, Any],
    adjustment: tuple[float, float],
    load: Callable[[], tuple[SplitData, Recommender, str]],
    work: Path,
) -> dict[str, Any]:
    """Write the run in `source` with another adjustment (weight, share); returns what its manifest says."""
    trained = settings_of_run(manifest)
    data, model, device = load()
    own = trained.logit_adjustment, trained.logit_adjustment_share
    taken, put = (_offset(data.train, data.n_items, *one) for one in (own, adjustment))
    weights = read_tensors(source / "model.safetensors")
    weights["bias"] = taken - put + weights.get("bias", 0)
    model.bias = torch.nn.Parameter(weights["bias"].to(device))
    users = validation_users(data, trained.validation_users, manifest["made_from"]["seed"])
    ranks = validation_ranks(model, data, users, device)
    write_tensors(work / "model.safetensors", weights)
    for name in ("item_embeddings.safetensors", "ids.parquet"):
        shutil.copyfile(source / name, work / name)
    return manifest["summary"] | {
        "best_validation": float(ndcg(ranks, LIST).mean()) if len(ranks) else None,
        "vectors_read": vectors_read(manifest),
        # The row of padding is that of an item without interactions.
        "new_item_bias": float((taken - put)[0]),
    }


def _offset(train: Ragged, n_items: int, weight: float, share: float) -> torch.Tensor:
    """(n_items + 1,) float: what training with this adjustment adds to the scores; zeros for a weight of 0."""
    offset = popularity_offset(train, n_items, weight, share)
    return torch.zeros(n_items + 1) if offset is None else offset
