"""`llmemb scft`: LoRA fine-tuning of the LLM on item prompts."""

from __future__ import annotations

from typing import Annotated

from llmemb_cli.commands.common import ForceOption, SetOption, WorkspaceOption, command, open_workspace, option
from llmemb_cli.console import Output, duration
from llmemb_cli.peers import process_rank
from llmemb_cli.progress import Reporter
from llmemb_cli.workspace.lock import write_lock


def scft(
    output: Output,
    model: Annotated[str | None, option("scft.model")] = None,
    loss: Annotated[str | None, option("scft.loss")] = None,
    temperature: Annotated[float | None, option("scft.temperature")] = None,
    drop_ratio: Annotated[float | None, option("scft.drop_ratio")] = None,
    lora_rank: Annotated[int | None, option("scft.lora_rank")] = None,
    lora_alpha: Annotated[int | None, option("scft.lora_alpha")] = None,
    lora_dropout: Annotated[float | None, option("scft.lora_dropout")] = None,
    learning_rate: Annotated[float | None, option("scft.learning_rate")] = None,
    schedule: Annotated[str | None, option("scft.schedule")] = None,
    batch_size: Annotated[int | None, option("scft.batch_size")] = None,
    micro_batch_size: Annotated[str | None, option("scft.micro_batch_size")] = None,
    epochs: Annotated[float | None, option("scft.epochs")] = None,
    steps: Annotated[int | None, option("scft.steps")] = None,
    max_tokens: Annotated[int | None, option("scft.max_tokens")] = None,
    precision: Annotated[str | None, option("scft.precision")] = None,
    device: Annotated[str | None, option("scft.device")] = None,
    gradient_checkpointing: Annotated[
        bool | None, option("scft.gradient_checkpointing", "--gradient-checkpointing")
    ] = None,
    load_in_8bit: Annotated[bool | None, option("scft.load_in_8bit", "--load-in-8bit")] = None,
    load_in_4bit: Annotated[bool | None, option("scft.load_in_4bit", "--load-in-4bit")] = None,
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
    located, settings = open_workspace(output, workspace, given, set)
    from llmemb_cli.llm.scft import run_scft

    if process_rank():
        run_scft(located, settings, Reporter(), force=force)
        return
    with write_lock(located):
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


_SETTINGS = {
    *("model", "loss", "temperature", "drop_ratio", "lora_rank", "lora_alpha", "lora_dropout", "learning_rate"),
    *("schedule", "batch_size", "micro_batch_size", "epochs", "steps", "max_tokens", "precision", "device"),
    *("gradient_checkpointing", "load_in_8bit", "load_in_4bit"),
}

app = command(scft)
