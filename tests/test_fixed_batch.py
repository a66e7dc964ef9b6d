"""Batches in shapes that return, as a recorded step reads them: beside those of the CPU, and what fills them up."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from torch.utils._python_dispatch import TorchDispatchMode

from llmemb_cli.config.backbones import BACKBONES
from llmemb_cli.config.rat import RatSettings
from llmemb_cli.datasets.split import Ragged
from llmemb_cli.peers import ALONE
from llmemb_cli.seeds import numpy_rng
from llmemb_cli.srs.batch import Batch, Group, make_batch
from llmemb_cli.srs.fixed_batch import distinct_items, fixed_batch, read_lengths, rounded, rows_on_device, shape_of
from llmemb_cli.srs.item_embedding import AdaptedTable, ItemTable
from llmemb_cli.srs.learn import Learner, learn, make_optimizer
from llmemb_cli.srs.methods.align import Align, infonce
from llmemb_cli.srs.negatives import NegativeSampler
from llmemb_cli.srs.objective import Step, batch_loss, loss_name, popularity_offset
from llmemb_cli.srs.recommender import Recommender
from llmemb_cli.srs.sequences import training_rows
from llmemb_cli.srs.start_decay import table_starts

N, D, LIMIT = 30, 8, 9
LOSSES = ["bce", "bpr", "ce", "sce", "sampled-softmax", "gbce", "infonce"]


def ragged(rows: list[list[int]]) -> Ragged:
    values = np.array([item for row in rows for item in row], dtype=np.int32)
    return Ragged(values, np.cumsum([0, *map(len, rows)]).astype(np.int64))


def histories(seed: int = 0, users: int = 40) -> Ragged:
    rng = np.random.default_rng(seed)
    return ragged([rng.integers(1, N + 1, rng.integers(2, 14)).tolist() for _ in range(users)])


def chosen_settings(**values: Any) -> RatSettings:
    plain = {"hidden_size": D, "max_length": LIMIT, "negatives": 3, "dropout": 0.0, "method": "none"}
    return RatSettings(**(plain | values))


def made(train: Ragged, users: np.ndarray, rat: RatSettings, batch_size: int | None = None) -> Batch:
    """A fixed batch of the rows `users`, filled up to `batch_size` rows."""
    rows = training_rows(train, rat.backbone)
    sampler = None if loss_name(rat) in ("ce", "sce") else NegativeSampler(train, N)
    chosen = np.full(batch_size or len(users), len(rows))
    chosen[: len(users)] = users
    shape = shape_of(read_lengths(rows, rat)[users], rat)
    there = rows_on_device(rows, sampler, rat, len(chosen), N, "cpu")
    return fixed_batch(there, torch.from_numpy(chosen), shape, rat, N)


def laid_out(group: Group, real: torch.Tensor | None = None) -> torch.Tensor:
    """(rows, length): the target of every position, 0 where there is none."""
    there = torch.ones(len(group.targets), dtype=torch.bool) if real is None else real
    targets = torch.zeros(group.inputs.numel(), dtype=torch.int64)
    targets[group.places[there]] = group.targets[there]
    return targets.view(group.inputs.shape)


def widened(values: torch.Tensor, length: int) -> torch.Tensor:
    return torch.nn.functional.pad(values, (length - values.shape[1], 0))


def unfilled(batch: Batch) -> Batch:
    """The same batch as the CPU would hold it: without what fills it up."""
    group, real = batch.groups[0], batch.real
    assert real is not None and batch.distinct is not None and isinstance(batch.targets, torch.Tensor)
    kept = Group(group.inputs, group.targets[real], group.places[real])
    negatives = None if batch.negatives is None else batch.negatives[real]
    return replace(
        batch,
        groups=[kept],
        negatives=negatives,
        items=batch.items[batch.distinct],
        targets=int(batch.targets),
        real=None,
        distinct=None,
    )


ROWS = st.lists(st.lists(st.integers(1, N), min_size=2, max_size=14), min_size=1, max_size=9)


@given(
    rows=ROWS, fill=st.integers(0, 3), backbone=st.sampled_from(["sasrec", "fmlprec"]), loss=st.sampled_from(LOSSES)
)
@settings(max_examples=60, deadline=None)
def test_inputs_and_targets_are_those_of_a_batch_that_the_cpu_makes(
    rows: list[list[int]], fill: int, backbone: str, loss: str
) -> None:
    rat, train = chosen_settings(backbone=backbone, loss=loss), ragged(rows)
    count = len(training_rows(train, rat.backbone))
    users = np.random.default_rng(len(rows)).permutation(count)
    sampler = None if loss in ("ce", "sce") else NegativeSampler(train, N)
    wanted = make_batch(training_rows(train, rat.backbone), users, rat, N, sampler, np.random.default_rng(0))
    found = made(train, users, rat, count + fill)
    group = found.groups[0]
    pairs = Counter()
    for part in wanted.groups:
        length = group.inputs.shape[1]
        for inputs, targets in zip(widened(part.inputs, length), widened(laid_out(part), length), strict=True):
            pairs[tuple(inputs.tolist()), tuple(targets.tolist())] += 1
    assert group.inputs.shape[1] <= LIMIT
    filled = Counter()
    for inputs, targets in zip(group.inputs, laid_out(group, found.real), strict=True):
        filled[tuple(inputs.tolist()), tuple(targets.tolist())] += 1
    empty = (0,) * group.inputs.shape[1]
    assert filled == pairs + Counter({(empty, empty): fill})
    assert int(found.targets) == wanted.targets
    # Of the items, those that are drawn differ; all that are read are there.
    read = {int(item) for row in users for item in part_of(train, rat, int(row))}
    assert found.distinct is not None
    items = found.items[found.distinct].tolist()
    assert items == sorted(set(items)) and read <= set(items) and set(found.items[~found.distinct].tolist()) <= {N}
    drawn = [] if found.shared is None else found.shared.tolist()
    if found.negatives is not None:
        drawn += found.negatives[found.real].flatten().tolist()
    assert set(items) == read | set(drawn)


def part_of(train: Ragged, rat: RatSettings, row: int) -> np.ndarray:
    rows = training_rows(train, rat.backbone)
    return rows.values[rows.begin[row] : rows.end[row]][-(LIMIT + 1) :]


@given(
    rows=st.lists(st.lists(st.integers(1, N), min_size=1, max_size=14), min_size=1, max_size=9),
    fill=st.integers(0, 3),
)
@settings(max_examples=60, deadline=None)
def test_so_many_items_are_masked_as_the_cpu_masks(rows: list[list[int]], fill: int) -> None:
    rat, train = chosen_settings(backbone="bert4rec", mask_ratio=0.6), ragged(rows)
    batch = made(train, np.arange(len(rows)), rat, len(rows) + fill)
    group = batch.groups[0]
    targets = laid_out(group, batch.real)
    assert not targets[len(rows) :].any() and not group.inputs[len(rows) :].any()
    for row, inputs, hidden in zip(rows, group.inputs, targets, strict=False):
        newest, length = row[-LIMIT:], min(len(row), LIMIT)
        seen = torch.where(hidden > 0, hidden, inputs)
        assert seen.tolist() == [0] * (len(seen) - length) + newest
        assert (inputs[hidden > 0] == N + 1).all()
        masked = hidden > 0
        last_only = int(masked.sum()) == 1 and bool(masked[-1])
        assert last_only or int(masked.sum()) == max(1, int(np.round(0.6 * length)))


def test_one_sequence_in_eleven_masks_its_last_item_alone() -> None:
    torch.manual_seed(0)
    train = ragged([[1, 2, 3, 4, 5, 6, 7, 8]] * 4000)
    batch = made(train, np.arange(4000), chosen_settings(backbone="bert4rec", mask_ratio=0.5))
    alone = (laid_out(batch.groups[0], batch.real) > 0).sum(dim=1) == 1
    assert int(alone.sum()) / 4000 == pytest.approx(1 / 11, abs=0.02)


def test_negatives_are_every_item_that_a_user_has_not_had_equally_often() -> None:
    torch.manual_seed(0)
    rows = [[1, 2, 5, 5, 9], [12], [3, 12, 1], list(range(1, 12)), list(range(1, 13)), [7, 6, 8]]
    own = NegativeSampler(ragged(rows), 12).own_items("cpu")
    drawn = own.draw(torch.arange(len(rows)).repeat(300), 40).view(300, len(rows), 40)
    for user, row in enumerate(rows):
        others = sorted(set(range(1, 13)) - set(row)) or list(range(1, 13))
        counts = Counter(drawn[:, user].flatten().tolist())
        assert sorted(counts) == others
        assert len(others) == 1 or chisquare([counts[item] for item in others]).pvalue > 1e-3


@given(
    parts=st.lists(st.lists(st.integers(0, 20), min_size=1, max_size=12), min_size=1, max_size=3),
    more=st.integers(0, 5),
)
def test_distinct_items_are_in_order_and_the_last_of_all_fills_up(parts: list[list[int]], more: int) -> None:
    wanted = sorted({item for part in parts for item in part} - {0})
    if not wanted:
        return
    found = [torch.tensor(part) for part in parts]
    items, distinct = distinct_items(found, 20, len(wanted) + more, torch.arange(40))
    assert items.tolist() == wanted + [20] * more
    assert distinct.tolist() == [True] * len(wanted) + [False] * more


@given(count=st.integers(1, 1 << 40))
def test_numbers_are_rounded_up_by_a_quarter_at_most_to_few_others(count: int) -> None:
    found = rounded(count)
    assert count <= found <= count * 1.25 + 1e-9 and rounded(found) == found
    assert len(f"{found:b}".rstrip("0")) <= 3


def gradients(model: Recommender, rat: RatSettings, batch: Batch, extra: Align | None) -> list[torch.Tensor]:
    model.zero_grad()
    loss, embedded = batch_loss(model, rat, batch, popularity_offset(histories(), N, 0.5))
    if extra is not None:
        loss = loss + extra.loss(model, Step(batch, embedded, 0, 0, 1, np.random.default_rng(0), ALONE))
    loss.backward()
    return [loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize("method", ["none", "llmemb"])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("backbone", list(BACKBONES))
def test_what_fills_a_batch_up_changes_neither_its_loss_nor_its_gradients(
    backbone: str, loss: str, method: str
) -> None:
    torch.manual_seed(0)
    rat = chosen_settings(backbone=backbone, loss=loss, method=method, alpha=1.0, gamma=0.5)
    embedding = ItemTable(N, D) if method == "none" else AdaptedTable(torch.randn(N, 12), D)
    model = Recommender(rat, N, embedding)
    if model.bias is not None:
        torch.nn.init.normal_(model.bias)
    extra = Align(rat, torch.randn(N, D)) if method == "llmemb" else None
    batch = made(histories(), np.arange(5), rat, 7)
    assert batch.real is not None and not batch.real.all()
    found, wanted = gradients(model, rat, batch, extra), gradients(model, rat, unfilled(batch), extra)
    assert len(found) == len(wanted) > 2
    for one, two in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-4)


def test_rows_that_are_not_there_take_no_part_in_the_contrast() -> None:
    torch.manual_seed(0)
    left, right, real = torch.randn(20, D), torch.randn(20, D), torch.arange(20) % 3 > 0
    one, two = (left.clone().requires_grad_() for _ in range(2))
    found, wanted = infonce(one, right, 0.5, real), infonce(two[real], right[real], 0.5)
    torch.testing.assert_close(found, wanted)
    (2 * found).backward()
    (2 * wanted).backward()
    torch.testing.assert_close(one.grad, two.grad)


class Work(TorchDispatchMode):
    """Notes every operation with the shapes of its results."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, tuple[int, ...] | None]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func is not torch.ops.aten._local_scalar_dense.default, "a number is read back from the device"
        out = func(*args, **(kwargs or {}))
        self.seen.append((str(func), tuple(out.shape) if isinstance(out, torch.Tensor) else None))
        return out


@pytest.mark.parametrize("method", ["none", "llmemb"])
@pytest.mark.parametrize("loss", ["bce", "ce", "sce", "gbce"])
@pytest.mark.parametrize("backbone", list(BACKBONES))
def test_every_batch_of_a_shape_is_the_same_work_and_asks_the_device_nothing(
    backbone: str, loss: str, method: str
) -> None:
    torch.manual_seed(0)
    rat = chosen_settings(
        backbone=backbone, loss=loss, method=method, dropout=0.2, start_decay=0.5, similarity="cosine"
    )
    embedding = ItemTable(N, D, torch.randn(N, D)) if method == "none" else AdaptedTable(torch.randn(N, 12), D)
    model = Recommender(rat, N, embedding).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    extra = Align(rat, torch.randn(N, D)) if method == "llmemb" else None
    assert extra is None or extra.recordable
    sums = torch.tensor(0.0, dtype=torch.float64), torch.tensor(0)
    offset, optimizer, train = popularity_offset(histories(), N, 0.5), make_optimizer(trained, rat), histories()
    learner = Learner(model, rat, extra, optimizer, trained, table_starts(model, 0.5), offset, ALONE, *sums)
    rows = training_rows(train, rat.backbone)
    lengths = read_lengths(rows, rat)
    sampler = None if loss in ("ce", "sce") else NegativeSampler(train, N)
    there = rows_on_device(rows, sampler, rat, 4, N, "cpu")
    every = np.array_split(np.random.default_rng(1).permutation(len(rows))[: len(rows) // 4 * 4], len(rows) // 4)
    shapes = Counter(shape_of(lengths[some], rat) for some in every)
    shape, count = shapes.most_common(1)[0]
    assert count > 1
    seen = []
    for some in (some for some in every if shape_of(lengths[some], rat) == shape):
        with Work() as work:
            learn(learner, fixed_batch(there, torch.from_numpy(some), shape, rat, N), 0, 0, 1, numpy_rng(0))
        seen.append(work.seen)
    first, *others = seen[1:]  # the first step of all prepares the optimizer
    assert first and all(other == first for other in others)
    assert int(sums[1]) > 0 and float(sums[0]) > 0
