"""Seconds of one epoch of SASRec here and in RecBole, on the same data, batch size and maximal length.

RecBole needs older libraries than this project, so it lives in a virtual environment of its own:

    python -m venv recbole-env
    recbole-env/bin/pip install --no-deps recbole==1.2.1
    recbole-env/bin/pip install torch "numpy<2" "scipy<1.14" "pandas<3" tqdm colorlog colorama pyyaml tabulate \\
        psutil texttable plotly thop tensorboard setuptools "scikit-learn<1.6"
    python benchmarks/rat_recbole.py --workspace beauty --recbole recbole-env/bin/python --loss ce

Both train the same model (two blocks, one head, hidden size 64) on the training items of the workspace, with the
same loss: a softmax over all items, or BPR with one negative. An epoch predicts every training item of every user but
the first, once. RecBole makes a padded sequence of each beginning of a history and predicts from its last position;
here a history passes the model once and predicts at every position. `--batch` counts sequences, as both do. RecBole's
epoch is measured over `--steps` steps and multiplied, unless that is 0; ours is a whole one.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HIDDEN, LENGTH, DROPOUT, RATE = 64, 50, 0.5, 1e-3
NAME = "bench"


def recbole_epoch(folder: str, loss: str, batch: int, steps: int, threads: int) -> dict[str, float]:
    """Run in RecBole's environment: seconds and peak memory of an epoch over `folder`."""
    import resource

    import torch

    torch.set_num_threads(threads)
    from recbole.config import Config
    from recbole.data import create_dataset, data_preparation
    from recbole.model.sequential_recommender import SASRec

    negatives = None if loss == "ce" else {"distribution": "uniform", "sample_num": 1, "dynamic": False}
    settings = {
        "data_path": folder,
        "checkpoint_dir": f"{folder}/saved",
        "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
        "MAX_ITEM_LIST_LENGTH": LENGTH,
        "train_batch_size": batch,
        "loss_type": loss.upper(),
        "train_neg_sample_args": negatives,
        # The workspace's training items are the training items here too: nothing is held out again.
        "eval_args": {"split": {"RS": [1.0, 0.0, 0.0]}, "order": "TO", "group_by": "user", "mode": "full"},
        "hidden_size": HIDDEN,
        "inner_size": HIDDEN,
        "n_layers": 2,
        "n_heads": 1,
        "hidden_dropout_prob": DROPOUT,
        "attn_dropout_prob": DROPOUT,
        "learning_rate": RATE,
        "use_gpu": False,
        "show_progress": False,
        "state": "ERROR",
    }
    sys.argv = sys.argv[:1]  # RecBole reads settings from the command line
    config = Config(model="SASRec", dataset=NAME, config_dict=settings)
    train, _, _ = data_preparation(config, create_dataset(config))
    model = SASRec(config, train.dataset)
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    model.train()
    measured, started = 0, 0.0
    for number, interaction in enumerate(train):
        if number == 1:
            started = time.perf_counter()  # after one step to warm up
        value = model.calculate_loss(interaction)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        measured = number
        if steps and number == steps:
            break
    seconds = (time.perf_counter() - started) / measured * len(train)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": seconds, "steps": len(train), "measured": measured, "peak": peak}


def our_epoch(workspace: str, loss: str, batch: int) -> tuple[float, int, int]:
    """Seconds of an epoch, its steps, and peak memory in MiB; a quarter of an epoch warms up."""
    import numpy as np
    import torch

    from llmemb_cli.config.rat import RatSettings
    from llmemb_cli.datasets.split import load_split
    from llmemb_cli.seeds import numpy_rng
    from llmemb_cli.srs.batch import make_batch
    from llmemb_cli.srs.item_embedding import ItemTable
    from llmemb_cli.srs.negatives import NegativeSampler
    from llmemb_cli.srs.objective import batch_loss
    from llmemb_cli.srs.recommender import Recommender
    from llmemb_cli.srs.sequences import epoch_batches, training_rows
    from llmemb_cli.workspace.make import peak_memory_mb

    data = load_split(Path(workspace) / "data")
    settings = RatSettings(
        method="none", loss=loss, hidden_size=HIDDEN, max_length=LENGTH, dropout=DROPOUT, batch_size=batch
    )
    torch.manual_seed(0)
    model = Recommender(settings, data.n_items, ItemTable(data.n_items, HIDDEN))
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE, betas=(0.9, 0.98), fused=True)
    sampler = None if loss == "ce" else NegativeSampler(data.train, data.n_items)
    rows = training_rows(data.train, "sasrec")

    def epoch(number: int, share: float) -> tuple[float, int]:
        batches: list[np.ndarray] = epoch_batches(len(rows), batch, 42, number)
        batches = batches[: math.ceil(len(batches) * share)]
        started = time.perf_counter()
        for step, chosen in enumerate(batches):
            made = make_batch(rows, chosen, settings, data.n_items, sampler, numpy_rng(42, "step", number, step))
            value, _ = batch_loss(model, settings, made)
            optimizer.zero_grad(set_to_none=True)
            value.backward()
            optimizer.step()
        return time.perf_counter() - started, len(batches)

    epoch(0, 0.25)
    return *epoch(1, 1.0), peak_memory_mb()


def write_interactions(workspace: str, folder: Path) -> None:
    """RecBole's `bench/bench.inter`: the training items of every user, in order."""
    from llmemb_cli.datasets.split import load_split

    data = load_split(Path(workspace) / "data")
    (folder / NAME).mkdir()
    with (folder / NAME / f"{NAME}.inter").open("w", newline="") as file:
        writer = csv.writer(file, delimiter="\t")
        writer.writerow(["user_id:token", "item_id:token", "timestamp:float"])
        for user in range(data.n_users):
            writer.writerows((user, item, place) for place, item in enumerate(data.train.row(user).tolist()))


def in_recbole(python: str, folder: Path, chosen: argparse.Namespace, threads: int) -> dict[str, Any]:
    """`recbole_epoch` in RecBole's own environment."""
    call = [
        str(Path(python).absolute()),
        str(Path(__file__).resolve()),
        "--inner",
        str(folder),
        "--loss",
        chosen.loss,
        "--batch",
        str(chosen.batch),
    ]
    call += ["--steps", str(chosen.steps), "--threads", str(threads)]
    done = subprocess.run(call, capture_output=True, text=True, cwd=folder)
    if done.returncode:
        sys.exit(done.stderr[-2000:])
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workspace", help="directory of a workspace")
    parser.add_argument("--recbole", help="the python of the environment with RecBole")
    parser.add_argument("--loss", choices=["ce", "bpr"], default="ce")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--steps", type=int, default=0, help="steps of RecBole that are measured; 0: the whole epoch")
    parser.add_argument("--inner", help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, default=1, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.inner:
        print(json.dumps(recbole_epoch(chosen.inner, chosen.loss, chosen.batch, chosen.steps, chosen.threads)))
        return
    if not (chosen.workspace and chosen.recbole):
        parser.error("--workspace and --recbole are needed")
    import torch

    threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        write_interactions(chosen.workspace, Path(folder))
        theirs = in_recbole(chosen.recbole, Path(folder), chosen, threads)
    seconds, steps, peak = our_epoch(chosen.workspace, chosen.loss, chosen.batch)
    print(f"{threads} threads, loss {chosen.loss}, batch {chosen.batch}, length {LENGTH}, hidden size {HIDDEN}")
    extrapolated = "" if theirs["measured"] + 1 >= theirs["steps"] else f", {theirs['measured']:.0f} of them measured"
    print(f"RecBole {theirs['seconds']:8.1f} s, {theirs['steps']:.0f} steps{extrapolated}, {theirs['peak']:,.0f} MiB")
    print(f"llmemb  {seconds:8.1f} s, {steps} steps, {peak:,} MiB: {theirs['seconds'] / seconds:.1f} times as fast")


if __name__ == "__main__":
    main()
