"""`llmemb tune`: search settings of `[rat]` on validation data."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.text import Text

from llmemb_cli.commands.common import SetOption, WorkspaceOption, command, open_workspace, option
from llmemb_cli.config.settings import parse_assignments
from llmemb_cli.console import Output, table
from llmemb_cli.workspace.lock import write_lock


def tune(
    output: Output,
    space: Annotated[
        list[str],
        typer.Argument(
            metavar="KEY=VALUES...", help="What to search: KEY=LOW..HIGH or KEY=A,B,C, for keys of [rat]."
        ),
    ],
    trials: Annotated[int, typer.Option("--trials", min=1, help="Runs to train in all, with earlier calls.")] = 20,
    minutes: Annotated[
        float, typer.Option("--minutes", min=0, help="Start no trial after this time; 0: no limit.")
    ] = 0.0,
    backbone: Annotated[str | None, option("rat.backbone")] = None,
    method: Annotated[str | None, option("rat.method")] = None,
    name: Annotated[str | None, typer.Option("--name", help="Name of the search.")] = None,
    keep: Annotated[
        bool, typer.Option("--keep", help="Write the best settings into llmemb.toml, for this backbone and method.")
    ] = False,
    workspace: WorkspaceOption = None,
    set: SetOption = None,
) -> None:
    """Search settings by validation NDCG@10, trial after trial (Optuna); test items are not looked at.

    Ranges whose ends differ tenfold are searched on a logarithmic scale. Interrupted, or with more --trials, the same
    command goes on. Results are kept in tune/NAME/; of the runs the best one stays. Values that do not go together,
    such as heads that do not divide the width, are a failed trial; the search goes on.

    What is searched, and --set, counts for this backbone and method alone: a collaborative run that it aligns to is
    trained once, as llmemb.toml says. With --keep the best settings go into llmemb.toml, under a table such as
    [rat.sasrec-llmemb], which runs, grids and searches of others do not see.

    Example: `llmemb tune rat.learning_rate=1e-4..1e-2 rat.dropout=0.1,0.3,0.5 --method llmemb --trials 30`
    """
    given = {"rat.backbone": backbone, "rat.method": method}
    located, _ = open_workspace(output, workspace, given, set)
    from llmemb_cli.srs.tune import parse_space, run_tune, shown

    searched = parse_space(space)
    overrides = parse_assignments(set or []) | {key: value for key, value in given.items() if value is not None}
    with write_lock(located):
        document = run_tune(
            located, searched, overrides, output.reporter(), trials=trials, minutes=minutes, name=name, keep=keep
        )
    best = document["best"]
    rows = [
        [
            f"{one['trial']}{' *' if one is best else ''}",
            "failed" if one["NDCG@10"] is None else f"{one['NDCG@10']:.4f}",
            "-" if one["epochs"] is None else str(one["epochs"]),
            shown(one["settings"]),
        ]
        for one in sorted(document["trials"], key=lambda one: -(one["NDCG@10"] or -1))
    ]

    def show(console: object) -> None:
        made = table(["trial", "validation NDCG@10", "best epoch", "settings"], rows)
        made.columns[3].justify = "left"
        console.print(made)  # type: ignore[attr-defined]
        kept = f"kept in llmemb.toml, [{document['table']}]: " if keep else "best: "
        text = Text(kept + document["command"])
        console.print(text, soft_wrap=True)  # type: ignore[attr-defined]

    output.result(document, show)


app = command(tune)
