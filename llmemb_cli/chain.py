"""The chain of stages of a workspace: which there are, in what state, and how each is made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from llmemb_cli import pipeline
from llmemb_cli.config.runs import collaborative_settings, run_name, tslrec_source, vectors_needed, vectors_settings
from llmemb_cli.config.settings import Settings, rat_for
from llmemb_cli.progress import Reporter
from llmemb_cli.workspace.locate import Workspace
from llmemb_cli.workspace.make import StageResult
from llmemb_cli.workspace.stage import Stage, StageState, stage_state

Make = Callable[[Reporter, bool], StageResult]


@dataclass(frozen=True)
class Step:
    """One stage of the chain: `make(report, force)` makes it up to date."""

    name: str
    stage: Stage
    make: Make


@dataclass(frozen=True)
class StepState:
    """A step and whether it has to run."""

    step: Step
    state: StageState


def chain(workspace: Workspace, settings: Settings, in_file: Settings | None = None) -> list[Step]:
    """Every stage that `llmemb run` makes, in order, for the backbones, methods and seeds of `[run]`.

    Args:
        in_file: the settings of llmemb.toml without flags, where there are any: recommenders whose flags differ from
            them get a name of their own, as by `llmemb rat`, and what runs of all flags share is made with these.
    """
    in_file = in_file or settings
    shared = vectors_settings(settings, in_file)
    steps = [
        Step("data", pipeline.data_stage(workspace, settings), _make_data(workspace, settings)),
        Step("prompt", pipeline.prompt_stage(workspace, settings), _make_prompts(workspace, settings)),
    ]
    recommenders = variants(settings)
    needs = {vectors_needed(variant) for variant in recommenders}
    if "scft" in needs:
        steps.append(Step("scft", pipeline.scft_stage(workspace, settings), _make_scft(workspace, settings)))
        steps.append(Step("embed", pipeline.embed_stage(workspace, settings), _make_embed(workspace, settings, True)))
    if "base" in needs:
        stage = pipeline.embed_stage(workspace, settings, tuned=False)
        steps.append(Step("embed base", stage, _make_embed(workspace, settings, False)))
    if "said" in needs:
        steps.append(Step("said", pipeline.said_stage(workspace, shared), _make_vectors(workspace, shared, "said")))
    if "tslrec" in needs:
        steps.append(_rat_step(workspace, tslrec_source(shared), shared))
        stage = pipeline.tslrec_stage(workspace, shared)
        steps.append(Step("tslrec", stage, _make_vectors(workspace, shared, "tslrec")))
    made = {step.stage.path for step in steps}
    trained = [_rat_step(workspace, one, in_file) for one in [*_needed(recommenders), *recommenders]]
    steps += {step.stage.path: step for step in trained if step.stage.path not in made}.values()
    steps += [_eval_step(workspace, variant, in_file) for variant in recommenders]
    return [*steps, _report_step(workspace, settings, steps)]


def variants(settings: Settings) -> list[Settings]:
    """One `Settings` for every run of the plan; runs that others align to come first."""
    plan = settings.run
    made = []
    for seed in plan.seeds or [settings.seed]:
        for backbone in plan.backbones:
            for method in sorted(plan.methods, key=lambda name: name != "none"):
                rat = rat_for(settings, backbone=backbone, method=method)
                made.append(settings.model_copy(update={"rat": rat, "seed": seed}))
    return made


def _needed(recommenders: list[Settings]) -> list[Settings]:
    """The collaborative runs that others read, whether or not they are in the plan themselves."""
    return [one for one in map(collaborative_settings, recommenders) if one]


def states(steps: list[Step]) -> list[StepState]:
    """The state of each step; one whose input is about to be made again is stale itself."""
    waiting: dict[Path, str] = {}
    result = []
    for step in steps:
        state = stage_state(step.stage)
        cause = next((waiting[path] for path in step.stage.inputs.values() if path in waiting), None)
        if state.state == "up-to-date" and cause is not None:
            state = StageState("stale", f"follows {cause}")
        if state.state != "up-to-date":
            waiting[step.stage.path] = step.name
        result.append(StepState(step, state))
    return result


def _rat_step(workspace: Workspace, settings: Settings, in_file: Settings) -> Step:
    name = run_name(settings, in_file)

    def make(report: Reporter, force: bool) -> StageResult:
        from llmemb_cli.srs.train import run_rat

        return run_rat(workspace, settings, report, force=force, in_file=in_file)

    return Step(f"rat {name}", pipeline.rat_stage(workspace, settings, name, in_file), make)


def _eval_step(workspace: Workspace, settings: Settings, in_file: Settings) -> Step:
    name = run_name(settings, in_file)

    def make(report: Reporter, force: bool) -> StageResult:
        from llmemb_cli.evaluation.stage import run_eval

        return run_eval(workspace, settings, name, report, force=force)

    return Step(f"eval {name}", pipeline.eval_stage(workspace, settings, name), make)


def _report_step(workspace: Workspace, settings: Settings, before: list[Step]) -> Step:
    stage = pipeline.report_stage(workspace, settings)
    # Also inputs that are yet to be made: without them a report would look up to date while they are missing.
    inputs = dict(stage.inputs) | {
        f"{step.stage.name}:{step.stage.path.relative_to(workspace.root).as_posix()}": step.stage.path
        for step in before
        if step.stage.path not in stage.inputs.values()
    }

    def make(report: Reporter, force: bool) -> StageResult:
        from llmemb_cli.reporting.page import make_report

        return make_report(workspace, settings, report, force=force)

    return Step("report", replace(stage, inputs=inputs), make)


def _make_data(workspace: Workspace, settings: Settings) -> Make:
    def make(report: Reporter, force: bool) -> StageResult:
        from llmemb_cli.datasets.prepare import prepare

        return prepare(workspace, settings, report, force=force)

    return make


def _make_prompts(workspace: Workspace, settings: Settings) -> Make:
    def make(report: Reporter, force: bool) -> StageResult:
        from llmemb_cli.prompts.stage import make_prompts

        return make_prompts(workspace, settings, report, force=force)

    return make


def _make_scft(workspace: Workspace, settings: Settings) -> Make:
    def make(report: Reporter, force: bool) -> StageResult:
        from llmemb_cli.llm.scft import run_scft

        return run_scft(workspace, settings, report, force=force)

    return make


def _make_embed(workspace: Workspace, settings: Settings, tuned: bool) -> Make:
    def make(report: Reporter, force: bool) -> StageResult:
        from llmemb_cli.llm.encode import run_embed

        return run_embed(workspace, settings, report, force=force, tuned=tuned)

    return make


def _make_vectors(workspace: Workspace, settings: Settings, kind: str) -> Make:
    def make(report: Reporter, force: bool) -> StageResult:
        from llmemb_cli.srs.prepare import make_vectors

        return make_vectors(workspace, settings, kind, report, force=force)

    return make
