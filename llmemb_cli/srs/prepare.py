"""What a method needs before its recommender can train: its LLM vectors."""

from __future__ import annotations

from llmemb_cli import pipeline
from llmemb_cli.assets.architecture import Architecture, read_architecture
from llmemb_cli.assets.models import find_model
from llmemb_cli.assets.presets import MODELS
from llmemb_cli.config.backbones import BACKBONES
from llmemb_cli.config.methods import OWN_VECTORS
from llmemb_cli.config.runs import method_of, vectors_needed
from llmemb_cli.config.settings import Settings
from llmemb_cli.embeddings.table import made_by
from llmemb_cli.errors import WrongUseError, near_match
from llmemb_cli.progress import Reporter
from llmemb_cli.workspace.locate import Workspace
from llmemb_cli.workspace.make import StageResult
from llmemb_cli.workspace.stage import read_manifest, require_stage, stage_state
from llmemb_cli.workspace.store import read_json


def check_made(workspace: Workspace, settings: Settings) -> None:
    """Before anything is trained: vectors that are not made on the way must be there.

    Raises:
        WrongUseError: they are not; or they would be the tuned LLM's in a run without SCFT.
        BadDataError: they are all the same.
    """
    from llmemb_cli.embeddings.pca import read_pca
    from llmemb_cli.srs.vectors import require_distinct

    rat, kind = settings.rat, vectors_needed(settings)
    if rat.external_vectors is not None:
        if rat.method == "llmemb" and "scft" in rat.without:
            raise WrongUseError(
                f"--without scft reads the untouched LLM's vectors, rat.vectors = {rat.vectors} others",
                hint="leave one of them out",
            )
        check_taken(workspace, rat.external_vectors)
    elif kind == "scft":
        before = "" if read_manifest(workspace.scft()) else "llmemb scft && "
        require_stage(workspace.embeddings(kind), made_by=before + made_by(kind))
    else:
        return
    directory = workspace.embeddings(rat.external_vectors or "scft")
    require_distinct(read_pca(directory), directory)


def check_fit(settings: Settings) -> None:
    """Refuse what cannot be trained whatever has been made, before anything is made for it.

    Raises:
        WrongUseError: backbone and method, or parts left out, do not go together; or the method has an LLM write that
            only reads.
    """
    rat, model = settings.rat, settings.scft.model
    if reason := BACKBONES[rat.backbone].unfit.get(rat.method):
        raise WrongUseError(
            f"--method {rat.method} with --backbone {rat.backbone}: {reason}", hint="take another one"
        )
    if rat.method == "llmemb" and {"adapter", "freeze"} <= set(rat.without):
        raise WrongUseError(
            "--without adapter and --without freeze: without an adapter the LLM's vectors are the item embeddings, "
            "and trained they are those of --method llm2x",
            hint="leave one of them out, or take --method llm2x",
        )
    architecture = _architecture(model) if vectors_needed(settings) == "said" else None
    if architecture is not None and architecture.encoder:
        raise WrongUseError(
            f"--method said has the LLM write items' texts, and {model} is an encoder, which only reads",
            hint="--set scft.model=smollm2-135m or another one that writes (`llmemb models`), or leave said out",
        )


def _architecture(model: str) -> Architecture | None:
    """Of a model that is here or known by name; None of others, and of GGUF files."""
    folder = find_model(model)
    if folder is not None and (folder / "config.json").is_file():
        return read_architecture(read_json(folder / "config.json"), str(folder))
    return MODELS[model].architecture if model in MODELS else None


def check_taken(workspace: Workspace, name: str) -> None:
    """Refuse vectors made elsewhere that have not been taken.

    Raises:
        WrongUseError: the workspace has none of that name; says which it may have meant.
    """
    if read_manifest(workspace.embeddings(name)) is not None:
        return
    there = [path.parent.name for path in workspace.embeddings("*").parent.glob("*/manifest.json")]
    close = near_match(name, [one for one in there if one not in OWN_VECTORS])
    raise WrongUseError(
        f"there are no vectors {name}",
        where=str(workspace.embeddings(name).parent),
        hint=f"did you mean {close}?" if close else f"run `{made_by(name)}` first",
    )


def prepare_vectors(workspace: Workspace, settings: Settings, base: Settings, report: Reporter) -> None:
    """Make the LLM vectors of the run's method with the settings `base`, unless they are up to date.

    Those of SCFT are not made here: fine-tuning is a decision of its own. That they are older than the settings is
    said. Nor are those made elsewhere.
    """
    kind = vectors_needed(settings)
    if kind == "scft":
        for stage in (pipeline.scft_stage(workspace, base), pipeline.embed_stage(workspace, base)):
            state = stage_state(stage)
            if state.state == "stale":
                report.note(f"the LLM vectors are used as they are, though {stage.name} is stale: {state.reason}")
                return
    if kind is not None and kind != "scft" and settings.rat.external_vectors is None:
        if read_manifest(workspace.embeddings(kind)) is None:
            check_width(settings)
        make_vectors(workspace, base, kind, report)


def check_width(settings: Settings) -> None:
    """Refuse a table that is wider than the LLM's vectors before these are made.

    Raises:
        WrongUseError: it would start from more principal components than there are.
    """
    architecture = _architecture(settings.scft.model) if method_of(settings).start == "pca" else None
    if architecture is None:
        return
    width, wanted = architecture.hidden, settings.rat.hidden_size
    if width < wanted:
        raise WrongUseError(
            f"rat.hidden_size is {wanted}, but vectors of {settings.scft.model} have {width} numbers",
            hint=f"--set rat.hidden_size={width}, or a larger model",
        )


def make_vectors(
    workspace: Workspace, settings: Settings, kind: str, report: Reporter, force: bool = False
) -> StageResult:
    """Make `embeddings/<kind>/` up to date, and the prompts where it reads them."""
    if kind == "tslrec":
        from llmemb_cli.llm.tslrec import run_tslrec

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
