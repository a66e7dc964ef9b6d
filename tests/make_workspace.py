"""A small workspace with a planted rule, for tests: data and embeddings made through the real stages' manifests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from llmemb_cli import pipeline
from llmemb_cli.config.settings import Settings, load_settings, make_settings, write_settings
from llmemb_cli.datasets.prepare import prepare
from llmemb_cli.embeddings.pca import fit_pca, write_pca
from llmemb_cli.embeddings.table import EmbeddingTable, write_table
from llmemb_cli.progress import Reporter
from llmemb_cli.workspace.locate import Workspace
from llmemb_cli.workspace.make import run_stage


def make_workspace(
    root: Path, *, users: int = 150, items: int = 30, length: int = 8, width: int = 24, **settings: Any
) -> tuple[Workspace, Settings]:
    """Users walk through the items by the rule next = (7 * item + 3) mod items, from random starts."""
    root.mkdir(parents=True)
    rng = np.random.default_rng(5)
    rows = []
    for user in range(users):
        item = int(rng.integers(items))
        for time in range(length):
            rows.append((f"u{user}", f"i{item}", time))
            item = (7 * item + 3) % items
    log, catalogue = root / "log.csv", root / "items.csv"
    pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row").write_csv(log)
    pl.DataFrame(
        {"item_id": [f"i{n}" for n in range(items)], "title": [f"Thing <b>{n}</b>" for n in range(items)]}
    ).write_csv(catalogue)
    overrides = {
        "data.interactions": str(log),
        "data.items": str(catalogue),
        "data.user_column": "user_id",
        "data.item_column": "item_id",
        "data.time_column": "timestamp",
        "data.allow_small": True,
        "data.filter": "none",
    } | {key.replace("__", "."): value for key, value in settings.items()}
    workspace = Workspace(root.resolve())
    write_settings(workspace.settings_file, make_settings(overrides))
    chosen = load_settings(workspace.settings_file)
    prepare(workspace, chosen, Reporter())
    for tuned in (True, False):
        _embeddings(workspace, chosen, width, tuned)
    return workspace, chosen


def _embeddings(workspace: Workspace, settings: Settings, width: int, tuned: bool) -> None:
    def build(work: Path) -> dict[str, Any]:
        ids = pl.read_parquet(workspace.data / "items.parquet")["item_id"]
        vectors = np.random.default_rng(int(tuned)).normal(size=(len(ids), width)).astype(np.float32)
        write_table(work, EmbeddingTable(ids, vectors))
        write_pca(work, fit_pca(vectors, 1536))
        return {"items": len(ids), "width": width}

    run_stage(pipeline.embed_stage(workspace, settings, tuned=tuned), build)
