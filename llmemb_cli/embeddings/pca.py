"""PCA of LLM embeddings (LLMEmb section 4.1): kept, so that items that come later can be projected."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from llmemb_cli.workspace.rows import blocks
from llmemb_cli.workspace.store import read_tensors, write_tensors

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llmemb_cli.progress import Reporter

FILE = "pca.safetensors"
SVD_UP_TO = 50_000_000  # values in the table; larger ones are read in blocks, some times over
# Of the randomised decomposition: passes over the table, and directions beyond those asked for.
PASSES = 7
SPARE = 10
SAME = 1e-9  # variance of what is the same but for rounding, as a share of its squared length


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

    def first(self, width: int) -> Pca:
        """The same with at most the `width` strongest components."""
        return replace(self, components=self.components[:width], explained_variance=self.explained_variance[:width])

    @property
    def all_same(self) -> bool:
        """Whether the vectors differ in nothing but rounding."""
        return self.total_variance <= SAME * float(np.square(self.mean, dtype=np.float64).sum())

    def transform(self, vectors: np.ndarray) -> np.ndarray:
        """(n, d) -> (n, width) float32."""
        result = np.empty((len(vectors), len(self.components)), dtype=np.float32)
        for rows in blocks(*vectors.shape):
            result[rows] = (vectors[rows] - self.mean) @ self.components.T
        return result


def fit_pca(vectors: np.ndarray, width: int, report: Reporter | None = None) -> Pca:
    """Fit on all rows; `width` is clamped to what the rows can give, min(width, n - 1, d), with a note.

    A small table is decomposed as a whole. A larger one, which may be a memory map, is read in blocks: its covariance
    matrix is decomposed, also exactly, or, where few components of wide vectors are asked for, a random subspace is
    turned towards them (Halko, Martinsson and Tropp, 2011). `report` is warned of rows that are all the same.
    """
    possible = max(1, min(width, len(vectors) - 1, vectors.shape[1]))
    if possible < width and report is not None:
        report.note(f"PCA: {possible} components, all that {len(vectors)} vectors of {vectors.shape[1]} numbers have")
    if len(vectors) == 1:
        # One vector has no variance, so that any direction is as good.
        return Pca(
            vectors[0].astype(np.float32), np.eye(1, vectors.shape[1], dtype=np.float32), np.zeros(1, np.float32), 0.0
        )
    fitted = _fit(vectors, possible)
    if report is not None and fitted.all_same:
        report.warn(
            f"all {len(vectors)} vectors are the same, so no item is told apart: `llmemb prompt` shows what was read"
        )
    return fitted


def _fit(vectors: np.ndarray, width: int) -> Pca:
    if vectors.size <= SVD_UP_TO:
        return _by_svd(vectors, width)
    # A pass with l directions costs 4 n d l operations, the covariance matrix 2 n d d.
    if 2 * PASSES * (width + SPARE) < vectors.shape[1]:
        return _by_subspace(vectors, width)
    return _by_covariance(vectors, width)


def _by_svd(vectors: np.ndarray, width: int) -> Pca:
    from sklearn.decomposition import PCA

    with np.errstate(invalid="ignore"):  # rows that are all the same: a share of no variance
        fitted = PCA(width, svd_solver="full").fit(vectors.astype(np.float64, copy=False))
    total = float(vectors.var(axis=0, ddof=1, dtype=np.float64).sum())
    return _signed(fitted.mean_, fitted.components_, fitted.explained_variance_, total)


def _by_covariance(vectors: np.ndarray, width: int) -> Pca:
    from scipy.linalg import eigh

    mean, d = _mean(vectors), vectors.shape[1]
    scatter = np.zeros((d, d))
    for block in _centred(vectors, mean):
        scatter += block.T @ block
    scatter /= len(vectors) - 1
    values, directions = eigh(scatter, subset_by_index=[d - width, d - 1])
    return _signed(mean, directions.T[::-1], values[::-1], float(np.trace(scatter)))


def _by_subspace(vectors: np.ndarray, width: int) -> Pca:
    mean, d = _mean(vectors), vectors.shape[1]
    # Which directions it starts from makes no difference that counts: no seed of the user's.
    directions = np.random.default_rng(0).normal(size=(d, min(width + SPARE, d)))
    for _ in range(PASSES - 1):
        directions = np.linalg.qr(directions)[0]
        turned = np.zeros_like(directions)
        for block in _centred(vectors, mean):
            turned += block.T @ (block @ directions)
        directions = turned
    directions = np.linalg.qr(directions)[0]
    inner, total = np.zeros((directions.shape[1],) * 2), 0.0
    for block in _centred(vectors, mean):
        inside = block @ directions
        inner += inside.T @ inside
        total += float(np.einsum("ij,ij->", block, block))
    values, turn = np.linalg.eigh(inner / (len(vectors) - 1))
    components = (directions @ turn[:, ::-1][:, :width]).T
    return _signed(mean, components, values[::-1][:width], total / (len(vectors) - 1))


def _mean(vectors: np.ndarray) -> np.ndarray:
    """(d,) float64."""
    total = np.zeros(vectors.shape[1])
    for rows in blocks(*vectors.shape):
        total += vectors[rows].sum(axis=0, dtype=np.float64)
    return total / len(vectors)


def _centred(vectors: np.ndarray, mean: np.ndarray) -> Iterator[np.ndarray]:
    """The rows in blocks, float64, `mean` taken away."""
    for rows in blocks(*vectors.shape):
        yield vectors[rows].astype(np.float64) - mean


def _signed(mean: np.ndarray, components: np.ndarray, variance: np.ndarray, total: float) -> Pca:
    """The sign of a component is arbitrary; fixing it makes results the same with every linear-algebra library."""
    largest = np.abs(components).argmax(axis=1)
    signs = np.sign(components[np.arange(len(components)), largest])
    return Pca(
        mean=mean.astype(np.float32),
        components=(components * signs[:, None]).astype(np.float32),
        explained_variance=np.maximum(variance, 0.0).astype(np.float32),
        total_variance=total,
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
