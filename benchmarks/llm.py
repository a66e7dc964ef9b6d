"""How fast items are embedded and SCFT trains, beside sentence-transformers: same weights, texts, precision, one run.

    pip install ".[bench]"
    python benchmarks/llm.py --data DIR                12,101 items of Amazon Beauty (items.parquet: title, keywords)
    python benchmarks/llm.py --data DIR --limit 1024   a random thousand of them
    python benchmarks/llm.py --only export             without training steps; `--only scft`: these alone
    python benchmarks/llm.py --random 1b               on a card: a Llama of 1.2 B random weights, made-up texts

Export: the two take turns chunk by chunk, so that both feel whatever else the machine does. SCFT: see llm_train.py.
Tokens are real ones: padding does not count, and a shared beginning counts for every prompt, computed or not.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))
import llm_train
from llm_setup import RANDOM, matrix_rate, operations_a_token, random_model, read_items, synchronise, without_template

from llmemb_cli.config.scft import ScftSettings
from llmemb_cli.config.settings import make_settings
from llmemb_cli.llm.load import LoadedModel, load_model
from llmemb_cli.llm.quiet import quiet_transformers
from llmemb_cli.llm.vectors import embed_tokens, make_encoder, token_batches, tokenise
from llmemb_cli.progress import Reporter

Way = Callable[[list[str]], np.ndarray]
THEIRS = "sentence-transformers encode"


def ours(loaded: LoadedModel, budget: int, *, prefix: bool) -> Way:
    """`llmemb embed` without its files: tokenise, sort, batch, pool."""
    settings = make_settings({"embed.batch_tokens": budget})

    @torch.no_grad()
    def run(texts: list[str]) -> np.ndarray:
        tokens = tokenise(loaded, texts)
        encoder = make_encoder(loaded, tokens, settings, Reporter(), use_prefix=prefix)
        result = np.empty((len(texts), loaded.model.config.hidden_size), dtype=np.float32)
        for batch in token_batches(np.array([len(row) for row in tokens]), encoder.budget):
            result[batch] = embed_tokens(encoder, [tokens[row] for row in batch]).cpu().numpy()
        return result

    return run


def sentence_transformers(loaded: LoadedModel, scratch: Path) -> Way:
    """`SentenceTransformer.encode` with mean pooling and its own defaults, on the same weights and precision."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling, Transformer

    with quiet_transformers():
        folder = without_template(loaded, scratch / "encode")
        words = Transformer(str(folder), model_kwargs={"dtype": loaded.dtype})
        pooling = Pooling(loaded.model.config.hidden_size, "mean")
        model = SentenceTransformer(modules=[words, pooling], device=loaded.device)
    return lambda texts: model.encode(texts, show_progress_bar=False, convert_to_tensor=True).float().cpu().numpy()


def timed(work: Way, texts: list[str], device: str) -> tuple[float, np.ndarray]:
    """Seconds and vectors."""
    synchronise(device)
    started = time.perf_counter()
    result = work(texts)
    synchronise(device)
    return time.perf_counter() - started, result


def measure_export(loaded: LoadedModel, texts: list[str], chosen: argparse.Namespace, scratch: Path) -> None:
    """Take turns over chunks of the texts, print tokens a second of each way and how far their vectors are apart."""
    ways: dict[str, Way] = {}
    for budget in chosen.budget:
        ways[f"llmemb, {budget} tokens a batch" if budget else "llmemb embed"] = ours(loaded, budget, prefix=True)
    if chosen.plain:
        ways["llmemb, nothing computed ahead"] = ours(loaded, chosen.budget[0], prefix=False)
    if not chosen.alone:
        ways[THEIRS] = sentence_transformers(loaded, scratch)
    lengths = [len(row) for row in tokenise(loaded, texts)]
    print(f"export: {len(texts):,} prompts, {np.mean(lengths):.1f} tokens on average", flush=True)
    seconds, apart, peaks = (dict.fromkeys(ways, 0.0) for _ in range(3))
    for way in ways.values():
        timed(way, texts[:64], loaded.device)  # the first call pays for the libraries' start
    for at in range(0, len(texts), chosen.chunk):
        chunk = texts[at : at + chosen.chunk]
        first: np.ndarray | None = None
        for name, way in ways.items():
            if loaded.device.startswith("cuda"):
                torch.cuda.reset_peak_memory_stats()
            passed, vectors = timed(way, chunk, loaded.device)
            seconds[name] += passed
            first = vectors if first is None else first
            norms = np.linalg.norm(first, axis=1)
            apart[name] = max(apart[name], float((np.linalg.norm(vectors - first, axis=1) / norms).max()))
            if loaded.device.startswith("cuda"):
                peaks[name] = max(peaks[name], torch.cuda.max_memory_allocated())
    rate = matrix_rate(loaded.dtype, loaded.device)
    operations = operations_a_token(loaded)
    print(f"matrix product: {rate / 1e12:.2f} TFLOP/s; {operations / 1e9:.3f} GFLOP a token in the linear layers")
    print(f"{'':32}{'tokens/s':>10}{'of the matrix rate':>20}{'times':>7}{'difference':>12}{'GB on the card':>16}")
    base = seconds.get(THEIRS)
    for name, passed in seconds.items():
        speed = sum(lengths) / passed
        times = f"{base / passed:.2f}" if base else "-"
        peak = f"{peaks[name] / 1e9:.2f}" if peaks[name] else "-"
        print(f"{name:32}{speed:10,.0f}{speed * operations / rate:20.0%}{times:>7}{apart[name]:12.1e}{peak:>16}")


def main() -> None:
    """Read the flags, load the model, measure."""
    warnings.simplefilter("ignore")
    os.environ["TQDM_DISABLE"] = "1"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with items.parquet; without: made-up items")
    parser.add_argument("--limit", type=int, default=0, help="items, drawn at random; 0: all")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--random", choices=sorted(RANDOM), help="random weights of this size instead")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--only", choices=["export", "scft"])
    parser.add_argument("--alone", action="store_true", help="without sentence-transformers")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    export = parser.add_argument_group("export")
    export.add_argument("--budget", type=int, nargs="+", default=[0], help="tokens a batch; 0: the default")
    export.add_argument("--chunk", type=int, default=1024, help="items a turn")
    export.add_argument("--plain", action="store_true", help="also without a beginning computed ahead")
    llm_train.add_flags(parser.add_argument_group("SCFT"))
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    items = read_items(chosen.data, chosen.limit)
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        if chosen.random:
            tokenizer_of = chosen.model if chosen.data else None
            chosen.model = str(random_model(chosen.random, scratch / "random", tokenizer_of))
        settings = ScftSettings(model=chosen.model, device=chosen.device, precision=chosen.precision)
        loaded = load_model(settings, Reporter())
        precision = str(loaded.dtype).removeprefix("torch.")
        print(f"{Path(chosen.model).name}, {precision} on {loaded.device}, {torch.get_num_threads()} threads, "
              f"torch {torch.__version__}", flush=True)  # fmt: skip
        if chosen.only != "scft":
            measure_export(loaded, items.prompts.to_list(), chosen, scratch)
        if chosen.only != "export":
            llm_train.measure(loaded, items, chosen, scratch)


if __name__ == "__main__":
    main()
