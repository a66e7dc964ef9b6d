"""PCA of LLM embeddings (LLMEmb section 4.1): kept, so that items that come later can be projected."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from llmemb_cli.workspace.store import read_tensors, write_tensors

if TYPE_CHECKING:
    from llmemb_cli.progress import Reporter

FILE = "pca.safetensors"
EXACT_UP_TO = 50_000_000  # values in the table; above, a randomised decomposition


@dataclass(frozen=True)
class Pca:
    """A fitted PCA: centred, not whitened, strongest component first.

    Attributes:
        mean: (d,) float32.
        components: (width, d) float32, orthonormal rows; the largest entry of each is positive.
        explained_variance: (width,) float32.
        total_variance: of the vectors it was fitted on.
    """

    mean: np.ndarray
    components: np.ndarray
    explained_variance: np.ndarray
    total_variance: float

    def transform(self, vectors: np.ndarray) -> np.ndarray:
        """(n, d) -> (n, width) float32."""
        return ((vectors - self.mean) @ self.components.T).astype(np.float32, copy=False)


def fit_pca(vectors: np.ndarray, width: int, report: Reporter | None = None, seed: int = 0) -> Pca:
    """Fit on all rows; `width` is clamped to what the rows can give, min(width, n - 1, d), with a note."""
    from sklearn.decomposition import PCA

    possible = max(1, min(width, len(vectors) - 1, vectors.shape[1]))
    if possible < width and report is not None:
        report.note(f"PCA: {possible} components, all that {len(vectors)} vectors of {vectors.shape[1]} numbers have")
    solver = "full" if vectors.size <= EXACT_UP_TO else "randomized"
    fitted = PCA(possible, svd_solver=solver, random_state=seed).fit(vectors.astype(np.float64, copy=False))
    # The sign of a component is arbitrary; fixing it makes results the same with every linear-algebra library.
    largest = np.abs(fitted.components_).argmax(axis=1)
    signs = np.sign(fitted.components_[np.arange(possible), largest])
    return Pca(
        mean=fitted.mean_.astype(np.float32),
        components=(fitted.components_ * signs[:, None]).astype(np.float32),
        explained_variance=fitted.explained_variance_.astype(np.float32),
        total_variance=float(vectors.var(axis=0, ddof=1, dtype=np.float64).sum()),
    )


def write_pca(directory: Path, pca: Pca) -> None:
    """Write `pca.safetensors`."""
    import torch

    tensors = {
        "mean": torch.from_numpy(pca.mean),
        "components": torch.from_numpy(pca.components),
        "explained_variance": torch.from_numpy(pca.explained_variance),
        "total_variance": torch.tensor([pca.total_variance], dtype=torch.float64),
    }
    write_tensors(directory / FILE, tensors)


def read_pca(directory: Path) -> Pca:
    """Read the PCA of an embeddings directory.

    Raises:
        BadDataError: it is missing or damaged.
    """
    tensors = {name: tensor.numpy() for name, tensor in read_tensors(directory / FILE).items()}
    total = float(tensors.pop("total_variance")[0])
    return Pca(**tensors, total_variance=total)
