"""RAT: train a backbone and its item embeddings (LLMEmb section 3.3). The loop stands in `loop.py`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from llmemb_cli import pipeline
from llmemb_cli.checkpoint import FILE as CHECKPOINT
from llmemb_cli.checkpoint import forget_checkpoint
from llmemb_cli.config.runs import (
    collaborative_settings,
    method_of,
    run_name,
    tslrec_source,
    used_settings,
    vectors_needed,
    vectors_settings,
)
from llmemb_cli.config.settings import Settings
from llmemb_cli.datasets.split import SplitData, load_split
from llmemb_cli.errors import BadDataError, LlmembError
from llmemb_cli.llm.memory import out_of_memory
from llmemb_cli.peers import ALONE, Peers, own_device
from llmemb_cli.progress import Reporter
from llmemb_cli.seeds import stream_seed
from llmemb_cli.srs.loop import Training, train
from llmemb_cli.srs.methods.extras import make_extra
from llmemb_cli.srs.objective import loss_name
from llmemb_cli.srs.precision import use_precision
from llmemb_cli.srs.prepare import check_fit, check_made, prepare_vectors
from llmemb_cli.srs.recommender import Recommender, check_heads
from llmemb_cli.srs.vectors import make_embedding
from llmemb_cli.tracking import open_trackers
from llmemb_cli.workspace.locate import Workspace
from llmemb_cli.workspace.make import StageResult, run_stage
from llmemb_cli.workspace.stage import partial_path, require_stage
from llmemb_cli.workspace.store import made_again, read_tensors, write_parquet, write_tensors


def run_rat(
    workspace: Workspace,
    settings: Settings,
    report: Reporter,
    force: bool = False,
    name: str | None = None,
    in_file: Settings | None = None,
    peers: Peers = ALONE,
) -> StageResult:
    """Train the run that `[rat]` and the seed describe, and first what its method needs, where that is not there.

    Args:
        name: the run's directory; default: from backbone, method and seed.
        in_file: the settings of llmemb.toml without flags; runs whose flags differ from them get a name of their own.
        peers: the processes that train together, all of which make this call; process 0 writes.

    Raises:
        WrongUseError: an input has not been made, or backbone and method do not go together.
        BadDataError: the LLM's vectors are all the same.
        InterruptedRunError: a signal came; a checkpoint is kept and the same call goes on.
    """
    rat = settings.rat
    check_fit(settings)
    check_heads(rat)
    check_made(workspace, settings)
    collaborative = collaborative_settings(settings)
    if collaborative is not None:
        run_rat(workspace, collaborative, report, in_file=in_file, peers=peers)
    base = vectors_settings(settings, in_file)
    if vectors_needed(settings) == "tslrec":
        run_rat(workspace, tslrec_source(base), report, in_file=base, peers=peers)
    if peers.rank == 0:
        prepare_vectors(workspace, settings, base, report)
    peers.any(False)  # the others wait for the vectors
    run = name or run_name(settings, in_file)
    source = run_name(collaborative, in_file) if collaborative is not None else None
    stage = pipeline.rat_stage(workspace, settings, run, in_file)
    device = own_device(settings.rat.device)
    begun = False

    def build(work: Path) -> dict[str, Any]:
        nonlocal begun
        begun = True
        peers.any(True)
        return _build(workspace, settings, work, run, source, report, peers, device)

    result = None
    if peers.rank == 0:
        result = run_stage(stage, build, force=force, report=report, device=device, named=f"the run {run}")
        if not begun:
            peers.any(False)
    elif peers.any(False):
        _build(workspace, settings, partial_path(stage), run, source, report, peers, device)
    peers.any(False)  # process 0 has written everything
    return result or StageResult(False, 0.0, require_stage(stage.path, made_by="llmemb rat"))


@contextmanager
def _told_of_memory() -> Iterator[None]:
    """Within, memory that ran out is an LlmembError: a search of settings goes on with its next trial."""
    try:
        yield
    except (RuntimeError, MemoryError, OSError) as error:
        if not out_of_memory(error):
            raise
        raise LlmembError(
            "out of memory", hint="lower rat.batch_size or rat.negatives, or train fewer at once"
        ) from error


@_told_of_memory()
def _build(
    workspace: Workspace,
    settings: Settings,
    work: Path,
    run: str,
    source: str | None,
    report: Reporter,
    peers: Peers,
    device: str,
) -> dict[str, Any]:
    import polars as pl

    rat = settings.rat
    data = load_split(workspace.data)
    collaborative = _collaborative(workspace, source, data, rat.hidden_size)
    read = None if source is None else used_settings(require_stage(workspace.run(source), made_by="llmemb rat"))
    torch.manual_seed(stream_seed(settings.seed, "rat-init"))
    model = Recommender(rat, data.n_items, make_embedding(workspace, settings, data, collaborative))
    if source is not None and method_of(settings).start == "trained":
        _start_from(model, workspace.run(source))
    precision = use_precision(model, rat, device)
    model.to(device)
    extra = make_extra(settings, model, data, collaborative, device)
    scale = table_scale(model)
    report.note(f"{run}: item embeddings at the start: std {scale['std']:.3g}, mean norm {scale['mean_norm']:.3g}")
    trackers = open_trackers(
        rat.track if peers.rank == 0 else [],
        workspace.root / "tracking",
        run,
        rat.model_dump(mode="json") | {"seed": settings.seed},
        fresh=not (work / CHECKPOINT).is_file(),
    )
    try:
        training = Training(model, settings, data, extra, run, work, report, device, peers, scale, trackers)
        state, seconds, replayed = train(training)
    finally:
        trackers.close()
    model.train(False)
    with torch.no_grad():
        table = model.embedding.items().float().cpu()
    if not torch.isfinite(table).all():
        if peers.rank == 0:
            forget_checkpoint(work)  # going on from it would end the same way
        raise LlmembError("the item embeddings are not finite", hint="lower rat.learning_rate")
    if peers.rank == 0:
        write_tensors(work / "model.safetensors", model.state_dict())
        write_tensors(work / "item_embeddings.safetensors", {"item_embeddings": table})
        write_parquet(work / "ids.parquet", pl.DataFrame({"item_id": data.item_ids}))
        forget_checkpoint(work)
    return {
        "method": rat.method,
        "backbone": rat.backbone,
        "seed": settings.seed,
        "without": list(rat.without) if rat.method == "llmemb" else [],
        "loss_name": loss_name(rat),
        "negatives": rat.negatives,
        "max_length": rat.max_length,
        "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "embedding_scale": scale,
        "epochs": state.epoch,
        "best_epoch": state.best_epoch,
        "best_validation": state.best,
        "loss": state.losses[-1] if state.losses else None,
        "seconds_per_epoch": seconds,
        "aligned_to": source if method_of(settings).extra == "align" else None,
        "collaborative": read,
        "started_from": source if method_of(settings).start == "trained" else None,
        "vectors": vectors_needed(settings),
        "control": rat.control,
        "processes": peers.size,
        "precision": precision,
        "replayed": replayed,
    }


def table_scale(model: Recommender) -> dict[str, float]:
    """Standard deviation and mean norm of the item embeddings before training: the commonest hidden confounder."""
    with torch.no_grad():
        table = model.embedding.items()
        return {"std": float(table.std()), "mean_norm": float(table.norm(dim=1).mean())}


def _collaborative(workspace: Workspace, run: str | None, data: SplitData, hidden_size: int) -> torch.Tensor | None:
    """(n_items, d) item embeddings of the collaborative run."""
    if run is None:
        return None
    folder = workspace.run(run)
    table = read_tensors(folder / "item_embeddings.safetensors", made_again(folder))["item_embeddings"]
    if table.shape != (data.n_items, hidden_size):
        raise BadDataError(f"item embeddings of {run} have another shape", where=str(folder))
    return table


def _start_from(model: Recommender, run: Path) -> None:
    """Put the trained weights of another run in; what this model has beyond them keeps its start."""
    weights = read_tensors(run / "model.safetensors")
    own = model.state_dict()
    model.load_state_dict(own | {name: tensor for name, tensor in weights.items() if name in own})
