"""The item embedding of a method, made from its entry in the table of methods and the vectors that it names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from llmemb_cli.config.methods import METHODS
from llmemb_cli.config.runs import vectors_needed
from llmemb_cli.config.settings import Settings
from llmemb_cli.datasets.split import SplitData
from llmemb_cli.embeddings.pca import Pca, fit_pca, read_pca
from llmemb_cli.embeddings.table import made_by, read_table, rows_for
from llmemb_cli.errors import BadDataError
from llmemb_cli.seeds import numpy_rng
from llmemb_cli.srs.item_embedding import (
    AdaptedTable,
    DualTable,
    FrozenTable,
    FusedTable,
    ItemEmbedding,
    ItemTable,
    LinearTable,
)
from llmemb_cli.workspace.locate import Workspace
from llmemb_cli.workspace.rows import blocks

# Root mean square of frozen vectors that pass a trained layer. LLM states differ in scale by orders of magnitude
# between models; with this one the adapter's first output has a standard deviation of about 0.1 [choice].
INPUT_RMS = 0.3
LEAST_VARIANCE = 1e-6  # of the largest: components below it are rounding of vectors that have fewer


def make_embedding(
    workspace: Workspace, settings: Settings, data: SplitData, trained: torch.Tensor | None
) -> ItemEmbedding:
    """The item embedding of the run that `[rat]` describes.

    Args:
        trained: (n_items, d) float item embeddings of the collaborative run, for methods that start from it.

    Raises:
        WrongUseError: the LLM vectors have not been made.
        BadDataError: an item has none, or they are narrower than the hidden size.
    """
    rat, method = settings.rat, METHODS[settings.rat.method]
    kind = vectors_needed(settings)
    if kind is None:
        start = trained if method.start == "trained" else None
        return ItemTable(data.n_items, rat.hidden_size, start, rat.init_std)
    source = Source(workspace, settings, data, kind)
    without = rat.without if rat.method == "llmemb" else []
    if "adapter" in without:
        return FrozenTable(with_rms(source.principal(rat.hidden_size), INPUT_RMS))
    if rat.freeze_vectors and method.freezable:
        return LinearTable(with_rms(source.reduced(rat.d_m), INPUT_RMS), rat.hidden_size)
    if method.embedding == "adapter":
        vectors = with_rms(source.reduced(rat.d_m), INPUT_RMS)
        return AdaptedTable(vectors, rat.hidden_size, freeze="freeze" not in without)
    if method.embedding == "fused":
        # At 0.3 scores start so large that training stands still: NDCG@10 0.03 instead of 0.09 on MovieLens-100K.
        vectors = with_rms(source.principal(rat.hidden_size, whiten=True), rat.init_std)
        return FusedTable(vectors, min(rat.alphafuse_dims, rat.hidden_size))
    reduced = source.principal(rat.hidden_size)
    initial = with_rms(reduced, rat.init_std) if rat.init_scale == "table" else torch.from_numpy(reduced)
    if method.embedding == "dual":
        return DualTable(initial, with_rms(source.reduced(rat.d_m), INPUT_RMS))
    return ItemTable(data.n_items, rat.hidden_size, initial)


class Source:
    """LLM vectors of a directory in `embeddings/`, in the order of the items, under the run's control."""

    def __init__(self, workspace: Workspace, settings: Settings, data: SplitData, kind: str) -> None:
        self.directory = workspace.embeddings(kind)
        table = read_table(self.directory, made_by=made_by(kind))
        self.vectors = rows_for(table, data.item_ids, str(self.directory))
        self.control, self.seed = settings.rat.control, settings.seed

    def reduced(self, width: int) -> np.ndarray:
        """(n, at most width) float32: the first principal components, by the PCA kept with the vectors.

        Raises:
            BadDataError: the vectors are all the same.
        """
        pca = require_distinct(read_pca(self.directory), self.directory)
        return self._controlled(pca.first(width).transform(self.vectors))

    def principal(self, width: int, *, whiten: bool = False) -> np.ndarray:
        """(n, width) float32 principal components of these items, each of variance one if `whiten`.

        Raises:
            BadDataError: the vectors have fewer components, or are all the same.
        """
        pca = require_distinct(fit_pca(self.vectors, width), self.directory)
        reduced = pca.transform(self.vectors)
        if reduced.shape[1] < width:
            raise BadDataError(
                f"{reduced.shape[1]} principal components, {width} needed",
                where=str(self.directory),
                hint=f"--set rat.hidden_size={reduced.shape[1]}",
            )
        if whiten:
            # A component without variance is rounding noise, which whitening would make as loud as the others.
            variance = pca.explained_variance
            real = variance > LEAST_VARIANCE * variance[0]
            reduced = np.where(real, reduced / np.sqrt(np.where(real, variance, 1.0)), 0.0).astype(np.float32)
        return self._controlled(reduced)

    def _controlled(self, vectors: np.ndarray) -> np.ndarray:
        rng = numpy_rng(self.seed, "control")
        if self.control == "permuted":
            return vectors[rng.permutation(len(vectors))]
        if self.control == "random":
            return rng.normal(size=vectors.shape, scale=vectors.std()).astype(np.float32)
        return vectors


def require_distinct(pca: Pca, directory: Path) -> Pca:
    """The PCA of the vectors in `directory`, which must tell items apart.

    Raises:
        BadDataError: they are all the same.
    """
    if pca.all_same:
        raise BadDataError(
            "all vectors are the same, so no item is told apart",
            where=str(directory),
            hint="look at `llmemb prompt`, mend [prompt] or scft.max_tokens, and make them again",
        )
    return pca


def with_rms(vectors: np.ndarray, rms: float) -> torch.Tensor:
    """`vectors` (n, width) float32 times one number, in place, so that their root mean square is `rms`."""
    total = sum(float(np.square(vectors[rows], dtype=np.float64).sum()) for rows in blocks(*vectors.shape))
    vectors *= np.float32(rms / np.sqrt(total / vectors.size))
    return torch.from_numpy(np.ascontiguousarray(vectors))
