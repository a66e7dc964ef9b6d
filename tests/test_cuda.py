"""The ways in which a card trains, beside float32 on a CPU: one group of rows, less precise products.

Both run on a CPU as well; where there is a CUDA card the same tests run on it too. All other tests that choose no
device run on the card where there is one.
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
from llmemb_cli.peers import ALONE
from llmemb_cli.progress import Reporter
from llmemb_cli.seeds import numpy_rng, seed_torch
from llmemb_cli.srs import batch
from llmemb_cli.srs.fixed_batch import fixed_batch
from llmemb_cli.srs.item_embedding import AdaptedTable, ItemEmbedding, ItemTable
from llmemb_cli.srs.learn import Learner, learn, make_optimizer
from llmemb_cli.srs.methods.align import Align
from llmemb_cli.srs.negatives import NegativeSampler
from llmemb_cli.srs.objective import batch_loss, loss_name
from llmemb_cli.srs.precision import float32_products, use_precision
from llmemb_cli.srs.recommender import Recommender
from llmemb_cli.srs.replay import Replay, can_replay
from llmemb_cli.srs.sequences import GPU_GROUP_SAVING, epoch_batches, training_rows
from llmemb_cli.srs.start_decay import table_starts
from llmemb_cli.srs.train import run_rat
from tests.make_workspace import make_workspace
from tests.test_recommenders import SMALL

# How far a gradient may be from that in float32 on a CPU, of its length.
APART = {"fp32": 1e-4, "tf32": 0.03, "bf16": 0.05}
WAYS = [("cpu", "fp32"), ("cpu", "bf16")]
if torch.cuda.is_available():
    WAYS += [("cuda", precision) for precision in APART]
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
    made = batch.make_batch(rows, np.arange(32), settings, ITEMS, sampler, np.random.default_rng(1), device)
    loss, _ = batch_loss(model, settings, made)
    loss.backward()
    return loss.detach().cpu(), {name: p.grad.cpu() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("device", "precision"), WAYS)
@pytest.mark.parametrize("method", ["none", "llmemb"])
@pytest.mark.parametrize("loss", ["bce", "ce", "sce"])
@pytest.mark.parametrize("name", list(BACKBONES))
def test_loss_and_gradients_are_those_of_float32_on_a_cpu(
    name: str, loss: str, method: str, device: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
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
    monkeypatch.setattr(batch, "group_saving", lambda device: 0)  # a group for every length that halves
    wanted, gradients = loss_and_gradients(
        copy.deepcopy(model), settings.model_copy(update={"precision": "fp32"}), "cpu"
    )
    assert use_precision(model, settings, device) == precision
    model = model.to(device)
    monkeypatch.setattr(batch, "group_saving", lambda device: GPU_GROUP_SAVING)
    with float32_products(settings, device):
        found, there = loss_and_gradients(model, settings, device)
    torch.testing.assert_close(found, wanted, atol=APART[precision], rtol=APART[precision])
    assert there.keys() == gradients.keys()
    # Held against all gradients together: that of a key's bias is nothing but rounding.
    apart = sum((there[key] - gradients[key]).square().sum() for key in gradients)
    whole = sum(gradient.square().sum() for gradient in gradients.values())
    assert (apart / whole) ** 0.5 < APART[precision]


@pytest.mark.parametrize(("method", "contrast"), [("melt", "none"), ("llmesr", "none"), ("none", "cl4srec")])
@pytest.mark.parametrize(("device", "precision"), [way for way in WAYS if way[1] != "fp32"])
def test_what_methods_add_trains_in_less_precision(
    tmp_path: Path, method: str, contrast: str, device: str, precision: str
) -> None:
    values = SMALL | {"rat__method": method, "rat__contrast": contrast}
    values |= {"rat__precision": "auto" if precision == "tf32" else precision}
    values |= {"rat__epochs": 2, "rat__dropout": 0.1, "rat__device": device}
    workspace, settings = make_workspace(tmp_path / "ws", **values)
    summary = run_rat(workspace, settings, Reporter()).manifest["summary"]
    assert summary["epochs"] == 2 and math.isfinite(summary["loss"])
    assert summary["precision"] == precision
    assert not summary["replayed"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA card to record a step on")
@pytest.mark.parametrize("method", ["none", "llmemb"])
@pytest.mark.parametrize("loss", ["bce", "ce", "sce"])
@pytest.mark.parametrize("name", list(BACKBONES))
def test_recorded_steps_do_what_the_same_steps_do_that_are_launched(name: str, loss: str, method: str) -> None:
    settings = RatSettings(
        backbone=name,
        method=method,
        loss=loss,
        negatives=8,
        hidden_size=WIDTH,
        max_length=32,
        batch_size=8,
        dropout=0.2,
        precision="fp32",
        start_decay=0.5,
        alpha=1.0,
    )
    train = histories()
    rows = training_rows(train, settings.backbone)
    sampler = NegativeSampler(train, ITEMS) if loss == "bce" else None

    def learner() -> Learner:
        model = recommender(settings).to("cuda")
        trained = [p for p in model.parameters() if p.requires_grad]
        extra = Align(settings, torch.randn(ITEMS, WIDTH, device="cuda")) if method == "llmemb" else None
        sums = torch.zeros((), dtype=torch.float64, device="cuda"), torch.tensor(0, device="cuda")
        optimizer = make_optimizer(trained, settings)
        return Learner(model, settings, extra, optimizer, trained, table_starts(model, 0.5), None, ALONE, *sums)

    recorded, launched = learner(), learner()
    assert can_replay(recorded, "cuda")
    replay = Replay(recorded, rows, sampler, ITEMS, "cuda")
    with float32_products(settings, "cuda"):
        for epoch in range(4):
            batches = epoch_batches(len(rows), settings.batch_size, 0, epoch)[:12]
            replay.start_epoch(batches)
            for number, shape in enumerate(replay.shapes):
                seed_torch(100 * epoch + number)
                replay.step(number)
                seed_torch(100 * epoch + number)
                batch = fixed_batch(replay.rows, replay.order[number], shape, settings, ITEMS)
                learn(launched, batch, 0, 0, 1, numpy_rng(0))
    assert any(graph is not None for graph in replay.graphs.values())
    assert int(recorded.targets) == int(launched.targets) > 0
    torch.testing.assert_close(recorded.loss_sum, launched.loss_sum, rtol=1e-3, atol=0)
    for one, two in zip(recorded.trained, launched.trained, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-2, atol=2e-3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA card to record a step on")
@pytest.mark.parametrize("replay", [True, False])
def test_a_run_says_whether_its_steps_were_recorded(tmp_path: Path, replay: bool) -> None:
    values = SMALL | {"rat__method": "none", "rat__epochs": 3, "rat__device": "cuda:0", "rat__replay": replay}
    workspace, settings = make_workspace(tmp_path / "ws", **values)
    summary = run_rat(workspace, settings, Reporter()).manifest["summary"]
    assert summary["replayed"] is replay and math.isfinite(summary["loss"])
