"""How fast SCFT steps are, beside sentence-transformers' trainer with its cached in-batch loss.

    python benchmarks/llm.py --only scft --data DIR      see there for the flags

Same weights, LoRA (rank 8, dropout 0.1 on all seven projections), batch size, precision and texts (two views of the
same items); one process, one after the other, some rounds. Speeds are real tokens a second (padding does not count);
the first step of each is left out.

Of the matrix rate: a step needs two operations a weight and token forwards and two backwards, for the gradients of
the states; frozen weights need none. A forward pass that is made again is not counted.
"""

from __future__ import annotations

import argparse
import io
import tempfile
import time
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from llm_setup import matrix_rate, operations_a_token, without_template

from llmemb_cli.config.settings import Settings, make_settings
from llmemb_cli.llm.load import LoadedModel
from llmemb_cli.llm.plan import step_items
from llmemb_cli.llm.quiet import quiet_transformers
from llmemb_cli.llm.scft import make_trainer, prepare
from llmemb_cli.llm.step import contrast, update
from llmemb_cli.llm.trainer import Items, draw_views
from llmemb_cli.peers import ALONE
from llmemb_cli.progress import Reporter
from llmemb_cli.seeds import numpy_rng
from llmemb_cli.workspace.make import peak_memory_mb, reset_peak_memory

OURS, THEIRS = "llmemb scft", "sentence-transformers trainer"


@dataclass(frozen=True)
class Speed:
    """Real tokens, seconds, and the peak of memory in bytes, on the card where there is one."""

    tokens: int
    seconds: float
    peak: int


def ours(items: Items, settings: Settings, device: str, steps: int) -> Speed:
    """Our steps, as `llmemb scft` makes them."""
    reset_peak(device)
    trainer = make_trainer(items, settings, Reporter(), device, ALONE)
    trainer.model.train()
    every = np.arange(len(items))
    tokens, seconds = 0, 0.0
    with tempfile.TemporaryDirectory() as folder:
        run = prepare(trainer, Path(folder), Reporter())
        for step in range(steps + 1):
            started = time.perf_counter()
            chosen = step_items(every, settings.scft, settings.seed, step)
            contrast(trainer, chosen, step, run.scaler, Reporter())
            update(trainer, run.optimizer, run.scaler)
            if step:  # the loss has been read, so a card has done its work
                seconds += time.perf_counter() - started
                tokens += sum(map(len, trainer.tokens(_views(items, settings, every, step))))
    return Speed(tokens, seconds, peak(device))


def theirs(items: Items, settings: Settings, loaded: LoadedModel, folder: Path, steps: int, mini: int) -> Speed:
    """Steps of sentence-transformers' trainer."""
    import datasets
    from peft import LoraConfig, TaskType, get_peft_model
    from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
    from sentence_transformers import SentenceTransformerTrainingArguments as Arguments
    from sentence_transformers.losses import CachedMultipleNegativesRankingLoss
    from sentence_transformers.models import Pooling, Transformer
    from transformers import PrinterCallback

    scft, device = settings.scft, loaded.device
    reset_peak(device)
    with quiet_transformers():
        words = Transformer(str(folder), max_seq_length=scft.max_tokens, model_kwargs={"dtype": loaded.dtype})
        pooling = Pooling(loaded.model.config.hidden_size, "mean")
        lora = LoraConfig(
            task_type=TaskType.FEATURE_EXTRACTION,
            r=scft.lora_rank,
            lora_alpha=scft.lora_alpha,
            lora_dropout=scft.lora_dropout,
            target_modules=scft.target_modules,
        )
        # Not add_adapter, which asks for a version of PEFT of its own.
        words.model = get_peft_model(words.model, lora)
        model = SentenceTransformer(modules=[words, pooling], device=device)
    every = np.arange(len(items))
    pairs: dict[str, list[str]] = {"anchor": [], "positive": []}
    tokens = 0
    for step in range(steps + 1):
        texts = _views(items, settings, every, step)
        pairs["anchor"] += texts[: len(texts) // 2]
        pairs["positive"] += texts[len(texts) // 2 :]
        if step:
            tokens += sum(map(len, loaded.tokenizer(texts)["input_ids"]))
    watch = _watch()
    # It shows bars of its own.
    with tempfile.TemporaryDirectory() as out, redirect_stderr(io.StringIO()), quiet_transformers():
        trainer = SentenceTransformerTrainer(
            model=model,
            args=Arguments(
                output_dir=out,
                per_device_train_batch_size=scft.batch_size,
                max_steps=steps + 1,
                bf16=loaded.dtype == torch.bfloat16,
                learning_rate=scft.learning_rate,
                max_grad_norm=scft.clip_norm,
                use_cpu=not device.startswith("cuda"),
                report_to="none",
                save_strategy="no",
                logging_strategy="no",
                disable_tqdm=True,
            ),
            train_dataset=datasets.Dataset.from_dict(pairs),
            loss=CachedMultipleNegativesRankingLoss(model, mini_batch_size=mini),
            callbacks=[watch],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return Speed(tokens, watch.seconds(), peak(device))


def _views(items: Items, settings: Settings, every: np.ndarray, step: int) -> list[str]:
    """The texts of a step, first views first."""
    chosen = step_items(every, settings.scft, settings.seed, step)
    return draw_views(items, chosen, settings.scft.drop_ratio, numpy_rng(settings.seed, "views", step)).texts


def _watch() -> Any:
    from transformers import TrainerCallback

    class Watch(TrainerCallback):
        """Times every step but the first."""

        def __init__(self) -> None:
            self.begun: list[float] = []
            self.ended: list[float] = []

        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            self.begun.append(_now())

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            self.ended.append(_now())

        def seconds(self) -> float:
            return sum(end - begin for begin, end in zip(self.begun[1:], self.ended[1:], strict=True))

    return Watch()


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def reset_peak(device: str) -> None:
    """Count the peak of memory anew."""
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    else:
        reset_peak_memory()


def peak(device: str) -> int:
    """Bytes at most since then."""
    return torch.cuda.max_memory_allocated() if device.startswith("cuda") else peak_memory_mb() << 20


def add_flags(parser: Any) -> None:
    """The flags of this part."""
    parser.add_argument("--batch-size", type=int, default=64, help="items contrasted in a step")
    parser.add_argument("--steps", type=int, default=1, help="steps a round, after one that does not count")
    parser.add_argument("--rounds", type=int, default=2, help="how often the two are measured, in turn")
    parser.add_argument("--mini", type=int, default=32, help="mini-batch size of the other trainer")
    parser.add_argument("--memory-gb", type=float, default=0.0)


def measure(loaded: LoadedModel, items: Items, chosen: argparse.Namespace, scratch: Path) -> None:
    """Let the two train in turn, print a line a round and the table."""
    settings = make_settings(
        {
            "scft.model": chosen.model,
            "scft.batch_size": chosen.batch_size,
            "scft.precision": {torch.bfloat16: "bf16", torch.float32: "fp32"}[loaded.dtype],
            "scft.memory_gb": chosen.memory_gb,
        }
    )
    print(f"SCFT: {chosen.batch_size} items a step, two views each", flush=True)
    folder = without_template(loaded, scratch / "train")
    speeds: dict[str, list[Speed]] = {OURS: []} | ({} if chosen.alone else {THEIRS: []})
    for _ in range(chosen.rounds):
        for name, found in speeds.items():
            if name == OURS:
                found.append(ours(items, settings, loaded.device, chosen.steps))
            else:
                found.append(theirs(items, settings, loaded, folder, chosen.steps, chosen.mini))
            print(f"{name}: {found[-1].tokens / found[-1].seconds:,.0f} tokens/s", flush=True)
    rate, operations = matrix_rate(loaded.dtype, loaded.device), 2 * operations_a_token(loaded)
    print(f"{'':32}{'tokens/s':>10}{'of the matrix rate':>20}{'times':>7}{'peak, GB':>12}")
    # The same tokens each round: the mean speed is tokens of all rounds over seconds of all rounds.
    means = {name: sum(s.tokens for s in all_) / sum(s.seconds for s in all_) for name, all_ in speeds.items()}
    for name, speed in means.items():
        times = f"{speed / means[THEIRS]:.2f}" if THEIRS in means else "-"
        most = max(found.peak for found in speeds[name]) / 1e9
        print(f"{name:32}{speed:10,.0f}{speed * operations / rate:20.0%}{times:>7}{most:12.2f}")
