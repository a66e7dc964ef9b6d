"""What another logit adjustment would do to a trained run: its validation items ranked, without training again."""

from __future__ import annotations

from typing import Any

import torch

from llmemb_cli.config.rat import settings_of_run
from llmemb_cli.config.settings import Settings
from llmemb_cli.datasets.split import Ragged, load_split
from llmemb_cli.devices import pick_device
from llmemb_cli.evaluation.groups import make_groupings
from llmemb_cli.evaluation.rank import ranks_with
from llmemb_cli.evaluation.stage import LIST, figures, users_to_rank
from llmemb_cli.srs.objective import popularity_offset
from llmemb_cli.srs.recommender import load_recommender
from llmemb_cli.workspace.locate import Workspace
from llmemb_cli.workspace.stage import require_stage

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
    trained = settings_of_run(require_stage(workspace.run(run), made_by="llmemb rat"))
    data = load_split(workspace.data)
    device = pick_device(settings.eval.device)
    model = load_recommender(workspace.run(run), data, device)
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
                "trained": (weight, of_items) == own,
                **{name: figures(some, [LIST]) for name, some in parts.items()},
            }
        )
    return {"run": run, "definition": grouping.definition, "adjustments": entries}


def _offset(train: Ragged, n_items: int, weight: float, share: float) -> torch.Tensor:
    """(n_items + 1,) float: what training with this adjustment adds to the scores; zeros for a weight of 0."""
    offset = popularity_offset(train, n_items, weight, share)
    return torch.zeros(n_items + 1) if offset is None else offset
