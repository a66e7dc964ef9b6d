"""What a method needs before its recommender can train: its LLM vectors."""

from __future__ import annotations

from llmemb_cli import pipeline
from llmemb_cli.config.settings import Settings
from llmemb_cli.progress import Reporter
from llmemb_cli.srs.world import World
from llmemb_cli.workspace.locate import Workspace
from llmemb_cli.workspace.stage import StageResult, read_manifest, stage_state


def prepare_vectors(
    workspace: Workspace, settings: Settings, in_file: Settings | None, report: Reporter, world: World
) -> None:
    """Make the LLM vectors of the run's method, unless they are up to date.

    They are made with the seed and the `[rat]` of llmemb.toml, so that runs of several seeds share them. Those of
    SCFT are not made here: fine-tuning is a decision of its own.
    """
    kind = pipeline.vectors_needed(settings)
    if kind is not None and kind != "scft" and world.writes:
        base = settings
        if in_file is not None:
            base = settings.model_copy(update={"rat": in_file.rat, "seed": in_file.seed})
        make_vectors(workspace, base, kind, report)
    world.from_writer(None)


def make_vectors(
    workspace: Workspace, settings: Settings, kind: str, report: Reporter, force: bool = False
) -> StageResult:
    """Make `embeddings/<kind>/` and what it is made from, as far as they are not up to date."""
    if kind == "tslrec":
        from llmemb_cli.llm.tslrec import run_tslrec
        from llmemb_cli.srs.train import run_rat

        run_rat(workspace, pipeline.tslrec_source(settings), report, in_file=settings)
        return run_tslrec(workspace, settings, report, force=force)
    from llmemb_cli.llm.encode import run_embed
    from llmemb_cli.llm.said import run_said
    from llmemb_cli.prompts.stage import make_prompts

    said = kind == "said"
    stage = (
        pipeline.said_stage(workspace, settings) if said else pipeline.embed_stage(workspace, settings, tuned=False)
    )
    if not force and stage_state(stage).state == "up-to-date":
        return StageResult(False, 0.0, read_manifest(stage.path) or {})
    make_prompts(workspace, settings, report)
    if said:
        return run_said(workspace, settings, report, force=force)
    return run_embed(workspace, settings, report, force=force, tuned=False)
