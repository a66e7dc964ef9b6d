"""Recommenders: backbones against slow references, exact losses, frozen vectors, resumed training."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmemb_cli.config.rat import RatSettings
from llmemb_cli.datasets.split import Ragged, load_split
from llmemb_cli.errors import InterruptedRunError
from llmemb_cli.pipeline import run_name
from llmemb_cli.progress import Reporter, Task
from llmemb_cli.ranking import hit_rate, ndcg, rank_of_target, reciprocal_rank
from llmemb_cli.srs import losses
from llmemb_cli.srs.item_embedding import AdaptedTable, ItemTable
from llmemb_cli.srs.negatives import NegativeSampler
from llmemb_cli.srs.objective import batch_loss, masked_pairs, next_item_pairs
from llmemb_cli.srs.recommender import Recommender, load_recommender, make_backbone
from llmemb_cli.srs.sequences import epoch_batches, left_padded
from llmemb_cli.srs.train import run_rat
from llmemb_cli.workspace.store import read_tensors
from tests.make_workspace import make_workspace

BACKBONES = ("sasrec", "gru4rec", "bert4rec")
D = 8


def backbone(name: str, **values: Any) -> torch.nn.Module:
    torch.manual_seed(3)
    chosen = RatSettings(backbone=name, hidden_size=D, max_length=7, layers=2, heads=2, dropout=0.3, **values)
    model = make_backbone(chosen)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.train(False)


def sequences(rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Left-padded embeddings and mask for rows of item numbers."""
    width = max(map(len, rows))
    table = torch.randn(50, D, generator=torch.Generator().manual_seed(1))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    return table[ids], ids > 0


def norm(x: list[float], layer: Any) -> list[float]:
    mean = sum(x) / len(x)
    var = sum((v - mean) ** 2 for v in x) / len(x)
    w, b = layer.weight.tolist(), layer.bias.tolist()
    return [(v - mean) / math.sqrt(var + layer.eps) * w[i] + b[i] for i, v in enumerate(x)]


def linear(x: list[float], layer: Any) -> list[float]:
    return [
        sum(a * b for a, b in zip(x, row, strict=True)) + c
        for row, c in zip(layer.weight.tolist(), layer.bias.tolist(), strict=True)
    ]


def attention(
    q: list[Any], k: list[Any], v: list[Any], heads: int, see: Callable[[int, int], bool]
) -> list[list[float]]:
    size = len(q[0]) // heads
    out = []
    for t in range(len(q)):
        row: list[float] = []
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            keys = [s for s in range(len(k)) if see(t, s)]
            scores = [sum(a * b for a, b in zip(q[t][part], k[s][part], strict=True)) / math.sqrt(size) for s in keys]
            top = max(scores)
            weights = [math.exp(score - top) for score in scores]
            for i in range(size):
                mixed = sum(w * v[s][part][i] for w, s in zip(weights, keys, strict=True))
                row.append(mixed / sum(weights))
        out.append(row)
    return out


def add(a: list[float], b: list[float]) -> list[float]:
    return [x + y for x, y in zip(a, b, strict=True)]


def slow_sasrec(model: Any, x: list[list[float]]) -> list[list[float]]:
    positions = model.positions.tolist()[model.max_length - len(x) :]
    x = [
        [v * math.sqrt(D) + p for v, p in zip(row, position, strict=True)]
        for row, position in zip(x, positions, strict=True)
    ]
    for block in model.blocks:
        normed = [norm(row, block.query_norm) for row in x]
        q, k, v = (
            [linear(r, layer) for r in rows]
            for rows, layer in ((normed, block.query), (x, block.key), (x, block.value))
        )
        attended = attention(q, k, v, block.heads, lambda t, s: s <= t)
        fed = [norm(add(n, a), block.feed_norm) for n, a in zip(normed, attended, strict=True)]
        x = [add(f, linear([max(u, 0.0) for u in linear(f, block.up)], block.down)) for f in fed]
    return [norm(row, model.norm) for row in x]


def gelu(x: float) -> float:
    return x * 0.5 * (1 + math.erf(x / math.sqrt(2)))


def slow_bert4rec(model: Any, x: list[list[float]]) -> list[list[float]]:
    positions = model.positions.tolist()[model.max_length - len(x) :]
    x = [norm(add(row, position), model.norm) for row, position in zip(x, positions, strict=True)]
    for block in model.blocks:
        q, k, v = ([linear(row, layer) for row in x] for layer in (block.query, block.key, block.value))
        attended = attention(q, k, v, block.heads, lambda t, s: True)
        x = [norm(add(row, linear(a, block.out)), block.norm1) for row, a in zip(x, attended, strict=True)]
        x = [norm(add(row, linear([gelu(u) for u in linear(row, block.up)], block.down)), block.norm2) for row in x]
    return [norm([gelu(u) for u in linear(row, model.head)], model.head_norm) for row in x]


def slow_gru4rec(model: Any, x: list[list[float]]) -> list[list[float]]:
    gru, h, out = model.gru, [0.0] * D, []
    w_i, w_h = gru.weight_ih_l0.tolist(), gru.weight_hh_l0.tolist()
    b_i, b_h = gru.bias_ih_l0.tolist(), gru.bias_hh_l0.tolist()
    for row in x:
        a = [sum(p * q for p, q in zip(w, row, strict=True)) + b for w, b in zip(w_i, b_i, strict=True)]
        c = [sum(p * q for p, q in zip(w, h, strict=True)) + b for w, b in zip(w_h, b_h, strict=True)]
        reset = [1 / (1 + math.exp(-(a[i] + c[i]))) for i in range(D)]
        update = [1 / (1 + math.exp(-(a[D + i] + c[D + i]))) for i in range(D)]
        new = [math.tanh(a[2 * D + i] + reset[i] * c[2 * D + i]) for i in range(D)]
        h = [(1 - update[i]) * new[i] + update[i] * h[i] for i in range(D)]
        out.append(h)
    return out


SLOW = {"sasrec": slow_sasrec, "gru4rec": slow_gru4rec, "bert4rec": slow_bert4rec}


@pytest.mark.parametrize("name", BACKBONES)
@torch.no_grad()
def test_backbone_equals_a_slow_reference_and_padding_changes_nothing(name: str) -> None:
    model = backbone(name)
    rows = [[3, 7, 7, 12, 40], [9], [5, 6]]
    embedded, real = sequences(rows)
    states = model(embedded, real)
    for number, row in enumerate(rows):
        expected = torch.tensor(SLOW[name](model, embedded[number, -len(row) :].tolist()))
        torch.testing.assert_close(states[number, -len(row) :], expected, atol=2e-5, rtol=1e-4)
    assert (states[1, :-1] == 0).all()


@pytest.mark.parametrize("name", ["sasrec", "gru4rec"])
@torch.no_grad()
def test_no_state_depends_on_a_later_item(name: str) -> None:
    model = backbone(name)
    embedded, real = sequences([[3, 7, 7, 12, 40]])
    before = model(embedded, real)
    for t in range(1, 5):
        changed = embedded.clone()
        changed[0, t] += 1.0
        after = model(changed, real)
        torch.testing.assert_close(after[0, :t], before[0, :t])
        assert not torch.allclose(after[0, t:], before[0, t:])


@torch.no_grad()
def test_official_sasrec_sees_its_future_and_says_so_in_its_settings() -> None:
    embedded, real = sequences([[3, 7, 12]])
    changed = embedded.clone()
    changed[0, 2] += 1.0
    model = backbone("sasrec", compat="official")
    assert not torch.allclose(model(embedded, real)[0, 0], model(changed, real)[0, 0])


@torch.no_grad()
def test_bert4rec_predicts_at_a_mask_appended_to_the_end() -> None:
    torch.manual_seed(0)
    chosen = RatSettings(backbone="bert4rec", hidden_size=D, max_length=4, heads=2)
    model = Recommender(chosen, 20, ItemTable(20, D)).train(False)
    got = model.encode(torch.tensor([[1, 2, 3, 4, 5]]))
    assert isinstance(model.backbone.mask_vector, torch.nn.Parameter)
    embedded = torch.cat([model.item_table[[3, 4, 5]], model.backbone.mask_vector[None]])
    expected = model.backbone(embedded[None], torch.ones(1, 4, dtype=torch.bool))[:, -1]
    torch.testing.assert_close(got, expected)


def test_adapter_is_two_linear_layers_worked_by_hand() -> None:
    torch.manual_seed(0)
    vectors = torch.randn(6, 5)
    table = AdaptedTable(vectors, 3)
    w2, b2, w1, b1 = table.inner.weight, table.inner.bias, table.outer.weight, table.outer.bias
    expected = torch.stack([w1 @ (w2 @ e + b2) + b1 for e in vectors])
    torch.testing.assert_close(table.table()[1:], expected)
    torch.testing.assert_close(
        table.rows(torch.tensor([0, 6, 2])), torch.stack([torch.zeros(3), expected[5], expected[1]])
    )
    table.rows(torch.tensor([1, 2])).sum().backward()
    fused = [p.grad.clone() for p in table.parameters() if p.grad is not None]
    table.zero_grad()
    table.outer(table.inner(vectors[:2])).sum().backward()
    for one, two in zip(fused, [p.grad for p in table.parameters()], strict=True):
        torch.testing.assert_close(one, two)


def test_padding_row_is_zero_and_is_never_trained() -> None:
    table = ItemTable(5, 3)
    optimizer = torch.optim.Adam(table.parameters(), 0.1)
    table.rows(torch.tensor([0, 1, 5])).pow(2).sum().backward()
    optimizer.step()
    assert (table.table()[0] == 0).all() and table.table().shape == (6, 3)


def test_losses_equal_loops() -> None:
    torch.manual_seed(0)
    positive, negative = torch.randn(5), torch.randn(5, 3)

    def sigmoid(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    p, n = positive.tolist(), negative.tolist()
    bce = sum(-(math.log(sigmoid(p[i])) + sum(math.log(1 - sigmoid(x)) for x in n[i])) / 4 for i in range(5)) / 5
    bpr = sum(-math.log(sigmoid(p[i] - x)) for i in range(5) for x in n[i]) / 15
    soft = sum(-p[i] + math.log(math.exp(p[i]) + sum(math.exp(x) for x in n[i])) for i in range(5)) / 5
    assert losses.bce(positive, negative).item() == pytest.approx(bce, rel=1e-5)
    assert losses.bpr(positive, negative).item() == pytest.approx(bpr, rel=1e-5)
    assert losses.sampled_softmax(positive, negative).item() == pytest.approx(soft, rel=1e-5)
    assert losses.gbce_beta(3, 100, 0.0) == pytest.approx(1.0)
    assert losses.gbce_beta(3, 100, 1.0) == pytest.approx(3 / 99)


def test_cross_entropy_is_sampled_softmax_over_every_other_item() -> None:
    torch.manual_seed(0)
    states, table = torch.randn(7, D), torch.cat([torch.zeros(1, D), torch.randn(9, D)])
    targets, bias = torch.randint(1, 10, (7,)), torch.randn(10)
    others = torch.tensor([[i for i in range(1, 10) if i != t] for t in targets.tolist()])
    scores = states @ table.T + bias
    expected = losses.sampled_softmax(scores.gather(1, targets[:, None])[:, 0], scores.gather(1, others))
    for chunk in (2, 100):
        torch.testing.assert_close(losses.cross_entropy(states, targets, table, bias, chunk), expected)


@given(rows=st.lists(st.lists(st.integers(1, 30), max_size=9), min_size=1, max_size=8), limit=st.integers(1, 10))
def test_left_padding_keeps_the_newest_items(rows: list[list[int]], limit: int) -> None:
    ragged = Ragged(
        np.array([i for row in rows for i in row], dtype=np.int32), np.cumsum([0, *map(len, rows)]).astype(np.int64)
    )
    got = left_padded(ragged, np.arange(len(rows)), limit)
    width = max(1, min(limit, max(map(len, rows))))
    expected = [[0] * (width - len(row[-limit:])) + row[-limit:] for row in rows]
    assert got.tolist() == expected


@given(count=st.integers(1, 200), size=st.integers(1, 17), epoch=st.integers(0, 5))
@settings(max_examples=30)
def test_every_row_is_in_one_batch_of_an_epoch(count: int, size: int, epoch: int) -> None:
    lengths = np.random.default_rng(count).integers(1, 20, count)
    batches = epoch_batches(lengths, size, 1, epoch)
    assert sorted(np.concatenate(batches).tolist()) == list(range(count))
    assert max(map(len, batches)) <= size


@given(rows=st.lists(st.lists(st.integers(1, 12), max_size=12), min_size=1, max_size=6), seed=st.integers(0, 99))
@settings(max_examples=50)
def test_negatives_are_items_the_user_has_not_had(rows: list[list[int]], seed: int) -> None:
    rows = [*rows, [1]]
    ragged = Ragged(
        np.array([i for row in rows for i in row], dtype=np.int32), np.cumsum([0, *map(len, rows)]).astype(np.int64)
    )
    users = np.arange(len(rows))
    drawn = NegativeSampler(ragged, 12).draw(users, (5, 2), np.random.default_rng(seed))
    assert drawn.shape == (len(rows), 5, 2) and drawn.min() >= 1 and drawn.max() <= 12
    for row, items in zip(drawn.tolist(), rows, strict=True):
        if len(set(items)) < 12:
            assert not {i for step in row for i in step} & set(items)


def test_next_item_pairs_and_masks() -> None:
    batch = torch.tensor([[0, 0, 4, 5], [1, 2, 3, 4]])
    inputs, targets = next_item_pairs(batch)
    assert inputs.tolist() == [[0, 0, 4], [1, 2, 3]] and targets.tolist() == [[0, 0, 5], [2, 3, 4]]
    rng = np.random.default_rng(0)
    for _ in range(50):
        inputs, targets = masked_pairs(batch, 99, 0.6, rng)
        masked = targets > 0
        assert (inputs[masked] == 99).all() and (targets[masked] == batch[masked]).all()
        assert (inputs[~masked] == batch[~masked]).all() and masked.sum(dim=1).tolist()[0] == 1
        assert masked.sum(dim=1)[1].item() in (1, 2)


@given(scores=st.lists(st.sampled_from([-1.0, 0.0, 0.5, 2.0]), min_size=1, max_size=30), target=st.floats(-2, 3))
def test_ties_count_against_the_target_and_metrics_equal_their_definition(scores: list[float], target: float) -> None:
    rank = int(rank_of_target(torch.tensor([target]), torch.tensor([scores]))[0])
    wanted = torch.tensor(target).item()
    assert rank == 1 + sum(score >= wanted for score in scores)
    ranks = np.array([rank])
    assert hit_rate(ranks, 10)[0] == (rank <= 10)
    assert ndcg(ranks, 10)[0] == (pytest.approx(1 / math.log2(1 + rank)) if rank <= 10 else 0)
    assert reciprocal_rank(ranks)[0] == pytest.approx(1 / rank)


SMALL: dict[str, Any] = {
    "rat__hidden_size": 16,
    "rat__dropout": 0.0,
    "rat__max_length": 8,
    "rat__batch_size": 16,
    "rat__learning_rate": 0.01,
    "rat__epochs": 40,
    "rat__loss": "ce",
    "rat__mask_ratio": 0.3,
}


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("method", ["none", "llmemb"])
def test_a_planted_rule_is_learned(tmp_path: Path, name: str, method: str) -> None:
    workspace, settings = make_workspace(tmp_path / "ws", **SMALL, rat__backbone=name, rat__method=method)
    result = run_rat(workspace, settings, Reporter())
    from llmemb_cli.evaluation.stage import run_eval

    measured = run_eval(workspace, settings, run_name(settings), Reporter()).manifest["summary"]
    assert measured["overall"]["HR@10"] > 0.95
    assert result.manifest["summary"]["embedding_scale"]["std"] > 0


def test_llm_vectors_stay_bit_identical_and_ablations_differ_as_named(tmp_path: Path) -> None:
    workspace, settings = make_workspace(tmp_path / "ws", **(SMALL | {"rat__epochs": 2, "rat__hidden_size": 8}))
    source = (workspace.embeddings() / "embeddings.safetensors").read_bytes()
    vectors = {}
    for without in ([], ["freeze"], ["scft"], ["adapter"], ["align"]):
        rat = settings.rat.model_copy(update={"method": "llmemb", "without": without})
        one = settings.model_copy(update={"rat": rat})
        summary = run_rat(workspace, one, Reporter()).manifest["summary"]
        weights = read_tensors(workspace.run(run_name(one)) / "model.safetensors")
        vectors[",".join(without)] = weights["embedding.vectors"]
        assert (summary["aligned_to"] is None) == (without in (["adapter"], ["align"]))
        assert ("embedding.inner.weight" in weights) == (without != ["adapter"])
    assert (workspace.embeddings() / "embeddings.safetensors").read_bytes() == source
    from llmemb_cli.embeddings.pca import read_pca
    from llmemb_cli.embeddings.table import read_table

    reduced = read_pca(workspace.embeddings()).transform(read_table(workspace.embeddings()).vectors)
    expected = torch.from_numpy((reduced * (0.3 / np.sqrt(np.mean(reduced**2)))).astype(np.float32))
    # Two trainings left them bit-identical; recomputing PCA may round differently, by memory alignment.
    assert torch.equal(vectors[""], vectors["align"])
    torch.testing.assert_close(vectors[""], expected)
    assert not torch.allclose(vectors["freeze"], expected) and not torch.allclose(vectors["scft"], expected)


def test_no_validation_or_test_item_reaches_training(tmp_path: Path) -> None:
    workspace, settings = make_workspace(tmp_path / "ws", **SMALL)
    data = load_split(workspace.data)
    seen: list[torch.Tensor] = []
    model = Recommender(settings.rat, data.n_items, ItemTable(data.n_items, 16))
    states = model.states
    model.states = lambda s, e: (seen.append(s), states(s, e))[1]  # type: ignore[method-assign]
    rows = left_padded(data.train, np.arange(data.n_users), 9)
    batch_loss(
        model,
        settings.rat,
        np.arange(data.n_users),
        rows,
        NegativeSampler(data.train, data.n_items),
        np.random.default_rng(0),
        None,
    )
    fed = torch.cat(seen)
    for user in range(data.n_users):
        # Eight items a user, the last two held out: five inputs, the sixth is the last target.
        assert fed[user][fed[user] > 0].tolist() == data.train.row(user)[:-1].tolist()


class StopAfter(Reporter):
    """Sends SIGINT to this process after some epochs."""

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def task(self, label: str, total: int | None = None, unit: str = "steps", done: int = 0) -> Task:
        owner = self

        class Counting(Task):
            def advance(self, n: int = 1, **figures: float | str) -> None:
                owner.epochs -= 1
                if owner.epochs == 0:
                    os.kill(os.getpid(), signal.SIGINT)

        return Counting()


@pytest.mark.parametrize("name", BACKBONES)
def test_interrupted_and_resumed_training_equals_an_uninterrupted_one(tmp_path: Path, name: str) -> None:
    values = SMALL | {"rat__epochs": 5, "rat__backbone": name, "rat__method": "none", "rat__dropout": 0.2}
    one, settings = make_workspace(tmp_path / "one", **values)
    run_rat(one, settings, Reporter())
    two, settings = make_workspace(tmp_path / "two", **values)
    with pytest.raises(InterruptedRunError):
        run_rat(two, settings, StopAfter(2))
    assert not two.run(run_name(settings)).exists()
    run_rat(two, settings, Reporter())
    for file in ("model.safetensors", "item_embeddings.safetensors", "log.jsonl"):
        assert (one.run(run_name(settings)) / file).read_bytes() == (two.run(run_name(settings)) / file).read_bytes()


def test_loaded_recommender_scores_as_its_saved_table(tmp_path: Path) -> None:
    workspace, settings = make_workspace(tmp_path / "ws", **(SMALL | {"rat__epochs": 1, "rat__method": "llmemb"}))
    run_rat(workspace, settings, Reporter())
    data = load_split(workspace.data)
    model = load_recommender(workspace.run(run_name(settings)), data)
    saved = read_tensors(workspace.run(run_name(settings)) / "item_embeddings.safetensors")["item_embeddings"]
    torch.testing.assert_close(model.item_table[1:].detach(), saved)
    assert (model.item_table[0] == 0).all() and len(saved) == data.n_items
