"""`llmemb prompt`: make the prompts and look at one, with two augmented views and token counts."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmemb_cli.commands.common import ForceOption, SetOption, WorkspaceOption, command, open_workspace, option
from llmemb_cli.console import Output
from llmemb_cli.errors import WrongUseError, unknown_id
from llmemb_cli.progress import Reporter
from llmemb_cli.workspace.lock import write_lock

if TYPE_CHECKING:
    import polars as pl
    from rich.console import Console
    from rich.text import Text

    from llmemb_cli.config.settings import Settings

BAR = 40
MANY = 50_000  # items


def prompt(
    output: Output,
    item: Annotated[str | None, typer.Argument(help="Item id to show; default: one at random.")] = None,
    preview: Annotated[
        bool, typer.Option("--preview", help="Write nothing: show what the settings as they stand would make.")
    ] = False,
    tokens: Annotated[bool, typer.Option("--tokens/--no-tokens", help="Count tokens, if the model is here.")] = True,
    instruction: Annotated[str | None, option("prompt.instruction")] = None,
    separator: Annotated[str | None, option("prompt.separator")] = None,
    drop_ratio: Annotated[float | None, option("scft.drop_ratio")] = None,
    workspace: WorkspaceOption = None,
    force: ForceOption = False,
    set: SetOption = None,
) -> None:
    """Make the prompt of every item, and show one with two views as SCFT would draw them.

    The template stands in [prompt] of llmemb.toml: instruction, attributes and their order, rename, limits,
    separator. With --preview an edited template can be looked at before later stages are made again.

    Example: `llmemb prompt 50 --preview --set "prompt.attributes=['title', 'genre']"`
    """
    given = {"prompt.instruction": instruction, "prompt.separator": separator, "scft.drop_ratio": drop_ratio}
    located, settings = open_workspace(output, workspace, given, set)
    from llmemb_cli.pipeline import prompt_stage
    from llmemb_cli.prompts.stage import make_prompts, preview_prompts, read_prompts
    from llmemb_cli.workspace.stage import stage_state

    document: dict[str, Any] = {"path": str(located.prompts), "built": False, "preview": preview}
    if preview:
        frame, summary = preview_prompts(located, settings)
        document["changed"] = stage_state(prompt_stage(located, settings)).state != "up-to-date"
    else:
        with write_lock(located):
            document["built"] = make_prompts(located, settings, output.reporter(), force=force).built
        frame, summary = read_prompts(located)
    document |= _one_item(frame, item, settings) | summary
    document["tokens"] = _tokens(frame, settings, output) if tokens else None
    output.result(document, lambda console: _show(console, document))


def _one_item(frame: pl.DataFrame, item: str | None, settings: Settings) -> dict[str, Any]:
    """An item's prompt, two random views of it, and what each leaves out."""
    from llmemb_cli.prompts.views import random_drop
    from llmemb_cli.seeds import numpy_rng

    rng = numpy_rng(settings.seed, "preview", item or "")
    if item is None:
        row = int(rng.integers(len(frame)))
    else:
        found = (frame["item_id"] == item).arg_true()
        if not len(found):
            hint = unknown_id(item, frame["item_id"][:MANY].to_list())
            raise WrongUseError(f"no item {item} in this workspace", hint=hint)
        row = int(found[0])
    parts = frame["parts"][row].to_list()
    views = [random_drop(parts, settings.scft.drop_ratio, rng) for _ in range(2)]
    return {
        "item": frame["item_id"][row],
        "prompt": frame["prompt"][row],
        "views": views,
        "dropped": [list((Counter(parts) - Counter(view)).elements()) for view in views],
    }


def _tokens(frame: pl.DataFrame, settings: Settings, output: Output) -> dict[str, Any] | None:
    """Token counts of all prompts, or None while the model is not here."""
    from llmemb_cli.assets.models import find_model, local_model

    if find_model(settings.scft.model) is None:
        output.message(f"no token counts: {settings.scft.model} is not here (`llmemb models NAME --fetch` gets it)")
        return None
    from llmemb_cli.llm.load import load_tokenizer
    from llmemb_cli.prompts.lengths import describe_lengths, token_lengths

    report = output.reporter()
    tokenizer = load_tokenizer(local_model(settings.scft.model, report))
    # A bar where there is something to wait for.
    counting = report if len(frame) > MANY else Reporter()
    return describe_lengths(token_lengths(tokenizer, frame["prompt"], counting), settings.scft.max_tokens)


def _show(console: Console, document: dict[str, Any]) -> None:
    from rich.text import Text

    console.print(f"{document['items']:,} prompts, {document['mean_chars']:.0f} characters on average")
    if document.get("changed"):
        console.print("They differ from those in the workspace: nothing is written; `llmemb prompt` makes them.")
    console.print(Text(f"\nitem {document['item']}", style="bold"))
    console.print(Text(document["prompt"]))
    console.print()
    console.print(_views(console, document))
    if document["tokens"] is not None:
        _show_tokens(console, document["tokens"])


def _views(console: Console, document: dict[str, Any]) -> Any:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    side_by_side = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    cells = []
    for number, (view, dropped) in enumerate(zip(document["views"], document["dropped"], strict=True), start=1):
        side_by_side.add_column(f"view {number}", overflow="fold", ratio=1)
        lines = [Text(part) for part in view] + [_struck(console, part) for part in dropped]
        cells.append(Text("\n").join(lines))
    side_by_side.add_row(*cells)
    return side_by_side


def _struck(console: Console, part: str) -> Text:
    from rich.text import Text

    # A pipe shows no strike-through, so marks say it there.
    return Text(part, style="strike dim") if console.is_terminal else Text(f"[-{part}-]")


def _show_tokens(console: Console, tokens: dict[str, Any]) -> None:
    from rich.text import Text

    console.print(
        f"tokens: {tokens['mean']:.1f} on average, half have up to {tokens['median']:.0f}, 95 % up to "
        f"{tokens['p95']:.0f}, the longest {tokens['max']:,}"
    )
    most = max(entry["items"] for entry in tokens["histogram"])
    width = len(str(tokens["max"]))
    for entry in tokens["histogram"]:
        bar = "#" * -(-entry["items"] * BAR // most)
        console.print(Text(f"{entry['from']:>{width}}-{entry['to']:<{width}} {bar} {entry['items']:,}"))
    console.print(f"cut at {tokens['limit']:,} tokens: {tokens['cut']:,} prompts ({tokens['cut_share']:.1%})")


app = command(prompt)
