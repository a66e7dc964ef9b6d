"""What every reader delivers: text columns in source order, before any rule is applied."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from llmemb_cli.datasets.hashes import FileHashes
from llmemb_cli.datasets.readers.chunks import LINE, Batch, Reject

if TYPE_CHECKING:
    import polars as pl

REASON = "\x00reason"  # the column that marks rows as rejects; no file has one of that name
REJECTS_KEPT = 100  # of each reason
TEXT_KEPT = 500  # characters


@dataclass
class Tally:
    """What was read and what could not be used: counted in full, the first lines of each reason kept."""

    rows_read: Counter[str] = field(default_factory=Counter)
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    kept: list[Reject] = field(default_factory=list)

    def add(self, rejects: Iterable[Reject]) -> None:
        """Count `rejects`, by file and reason."""
        for reject in rejects:
            key = (reject.file, reject.reason)
            self.counts[key] += 1
            if self.counts[key] <= REJECTS_KEPT:
                self.kept.append(reject)

    def take(self, marked: pl.DataFrame, file: str, shown: list[str]) -> pl.DataFrame:
        """The rows of `marked` without a `REASON`; the others are counted, with their columns `shown` as text."""
        import polars as pl

        bad = marked.filter(pl.col(REASON).is_not_null())
        for reason, rows in bad.select(REASON, LINE, *shown).group_by(REASON, maintain_order=True):
            name = str(reason[0])
            room = REJECTS_KEPT - self.counts[file, name]
            self.counts[file, name] += len(rows)
            for row in rows.head(max(room, 0)).iter_rows(named=True):
                text = ", ".join(str(row[key]) for key in shown if row[key] is not None)
                self.kept.append(Reject(file, row[LINE], name, text[:TEXT_KEPT]))
        return marked.filter(pl.col(REASON).is_null()).drop(REASON)

    def total(self) -> int:
        """All rejects."""
        return self.counts.total()

    def by_reason(self) -> dict[str, int]:
        """Rejects by reason, over all files, commonest first."""
        reasons: Counter[str] = Counter()
        for (_, reason), count in self.counts.items():
            reasons[reason] += count
        return dict(reasons.most_common())


@dataclass
class RawData:
    """A data set as read.

    Attributes:
        log: the interactions in blocks, in source order: `user_id`, `item_id`, optionally `timestamp` and
            `rating` (String, nullable) and `LINE` (Int64). Without `timestamp` the lines are in time order.
        log_file: the file they come from.
        items: `item_id`, then attributes (String, nullable), and `LINE`; None where there is no catalogue.
        items_name: the catalogue's file name.
        attributes: the attributes that go into prompts, in order.
        renamed: column of the items' file -> its name here, where that is another.
        tally: rows read and rejected so far; reading `log` goes on counting.
        files: the files on disk that were read.
        hashes: of `files`, where the reader had them begun; else `prepare` has.
        edition: which edition this is.
        instruction: first line of the prompts.
        unreadable: attribute -> values that were no values ("—" for a price) and count as missing.
    """

    log: Iterator[Batch]
    log_name: str
    items: pl.DataFrame | None
    items_name: str
    attributes: list[str]
    tally: Tally
    files: list[Path]
    edition: str
    instruction: str
    renamed: dict[str, str] = field(default_factory=dict)
    unreadable: Counter[str] = field(default_factory=Counter)
    hashes: FileHashes | None = None
