"""How fast SCFT steps are, beside sentence-transformers' trainer with its cached in-batch loss.

    pip install sentence-transformers datasets
    python benchmarks/llm_train.py --data items.parquet --model smollm2-135m

Same weights, LoRA, batch size, precision and texts (two views of the same items); one process, one after the other.
Speeds are real tokens a second (padding does not count), the first step of each is left out.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from llmemb_cli.assets.models import local_model
from llmemb_cli.config.settings import Settings, make_settings
from llmemb_cli.llm.plan import step_items
from llmemb_cli.llm.scft import contrast, make_trainer, prepare, update
from llmemb_cli.llm.trainer import Items, draw_views
from llmemb_cli.peers import ALONE
from llmemb_cli.progress import Reporter
from llmemb_cli.seeds import numpy_rng
from llmemb_cli.workspace.stage import peak_memory_mb, reset_peak_memory

INSTRUCTION = "The beauty item has the following attributes:"


def read_items(path: Path) -> Items:
    """Prompts of a table with `item_id` and text columns."""
    frame = pl.read_parquet(path)
    names = [name for name in frame.columns if name != "item_id"]
    parts = [
        [f"{name} is {value}" for name, value in zip(names, row, strict=True) if value]
        for row in frame.select(names).iter_rows()
    ]
    prompts = [f"{INSTRUCTION}\n" + "; ".join(texts) for texts in parts]
    return Items(pl.Series(parts), pl.Series(prompts), INSTRUCTION, "; ")


def ours(items: Items, settings: Settings, steps: int) -> float:
    """Real tokens a second of our steps."""
    trainer = make_trainer(items, settings, Reporter(), "cuda" if torch.cuda.is_available() else "cpu", ALONE)
    trainer.model.train()
    every = np.arange(len(items))
    with tempfile.TemporaryDirectory() as folder:
        run = prepare(trainer, Path(folder), Reporter())
        tokens = seconds = 0.0
        for step in range(steps + 1):
            started = time.perf_counter()
            chosen = step_items(every, settings.scft, settings.seed, step)
            contrast(trainer, chosen, step, run.scaler, Reporter())
            update(run)
            if step:
                seconds += time.perf_counter() - started
                rng = numpy_rng(settings.seed, "views", step)
                views = draw_views(items, chosen, settings.scft.drop_ratio, rng)
                tokens += sum(map(len, trainer.tokens(views.texts)))
    return tokens / seconds


def theirs(items: Items, settings: Settings, steps: int, mini: int) -> float:
    """Real tokens a second of sentence-transformers' trainer."""
    import datasets
    from peft import LoraConfig, TaskType
    from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
    from sentence_transformers import SentenceTransformerTrainingArguments as Arguments
    from sentence_transformers.losses import CachedMultipleNegativesRankingLoss
    from sentence_transformers.models import Pooling, Transformer
    from transformers import TrainerCallback

    scft = settings.scft
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[scft.precision]
    folder = str(local_model(scft.model, Reporter()))
    word = Transformer(folder, max_seq_length=scft.max_tokens, model_args={"dtype": dtype})
    word.tokenizer.pad_token = word.tokenizer.pad_token or word.tokenizer.eos_token
    model = SentenceTransformer(modules=[word, Pooling(word.get_word_embedding_dimension(), "mean")])
    model.add_adapter(
        LoraConfig(
            task_type=TaskType.FEATURE_EXTRACTION,
            r=scft.lora_rank,
            lora_alpha=scft.lora_alpha,
            lora_dropout=scft.lora_dropout,
            target_modules=scft.target_modules,
        )
    )
    every = np.arange(len(items))
    pairs: dict[str, list[str]] = {"anchor": [], "positive": []}
    tokens = 0
    for step in range(steps + 1):
        chosen = step_items(every, scft, settings.seed, step)
        views = draw_views(items, chosen, scft.drop_ratio, numpy_rng(settings.seed, "views", step))
        pairs["anchor"] += views.texts[: len(chosen)]
        pairs["positive"] += views.texts[len(chosen) :]
        if step:
            tokens += sum(map(len, word.tokenizer(views.texts)["input_ids"]))
    begun: list[float] = []
    ended: list[float] = []

    class Watch(TrainerCallback):
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            begun.append(time.perf_counter())

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            ended.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as out:
        trainer = SentenceTransformerTrainer(
            model=model,
            args=Arguments(
                output_dir=out,
                per_device_train_batch_size=scft.batch_size,
                max_steps=steps + 1,
                bf16=dtype == torch.bfloat16,
                learning_rate=scft.learning_rate,
                max_grad_norm=scft.clip_norm,
                use_cpu=not torch.cuda.is_available(),
                report_to="none",
                save_strategy="no",
                logging_strategy="no",
                disable_tqdm=True,
            ),
            train_dataset=datasets.Dataset.from_dict(pairs),
            loss=CachedMultipleNegativesRankingLoss(model, mini_batch_size=mini),
            callbacks=[Watch()],
        )
        trainer.train()
    return tokens / sum(e - b for b, e in zip(begun[1:], ended[1:], strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="items.parquet with item_id and text columns")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="bf16")
    parser.add_argument("--rounds", type=int, default=2, help="how often the two are measured, in turn")
    parser.add_argument("--mini", type=int, default=32, help="mini-batch size of the other trainer")
    parser.add_argument("--memory-gb", type=float, default=0.0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    settings = make_settings(
        {
            "scft.model": chosen.model,
            "scft.batch_size": chosen.batch_size,
            "scft.precision": chosen.precision,
            "scft.memory_gb": chosen.memory_gb,
        }
    )
    items = read_items(chosen.data)
    print(
        f"{chosen.model}, batch {chosen.batch_size}, {chosen.precision}, {torch.get_num_threads()} threads",
        flush=True,
    )
    # Ours first, so that its peak of memory is its own.
    speeds: dict[str, list[float]] = {"llmemb scft": [], "sentence-transformers": []}
    for _ in range(chosen.rounds):
        for name in speeds:
            reset_peak_memory()
            if name == "llmemb scft":
                speed = ours(items, settings, chosen.steps)
            else:
                speed = theirs(items, settings, chosen.steps, chosen.mini)
            speeds[name].append(speed)
            print(f"{name}: {speed:,.0f} tokens/s, peak {peak_memory_mb():,} MB", flush=True)
    # The same tokens each round: the mean speed is the harmonic one.
    ours_all, theirs_all = (len(each) / sum(1 / speed for speed in each) for each in speeds.values())
    print(f"{ours_all:,.0f} against {theirs_all:,.0f} tokens/s: {ours_all / theirs_all:.2f} times", flush=True)


if __name__ == "__main__":
    main()
