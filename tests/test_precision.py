"""Mixed precision on a CPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from llmemb_cli.config.backbones import BACKBONES
from llmemb_cli.config.rat import RatSettings
from llmemb_cli.datasets.split import load_split
from llmemb_cli.progress import Reporter
from llmemb_cli.srs.item_embedding import AdaptedTable, DualTable
from llmemb_cli.srs.methods.distill import Distill
from llmemb_cli.srs.methods.extras import Several, make_extra
from llmemb_cli.srs.precision import use_precision
from llmemb_cli.srs.recommender import Recommender
from llmemb_cli.srs.train import run_rat
from llmemb_cli.srs.vectors import make_embedding
from tests.make_workspace import make_workspace
from tests.test_recommenders import SMALL


def adapted(name: str) -> tuple[Recommender, RatSettings]:
    torch.manual_seed(0)
    settings = RatSettings(backbone=name, method="llmemb", hidden_size=16, max_length=8, precision="bf16")
    return Recommender(settings, 30, AdaptedTable(torch.randn(30, 24), 16)).train(False), settings


@pytest.mark.parametrize("name", list(BACKBONES))
@torch.no_grad()
def test_bf16_multiplies_in_half_and_keeps_weights_states_and_tables_whole(name: str) -> None:
    model, settings = adapted(name)
    sequences = torch.tensor([[0, 0, 3, 4, 5], [9, 8, 7, 6, 30]])
    exact, table = model.encode(sequences), model.item_table
    assert use_precision(model, settings, "cpu") == "bf16"
    assert isinstance(model.embedding, AdaptedTable) and model.embedding.vectors.dtype == torch.bfloat16
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    rounded = model.encode(sequences)
    assert rounded.dtype == torch.float32 and model.item_table.dtype == torch.float32
    assert not torch.equal(rounded, exact)
    torch.testing.assert_close(rounded, exact, atol=0.05, rtol=0.05)
    torch.testing.assert_close(model.item_table, table, atol=0.02, rtol=0.02)


def test_vectors_are_rounded_before_they_are_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = SMALL | {"rat__method": "llmemb", "rat__without": ["align"], "rat__precision": "bf16", "rat__epochs": 1}
    workspace, settings = make_workspace(tmp_path / "ws", **values)
    moved: list[torch.dtype] = []

    def to(self: Recommender, device: str) -> Recommender:
        assert isinstance(self.embedding, AdaptedTable)
        moved.append(self.embedding.vectors.dtype)
        return self

    monkeypatch.setattr(Recommender, "to", to)
    run_rat(workspace, settings, Reporter())
    assert moved == [torch.bfloat16]


def test_auto_is_fp32_on_a_cpu_and_changes_nothing() -> None:
    model, settings = adapted("sasrec")
    assert use_precision(model, settings.model_copy(update={"precision": "auto"}), "cpu") == "fp32"
    assert isinstance(model.embedding, AdaptedTable)
    assert model.mixed is None and model.embedding.vectors.dtype == torch.float32


def test_a_planted_rule_is_learned_in_bf16(tmp_path: Path) -> None:
    # Without alignment no plain model is trained first; few processors multiply bfloat16 fast.
    values = SMALL | {"rat__method": "llmemb", "rat__without": ["align"], "rat__precision": "bf16", "rat__epochs": 50}
    workspace, settings = make_workspace(tmp_path / "ws", **values)
    summary = run_rat(workspace, settings, Reporter()).manifest["summary"]
    assert summary["precision"] == "bf16" and summary["best_validation"] > 0.9


def test_llmesr_finds_similar_users_among_vectors_of_half_precision(tmp_path: Path) -> None:
    values = SMALL | {"rat__method": "llmesr", "rat__precision": "bf16", "rat__epochs": 1}
    workspace, settings = make_workspace(tmp_path / "ws", **values)
    data = load_split(workspace.data)
    model = Recommender(settings.rat, data.n_items, make_embedding(workspace, settings, data, None))
    use_precision(model, settings.rat, "cpu")
    extra = make_extra(settings, model, data, None, "cpu")
    assert isinstance(extra, Several) and isinstance(extra.losses[0], Distill)
    assert isinstance(model.embedding, DualTable)
    vectors = model.embedding.semantic.vectors
    assert vectors.dtype == torch.bfloat16
    unit = torch.nn.functional.normalize(vectors.double(), dim=1)
    means = torch.stack([unit[data.train.row(user) - 1].mean(dim=0) for user in range(data.n_users)])
    cosines = torch.nn.functional.cosine_similarity(means[:, None], means[None], dim=2).fill_diagonal_(-2)
    found = cosines.gather(1, torch.from_numpy(extra.losses[0].similar))
    torch.testing.assert_close(found, cosines.topk(settings.rat.esr_similar_users).values, atol=1e-5, rtol=0)
    assert run_rat(workspace, settings, Reporter()).manifest["summary"]["precision"] == "bf16"
