"""llmemb: item embeddings from a language model for long-tail sequential recommendation."""

__version__ = "0.1.0"
