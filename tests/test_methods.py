"""Methods: one table, what each trains and freezes, small examples worked by hand, controls."""

from __future__ import annotations

import math
import re
import weakref
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from llmemb_cli.app import app
from llmemb_cli.chain import chain, states
from llmemb_cli.config.backbones import BACKBONES as TABLE
from llmemb_cli.config.methods import METHODS, MethodName
from llmemb_cli.config.runs import run_name, vectors_needed
from llmemb_cli.config.settings import Settings, load_settings, make_settings, update_settings
from llmemb_cli.datasets.split import Ragged, load_split
from llmemb_cli.embeddings.pca import fit_pca, write_pca
from llmemb_cli.embeddings.table import EmbeddingTable, read_table, write_table
from llmemb_cli.errors import BadDataError, WrongUseError
from llmemb_cli.peers import ALONE
from llmemb_cli.progress import Reporter
from llmemb_cli.seeds import numpy_rng
from llmemb_cli.srs.batch import make_batch
from llmemb_cli.srs.item_embedding import AdaptedTable, DualTable, FusedTable, ItemTable
from llmemb_cli.srs.methods import melt as melt_module
from llmemb_cli.srs.methods.distill import Distill, similar_users
from llmemb_cli.srs.methods.melt import Melt, item_weights, make_contexts, user_weights
from llmemb_cli.srs.objective import Step
from llmemb_cli.srs.recommender import Recommender, load_recommender
from llmemb_cli.srs.sequences import training_rows
from llmemb_cli.srs.train import run_rat
from llmemb_cli.srs.vectors import make_embedding
from llmemb_cli.workspace.stage import read_manifest
from llmemb_cli.workspace.store import read_tensors
from tests.make_workspace import make_workspace
from tests.test_recommenders import BACKBONES, SMALL, small

D = 16
READY = ("llm2x", "melt", "llmesr", "alphafuse")


def ragged(rows: list[list[int]]) -> Ragged:
    values = np.array([item for row in rows for item in row], dtype=np.int32)
    return Ragged(values, np.cumsum([0, *map(len, rows)]).astype(np.int64))


def test_the_table_the_setting_and_the_help_name_the_same_methods() -> None:
    assert set(METHODS) == set(get_args(MethodName))
    text = " ".join(CliRunner().invoke(app, ["rat", "--help"], env={"COLUMNS": "200"}).output.split())
    for name, method in METHODS.items():
        assert f"{name}: {method.help[:60]}" in text, name


def test_a_backbone_that_a_method_cannot_train_is_refused(tmp_path: Path) -> None:
    workspace, settings = make_workspace(tmp_path / "ws", **small("caser", rat__method="melt"))
    with pytest.raises(WrongUseError, match="diverges"):
        run_rat(workspace, settings, Reporter())
    assert not (workspace.root / "runs").exists()


@pytest.mark.parametrize(("name", "method"), [(n, m) for n in BACKBONES for m in READY if m not in TABLE[n].unfit])
def test_a_planted_rule_is_learned_by_every_method(tmp_path: Path, name: str, method: str) -> None:
    from llmemb_cli.evaluation.stage import run_eval

    # All items are about equally popular here: MELT would overwrite the rows of four in five at every epoch.
    values = small(name, rat__method=method, rat__melt_tail_share=0.3)
    workspace, settings = make_workspace(tmp_path / "ws", **values)
    run_rat(workspace, settings, Reporter())
    measured = run_eval(workspace, settings, run_name(settings), Reporter()).manifest["summary"]
    assert measured["overall"]["HR@10"] > 0.95
    # What was evaluated is the saved table and backbone alone.
    data = load_split(workspace.data)
    run = workspace.run(run_name(settings))
    model = load_recommender(run, data)
    saved = read_tensors(run / "item_embeddings.safetensors")["item_embeddings"]
    assert torch.equal(model.embedding.items(), saved)


def embedding(tmp_path: Path, kind: str = "", **values: Any) -> tuple[Any, Settings, np.ndarray]:
    workspace, settings = make_workspace(tmp_path / "ws", **(SMALL | values))
    data = load_split(workspace.data)
    kind = kind or METHODS[settings.rat.method].vectors
    vectors = read_tensors(workspace.embeddings(kind) / "embeddings.safetensors")["embeddings"].numpy()
    return make_embedding(workspace, settings, data, None), settings, vectors


def principal(vectors: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores and deviations of the first principal components, by an eigendecomposition; signs are arbitrary."""
    centred = vectors - vectors.mean(axis=0)
    values, axes = np.linalg.eigh(np.cov(centred.T))
    return centred @ axes[:, ::-1][:, :width], np.sqrt(values[::-1][:width])


def test_llm2x_starts_from_the_pca_at_the_spread_of_a_random_table_and_trains_all(tmp_path: Path) -> None:
    made, _, vectors = embedding(tmp_path, rat__method="llm2x")
    assert isinstance(made, ItemTable) and sum(p.numel() for p in made.parameters()) == 30 * D
    expected, _ = principal(vectors, D)
    expected *= 0.02 / np.sqrt(np.mean(expected**2))
    np.testing.assert_allclose(np.abs(made.weight.detach().numpy()), np.abs(expected), atol=1e-5)


@pytest.mark.parametrize("method", ["llm2x", "llmesr", "alphafuse"])
def test_the_tuned_llms_vectors_take_the_place_of_the_untouched_ones_where_asked(tmp_path: Path, method: str) -> None:
    made, settings, vectors = embedding(tmp_path, "scft", rat__method=method, rat__vectors="scft", rat__init_std=0.3)
    assert vectors_needed(settings) == "scft"
    table = (made.collaborative if method == "llmesr" else made).items().detach().numpy()
    scores, deviations = principal(vectors, D)
    expected = scores / deviations if method == "alphafuse" else scores
    expected *= 0.3 / np.sqrt(np.mean(expected**2))
    np.testing.assert_allclose(np.abs(table), np.abs(expected), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("method", ["llmemb", "llm2x", "alphafuse", "llmesr"])
def test_vectors_that_are_all_the_same_are_refused_before_anything_is_trained(tmp_path: Path, method: str) -> None:
    workspace, settings = make_workspace(tmp_path / "ws", **SMALL, rat__method=method, rat__vectors="scft")
    directory = workspace.embeddings("scft")
    ids = read_table(directory).item_ids
    same = np.tile(np.linspace(-0.3, 1.7, 24, dtype=np.float32), (len(ids), 1))
    write_table(directory, EmbeddingTable(ids, same))
    write_pca(directory, fit_pca(same, 1536))
    with pytest.raises(BadDataError, match="all vectors are the same") as caught:
        run_rat(workspace, settings, Reporter(), in_file=settings)
    assert caught.value.where == str(directory) and "llmemb prompt" in str(caught.value.hint)
    assert not list((workspace.root / "runs").glob("*"))


def test_a_random_table_has_the_spread_that_is_asked_for(tmp_path: Path) -> None:
    workspace, settings = make_workspace(tmp_path / "ws", **SMALL, rat__method="none", rat__init_std=0.3)
    made = make_embedding(workspace, settings, load_split(workspace.data), None)
    assert float(made.items().detach().std()) == pytest.approx(0.3, rel=0.15)


def test_init_scale_none_keeps_the_pca_as_it_is(tmp_path: Path) -> None:
    made, _, vectors = embedding(tmp_path, rat__method="llm2x", rat__init_scale="none")
    np.testing.assert_allclose(np.abs(made.weight.detach().numpy()), np.abs(principal(vectors, D)[0]), atol=1e-4)


def test_alphafuse_is_whitened_frozen_vectors_plus_a_zero_table_in_the_weakest_dimensions(tmp_path: Path) -> None:
    made, _, vectors = embedding(tmp_path, rat__method="alphafuse", rat__alphafuse_dims=5)
    assert isinstance(made, FusedTable) and [p.shape for p in made.parameters()] == [(30, 5)]
    scores, deviations = principal(vectors, D)
    white = scores / deviations
    table = made.items().detach().numpy()
    np.testing.assert_allclose(np.abs(table), np.abs(white * (0.02 / np.sqrt(np.mean(white**2)))), atol=1e-5)
    np.testing.assert_allclose(np.cov(table.T), np.eye(D) * np.cov(table.T)[0, 0], atol=1e-6)
    torch.nn.init.ones_(made.weight)
    moved = (made.rows(torch.tensor([0, 3])) - torch.from_numpy(np.stack([np.zeros(D), table[2]]))).detach()
    assert moved[0].abs().max() == 0
    torch.testing.assert_close(moved[1].float(), torch.tensor([0.0] * (D - 5) + [1.0] * 5))


def test_llmesr_is_a_table_from_the_pca_beside_an_adapter(tmp_path: Path) -> None:
    made, settings, _ = embedding(tmp_path, rat__method="llmesr")
    assert isinstance(made, DualTable) and made.width == 2 * D and made.items().shape == (30, 2 * D)
    count = 30 * D + 24 * 16 + 16 + 16 * D + D
    assert sum(p.numel() for p in made.parameters()) == count
    model = Recommender(settings.rat, 30, made)
    before = made.semantic.vectors.clone()
    torch.optim.SGD(model.parameters(), 1.0).step()
    model.states(torch.tensor([[1, 2]]), made.rows(torch.tensor([1, 2]))[None]).sum().backward()
    torch.optim.SGD(model.parameters(), 1.0).step()
    assert torch.equal(made.semantic.vectors, before) and not made.semantic.vectors.requires_grad


@pytest.mark.parametrize("name", ["sasrec", "gru4rec"])
def test_no_view_of_llmesr_sees_a_later_item(name: str) -> None:
    torch.manual_seed(0)
    chosen = make_settings({"rat.backbone": name, "rat.method": "llmesr", "rat.hidden_size": 8, "rat.max_length": 6})
    model = Recommender(chosen.rat, 9, DualTable(torch.randn(9, 8), torch.randn(9, 12))).train(False)
    items = torch.tensor([[1, 2, 3, 4]])
    embedded = model.embedding.rows(items[0])[None]
    before = model.states(items, embedded)
    changed = embedded.clone()
    changed[0, 3] += 1.0
    after = model.states(items, changed)
    torch.testing.assert_close(after[0, :3], before[0, :3])
    assert not torch.allclose(after[0, 3], before[0, 3])


@pytest.mark.parametrize("method", ["llm2x", "alphafuse", "llmemb"])
def test_controls_deal_the_same_rows_to_other_items_or_draw_new_ones(tmp_path: Path, method: str) -> None:
    plain, _, _ = embedding(tmp_path / "a", rat__method=method)
    permuted, _, _ = embedding(tmp_path / "b", rat__method=method, rat__control="permuted")
    drawn, _, _ = embedding(tmp_path / "c", rat__method=method, rat__control="random")
    rows, mixed, other = (
        (made.vectors if isinstance(made, (AdaptedTable, FusedTable)) else made.weight).detach().numpy()
        for made in (plain, permuted, drawn)
    )
    assert not np.allclose(rows, mixed)
    np.testing.assert_allclose(rows[np.lexsort(rows.T)], mixed[np.lexsort(mixed.T)], atol=1e-6)
    assert other.shape == rows.shape and abs(other.std() / rows.std() - 1) < 0.2
    assert np.abs(np.corrcoef(rows.ravel(), other.ravel())[0, 1]) < 0.2


# MELT ---------------------------------------------------------------------------------------------------------------


def test_melt_weights_worked_by_hand() -> None:
    # Threshold 3, longest 10: the span is 6; a user of 4 items starts at 0 and ends at 1, one of 10 the other way.
    assert user_weights(np.array([4, 10, 7]), 3, 10, 0.0) == pytest.approx([0.0, 1.0, math.sin(math.pi / 4)])
    assert user_weights(np.array([4, 10]), 3, 10, 1.0) == pytest.approx([1.0, 0.0], abs=1e-9)
    # Threshold 5: an item of 6 interactions starts at 0, one of 55 or more at sin(49 pi / 100).
    got = item_weights(np.array([6, 55, 900]), 5, 0.0)
    assert got == pytest.approx([0.0, math.sin(math.pi * 0.49), math.sin(math.pi * 0.49)])
    # No room between threshold and longest: the user next to the threshold starts at 0, all longer ones at 1.
    for threshold in (49, 50, 60, 61):
        lengths = threshold + np.array([1, 2, 3, 40])
        assert user_weights(lengths, threshold, 50, 0.0) == pytest.approx([0.0, 1.0, 1.0, 1.0])
        assert user_weights(lengths, threshold, 50, 1.0) == pytest.approx([1.0, 0.0, 0.0, 0.0], abs=1e-9)
        assert user_weights(lengths, threshold, 50, 0.5) == pytest.approx([math.sqrt(0.5)] * 4)


def test_melt_contexts_are_prefixes_and_reversed_suffixes() -> None:
    contexts = make_contexts(ragged([[1, 2, 3, 2], [2], [], [3, 1]]), 4)

    def of(item: int, longest: int = 9) -> list[list[int]]:
        found = contexts.of_item.row(item - 1)
        return [[i for i in row if i] for row in contexts.rows(found, longest).tolist()] if len(found) else []

    assert of(1) == [[1], [2, 3, 2, 1], [3, 1], [1]]
    assert of(2) == [[1, 2], [2, 3, 2], [1, 2, 3, 2], [2], [2]]
    assert of(3) == [[1, 2, 3], [2, 3], [3], [1, 3]]
    assert of(4) == []
    assert of(1, 2) == [[1], [2, 1], [3, 1], [1]]
    assert contexts.rows(contexts.of_item.row(0), 9)[:, -1].tolist() == [1] * 4


def melt_model(tmp_path: Path, **values: Any) -> tuple[Recommender, Melt, Any, Settings]:
    workspace, settings = make_workspace(
        tmp_path / "ws", **(SMALL | {"rat__method": "melt", "rat__backbone": "sasrec"} | values), items=30
    )
    data = load_split(workspace.data)
    torch.manual_seed(0)
    model = Recommender(settings.rat, data.n_items, ItemTable(data.n_items, D, torch.randn(data.n_items, D)))
    return model, Melt(settings, data, model, "cpu"), data, settings


@pytest.mark.parametrize("block", [melt_module.BLOCK, 50])
def test_melt_overwrites_rare_items_with_the_mean_of_their_contexts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr(melt_module, "BLOCK", block)
    model, melt, data, _ = melt_model(tmp_path)
    assert isinstance(model.embedding, ItemTable) and model.branches is not None
    counts = data.train_counts[1:]
    assert melt.item_threshold == int(np.quantile(counts, 0.78))
    before = model.embedding.weight.detach().clone()
    expected = before.clone()
    model.train(False)
    with torch.no_grad():
        for item in range(1, data.n_items + 1):
            states = []
            for user in range(data.n_users):
                row = data.train.row(user).tolist()
                for at in [p for p, other in enumerate(row) if other == item]:
                    both = (row[: at + 1], row[at:][::-1])
                    states += [model.last_states(torch.tensor([context[-8:]]))[0] for context in both]
            if states and counts[item - 1] <= melt.item_threshold:
                expected[item - 1] = model.branches.item(torch.stack(states).mean(dim=0))
    melt.rat = melt.rat.model_copy(update={"melt_contexts": 0})
    melt.start_epoch(model, 0)
    torch.testing.assert_close(model.embedding.weight.detach(), expected, atol=1e-5, rtol=1e-4)
    heads = melt.head_items
    assert len(heads) and torch.equal(model.embedding.weight.detach()[heads], before[heads])


def test_melt_never_holds_the_states_of_all_contexts_of_rare_items(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(melt_module, "BLOCK", 20)
    model, melt, _, _ = melt_model(tmp_path)
    made: list[weakref.ref[torch.Tensor]] = []
    most, encode = [], model.last_states

    def encoded(sequences: torch.Tensor) -> torch.Tensor:
        most.append(sum(one() is not None for one in made))
        states = encode(sequences)
        made.append(weakref.ref(states))
        return states

    monkeypatch.setattr(model, "last_states", encoded)
    melt.start_epoch(model, 0)
    assert len(made) > 10 and max(most) <= 1


def test_melt_orders_its_heads_once_an_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, melt, data, settings = melt_model(tmp_path, rat__melt_tail_share=0.5)
    rng = np.random.default_rng(0)
    batch = make_batch(training_rows(data.train, "sasrec"), np.arange(4), settings.rat, data.n_items, None, rng)
    drawn: list[tuple[Any, ...]] = []

    def counted(seed: int, *labels: str | int) -> np.random.Generator:
        drawn.append(labels)
        return numpy_rng(seed, *labels)

    monkeypatch.setattr(melt_module, "numpy_rng", counted)
    for epoch in (0, 1, 0):
        met: dict[str, list[int]] = {"users": [], "items": []}
        for number in range(3):
            step = Step(batch, torch.empty(0), epoch, number, 3, rng, ALONE)
            met["users"] += melt._part(melt.head_items, step, "users").tolist()
            met["items"] += melt._part(melt.head_items, step, "items").tolist()
        for label, items in met.items():
            assert items == numpy_rng(settings.seed, "melt", label, epoch).permutation(melt.head_items).tolist()
    assert drawn == [("melt", label, epoch) for epoch in (0, 1, 0) for label in ("users", "items")]


def test_melt_losses_equal_a_loop_and_every_head_is_met_once_an_epoch(tmp_path: Path) -> None:
    values = {"rat__melt_user_weight": 0.3, "rat__melt_item_weight": 0.7, "rat__melt_contexts": 3}
    model, melt, data, settings = melt_model(tmp_path, rat__melt_tail_share=0.5, **values)
    melt.user_threshold = 3
    melt.head_users = np.arange(40)
    assert model.branches is not None
    model.train(False)
    met: list[int] = []
    rng = np.random.default_rng(0)
    batch = make_batch(training_rows(data.train, "sasrec"), np.arange(4), settings.rat, data.n_items, None, rng)
    for number in range(6):
        step = Step(batch, torch.empty(0), 3, number, 6, np.random.default_rng(number), ALONE)
        users, items = melt._part(melt.head_users, step, "users"), melt._part(melt.head_items, step, "items")
        met += users.tolist()
        with torch.no_grad():
            got = float(melt.loss(model, step))
            again = np.random.default_rng(number)
            few = [int(again.integers(1, 3)) for _ in users]
            user_part = 0.0
            weights = user_weights(melt.lengths[users], 3, 8, 3 / 80)
            for user, recent, weight in zip(users, few, weights, strict=True):
                row = data.train.row(int(user)).tolist()
                whole = model.last_states(torch.tensor([row[-8:]]))[0]
                guess = model.branches.user(model.last_states(torch.tensor([row[-recent:]]))[0])
                user_part += weight * float((guess - whole).pow(2).mean()) / len(users)
            item_part = 0.0
            weights = item_weights(melt.counts[items], melt.item_threshold, 3 / 80)
            for item, weight in zip(items, weights, strict=True):
                chosen = melt._some(item, again, again)
                assert 1 <= len(chosen) <= 3 and set(chosen) <= set(melt.contexts.of_item.row(item))
                states = torch.cat(
                    [model.last_states(melt.contexts.rows(chosen[i : i + 1], 8)) for i in range(len(chosen))]
                )
                mean = (states + model.branches.user(states)).mean(dim=0)
                target = model.embedding.items()[item]
                item_part += weight * float((model.branches.item(mean) - target).pow(2).mean()) / len(items)
        assert got == pytest.approx(0.3 * user_part + 0.7 * item_part, rel=1e-4, abs=1e-7)
    assert sorted(met) == list(range(40))


def test_melt_lifts_short_histories_alone_and_starts_from_the_trained_model(tmp_path: Path) -> None:
    model = melt_model(tmp_path)[0]
    assert model.branches is not None
    model.train(False)
    model.branches.user_threshold.fill_(3)
    with torch.no_grad():
        short, long = torch.tensor([[0, 4, 5, 6]]), torch.tensor([[3, 4, 5, 6]])
        f = model.last_states(short)
        torch.testing.assert_close(model.encode(short), f + model.branches.user(f))
        torch.testing.assert_close(model.encode(long), model.last_states(long))
        # Nobody knows how much longer than the 8 positions a history was that fills them all.
        model.branches.user_threshold.fill_(20)
        short, long = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 7]]), torch.tensor([[1, 2, 3, 4, 5, 6, 7, 8]])
        f = model.last_states(short)
        torch.testing.assert_close(model.encode(short), f + model.branches.user(f))
        torch.testing.assert_close(model.encode(long), model.last_states(long))
    workspace, settings = make_workspace(tmp_path / "two", **SMALL, rat__method="melt")
    summary = run_rat(workspace, settings, Reporter()).manifest["summary"]
    trained = read_tensors(workspace.run("sasrec-none-42") / "item_embeddings.safetensors")["item_embeddings"]
    assert summary["started_from"] == "sasrec-none-42"
    assert summary["embedding_scale"]["std"] == pytest.approx(float(trained.std()), rel=1e-5)
    assert summary["parameters"] == 3488 + 2 * (D * D + D)


# LLM-ESR ------------------------------------------------------------------------------------------------------------


def test_similar_users_are_those_whose_mean_vectors_point_the_same_way() -> None:
    vectors = np.array([[2.0, 0.0], [0.0, 5.0], [3.0, 3.0]], dtype=np.float32)
    train = ragged([[1], [1, 1, 3], [2], [], [2, 3]])
    got = similar_users(train, vectors, 2)
    assert got.shape == (5, 2)
    assert got[0].tolist() == [1, 4] and got[2].tolist() == [4, 1]
    assert got[1, 0] == 0 and not (got[[0, 1, 2, 4]] == 3).any()


def test_with_few_users_a_user_has_fewer_similar_ones_and_is_never_one_itself() -> None:
    vectors = np.eye(2, dtype=np.float32)
    # Three users with items, two without: nobody has more than two others.
    got = similar_users(ragged([[1, 1], [], [1, 2], [], [2]]), vectors, 10)
    assert got[0].tolist() == [2, 4] and got[4].tolist() == [2, 0] and sorted(got[2].tolist()) == [0, 4]
    assert got.shape == (5, 2) and not np.isin(got, [1, 3]).any()
    assert similar_users(ragged([[], [1, 2], []]), vectors, 10).shape == (3, 0)
    assert similar_users(ragged([[], []]), vectors, 10).shape == (2, 0)


def test_distillation_without_similar_users_is_the_contrast_of_views_alone() -> None:
    torch.manual_seed(0)
    values = {"rat.method": "llmesr", "rat.hidden_size": 8, "rat.max_length": 6, "rat.dropout": 0.0}
    chosen = make_settings(values).rat
    model = Recommender(chosen, 9, DualTable(torch.randn(9, 8), torch.randn(9, 12)))
    train = ragged([[], [3, 4, 5]])
    batch = make_batch(training_rows(train, "sasrec"), np.array([0]), chosen, 9, None, np.random.default_rng(0))
    step = Step(batch, model.embedding.rows(batch.items), 0, 0, 1, np.random.default_rng(0), ALONE)
    got = Distill(chosen, train, similar_users(train, np.ones((9, 2), dtype=np.float32), 10), "cpu").loss(model, step)
    left, right = (torch.nn.functional.normalize(part, dim=1) for part in step.embedded.chunk(2, dim=1))
    labels = torch.arange(3)
    cross = torch.nn.functional.cross_entropy
    torch.testing.assert_close(got, 0.1 * (cross(left @ right.T, labels) + cross(right @ left.T, labels)) / 2)


def test_distillation_equals_a_loop_and_gives_the_teacher_no_gradient() -> None:
    torch.manual_seed(0)
    weights = {"rat.esr_distill_weight": 0.3, "rat.esr_align_weight": 0.7}
    values = {"rat.method": "llmesr", "rat.hidden_size": 8, "rat.max_length": 6, "rat.dropout": 0.0}
    chosen = make_settings(values | weights).rat
    model = Recommender(chosen, 9, DualTable(torch.randn(9, 8), torch.randn(9, 12)))
    train, similar = ragged([[1, 2], [3, 4, 5], [6], [7, 8, 9, 1]]), np.array([[1, 3], [0, 2], [3, 0], [1, 2]])
    # The third user has one item and no row.
    batch = make_batch(training_rows(train, "sasrec"), np.array([2, 0, 1]), chosen, 9, None, np.random.default_rng(0))
    embedded = model.embedding.rows(batch.items)
    step = Step(batch, embedded, 0, 0, 1, np.random.default_rng(0), ALONE)
    got = Distill(chosen, train, similar, "cpu").loss(model, step)

    def f(user: int) -> torch.Tensor:
        return model.last_states(torch.from_numpy(train.row(user).astype(np.int64))[None])[0]

    gap = torch.stack([(f(u) - (f(similar[u][0]) + f(similar[u][1])).detach() / 2).pow(2).mean() for u in (3, 0, 1)])
    left, right = (torch.nn.functional.normalize(part, dim=1) for part in (embedded[:, 8:], embedded[:, :8]))
    labels = torch.arange(len(left))
    cross = torch.nn.functional.cross_entropy
    views = (cross(left @ right.T, labels) + cross(right @ left.T, labels)) / 2
    expected = 0.3 * gap.mean() + 0.7 * views
    torch.testing.assert_close(got, expected)
    gradients = [
        torch.autograd.grad(x, list(model.parameters()), retain_graph=True, allow_unused=True)
        for x in (got, expected)
    ]
    for one, two in zip(*gradients, strict=True):
        assert (one is None) == (two is None)
        if one is not None and two is not None:
            torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-4)


def test_ablations_are_refused_for_other_methods(tmp_path: Path) -> None:
    workspace, _ = make_workspace(tmp_path / "ws", **SMALL)
    call = ["rat", "-w", str(workspace.root), "--method", "llm2x", "--without", "align"]
    result = CliRunner().invoke(app, call)
    assert result.exit_code == 2 and "--without leaves out parts of llmemb" in result.stderr
    assert not (workspace.root / "runs").exists()


def test_collaborative_runs_fit_whatever_the_tables_say(tmp_path: Path) -> None:
    workspace, _ = make_workspace(tmp_path / "ws", **SMALL | {"rat__epochs": 1, "rat__layers": 1})
    with workspace.settings_file.open("a") as file:
        file.write("\n[rat.melt]\nlayers = 2\nmax_length = 6\nhidden_size = 12\n")
        file.write("\n[rat.llmemb]\nlayers = 2\nhidden_size = 8\n")
    for method, layers in (("melt", 2), ("llmemb", 1)):
        settings = load_settings(workspace.settings_file, {"rat.method": method})
        assert run_rat(workspace, settings, Reporter(), in_file=settings).built
        summary = (read_manifest(workspace.run(f"sasrec-{method}-42")) or {})["summary"]
        source = read_manifest(workspace.run(summary["started_from"] or summary["aligned_to"])) or {}
        made = source["made_from"]["settings"]
        assert (made["hidden_size"], made["layers"]) == (settings.rat.hidden_size, layers)


def test_a_plan_whose_methods_differ_in_width_stays_up_to_date(tmp_path: Path) -> None:
    workspace, _ = make_workspace(tmp_path / "ws", **SMALL | {"rat__epochs": 1})
    with workspace.settings_file.open("a") as file:
        file.write("\n[rat.llmemb]\nhidden_size = 8\n")
    settings = load_settings(workspace.settings_file)
    steps = [step for step in chain(workspace, settings) if step.name.startswith(("rat", "eval"))]
    fitting = next(step.name for step in steps if re.fullmatch("rat sasrec-none-42-[0-9a-f]{6}", step.name))
    assert [step.name for step in steps] == [
        fitting,
        *(f"{what} sasrec-{method}-42" for what in ("rat", "eval") for method in ("none", "llmemb")),
    ]
    for step in steps:
        assert step.make(Reporter(), False).built
    assert {state.state.state for state in states(steps)} == {"up-to-date"}
    made = {step.name: read_manifest(step.stage.path) or {} for step in steps}
    assert made["rat sasrec-none-42"]["made_from"]["settings"]["hidden_size"] == 16
    assert made["rat sasrec-llmemb-42"]["summary"]["aligned_to"] == fitting.removeprefix("rat ")


def test_the_plan_shows_the_runs_that_others_read(tmp_path: Path) -> None:
    workspace, _ = make_workspace(tmp_path / "ws", **SMALL | {"rat__epochs": 1, "run__methods": ["melt"]})
    settings = load_settings(workspace.settings_file)
    steps = chain(workspace, settings)
    assert [step.name for step in steps if step.name.startswith("rat")] == [
        "rat sasrec-none-42",
        "rat sasrec-melt-42",
    ]
    for step in steps:
        if step.name.startswith("rat"):
            step.make(Reporter(), False)
    update_settings(workspace.settings_file, {"rat.none.dropout": 0.3})
    changed = load_settings(workspace.settings_file)
    found = {entry.step.name: entry.state for entry in states(chain(workspace, changed))}
    assert found["rat sasrec-none-42"].state == "stale" and found["rat sasrec-melt-42"].reason.startswith("follows")
