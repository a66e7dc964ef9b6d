"""Backbones against slow references on random weights; causality; masks."""

from __future__ import annotations

import cmath
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from llmemb_cli.config.backbones import BACKBONES as TABLE
from llmemb_cli.config.rat import RatSettings
from llmemb_cli.datasets.split import Ragged
from llmemb_cli.srs.backbones.sasrec import attention_mask
from llmemb_cli.srs.batch import make_batch
from llmemb_cli.srs.item_embedding import ItemTable
from llmemb_cli.srs.recommender import Recommender, make_backbone
from llmemb_cli.srs.sequences import training_rows
from tests.test_training_step import laid_out

BACKBONES = tuple(TABLE)
CAUSAL = [name for name, entry in TABLE.items() if entry.learns == "next"]
LAST_ONLY = [name for name, entry in TABLE.items() if entry.learns == "last"]
D = 8


def backbone(name: str, **values: Any) -> torch.nn.Module:
    torch.manual_seed(3)
    values = {"max_length": 7} | values
    chosen = RatSettings(backbone=name, hidden_size=D, layers=2, heads=2, dropout=0.3, **values)
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


def window_of(model: Any, x: list[list[float]]) -> list[list[float]]:
    """The whole window of positions: zeros, then the normed sums of items and positions."""
    positions = model.positions.tolist()[model.max_length - len(x) :]
    entered = [norm(add(row, position), model.norm) for row, position in zip(x, positions, strict=True)]
    return [[0.0] * D] * (model.max_length - len(x)) + entered


def fourier(column: list[float]) -> list[complex]:
    """The transform of a real sequence, frequencies 0 to half its length."""
    n = len(column)
    return [sum(v * cmath.exp(-2j * math.pi * f * t / n) for t, v in enumerate(column)) for f in range(n // 2 + 1)]


def fourier_back(frequencies: list[complex], n: int) -> list[float]:
    """The real sequence of length n whose transform begins with `frequencies`."""
    whole = list(frequencies) + [frequencies[n - f].conjugate() for f in range(n // 2 + 1, n)]
    # The imaginary part of frequency 0, and of the highest one of an even length, is of no sequence: it is left out.
    whole[0] = complex(whole[0].real)
    if n % 2 == 0:
        whole[n // 2] = complex(whole[n // 2].real)
    return [sum(v * cmath.exp(2j * math.pi * f * t / n) for f, v in enumerate(whole)).real / n for t in range(n)]


def columns(rows: list[list[float]]) -> list[list[float]]:
    return [list(column) for column in zip(*rows, strict=True)]


def feed(x: list[float], layer: Any) -> list[float]:
    return norm(add(x, linear([gelu(u) for u in linear(x, layer.up)], layer.down)), layer.norm)


def slow_fmlprec(model: Any, x: list[list[float]]) -> list[list[float]]:
    window, n, length = window_of(model, x), model.max_length, len(x)
    for block in model.blocks:
        weights = block.filter.tolist()
        filtered = [
            fourier_back([v * complex(*weights[f][i]) for f, v in enumerate(fourier(column))], n)
            for i, column in enumerate(columns(window))
        ]
        pairs = zip(window, columns(filtered), strict=True)
        after = [feed(norm(add(row, f), block.norm), block.feed) for row, f in pairs]
        window = [[0.0] * D] * (n - length) + after[-length:]
    return window[-length:]


def slow_bsarec(model: Any, x: list[list[float]]) -> list[list[float]]:
    window, n, length = window_of(model, x), model.max_length, len(x)
    for block in model.blocks:
        kept = 3 // 2 + 1  # the cutoff of these tests
        low = columns(
            [
                fourier_back([v if f < kept else 0j for f, v in enumerate(fourier(column))], n)
                for column in columns(window)
            ]
        )
        beta = [root**2 for root in block.root_beta.tolist()]
        x = window[-length:]
        filtered = [
            norm([s + b * (v - s) + v for s, b, v in zip(slow, beta, row, strict=True)], block.filter_norm)
            for slow, row in zip(low[-length:], x, strict=True)
        ]
        q, k, v = ([linear(row, layer) for row in x] for layer in (block.query, block.key, block.value))
        attended = attention(q, k, v, block.heads, lambda t, s: s <= t)
        attended = [
            norm(add(linear(a, block.out), r), block.attention_norm) for a, r in zip(attended, x, strict=True)
        ]
        mixed = [
            [0.6 * p + 0.4 * q for p, q in zip(f, a, strict=True)] for f, a in zip(filtered, attended, strict=True)
        ]
        window = [[0.0] * D] * (n - length) + [feed(row, block.feed) for row in mixed]
    return window[-length:]


def slow_caser(model: Any, x: list[list[float]]) -> list[list[float]]:
    size, out = model.window, []
    for t in range(len(x)):
        picture = ([[0.0] * D] * size + x[: t + 1])[-size:]
        found: list[float] = []
        for height, layer in enumerate(model.horizontal, start=1):
            for weight, bias in zip(layer.weight.tolist(), layer.bias.tolist(), strict=True):
                places = [
                    bias + sum(weight[i][h] * picture[at + h][i] for h in range(height) for i in range(D))
                    for at in range(size - height + 1)
                ]
                found.append(max(0.0, *places))
        for weight, bias in zip(model.vertical.weight.tolist(), model.vertical.bias.tolist(), strict=True):
            found += [bias + sum(w * row[i] for w, row in zip(weight, picture, strict=True)) for i in range(D)]
        out.append([max(v, 0.0) for v in linear(found, model.out)])
    return out


SLOW = {
    "sasrec": slow_sasrec,
    "gru4rec": slow_gru4rec,
    "bert4rec": slow_bert4rec,
    "caser": slow_caser,
    "fmlprec": slow_fmlprec,
    "bsarec": slow_bsarec,
}
OPTIONS = {"bsarec": {"bsarec_alpha": 0.6, "bsarec_cutoff": 3}, "caser": {"caser_window": 3, "caser_vertical": 2}}


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("max_length", [7, 8])
@torch.no_grad()
def test_backbone_equals_a_slow_reference_and_padding_changes_nothing(name: str, max_length: int) -> None:
    model = backbone(name, max_length=max_length, **OPTIONS.get(name, {}))
    rows = [[3, 7, 7, 12, 40], [9], [5, 6]]
    embedded, real = sequences(rows)
    states = model(embedded, real)
    for number, row in enumerate(rows):
        expected = torch.tensor(SLOW[name](model, embedded[number, -len(row) :].tolist()))
        torch.testing.assert_close(states[number, -len(row) :], expected, atol=2e-5, rtol=1e-4)
    assert (states[1, :-1] == 0).all()


@pytest.mark.parametrize("name", CAUSAL)
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


@pytest.mark.parametrize("name", LAST_ONLY)
@torch.no_grad()
def test_where_positions_see_later_items_the_last_one_alone_is_trained_without_its_target(name: str) -> None:
    model = backbone(name)
    embedded, real = sequences([[3, 7, 12]])
    changed = embedded.clone()
    changed[0, 2] *= -1.0
    assert not torch.allclose(model(embedded, real)[0, 0], model(changed, real)[0, 0])
    train = Ragged(np.array([3, 7, 7, 12, 9, 5, 6, 2], dtype=np.int32), np.array([0, 5, 6, 8]))
    rows = training_rows(train, name)
    assert rows.users.tolist() == [0, 0, 0, 0, 2]
    settings = RatSettings(backbone=name, max_length=3)
    batch = make_batch(rows, np.arange(5), settings, 20, None, np.random.default_rng(0))
    seen = sorted(
        ([i for i in inputs if i], [t for t in targets if t])
        for group in batch.groups
        for inputs, targets in zip(group.inputs.tolist(), laid_out(group).tolist(), strict=True)
    )
    # Every beginning of a history of two items or more; at most three items are read.
    assert seen == [([3], [7]), ([3, 7], [7]), ([3, 7, 7], [12]), ([6], [2]), ([7, 7, 12], [9])]
    assert not any(bool(laid_out(group)[:, :-1].any()) for group in batch.groups) and batch.targets == 5


@pytest.mark.parametrize("causal", [False, True])
def test_attention_looks_at_real_items_not_later_ones_and_always_at_itself(causal: bool) -> None:
    for real in ([[0, 0, 0], [0, 1, 1]], [[1, 1, 0, 1]], [[1, 1, 1]]):
        length = len(real[0])
        expected = [
            [[q == k or (bool(row[k]) and (k <= q or not causal)) for k in range(length)] for q in range(length)]
            for row in real
        ]
        assert attention_mask(torch.tensor(real) > 0, causal)[:, 0].tolist() == expected


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


@pytest.mark.parametrize("method", ["none", "llmesr"])
@pytest.mark.parametrize("name", BACKBONES)
def test_a_masked_item_of_the_contrast_is_a_vector_of_its_own_and_not_the_last_item(name: str, method: str) -> None:
    torch.manual_seed(0)
    chosen = RatSettings(backbone=name, method=method, contrast="cl4srec", hidden_size=D, max_length=6, heads=2)
    width = 2 * D if method == "llmesr" else D
    table = ItemTable(20, width)
    model = Recommender(chosen, 20, table).train(False)
    masked, last = torch.tensor([[3, 21, 5]]), torch.tensor([[3, 20, 5]])
    assert not torch.allclose(model.last_states(masked), model.last_states(last), atol=1e-6)
    vector = model.backbone.mask_vector if model.mask_vector is None else model.mask_vector
    assert isinstance(vector, torch.nn.Parameter) and vector.shape == (width,)
    # The same as a table in which the last item were that vector.
    model.zero_grad()
    got = model.last_states(masked)
    got.pow(2).sum().backward()
    assert table.weight.grad is not None and vector.grad is not None
    assert not table.weight.grad[19].any() and vector.grad.any() and table.weight.grad[2].any()
    with torch.no_grad():
        table.weight[19] = vector
    torch.testing.assert_close(model.last_states(last), got)


def test_without_the_contrast_there_is_no_such_vector() -> None:
    model = Recommender(RatSettings(hidden_size=D, method="none"), 20, ItemTable(20, D))
    assert model.mask_vector is None and "mask_vector" not in model.state_dict()
