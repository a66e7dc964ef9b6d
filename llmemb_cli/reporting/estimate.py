"""How long a grid of runs may take: from runs like them, or from a few steps of training where there are none."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from llmemb_cli.config.runs import method_of, rat_settings, used_settings, vectors_needed
from llmemb_cli.config.settings import Settings
from llmemb_cli.datasets.split import Ragged, SplitData, load_split
from llmemb_cli.errors import LlmembError
from llmemb_cli.reporting.grid import Cell
from llmemb_cli.seeds import numpy_rng
from llmemb_cli.workspace.locate import Workspace
from llmemb_cli.workspace.stage import read_manifest, readable_manifest

if TYPE_CHECKING:
    import torch

    from llmemb_cli.srs.item_embedding import ItemEmbedding

STEPS = 3  # that are timed, after one that is not
# Settings of [rat] that a step's time depends on.
SPEED = ("hidden_size", "layers", "heads", "max_length", "batch_size", "loss", "negatives", "validation_users")


@dataclass(frozen=True)
class Estimate:
    """Seconds a run may take.

    Attributes:
        seconds: how many.
        source: `runs`: as long as runs like it took; `steps`: a few of its steps, times the most epochs there may be.
    """

    seconds: float
    source: Literal["runs", "steps"]


def estimate(cells: Sequence[Cell]) -> list[Estimate | None]:
    """What each cell may take; None where it cannot be known.

    That is without data, where a cell cannot train, and with MELT before it was trained once: how long its branches
    take depends on all users and items, and some of them say nothing.
    """
    roots = {cell.workspace.root for cell in cells}
    earlier = {root: _earlier(Workspace(root)) for root in roots}
    timed: dict[tuple[Any, ...], float | None] = {}
    found: list[Estimate | None] = []
    for cell in cells:
        rat = cell.settings.rat
        like = earlier[cell.workspace.root].get(_kind(cell.settings))
        if like:
            found.append(Estimate(float(np.mean([_expected(one, rat.epochs) for one in like])), "runs"))
            continue
        key = (cell.workspace.root, _kind(cell.settings))
        if key not in timed:
            timed[key] = _epoch_seconds(cell.workspace, cell.settings)
        seconds = timed[key]
        found.append(None if seconds is None else Estimate(seconds * rat.epochs, "steps"))
    return found


def _kind(settings: Settings) -> tuple[Any, ...]:
    """What runs that take about as long have in common."""
    rat, chosen = settings.rat, rat_settings(settings)
    return (rat.backbone, rat.method, "freeze" in rat.without, *(chosen.get(name) for name in SPEED))


def _earlier(workspace: Workspace) -> dict[tuple[Any, ...], list[dict[str, Any]]]:
    """The workspace's runs by kind: seconds an epoch, epochs trained, and how many there might have been."""
    runs: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for path in sorted((workspace.root / "runs").glob("[!.]*")):
        manifest = readable_manifest(path)
        if manifest is None:
            continue
        chosen, summary = used_settings(manifest), manifest["summary"]
        kind = (chosen["backbone"], chosen["method"], "freeze" in summary["without"])
        runs.setdefault((*kind, *(chosen.get(name) for name in SPEED)), []).append(
            {"seconds": summary["seconds_per_epoch"], "epochs": summary["epochs"], "most": chosen["epochs"]}
        )
    return runs


def _expected(run: dict[str, Any], most: int) -> float:
    """Seconds a run like `run` takes when at most `most` epochs are trained."""
    # One that stopped early will do so again; one that did not says nothing about more epochs than it had.
    epochs = min(run["epochs"], most) if run["epochs"] < run["most"] else most
    return float(run["seconds"] * epochs)


def _epoch_seconds(workspace: Workspace, settings: Settings) -> float | None:
    """Seconds of an epoch with validation, from a few steps on users drawn at random; vectors are made up."""
    from llmemb_cli.srs.sequences import training_rows

    if method_of(settings).extra == "melt":
        return None
    try:
        data = load_split(workspace.data)
        rat = settings.rat
        users = numpy_rng(0, "estimate").permutation(np.flatnonzero(data.train.lengths() > 1))
        warm, some = (only_users(data, users[:count]) for count in (rat.batch_size, STEPS * rat.batch_size))
        _train(workspace, settings, warm)
        started = time.perf_counter()
        _train(workspace, settings, some)
        seconds = time.perf_counter() - started
        rows = [len(training_rows(one.train, rat.backbone)) for one in (data, some)]
        return seconds * rows[0] / max(rows[1], 1)
    except LlmembError:
        return None


def only_users(data: SplitData, users: np.ndarray) -> SplitData:
    """The data with the histories of some users alone; all items stay."""
    rows = [data.train.row(int(user)) for user in users]
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
    values = np.concatenate([*rows, np.empty(0, dtype=np.int32)]).astype(np.int32)
    return SplitData(
        data.item_ids,
        data.user_ids.gather(users),
        Ragged(values, offsets),
        data.valid[users],
        data.test[users],
        data.train_counts,
        data.fingerprint,
    )


def _train(workspace: Workspace, settings: Settings, data: SplitData) -> None:
    """One epoch, with vectors and a collaborative table of random numbers, whatever the workspace has."""
    import torch

    from llmemb_cli.devices import pick_device
    from llmemb_cli.peers import ALONE
    from llmemb_cli.progress import Reporter
    from llmemb_cli.srs.loop import Training, train
    from llmemb_cli.srs.methods.extras import make_extra
    from llmemb_cli.srs.precision import use_precision
    from llmemb_cli.srs.recommender import Recommender
    from llmemb_cli.tracking import Trackers

    rat = settings.rat.model_copy(update={"epochs": 1, "track": []})
    chosen = settings.model_copy(update={"rat": rat})
    device = pick_device(rat.device)
    model = Recommender(rat, data.n_items, _embedding(workspace, chosen, data.n_items))
    use_precision(model, rat, device)
    model.to(device)
    collaborative = torch.randn(data.n_items, rat.hidden_size)
    extra = make_extra(chosen, model, data, collaborative, device)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        (work / "partial.json").write_text("{}")
        train(Training(model, chosen, data, extra, "estimate", work, Reporter(), device, ALONE, {}, Trackers()))


def _embedding(workspace: Workspace, settings: Settings, n_items: int) -> ItemEmbedding:
    """An embedding of the method's kind and size; what its vectors say does not matter for the time."""
    import torch

    from llmemb_cli.srs.item_embedding import AdaptedTable, DualTable, FrozenTable, FusedTable, ItemTable, LinearTable

    rat, method = settings.rat, method_of(settings)
    manifest = read_manifest(workspace.embeddings(vectors_needed(settings) or "none"))
    width = min(rat.d_m, manifest["summary"]["width"] if manifest else rat.d_m)

    def vectors(size: int) -> torch.Tensor:
        return torch.randn(n_items, size)

    if "adapter" in rat.without and method.embedding == "adapter":
        return FrozenTable(vectors(rat.hidden_size))
    if method.embedding == "adapter":
        return AdaptedTable(vectors(width), rat.hidden_size, freeze="freeze" not in rat.without)
    if method.embedding == "dual":
        return DualTable(vectors(rat.hidden_size), vectors(width))
    if method.embedding == "fused":
        return FusedTable(vectors(rat.hidden_size), min(rat.alphafuse_dims, rat.hidden_size))
    if method.freezable and rat.freeze_vectors:
        return LinearTable(vectors(width), rat.hidden_size)
    return ItemTable(n_items, rat.hidden_size)
