"""`llmemb scft`: LoRA fine-tuning of the LLM on item prompts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from llmemb_cli.commands.common import ForceOption, SetOption, WorkspaceOption, command, open_workspace, option
from llmemb_cli.console import Output, duration
from llmemb_cli.peers import process_rank, world_size
from llmemb_cli.progress import Reporter
from llmemb_cli.workspace.lock import write_lock

if TYPE_CHECKING:
    from llmemb_cli.config.settings import Settings
    from llmemb_cli.workspace.locate import Workspace


WHAT, LORA, STEPS, MEMORY, CURVE = (
    "Model and loss",
    "LoRA",
    "Optimisation",
    "Memory and device",
    "Validation and checkpoints",
)


def scft(
    output: Output,
    model: Annotated[str | None, option("scft.model", panel=WHAT)] = None,
    loss: Annotated[str | None, option("scft.loss", panel=WHAT)] = None,
    temperature: Annotated[float | None, option("scft.temperature", panel=WHAT)] = None,
    fixed_temperature: Annotated[
        bool,
        typer.Option("--fixed-temperature", help="Do not train the temperature.", rich_help_panel=WHAT),
    ] = False,
    pooling: Annotated[str | None, option("scft.pooling", panel=WHAT)] = None,
    drop_ratio: Annotated[float | None, option("scft.drop_ratio", panel=WHAT)] = None,
    max_tokens: Annotated[int | None, option("scft.max_tokens", panel=WHAT)] = None,
    lora_rank: Annotated[int | None, option("scft.lora_rank", panel=LORA)] = None,
    lora_alpha: Annotated[int | None, option("scft.lora_alpha", panel=LORA)] = None,
    lora_dropout: Annotated[float | None, option("scft.lora_dropout", panel=LORA)] = None,
    target_modules: Annotated[str | None, option("scft.target_modules", panel=LORA)] = None,
    batch_size: Annotated[int | None, option("scft.batch_size", panel=STEPS)] = None,
    epochs: Annotated[float | None, option("scft.epochs", panel=STEPS)] = None,
    steps: Annotated[int | None, option("scft.steps", panel=STEPS)] = None,
    learning_rate: Annotated[float | None, option("scft.learning_rate", panel=STEPS)] = None,
    schedule: Annotated[str | None, option("scft.schedule", panel=STEPS)] = None,
    warmup: Annotated[float | None, option("scft.warmup", panel=STEPS)] = None,
    clip_norm: Annotated[float | None, option("scft.clip_norm", panel=STEPS)] = None,
    precision: Annotated[str | None, option("scft.precision", panel=MEMORY)] = None,
    device: Annotated[str | None, option("scft.device", panel=MEMORY)] = None,
    micro_batch_size: Annotated[str | None, option("scft.micro_batch_size", panel=MEMORY)] = None,
    gradient_checkpointing: Annotated[
        bool | None, option("scft.gradient_checkpointing", "--gradient-checkpointing", panel=MEMORY)
    ] = None,
    load_in_8bit: Annotated[bool | None, option("scft.load_in_8bit", "--load-in-8bit", panel=MEMORY)] = None,
    load_in_4bit: Annotated[bool | None, option("scft.load_in_4bit", "--load-in-4bit", panel=MEMORY)] = None,
    validate_every: Annotated[int | None, option("scft.validate_every", panel=CURVE)] = None,
    best_by: Annotated[str | None, option("scft.best_by", panel=CURVE)] = None,
    checkpoint_minutes: Annotated[float | None, option("scft.checkpoint_minutes", panel=CURVE)] = None,
    checkpoint_steps: Annotated[int | None, option("scft.checkpoint_steps", panel=CURVE)] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be trained, read, needed and how long; train nothing.")
    ] = False,
    workspace: WorkspaceOption = None,
    force: ForceOption = False,
    set: SetOption = None,
) -> None:
    """Fine-tune the LLM with LoRA: two views of an item that drop attributes are pulled together (SCFT).

    Flags hold for this call; put a setting into llmemb.toml to keep it. Interrupted, it goes on when run again.

    Example: `llmemb scft --batch-size 64 --epochs 5`
    """
    if process_rank():  # process 0 speaks for all
        output.json, output.quiet = False, True
    given = {f"scft.{key}": value for key, value in locals().items() if key in _SETTINGS}
    if fixed_temperature:
        given["scft.train_temperature"] = False
    located, settings = open_workspace(output, workspace, given, set)
    if dry_run:
        _dry_run(output, located, settings)
        return
    from llmemb_cli.llm.scft import run_scft
    from llmemb_cli.prompts.stage import make_prompts

    if process_rank():
        run_scft(located, settings, Reporter(), force=force)
        return
    with write_lock(located):
        if world_size() == 1:  # the others would not wait for it
            make_prompts(located, settings, output.reporter())
        result = run_scft(located, settings, output.reporter(), force=force)
    summary = result.manifest["summary"]
    document = {"path": str(located.scft()), "built": result.built, "seconds": result.manifest["seconds"]} | summary

    def show(console: object) -> None:
        held_out = summary["held_out"]
        before, after = held_out["before"], held_out["after"]
        how = f"trained in {duration(result.seconds)}" if result.built else "up to date"
        loss = summary["loss"]
        lines = [f"{how}: {summary['steps']} steps, loss {loss['first']:.4f} -> {loss['last']:.4f}"]
        if after:
            lines.append(
                f"held-out items found by their other view: {before['retrieval']:.1%} untuned -> "
                f"{after['retrieval']:.1%} (MRR {before['mrr']:.4f} -> {after['mrr']:.4f}), "
                f"step {held_out['best_step']} kept: best {held_out['best_by']}"
            )
        console.print("\n".join(lines))  # type: ignore[attr-defined]

    output.result(document, show)


def _dry_run(output: Output, located: Workspace, settings: Settings) -> None:
    from llmemb_cli.llm.dryrun import dry_run

    found = dry_run(located, settings, output.reporter())
    memory, tokens, steps, seconds = (found[key] for key in ("memory_mb", "tokens", "steps", "seconds"))
    more = "" if tokens["counted_steps"] == steps["per_epoch"] else f" (from {tokens['counted_steps']} steps)"
    rows = [
        ("model", f"{found['model']}, {found['precision']} on {found['device']}"),
        ("trained", f"{found['parameters']['trained']:,} of {found['parameters']['all']:,} parameters"),
        ("items", f"{found['items']['train']:,} to train on, {found['items']['held_out']:,} held out"),
        (
            "tokens an epoch",
            f"{tokens['per_epoch']:,}{more}; a step {tokens['per_step']:,}, a text {tokens['longest']}",
        ),
        ("steps", f"{steps['total']:,} ({steps['per_epoch']:,} an epoch)"),
        (
            "memory",
            f"{memory['total']:,} MB: weights {memory['weights']:,}, LoRA and optimizer {memory['lora']:,}, "
            f"activations {memory['activations']:,}",
        ),
        ("time", f"{duration(seconds['total'])}, {duration(seconds['per_step'])} a step ({seconds['basis']})"),
    ]
    width = max(len(name) for name, _ in rows)

    def show(console: object) -> None:
        console.print("\n".join(f"{name:<{width}}  {value}" for name, value in rows))  # type: ignore[attr-defined]

    output.result(found, show)


_SETTINGS = {
    *("model", "loss", "temperature", "pooling", "drop_ratio", "max_tokens"),
    *("lora_rank", "lora_alpha", "lora_dropout", "target_modules"),
    *("batch_size", "epochs", "steps", "learning_rate", "schedule", "warmup", "clip_norm"),
    *("precision", "device", "micro_batch_size", "gradient_checkpointing", "load_in_8bit", "load_in_4bit"),
    *("validate_every", "best_by", "checkpoint_minutes", "checkpoint_steps"),
}

app = command(scft)
