"""What a trained run makes of LLM vectors: the item embeddings that its adapter gives any item, also a new one."""

from __future__ import annotations

from typing import Any

import numpy as np

from llmemb_cli.config.runs import vectors_read
from llmemb_cli.embeddings.pca import fit_pca, read_pca
from llmemb_cli.embeddings.table import read_ids, read_table, rows_for
from llmemb_cli.errors import BadDataError, WrongUseError
from llmemb_cli.progress import Reporter
from llmemb_cli.srs.vectors import INPUT_RMS
from llmemb_cli.workspace.locate import Workspace
from llmemb_cli.workspace.rows import blocks
from llmemb_cli.workspace.stage import output_fingerprint, require_stage
from llmemb_cli.workspace.store import read_tensors


class RunMapping:
    """From LLM vectors to a run's item embeddings, as the run itself makes them: scaling and adapter."""

    def __init__(self, workspace: Workspace, run: str, kind: str, report: Reporter) -> None:
        self.run = workspace.run(run)
        manifest = require_stage(self.run, made_by="llmemb rat")
        made = manifest["made_from"]["settings"]
        self.hidden_size = int(made["hidden_size"])
        # Of a run that `llmemb adjust` kept: what scores of an item without interactions are raised by.
        self.bias: float | None = manifest["summary"].get("new_item_bias")
        self._check(workspace, run, kind, manifest)
        self.weights = {
            name.removeprefix("embedding."): tensor.double().numpy()
            for name, tensor in read_tensors(self.run / "model.safetensors").items()
            if name.startswith("embedding.")
        }
        directory = workspace.embeddings(kind)
        ids = read_ids(self.run)
        vectors = rows_for(read_table(directory), ids, str(directory))
        if "adapter" in made.get("without", []):
            self.pca = fit_pca(vectors, self.hidden_size)
        elif {"inner.weight", "linear.weight"} & set(self.weights):
            self.pca = read_pca(directory).first(made["d_m"])
        else:
            raise WrongUseError(
                f"{run} has an embedding of its own for every item: it has none for new ones",
                where=str(self.run),
                hint="train a run with `llmemb rat --method llmemb`",
            )
        if "vectors" in self.weights:
            report.warn(f"{run} trained the LLM vectors of its items; new items start from theirs untrained")
        if made.get("control", "none") != "none":
            raise WrongUseError(
                f"{run} is a control run with {made['control']} vectors: those of new items mean nothing to it",
                where=str(self.run),
            )
        squares = [float(np.square(self.pca.transform(vectors[rows])).sum()) for rows in blocks(*vectors.shape)]
        self.scale = INPUT_RMS / float(np.sqrt(sum(squares) / (len(vectors) * len(self.pca.components))))

    def _check(self, workspace: Workspace, run: str, kind: str, manifest: dict[str, Any]) -> None:
        used = manifest["summary"].get("vectors")
        if used in (None, "said", "tslrec"):
            raise WrongUseError(
                f"{run} was trained without vectors of the LLM that new items could get",
                where=str(self.run),
                hint="train a run with `llmemb rat --method llmemb`",
            )
        if used != kind:
            hint = "add --without scft" if used == "base" else "leave out --without scft"
            raise WrongUseError(f"{run} was trained on the vectors in embeddings/{used}", hint=hint)
        if output_fingerprint(workspace.embeddings(kind)) != vectors_read(manifest):
            raise BadDataError(
                f"{run} was trained on other vectors than embeddings/{kind} has now",
                where=str(self.run),
                hint="run `llmemb rat` again",
            )

    def __call__(self, vectors: np.ndarray) -> np.ndarray:
        """(n, d) LLM vectors -> (n, hidden_size) float32 item embeddings."""
        states = self.pca.transform(vectors).astype(np.float64) * self.scale
        for layer in ("inner", "outer", "linear"):
            if f"{layer}.weight" in self.weights:
                states = states @ self.weights[f"{layer}.weight"].T + self.weights[f"{layer}.bias"]
        return states.astype(np.float32)
