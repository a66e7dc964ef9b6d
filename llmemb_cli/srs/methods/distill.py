"""LLM-ESR (Liu et al., NeurIPS 2024): users learn from similar users, and both views of an item from each other."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn.functional import embedding

from llmemb_cli.config.rat import RatSettings
from llmemb_cli.contrastive import contrastive_loss
from llmemb_cli.datasets.split import Ragged
from llmemb_cli.srs.objective import Step
from llmemb_cli.srs.recommender import Recommender
from llmemb_cli.srs.sequences import padded_rows

BLOCK = 1024
ALIGN_TEMPERATURE = 1.0  # of the contrast of both views [choice]


def similar_users(train: Ragged, vectors: np.ndarray, count: int) -> np.ndarray:
    """The users whose histories mean the most similar.

    A user is the mean of the LLM vectors of the training items, each of length one [choice: the authors embed a text
    about the user]; similarity is the cosine.

    Args:
        vectors: (n_items, width) float.

    Returns:
        (users, at most count) int64, nearest first, never the user; users without items are nobody's neighbour. As
        many columns as there are such neighbours for all: none where one user alone has items.
    """
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    sums = np.zeros((len(train), vectors.shape[1]), dtype=np.float32)
    np.add.at(sums, np.repeat(np.arange(len(train)), train.lengths()), unit[train.values - 1])
    users = torch.nn.functional.normalize(torch.from_numpy(sums), dim=1)
    empty = torch.from_numpy(train.lengths() == 0)
    count = min(count, max(int((~empty).sum()) - 1, 0))
    nearest = []
    for start in range(0, len(users), BLOCK):
        cosines = users[start : start + BLOCK] @ users.T
        cosines[:, empty] = -torch.inf
        own = torch.arange(len(cosines))
        cosines[own, own + start] = -torch.inf
        nearest.append(cosines.topk(count, dim=1).indices)
    return torch.cat(nearest).numpy()


class Distill:
    """The squared distance of a user's state to the mean state of similar users, and the contrast of item views."""

    recordable = False  # the CPU makes sequences of its own for every step

    def __init__(self, settings: RatSettings, train: Ragged, similar: np.ndarray, device: str) -> None:
        self.settings, self.train, self.similar, self.device = settings, train, similar, device
        self.temperature = torch.tensor(ALIGN_TEMPERATURE, device=device)

    def start_epoch(self, model: Recommender, epoch: int) -> None:
        return None

    def loss(self, model: Recommender, step: Step) -> torch.Tensor:
        collaborative, semantic = step.embedded.chunk(2, dim=1)
        views = contrastive_loss("infonce", semantic, collaborative, self.temperature)
        total = self.settings.esr_align_weight * views / step.peers.size
        users = step.batch.users
        if len(users) and self.similar.shape[1]:
            gap = self._states(model, users) - self._teacher(model, users)
            share = len(users) / step.batch.rows
            total = total + self.settings.esr_distill_weight * gap.pow(2).mean() * share
        return total

    def _states(self, model: Recommender, users: np.ndarray) -> torch.Tensor:
        return model.last_states_in_groups(padded_rows(self.train, users, model.max_length), self.device)

    @torch.no_grad()
    def _teacher(self, model: Recommender, users: np.ndarray) -> torch.Tensor:
        """(batch, 2 d): the mean state of each user's similar users, without gradient."""
        distinct, place = np.unique(self.similar[users], return_inverse=True)
        order = np.argsort(self.train.lengths()[distinct], kind="stable")
        parts = [self._states(model, distinct[order[at : at + BLOCK]]) for at in range(0, len(order), BLOCK)]
        # Where the state of each distinct user stands among those sorted by length.
        found = np.argsort(order, kind="stable")[place.reshape(self.similar[users].shape)]
        return embedding(torch.from_numpy(found).to(self.device), torch.cat(parts)).mean(dim=1)
