"""Dropout with cheap masks, and attention with it."""

from __future__ import annotations

import pytest
import torch

from llmemb_cli.dropout import Dropout
from llmemb_cli.srs.backbones.sasrec import attend


@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.6])
def test_dropout_leaves_out_the_share_and_keeps_the_mean(ratio: float) -> None:
    torch.manual_seed(3)
    x = torch.full((1000, 201), 2.0, requires_grad=True)
    dropped = Dropout(ratio).train()(x)
    kept = dropped != 0
    assert float(kept.double().mean()) == pytest.approx(1 - ratio, abs=0.005)
    torch.testing.assert_close(dropped[kept], torch.full_like(dropped[kept], 2 / (1 - ratio)))
    dropped.sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, kept.float() / (1 - ratio))


def test_dropout_repeats_with_the_seed_and_rests_outside_training() -> None:
    layer, x = Dropout(0.5), torch.randn(50, 7)
    torch.manual_seed(9)
    first, second = layer(x), layer(x)
    torch.manual_seed(9)
    assert torch.equal(layer(x), first) and not torch.equal(first, second)
    assert torch.equal(layer.train(False)(x), x)


@pytest.mark.parametrize("ratio", [1e-9, 7e-6])
def test_a_ratio_that_sixteen_bits_round_to_zero_drops_nothing(ratio: float) -> None:
    x = torch.randn(300, 7)
    torch.testing.assert_close(Dropout(ratio).train()(x), x, rtol=1e-5, atol=0)


def test_attention_with_dropout_is_on_average_attention_and_never_looks_where_it_may_not() -> None:
    torch.manual_seed(4)
    query, key, value = (torch.randn(1, 5, 6, dtype=torch.float64) for _ in range(3))
    allowed = torch.ones(5, 5, dtype=torch.bool).tril()[None, None]
    plain = attend(query, key, value, allowed, 2, 0.0)
    many = torch.stack([attend(query, key, value, allowed, 2, 0.4) for _ in range(4000)])
    torch.testing.assert_close(many.mean(dim=0), plain, atol=0.12, rtol=0)
    changed = value.clone()
    changed[:, 3:] += 10
    torch.manual_seed(5)
    before = attend(query, key, value, allowed, 2, 0.4)
    torch.manual_seed(5)
    after = attend(query, key, changed, allowed, 2, 0.4)
    assert torch.equal(before[:, :3], after[:, :3])
