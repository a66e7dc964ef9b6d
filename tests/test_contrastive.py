"""Contrastive losses against loops written from the formulas."""

from __future__ import annotations

import math

import pytest
import torch

from llmemb_cli.contrastive import contrastive_loss
from llmemb_cli.errors import BadDataError


def by_loops(kind: str, left: torch.Tensor, right: torch.Tensor, tau: float, same: torch.Tensor | None) -> float:
    """InfoNCE or Eq. 4, one pair at a time."""
    x, y = left.tolist(), right.tolist()

    def similarity(a: list[float], b: list[float]) -> float:
        dot = sum(p * q for p, q in zip(a, b, strict=True))
        return dot / (math.hypot(*a) * math.hypot(*b)) if kind == "infonce" else dot

    total = 0.0
    for one, other in ((x, y), (y, x)):
        for i in range(len(one)):
            below = 0.0
            for j in range(len(one)):
                if i == j and kind == "paper":
                    continue
                if i != j and same is not None and same[i, j]:
                    continue
                below += math.exp(similarity(one[i], other[j]) / tau)
            total += math.log(below) - similarity(one[i], other[i]) / tau
    return total / (2 * len(x))


def soft_by_loops(left: torch.Tensor, right: torch.Tensor, tau: float) -> float:
    """The authors' soft targets, one row at a time."""
    z = (left @ right.T / tau).tolist()
    raw = ((left @ left.T + right @ right.T) / 2 * tau).tolist()
    n = len(z)
    p = [[math.exp(v) / sum(math.exp(w) for w in row) for v in row] for row in raw]
    total = 0.0
    for i in range(n):
        row = math.log(sum(math.exp(z[i][k]) for k in range(n)))
        column = math.log(sum(math.exp(z[k][i]) for k in range(n)))
        for j in range(n):
            total -= p[i][j] * (z[i][j] - row) + p[j][i] * (z[j][i] - column)
    return total / (2 * n)


def views(n: int = 6, d: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return tuple(torch.randn(n, d, dtype=torch.float64, generator=generator) for _ in range(2))  # type: ignore[return-value]


@pytest.mark.parametrize("kind", ["infonce", "paper"])
@pytest.mark.parametrize("duplicates", [False, True])
def test_losses_equal_the_loops(kind: str, duplicates: bool) -> None:
    left, right = views()
    names = torch.tensor([0, 1, 0, 2, 3, 1])
    same = names[:, None] == names[None, :] if duplicates else None
    loss = contrastive_loss(kind, left, right, torch.tensor(0.5, dtype=torch.float64), same)
    assert float(loss) == pytest.approx(by_loops(kind, left, right, 0.5, same), rel=1e-9)


@pytest.mark.parametrize("kind", ["infonce", "paper", "soft"])
def test_a_loss_without_duplicates_never_waits_for_its_device(kind: str) -> None:
    # Tensors without values: whatever a thread would have to wait for cannot be read here.
    left, right = (torch.empty(6, 4, device="meta", requires_grad=True) for _ in range(2))
    loss = contrastive_loss(kind, left, right, torch.empty((), device="meta"))
    assert loss.shape == () and loss.requires_grad


@pytest.mark.parametrize("kind", ["infonce", "paper"])
def test_gradients_without_duplicates_are_those_of_no_pair_being_equal(kind: str) -> None:
    found = []
    for same in (None, torch.eye(6, dtype=torch.bool)):
        left, right = (view.requires_grad_() for view in views())
        loss = contrastive_loss(kind, left, right, torch.tensor(0.5, dtype=torch.float64), same)
        found.append((loss, *torch.autograd.grad(loss, (left, right))))
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))


def test_an_item_alone_has_no_negative() -> None:
    left, right = views(1)
    with pytest.raises(BadDataError, match="no item of the batch has a negative"):
        contrastive_loss("paper", left, right, torch.tensor(1.0))


def test_soft_equals_the_loops() -> None:
    left, right = views()
    loss = contrastive_loss("soft", left, right, torch.tensor(0.7, dtype=torch.float64))
    assert float(loss) == pytest.approx(soft_by_loops(left, right, 0.7), rel=1e-9)


def test_duplicates_do_not_push_each_other_away() -> None:
    left, right = views(3)
    right.requires_grad_()
    same = torch.eye(3, dtype=torch.bool)
    same[0, 2] = same[2, 0] = True
    kept = contrastive_loss("infonce", left, right, torch.tensor(1.0), same)
    alone = by_loops("infonce", left, right.detach(), 1.0, same)
    assert float(kept.detach()) == pytest.approx(alone)
    kept.backward()
    assert torch.isfinite(right.grad).all()  # type: ignore[arg-type]
