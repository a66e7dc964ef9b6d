"""What every reader delivers: text columns in source order, before any rule is applied."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llmemb_cli.datasets.readers.tabular import Reject

if TYPE_CHECKING:
    import polars as pl


@dataclass
class RawData:
    """A data set as read.

    Attributes:
        interactions: `user_id`, `item_id` (String), `timestamp` (String, or null: order of lines), `rating`
            (String, nullable), `line` (Int64), in source order.
        items: `item_id`, `title`, then attributes (String, nullable) and `line`; None where there is no
            catalogue.
        attributes: the attributes that go into prompts, in order.
        rejects: lines that could not be read.
        rows_read: lines read, by file name.
        files: the files read.
        edition: which edition this is.
        instruction: first line of the prompts.
        log_name, items_name: file names for messages.
    """

    interactions: pl.DataFrame
    items: pl.DataFrame | None
    attributes: list[str]
    rejects: list[Reject]
    rows_read: dict[str, int]
    files: list[Path]
    edition: str
    instruction: str
    log_name: str
    items_name: str
