"""All of the language model that needs a CUDA card: checks first, then speeds, one table last.

    pip install ".[bench]"
    python benchmarks/llm_gpu.py                            about ten minutes; nothing is fetched
    python benchmarks/llm_gpu.py --size tiny --device cpu   the same way on a CPU, to try the script

The model is a Llama of 1.2 B random weights (`--size tiny`: two small layers), the items are made up. "Of the matrix
rate" is the share of what a large bf16 product reaches on this card, counting the linear layers: two operations a
weight and token for export, four for a training step.
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))
import llm
import llm_train
from llm_setup import RANDOM, matrix_rate, operations_a_token, random_model, read_items

from llmemb_cli.config.scft import ScftSettings
from llmemb_cli.config.settings import make_settings
from llmemb_cli.llm.load import LoadedModel, load_model
from llmemb_cli.llm.scft import make_trainer, prepare
from llmemb_cli.llm.step import contrast, update
from llmemb_cli.llm.trainer import Items
from llmemb_cli.llm.vectors import tokenise
from llmemb_cli.peers import ALONE
from llmemb_cli.progress import Reporter

# How a model is loaded, and the largest difference of a vector from that in float32 on the CPU, of its length.
LOADED: dict[str, tuple[dict[str, Any], float]] = {
    "fp32": ({"precision": "fp32"}, 1e-3),
    "bf16": ({"precision": "bf16"}, 0.05),
    "fp16": ({"precision": "fp16"}, 0.02),
    "8-bit": ({"precision": "bf16", "load_in_8bit": True}, 0.1),
    "4-bit": ({"precision": "bf16", "load_in_4bit": True}, 0.4),
}
BUDGETS = [4096, 16384, 65536]
Row = tuple[str, str, str]


class Warned(Reporter):
    """Keeps what was said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def warn(self, message: str) -> None:
        self.said.append(message)


def check(folder: Path, items: Items, device: str) -> Iterator[Row]:
    """Vectors as on a CPU, training that learns, in every way a model can be loaded."""
    prompts = items.prompts[:256].to_list()
    whole = llm.ours(load(folder, "cpu", {"precision": "fp32"}), 0, prefix=False)(prompts)
    for name, (chosen, allowed) in LOADED.items():
        if name == "fp16" and device == "cpu":
            continue
        vectors = llm.ours(load(folder, device, chosen), 0, prefix=True)(prompts)
        apart = float((np.linalg.norm(vectors - whole, axis=1) / np.linalg.norm(whole, axis=1)).max())
        yield f"check: vectors in {name}", verdict(apart < allowed), f"{apart:.1e} from float32 on a CPU"
        losses = train(folder, items, device, {"learning_rate": 0.01, "lora_dropout": 0.0} | chosen, steps=12)
        learnt = all(map(math.isfinite, losses)) and min(losses) < losses[0] - 0.05
        yield f"check: training in {name}", verdict(learnt), f"loss {losses[0]:.3f} -> {min(losses):.3f}"


def verdict(good: bool) -> str:
    """A word for the table."""
    return "good" if good else "BAD"


def load(folder: Path, device: str, chosen: dict[str, Any]) -> LoadedModel:
    """The model as `[scft]` would load it."""
    return load_model(ScftSettings(model=str(folder), device=device, **chosen), Reporter())


def train(folder: Path, items: Items, device: str, chosen: dict[str, Any], steps: int) -> list[float]:
    """The loss of each step on the same views of the same items."""
    settings = make_settings({f"scft.{key}": value for key, value in ({"model": str(folder)} | chosen).items()})
    trainer = make_trainer(items, settings, Reporter(), device, ALONE)
    trainer.model.train()
    losses = []
    with tempfile.TemporaryDirectory() as work:
        run = prepare(trainer, Path(work), Reporter())
        for _ in range(steps):
            losses.append(contrast(trainer, np.arange(32), 0, run.scaler, Reporter()))
            update(trainer, run.optimizer, run.scaler)
    return losses


def export(folder: Path, items: Items, device: str) -> Iterator[Row]:
    """Tokens a second of export, by tokens a batch and by how the model is loaded."""
    prompts = items.prompts.to_list()
    for name in ("bf16", "8-bit", "4-bit"):
        loaded = load(folder, device, LOADED[name][0])
        tokens = sum(map(len, tokenise(loaded, prompts)))
        rate, operations = matrix_rate(torch.bfloat16, device), operations_a_token(loaded)
        for budget in BUDGETS if name == "bf16" else [0]:
            way = llm.ours(loaded, budget, prefix=True)
            llm.timed(way, prompts[:256], device)
            llm_train.reset_peak(device)
            seconds, _ = llm.timed(way, prompts, device)
            how = f"{budget} tokens a batch" if budget else "default batch"
            yield f"export, {name}, {how}", *speed(tokens / seconds, operations, rate, llm_train.peak(device))


def steps(folder: Path, items: Items, device: str, batch: int) -> Iterator[Row]:
    """Tokens a second of training steps."""
    rate = matrix_rate(torch.bfloat16, device)
    ways: dict[str, dict[str, Any]] = {name: LOADED[name][0] for name in ("bf16", "8-bit", "4-bit")}
    ways["bf16, checkpointing"] = {"precision": "bf16", "gradient_checkpointing": True}
    for name, chosen in ways.items():
        operations = 2 * operations_a_token(load(folder, "cpu", {"precision": "bf16"}))
        given = {"model": str(folder), "batch_size": batch} | chosen
        settings = make_settings({f"scft.{key}": value for key, value in given.items()})
        found = llm_train.ours(items, settings, device, steps=3)
        yield f"step, {batch} items, {name}", *speed(found.tokens / found.seconds, operations, rate, found.peak)


def too_much(folder: Path, items: Items, device: str) -> Iterator[Row]:
    """All texts of a large batch at once: memory runs out, the micro-batch is halved, the step is made."""
    settings = make_settings({"scft.model": str(folder), "scft.micro_batch_size": 10**6, "scft.precision": "bf16"})
    trainer = make_trainer(items, settings, Reporter(), device, ALONE)
    trainer.model.train()
    heard = Warned()
    started = time.perf_counter()
    loss = contrast(
        trainer, np.arange(len(items)), 0, torch.amp.GradScaler(device.split(":")[0], enabled=False), heard
    )
    seconds = time.perf_counter() - started
    said = heard.said[-1] if heard.said else "memory sufficed"
    yield f"{len(items)} items, all texts at once", verdict(math.isfinite(loss)), f"{said}; {seconds:.0f} s"


def speed(tokens: float, operations: int, rate: float, peak: int) -> tuple[str, str]:
    """Two cells of the table."""
    return f"{tokens:,.0f} tokens/s", f"{tokens * operations / rate:.0%} of the matrix rate, peak {peak / 1e9:.1f} GB"


def main() -> None:
    """Run all parts, say each row as it is known, print the table."""
    warnings.simplefilter("ignore")
    os.environ["TQDM_DISABLE"] = "1"
    logging.getLogger("bitsandbytes").setLevel(logging.CRITICAL)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=sorted(RANDOM), default="1b")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--items", type=int, default=16384, help="made-up items to embed")
    parser.add_argument("--batch-size", type=int, default=512, help="items contrasted in a step")
    chosen = parser.parse_args()
    device, rows = chosen.device, [("machine", *machine(chosen.device))]
    with tempfile.TemporaryDirectory() as scratch:
        tiny = random_model("tiny", Path(scratch) / "tiny", None)
        large = random_model(chosen.size, Path(scratch) / "large", None)
        items = read_items(None, chosen.items)
        parts = [check(tiny, items, device), export(large, items, device)]
        parts += [steps(large, items, device, chosen.batch_size), too_much(large, items, device)]
        for part in parts:
            for row in part:
                print(*row, sep="  ", file=sys.stderr, flush=True)
                rows.append(row)
    width = [max(len(row[column]) for row in rows) for column in range(2)]
    for name, value, more in rows:
        print(f"{name:{width[0]}}  {value:>{width[1]}}  {more}")


def machine(device: str) -> tuple[str, str]:
    """The card and what is installed."""
    import transformers

    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else "CPU"
    rate = matrix_rate(torch.bfloat16, device)
    return (
        name,
        f"bf16 product {rate / 1e12:.2f} TFLOP/s, torch {torch.__version__}, transformers {transformers.__version__}",
    )


if __name__ == "__main__":
    main()
