"""How fast embeddings are exported, beside sentence-transformers: same weights, texts, precision, one run.

    python benchmarks/llm.py --data DIR                 12,101 items of Amazon Beauty (items.parquet: title, keywords)
    python benchmarks/llm.py --data DIR --limit 1024    a random thousand of them
    python benchmarks/llm.py --random 1b --device cuda  a Llama-shaped model of random weights, made-up texts

The two take turns chunk by chunk, so that both feel whatever else the machine does. Tokens are real ones: padding
does not count, and a shared beginning counts for every prompt, computed or not.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import torch

from llmemb_cli.assets.architecture import Architecture, read_architecture
from llmemb_cli.config.scft import ScftSettings
from llmemb_cli.config.settings import make_settings
from llmemb_cli.llm.load import LoadedModel, load_model
from llmemb_cli.llm.quiet import quiet_transformers
from llmemb_cli.llm.vectors import embed_tokens, make_encoder, token_batches, tokenise
from llmemb_cli.progress import Reporter

INSTRUCTION = "The beauty item has the following attributes:"
RANDOM = {
    "tiny": Architecture("llama", 64, 2, 128, 2, 1, 32, 49152, 2048),
    "1b": Architecture("llama", 2048, 16, 8192, 32, 8, 64, 49152, 8192),
}


def texts_of(data: Path | None, limit: int) -> list[str]:
    """Prompts of the items in `data`, or of made-up ones, `limit` of them at random."""
    rng = np.random.default_rng(0)
    if data is None:
        words = ["cream", "serum", "shampoo", "brush", "nail", "hair", "skin", "face", "oil", "gel", "spray", "soft"]
        return [
            f"{INSTRUCTION}\ntitle is {' '.join(rng.choice(words, 12))}; keywords is {' '.join(rng.choice(words, 6))}"
            for _ in range(limit or 4096)
        ]
    items = pl.read_parquet(data / "items.parquet")
    texts = [
        f"{INSTRUCTION}\n" + "; ".join(f"{name} is {row[name]}" for name in ("title", "keywords") if row[name])
        for row in items.iter_rows(named=True)
    ]
    return [texts[row] for row in rng.permutation(len(texts))[: limit or None]]


def random_model(size: str, tokenizer_of: str, folder: Path) -> Path:
    """Save a Llama of random weights with another model's tokenizer: weights do not matter to speed."""
    from transformers import AutoModel, LlamaConfig

    from llmemb_cli.assets.models import local_model
    from llmemb_cli.llm.load import load_tokenizer

    numbers = RANDOM[size]
    config = LlamaConfig(
        vocab_size=numbers.vocabulary,
        hidden_size=numbers.hidden,
        intermediate_size=numbers.intermediate,
        num_hidden_layers=numbers.layers,
        num_attention_heads=numbers.heads,
        num_key_value_heads=numbers.kv_heads,
        head_dim=numbers.head_dim,
        max_position_embeddings=numbers.positions,
    )
    AutoModel.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    load_tokenizer(local_model(tokenizer_of, Reporter())).save_pretrained(folder)
    return folder


def ours(loaded: LoadedModel, budget: int, *, prefix: bool) -> Callable[[list[str]], np.ndarray]:
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


def sentence_transformers(loaded: LoadedModel, scratch: Path) -> Callable[[list[str]], np.ndarray]:
    """`SentenceTransformer.encode` with mean pooling and its own defaults, on the same weights and precision."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling, Transformer

    folder = scratch / "without-template"
    folder.mkdir()
    for file in loaded.folder.iterdir():
        # With a chat template it wraps every text into a dialogue: other texts, and more of them.
        if file.name != "chat_template.jinja":
            (folder / file.name).symlink_to(file.resolve())
    loaded.tokenizer.chat_template = None
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink(missing_ok=True)
    loaded.tokenizer.save_pretrained(folder)
    with quiet_transformers():
        words = Transformer(str(folder), model_kwargs={"dtype": loaded.dtype})
        pooling = Pooling(loaded.model.config.hidden_size, "mean")
        model = SentenceTransformer(modules=[words, pooling], device=loaded.device)
    return lambda texts: model.encode(texts, show_progress_bar=False, convert_to_tensor=True).float().cpu().numpy()


def matrix_rate(loaded: LoadedModel) -> float:
    """Floating-point operations a second of a large matrix product in the model's precision, the best of several."""
    size = 8192 if loaded.device.startswith("cuda") else 2048
    one = torch.randn(size, size, device=loaded.device).to(loaded.dtype)
    best = 0.0
    for _ in range(5):
        synchronise(loaded.device)
        started = time.perf_counter()
        for _ in range(4):
            one @ one
        synchronise(loaded.device)
        best = max(best, 4 * 2 * size**3 / (time.perf_counter() - started))
    return best


def synchronise(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def timed(work: Callable[[list[str]], np.ndarray], texts: list[str], device: str) -> tuple[float, np.ndarray]:
    synchronise(device)
    started = time.perf_counter()
    result = work(texts)
    synchronise(device)
    return time.perf_counter() - started, result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with items.parquet")
    parser.add_argument("--limit", type=int, default=0, help="items, drawn at random; 0: all")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--random", choices=sorted(RANDOM), help="random weights of this size instead")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--budget", type=int, nargs="+", default=[0], help="tokens a batch; 0: the default")
    parser.add_argument("--chunk", type=int, default=1024, help="items a turn")
    parser.add_argument("--alone", action="store_true", help="without sentence-transformers")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        model = chosen.model
        if chosen.random:
            model = str(random_model(chosen.random, chosen.model, Path(scratch)))
        settings = ScftSettings(model=model, device=chosen.device, precision=chosen.precision)
        loaded = load_model(settings, Reporter())
        measure(loaded, texts_of(chosen.data, chosen.limit), chosen, Path(scratch))


def measure(loaded: LoadedModel, texts: list[str], chosen: argparse.Namespace, scratch: Path) -> None:
    """Take turns over chunks of the texts, print tokens a second of each way and how far their vectors are apart."""
    ways: dict[str, Callable[[list[str]], np.ndarray]] = {}
    for budget in chosen.budget:
        ways[f"llmemb, {budget} tokens a batch" if budget else "llmemb"] = ours(loaded, budget, prefix=True)
    ways["llmemb, nothing computed ahead"] = ours(loaded, chosen.budget[0], prefix=False)
    if not chosen.alone:
        ways["sentence-transformers encode"] = sentence_transformers(loaded, scratch)
    lengths = [len(row) for row in tokenise(loaded, texts)]
    precision = str(loaded.dtype).removeprefix("torch.")
    print(f"{len(texts):,} prompts, {np.mean(lengths):.1f} tokens on average, {precision} on {loaded.device}")
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}", flush=True)
    seconds = dict.fromkeys(ways, 0.0)
    apart = dict.fromkeys(ways, 0.0)
    if loaded.device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
    for way in ways.values():
        timed(way, texts[:64], loaded.device)  # the first call pays for the libraries' start
    for at in range(0, len(texts), chosen.chunk):
        chunk = texts[at : at + chosen.chunk]
        first: np.ndarray | None = None
        for name, way in ways.items():
            passed, vectors = timed(way, chunk, loaded.device)
            seconds[name] += passed
            first = vectors if first is None else first
            norms = np.linalg.norm(first, axis=1)
            apart[name] = max(apart[name], float((np.linalg.norm(vectors - first, axis=1) / norms).max()))
    report(loaded, seconds, apart, sum(lengths))


def report(loaded: LoadedModel, seconds: dict[str, float], apart: dict[str, float], tokens: int) -> None:
    """Print the table."""
    rate = matrix_rate(loaded)
    # A token multiplies every weight of the blocks once: two operations each. Attention itself is left out.
    operations = 2 * read_architecture(loaded.model.config.to_dict()).linear
    base = seconds.get("sentence-transformers encode")
    print(f"matrix product: {rate / 1e12:.2f} TFLOP/s; {operations / 1e9:.3f} GFLOP a token in the linear layers")
    print(f"{'':34} {'tokens/s':>10} {'of the matrix rate':>19} {'times':>6} {'largest difference':>19}")
    for name, passed in seconds.items():
        speed = tokens / passed
        times = f"{base / passed:.2f}" if base else "-"
        print(f"{name:34} {speed:10,.0f} {speed * operations / rate:19.0%} {times:>6} {apart[name]:19.1e}")
    if loaded.device.startswith("cuda"):
        print(f"peak memory on the card: {torch.cuda.max_memory_allocated() / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
