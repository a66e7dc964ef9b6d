"""What a method needs before its recommender can train: its LLM vectors."""

from __future__ import annotations

from llmemb_cli import pipeline
from llmemb_cli.config.settings import Settings
from llmemb_cli.progress import Reporter
from llmemb_cli.srs.world import World
from llmemb_cli.workspace.locate import Workspace
from llmemb_cli.workspace.stage import stage_state


def prepare_vectors(
    workspace: Workspace, settings: Settings, in_file: Settings | None, report: Reporter, world: World
) -> None:
    """Make the LLM vectors of the run's method, unless they are up to date.

    They are made with the settings and seed of llmemb.toml, so that runs of several seeds share them. Those of SCFT
    are not made here: fine-tuning is a decision of its own.
    """
    kind = pipeline.vectors_needed(settings)
    if kind not in (None, "scft") and world.writes:
        make_vectors(workspace, in_file or settings, kind, report)
    world.from_writer(None)


def make_vectors(workspace: Workspace, settings: Settings, kind: str | None, report: Reporter) -> None:
    """Make `embeddings/<kind>/` up to date."""
    if kind == "base":
        from llmemb_cli.llm.encode import run_embed
        from llmemb_cli.prompts.stage import make_prompts

        if stage_state(pipeline.embed_stage(workspace, settings, tuned=False)).state != "up-to-date":
            make_prompts(workspace, settings, report)
            run_embed(workspace, settings, report, tuned=False)
