"""Time and memory of `llmemb init yelp`, beside a preparation written line by line as research code does it.

    python benchmarks/make_yelp.py --out yelp
    python benchmarks/init.py --source yelp                     # limits: 120 s on 2 cores, 3 GB
    python benchmarks/make_yelp.py --out tenth --reviews 700000 --users 200000 --businesses 15000
    python benchmarks/init.py --source tenth --plain            # limit: 5 times as fast as the plain loop

The plain loop knows `json.loads`, dictionaries and lists, and the same rules: users and items with at least three
interactions in one pass, then sequences of at least three, the last item tests, the one before validates. It is run
twice: with dates as numbers made of their digits, which is the least that sorting needs, and with dates as seconds by
`time.strptime`, as `llmemb init` has them. All must find the same sequences. The loop checks nothing, makes no texts
of attributes and no hashes. Each runs in a process of its own; the files are read once before, so that none waits for
the disk.
"""

from __future__ import annotations

import argparse
import calendar
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

LEAST = 3  # interactions of a user, and of an item


@dataclass(frozen=True)
class Usage:
    """What a process used."""

    seconds: float
    cpu_seconds: float
    peak_mb: float


def digits(date: str) -> int:
    return int(date.replace("-", "").replace(":", "").replace(" ", ""))


def seconds(date: str) -> int:
    return calendar.timegm(time.strptime(date, "%Y-%m-%d %H:%M:%S"))


PLAIN = {"plain loop, dates as digits": digits, "plain loop, dates by strptime": seconds}


def prepare_plainly(source: Path, moment_of: Callable[[str], int], out: TextIO) -> None:
    """The preparation as research code has it; writes a line `user item item ...` a user, in the source's order."""
    businesses = {}
    with next(source.glob("*business.json")).open(encoding="utf-8") as file:
        for line in file:
            business = json.loads(line)
            businesses[business["business_id"]] = business
    events = []
    with next(source.glob("*review.json")).open(encoding="utf-8") as file:
        for line in file:
            review = json.loads(line)
            if review["business_id"] in businesses:
                events.append((review["user_id"], review["business_id"], moment_of(review["date"])))
    of_user = Counter(user for user, _, _ in events)
    of_item = Counter(item for _, item, _ in events)
    sequences: dict[str, list[tuple[int, str]]] = {user: [] for user in of_user}
    for user, item, moment in events:
        if of_user[user] >= LEAST and of_item[item] >= LEAST:
            sequences[user].append((moment, item))
    train, valid, test = {}, {}, {}
    for user, sequence in sequences.items():
        if len(sequence) < LEAST:
            continue
        sequence.sort(key=lambda event: event[0])
        *train[user], valid[user], test[user] = [item for _, item in sequence]
    for user, items in train.items():
        out.write(" ".join([user, *items, valid[user], test[user]]) + "\n")


def measured(command: list[str], cores: int, out: Path) -> Usage:
    """Run `command` on `cores` cores, its output going to `out`.

    Raises:
        SystemExit: it failed.
    """
    with out.open("wb") as file:
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=file, env=os.environ | {"POLARS_MAX_THREADS": str(cores)})
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(process.pid, sorted(os.sched_getaffinity(0))[:cores])
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
    if status:
        raise SystemExit(f"{' '.join(command)} failed; see {out}")
    unit = 1 << 20 if sys.platform == "darwin" else 1 << 10
    return Usage(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / unit)


def sequences_of(workspace: Path) -> list[list[str]]:
    """`[user, item, item, ...]` of every user in a workspace; the last two are the targets."""
    import polars as pl

    log = pl.read_parquet(workspace / "data" / "interactions.parquet")
    rows = log.group_by("user_id", maintain_order=True).agg("item_id", "split")
    for user, splits in rows.select("user_id", pl.col("split").list.tail(2)).iter_rows():
        if splits != ["valid", "test"]:
            raise SystemExit(f"the last items of {user} are {splits}")
    return [[user, *items] for user, items in rows.select("user_id", "item_id").iter_rows()]


def warm(source: Path) -> float:
    """Read the files once; returns their size in GB."""
    size = 0
    for path in source.glob("*.json"):
        with path.open("rb") as file:
            while block := file.read(1 << 24):
                size += len(block)
    return size / 1e9


def compare(ours: list[list[str]], plain: Path) -> None:
    with plain.open(encoding="utf-8") as file:
        theirs = [line.split() for line in file]
    if ours != theirs:
        differing = sum(a != b for a, b in zip(ours, theirs, strict=False))
        raise SystemExit(f"NOT EQUAL: {len(ours):,} and {len(theirs):,} users, {differing:,} of them differ")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True, help="folder made by make_yelp.py")
    parser.add_argument("--plain", action="store_true", help="also run the plain loop, and compare")
    parser.add_argument("--rounds", type=int, default=1, help="runs of each, in turn; the fastest counts")
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--plainly", choices=list(PLAIN), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.plainly:
        prepare_plainly(chosen.source, PLAIN[chosen.plainly], sys.stdout)
        return
    print(f"{warm(chosen.source):.2f} GB, {chosen.cores} cores, load before {os.getloadavg()[0]:.1f}", flush=True)
    with tempfile.TemporaryDirectory(dir=chosen.source.resolve().parent) as folder:
        run_all(chosen, Path(folder))
    print(f"load after {os.getloadavg()[0]:.1f}")


def run_all(chosen: argparse.Namespace, scratch: Path) -> None:
    init = [sys.executable, "-m", "llmemb_cli", "init", "yelp", "--source", str(chosen.source.resolve()), "--json"]
    plain = list(PLAIN) if chosen.plain else []
    runs: dict[str, list[Usage]] = {name: [] for name in ("llmemb init", *plain)}
    for round_ in range(chosen.rounds):
        command = [*init, "--path", str(scratch), "--name", f"ws{round_}"]
        runs["llmemb init"].append(measured(command, chosen.cores, scratch / "init.json"))
        for name in plain:
            command = [sys.executable, __file__, "--source", str(chosen.source), "--plainly", name]
            runs[name].append(measured(command, chosen.cores, scratch / name))
    summary = json.loads((scratch / "init.json").read_text())
    print(", ".join(f"{summary[key]:,} {key}" for key in ("users", "items", "interactions")))
    show(runs)
    if plain:
        ours = sequences_of(scratch / "ws0")
        for name in plain:
            compare(ours, scratch / name)
        print("all find the same sequences, in the same order")


def show(runs: dict[str, list[Usage]]) -> None:
    """The best of every name's runs, and how many times as long as the first it took."""
    best = {name: min(usages, key=lambda usage: usage.seconds) for name, usages in runs.items()}
    ours = next(iter(best.values()))
    print(f"{'':<30} {'wall':>9} {'times':>6} {'CPU':>9} {'times':>6} {'peak':>10}")
    for name, used in best.items():
        print(
            f"{name:<30} {used.seconds:>7.1f} s {used.seconds / ours.seconds:>6.1f} "
            f"{used.cpu_seconds:>7.1f} s {used.cpu_seconds / ours.cpu_seconds:>6.1f} {used.peak_mb:>7,.0f} MB"
        )


if __name__ == "__main__":
    main()
