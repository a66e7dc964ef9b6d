"""What a CUDA card computes, beside a CPU; skipped where there is no card.

All other tests that choose no device run on the card too where there is one.
"""

from __future__ import annotations

import copy
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from llmemb_cli.config.backbones import BACKBONES
from llmemb_cli.config.rat import RatSettings
from llmemb_cli.datasets.split import Ragged
from llmemb_cli.progress import Reporter
from llmemb_cli.srs.batch import make_batch
from llmemb_cli.srs.item_embedding import AdaptedTable, ItemEmbedding, ItemTable
from llmemb_cli.srs.negatives import NegativeSampler
from llmemb_cli.srs.objective import batch_loss, loss_name
from llmemb_cli.srs.precision import float32_products, use_precision
from llmemb_cli.srs.recommender import Recommender
from llmemb_cli.srs.sequences import training_rows
from llmemb_cli.srs.train import run_rat
from tests.make_workspace import make_workspace
from tests.test_recommenders import SMALL

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA card")

ITEMS, WIDTH = 60, 16


def histories() -> Ragged:
    rng = np.random.default_rng(0)
    lengths = rng.integers(2, 40, 50)
    values = rng.integers(1, ITEMS + 1, lengths.sum()).astype(np.int32)
    return Ragged(values, np.concatenate([[0], np.cumsum(lengths)]))


def recommender(settings: RatSettings) -> Recommender:
    torch.manual_seed(0)
    embedding: ItemEmbedding = (
        ItemTable(ITEMS, WIDTH) if settings.method == "none" else AdaptedTable(torch.randn(ITEMS, 24), WIDTH)
    )
    return Recommender(settings, ITEMS, embedding).train()


def loss_and_gradients(
    model: Recommender, settings: RatSettings, device: str
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """On the same users, with the same negatives."""
    train = histories()
    rows = training_rows(train, settings.backbone)
    sampler = None if loss_name(settings) in ("ce", "sce") else NegativeSampler(train, ITEMS)
    batch = make_batch(rows, np.arange(32), settings, ITEMS, sampler, np.random.default_rng(1), device)
    loss, _ = batch_loss(model, settings, batch)
    loss.backward()
    return loss.detach().cpu(), {name: p.grad.cpu() for name, p in model.named_parameters() if p.grad is not None}


# How far a gradient may be from a CPU's, of its length.
APART = {"fp32": 1e-4, "tf32": 0.03, "bf16": 0.05}


@pytest.mark.parametrize("precision", list(APART))
@pytest.mark.parametrize("method", ["none", "llmemb"])
@pytest.mark.parametrize("loss", ["bce", "ce", "sce"])
@pytest.mark.parametrize("name", list(BACKBONES))
def test_loss_and_gradients_are_those_of_a_cpu(name: str, loss: str, method: str, precision: str) -> None:
    settings = RatSettings(
        backbone=name,
        method=method,
        loss=loss,
        negatives=8,
        hidden_size=WIDTH,
        max_length=32,
        dropout=0.0,
        precision="auto" if precision == "tf32" else precision,
    )
    model = recommender(settings)
    wanted, gradients = loss_and_gradients(
        copy.deepcopy(model), settings.model_copy(update={"precision": "fp32"}), "cpu"
    )
    assert use_precision(model, settings, "cuda") == precision
    model = model.to("cuda")
    with float32_products(settings, "cuda"):
        found, on_card = loss_and_gradients(model, settings, "cuda")
    torch.testing.assert_close(found, wanted, atol=APART[precision], rtol=APART[precision])
    assert on_card.keys() == gradients.keys()
    # Held against all gradients together: that of a key's bias is nothing but rounding.
    apart = sum((on_card[key] - gradients[key]).square().sum() for key in gradients)
    whole = sum(gradient.square().sum() for gradient in gradients.values())
    assert (apart / whole) ** 0.5 < APART[precision]


@pytest.mark.parametrize(("method", "contrast"), [("melt", "none"), ("llmesr", "none"), ("none", "cl4srec")])
@pytest.mark.parametrize("precision", ["auto", "bf16"])
def test_what_methods_add_trains_on_the_card(tmp_path: Path, method: str, contrast: str, precision: str) -> None:
    values = SMALL | {"rat__method": method, "rat__contrast": contrast, "rat__precision": precision}
    values |= {"rat__epochs": 2, "rat__dropout": 0.1, "rat__device": "cuda"}
    workspace, settings = make_workspace(tmp_path / "ws", **values)
    summary = run_rat(workspace, settings, Reporter()).manifest["summary"]
    assert summary["epochs"] == 2 and math.isfinite(summary["loss"])
    assert summary["precision"] == ("bf16" if precision == "bf16" else "tf32")
