"""The parts of a training step against slow references: losses, embeddings, batches, negatives, metrics."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmemb_cli.config.backbones import BACKBONES
from llmemb_cli.config.rat import RatSettings
from llmemb_cli.contrastive import contrastive_loss
from llmemb_cli.cross_entropy import cross_entropy
from llmemb_cli.datasets.split import Ragged
from llmemb_cli.peers import ALONE, Peers
from llmemb_cli.ranking import hit_rate, ndcg, rank_of_target, reciprocal_rank
from llmemb_cli.seeds import seed_torch
from llmemb_cli.srs import losses
from llmemb_cli.srs.batch import MARKS, Group, distinct_items, make_batch, masked_pairs, next_item_pairs
from llmemb_cli.srs.item_embedding import (
    AdaptedTable,
    DualTable,
    FrozenTable,
    FusedTable,
    ItemEmbedding,
    ItemTable,
    LinearTable,
)
from llmemb_cli.srs.methods import align
from llmemb_cli.srs.methods.align import infonce
from llmemb_cli.srs.negatives import NegativeSampler
from llmemb_cli.srs.objective import Step, batch_loss, popularity_offset
from llmemb_cli.srs.recommender import Recommender
from llmemb_cli.srs.sequences import epoch_batches, left_padded, length_groups, training_rows
from llmemb_cli.srs.start_decay import pull_back, table_starts

D = 8


def laid_out(group: Group) -> torch.Tensor:
    """(rows, length) int64: the targets of a group at their places, 0 elsewhere."""
    flat = torch.zeros_like(group.inputs).flatten()
    flat[group.places] = group.targets
    return flat.view_as(group.inputs)


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


@pytest.mark.parametrize("kind", ["table", "adapter", "linear", "frozen", "dual", "fused"])
def test_every_kind_of_table_gives_the_rows_of_its_items_and_zeros_for_padding(kind: str) -> None:
    torch.manual_seed(0)
    made: dict[str, ItemEmbedding] = {
        "table": ItemTable(6, 3),
        "adapter": AdaptedTable(torch.randn(6, 5), 3, freeze=False),
        "linear": LinearTable(torch.randn(6, 5), 3),
        "frozen": FrozenTable(torch.randn(6, 3)),
        "dual": DualTable(torch.randn(6, 3), torch.randn(6, 5)),
        "fused": FusedTable(torch.randn(6, 3), 2),
    }
    table = made[kind]
    for parameter in table.parameters():
        torch.nn.init.normal_(parameter)
    every = table.items().detach()
    torch.testing.assert_close(table.known(torch.tensor([6, 2])), every[[5, 1]])
    got = table.rows(torch.tensor([0, 6, 2]))
    torch.testing.assert_close(got, torch.stack([torch.zeros(table.width), every[5], every[1]]))
    if list(table.parameters()):
        got[0].sum().backward()
        assert not any(bool(p.grad.any()) for p in table.parameters() if p.grad is not None)


def test_pull_to_a_start_of_zeros_is_adamw() -> None:
    """L2-SP with zeros as the start is weight decay; decoupled, it is AdamW's."""
    torch.manual_seed(0)
    rates = {"lr": 0.01, "betas": (0.9, 0.98)}
    target = torch.randn(6, 3)
    model = Recommender(RatSettings(hidden_size=3, method="alphafuse"), 6, FusedTable(torch.randn(6, 3), 3))
    starts = table_starts(model, 0.5)
    ((own, start),) = starts
    reference = torch.nn.Parameter(own.detach().clone())
    assert not start.any()
    ours, theirs = torch.optim.Adam([own], **rates), torch.optim.AdamW([reference], weight_decay=0.5, **rates)
    for _ in range(20):
        for table, optimizer in ((own, ours), (reference, theirs)):
            optimizer.zero_grad()
            (table - target).pow(4).sum().backward()
            if optimizer is ours:
                pull_back(starts, 0.01 * 0.5)
            optimizer.step()
    torch.testing.assert_close(own, reference)
    assert not torch.allclose(own, torch.zeros(6, 3))


def test_pull_to_a_start_is_a_share_of_the_way_and_never_beyond_it() -> None:
    torch.manual_seed(0)
    model = Recommender(RatSettings(hidden_size=3), 6, ItemTable(6, 3, torch.randn(6, 3)))
    starts = table_starts(model, 1.0)
    ((own, start),) = starts
    for share, left in ((0.25, 0.75), (4.0, 0.0)):
        with torch.no_grad():
            own.copy_(start + 1)
        pull_back(starts, share)
        torch.testing.assert_close(own - start, torch.full((6, 3), left))
    assert table_starts(model, 0.0) == []
    for table in (FrozenTable(torch.randn(6, 3)), ItemTable(6, 3)):
        assert table_starts(Recommender(RatSettings(hidden_size=3), 6, table), 1.0) == []


def test_padding_row_is_zero_and_is_never_trained() -> None:
    table = ItemTable(5, 3)
    optimizer = torch.optim.Adam(table.parameters(), 0.1)
    table.rows(torch.tensor([0, 1, 5])).pow(2).sum().backward()
    optimizer.step()
    assert (table.table()[0] == 0).all() and table.table().shape == (6, 3)


def ragged(rows: list[list[int]]) -> Ragged:
    values = np.array([item for row in rows for item in row], dtype=np.int32)
    return Ragged(values, np.cumsum([0, *map(len, rows)]).astype(np.int64))


def test_losses_equal_loops() -> None:
    torch.manual_seed(0)
    positive, negative = torch.randn(5), torch.randn(5, 3)

    def sigmoid(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    p, n = positive.tolist(), negative.tolist()
    bce = sum(-(math.log(sigmoid(p[i])) + sum(math.log(1 - sigmoid(x)) for x in n[i])) / 4 for i in range(5))
    sasrec = sum(-math.log(sigmoid(p[i])) - math.log(1 - sigmoid(n[i][0])) for i in range(5))
    gbce = sum(-(0.4 * math.log(sigmoid(p[i])) + sum(math.log(1 - sigmoid(x)) for x in n[i])) / 4 for i in range(5))
    bpr = sum(-math.log(sigmoid(p[i] - x)) for i in range(5) for x in n[i]) / 3
    soft = sum(-p[i] + math.log(math.exp(p[i]) + sum(math.exp(x) for x in n[i])) for i in range(5))
    assert losses.bce(positive, negative).sum().item() == pytest.approx(bce, rel=1e-5)
    assert losses.bce(positive, negative[:, :1]).sum().item() == pytest.approx(sasrec, rel=1e-5)
    assert losses.gbce(positive, negative, 0.4).sum().item() == pytest.approx(gbce, rel=1e-5)
    assert losses.bpr(positive, negative).sum().item() == pytest.approx(bpr, rel=1e-5)
    assert losses.sampled_softmax(positive, negative).sum().item() == pytest.approx(soft, rel=1e-5)
    assert losses.gbce_beta(3, 100, 0.0) == pytest.approx(1.0)
    assert losses.gbce_beta(3, 100, 1.0) == pytest.approx(3 / 99)
    # More negatives than there are items to draw: every item is drawn, as with 99 of them, which is BCE.
    assert losses.gbce_beta(300, 100, 0.75) == pytest.approx(losses.gbce_beta(99, 100, 0.75)) == pytest.approx(1.0)


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("block", [2, 3, 100, None])
def test_cross_entropy_and_its_gradients_equal_the_plain_formula(with_bias: bool, block: int | None) -> None:
    torch.manual_seed(0)
    values = [torch.randn(7, D), torch.randn(9, D) * 3, torch.randn(9)]
    targets = torch.tensor([0, 8, 3, 3, 1, 0, 5])

    def gradients(chunked: bool) -> tuple[torch.Tensor, list[torch.Tensor]]:
        states, items, bias = (value.clone().requires_grad_() for value in values)
        if chunked:
            loss = cross_entropy(states, targets, items, bias if with_bias else None, block)
        else:
            logits = states @ items.T + (bias if with_bias else 0)
            loss = torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
        (loss / 7).backward()
        return loss.detach(), [x.grad for x in (states, items, *([bias] if with_bias else [])) if x.grad is not None]

    loss, got = gradients(True)
    expected, wanted = gradients(False)
    torch.testing.assert_close(loss, expected)
    assert len(got) == len(wanted) == 2 + with_bias
    for one, two in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, two)


def test_cross_entropy_never_holds_all_logits() -> None:
    torch.manual_seed(0)
    states, items = torch.randn(400, D, requires_grad=True), torch.randn(500, D, requires_grad=True)
    with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        cross_entropy(states, torch.zeros(400, dtype=torch.int64), items, block=16).backward()
    largest = max(event.cpu_memory_usage for event in profile.events())
    assert largest < 400 * 500 * 4 / 4, "a quarter of the logits or more at one time"


def test_cross_entropy_survives_scores_that_overflow_an_exponential() -> None:
    states, items = torch.tensor([[300.0, 0.0]]), torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    assert cross_entropy(states, torch.tensor([1]), items).item() == pytest.approx(600.0)


@given(rows=st.lists(st.lists(st.integers(1, 30), max_size=9), min_size=1, max_size=8), limit=st.integers(1, 10))
def test_left_padding_keeps_the_newest_items(rows: list[list[int]], limit: int) -> None:
    got = left_padded(ragged(rows), np.arange(len(rows)), limit)
    width = max(1, min(limit, max(map(len, rows))))
    expected = [[0] * (width - len(row[-limit:])) + row[-limit:] for row in rows]
    assert got.tolist() == expected


@given(count=st.integers(1, 200), size=st.integers(1, 17), epoch=st.integers(0, 5))
@settings(max_examples=30)
def test_every_row_is_in_one_batch_of_an_epoch(count: int, size: int, epoch: int) -> None:
    batches = epoch_batches(count, size, 1, epoch)
    assert sorted(np.concatenate(batches).tolist()) == list(range(count))
    assert max(map(len, batches)) <= size


@given(lengths=st.lists(st.integers(1, 200), min_size=1, max_size=60), saving=st.integers(0, 600))
def test_length_groups_hold_every_row_once_and_little_padding(lengths: list[int], saving: int) -> None:
    groups = length_groups(np.array(lengths), saving)
    assert sorted(np.concatenate(groups).tolist()) == list(range(len(lengths)))
    padded = sum(len(g) * max(lengths[i] for i in g) for g in groups)
    assert padded <= 2 * sum(lengths) + len(lengths) + saving


@given(rows=st.lists(st.lists(st.integers(1, 12), max_size=12), min_size=1, max_size=6), seed=st.integers(0, 99))
@settings(max_examples=50)
def test_negatives_are_items_the_user_has_not_had(rows: list[list[int]], seed: int) -> None:
    rows = [*rows, [1]]
    owners = np.repeat(np.arange(len(rows)), 5)
    drawn = NegativeSampler(ragged(rows), 12).draw(owners, 2, np.random.default_rng(seed))
    assert drawn.shape == (len(owners), 2) and drawn.min() >= 1 and drawn.max() <= 12
    for owner, items in zip(owners.tolist(), drawn.tolist(), strict=True):
        if len(set(rows[owner])) < 12:
            assert not set(items) & set(rows[owner])


def test_next_item_pairs_and_masks() -> None:
    batch = np.array([[0, 0, 4, 5], [1, 2, 3, 4]])
    inputs, targets = next_item_pairs(batch)
    assert inputs.tolist() == [[0, 0, 4], [1, 2, 3]] and targets.tolist() == [[0, 0, 5], [2, 3, 4]]
    rng = np.random.default_rng(0)
    for _ in range(50):
        inputs, targets = masked_pairs(batch, 99, 0.6, rng)
        masked = targets > 0
        assert (inputs[masked] == 99).all() and (targets[masked] == batch[masked]).all()
        assert (inputs[~masked] == batch[~masked]).all() and masked.sum(axis=1)[0] == 1
        assert masked.sum(axis=1)[1] in (1, 2)


@given(scores=st.lists(st.sampled_from([-1.0, 0.0, 0.5, 2.0]), min_size=1, max_size=30), target=st.floats(-2, 3))
def test_ties_count_against_the_target_and_metrics_equal_their_definition(scores: list[float], target: float) -> None:
    rank = int(rank_of_target(torch.tensor([target]), torch.tensor([scores]))[0])
    wanted = torch.tensor(target).item()
    assert rank == 1 + sum(score >= wanted for score in scores)
    ranks = np.array([rank])
    assert hit_rate(ranks, 10)[0] == (rank <= 10)
    assert ndcg(ranks, 10)[0] == (pytest.approx(1 / math.log2(1 + rank)) if rank <= 10 else 0)
    assert reciprocal_rank(ranks)[0] == pytest.approx(1 / rank)


ROWS = [[3, 7, 7, 12, 9, 4, 1], [9], [5, 6], [2, 8, 11], [10, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]]


@torch.no_grad()
@pytest.mark.parametrize("name", list(BACKBONES))
@pytest.mark.parametrize(("similarity", "tau"), [("dot", 0), ("cosine", 0), ("dot", 0.6)])
@pytest.mark.parametrize("loss", ["bce", "bpr", "ce", "sce", "sampled-softmax", "gbce", "infonce"])
def test_a_batch_in_groups_equals_a_loop_over_users_and_positions(
    name: str, loss: str, similarity: str, tau: float
) -> None:
    torch.manual_seed(1)
    chosen = RatSettings(
        backbone=name,
        hidden_size=D,
        max_length=7,
        negatives=3,
        loss=loss,
        similarity=similarity,
        dropout=0,
        method="none",
        mask_ratio=0.4,
        temperature=0.11,
        negative_weight=2.5 if tau else 0.0,
    )
    model = Recommender(chosen, 12, ItemTable(12, D, torch.randn(12, D)))
    if model.bias is not None:
        torch.nn.init.normal_(model.bias)
    train, users = ragged(ROWS), np.array([4, 0, 2, 3])
    sampler = None if loss in ("ce", "sce") else NegativeSampler(train, 12)
    rows = training_rows(train, chosen.backbone)
    batch = make_batch(rows, np.searchsorted(rows.users, users), chosen, 12, sampler, np.random.default_rng(0))
    cosines = similarity == "cosine" or loss == "infonce"
    table = model.embedding.table()
    table = torch.stack([row / row.norm() if cosines and row.any() else row for row in table])
    counts = torch.tensor([sum(row.count(item) for row in ROWS) + 1.0 for item in range(13)])
    logged = (counts / counts[1:].mean()).log()
    total, at = 0.0, 0
    for group in batch.groups:
        for inputs, targets in zip(group.inputs, laid_out(group), strict=True):
            row = inputs[inputs > 0]
            states = model.states(row[None], model.embedding.table()[row.clamp(max=12)][None])
            for state, target in zip(states[0], targets[inputs > 0], strict=True):
                if target == 0:
                    continue
                if cosines:
                    state = state / state.norm().clamp(min=1e-12) / 0.11  # Caser's ReLU can leave nothing
                scores = table @ state + (0 if model.bias is None else model.bias)
                scores = scores + tau * logged
                if loss == "ce":
                    total += float(torch.logsumexp(scores[1:], 0) - scores[target])
                    continue
                if loss == "sce":
                    assert batch.shared is not None
                    mass = sum(
                        float(scores[j].exp()) * (2.5 if tau else 12 / 3)
                        for j in batch.shared.tolist()
                        if j != target
                    )
                    total += math.log(float(scores[target].exp()) + mass) - float(scores[target])
                    continue
                assert batch.negatives is not None
                drawn = scores[batch.negatives[at]][None]
                if loss == "gbce":
                    total += float(losses.gbce(scores[target][None], drawn, losses.gbce_beta(3, 12)))
                else:
                    total += float(losses.SAMPLED[loss](scores[target][None], drawn))
                at += 1
    assert batch.targets == sum(int((laid_out(g) > 0).sum()) for g in batch.groups)
    assert batch.negatives is None or at == len(batch.negatives) == batch.targets
    got, embedded = batch_loss(model, chosen, batch, popularity_offset(train, 12, tau))
    assert got.item() == pytest.approx(total / batch.targets, rel=1e-4)
    torch.testing.assert_close(embedded, model.embedding.table()[batch.items])
    # What ranks items is what was trained.
    torch.testing.assert_close(model.item_table, table)


@pytest.mark.parametrize("loss", ["bce", "gbce", "sce", "ce"])
@pytest.mark.parametrize("chosen", [[0], [0, 3, 2]])
def test_shares_of_two_processes_add_up_to_the_batch_also_where_one_has_no_row(loss: str, chosen: list[int]) -> None:
    torch.manual_seed(0)
    values = RatSettings(loss=loss, negatives=3, hidden_size=D, max_length=7, dropout=0, method="none")
    model = Recommender(values, 12, ItemTable(12, D, torch.randn(12, D)))
    train = ragged(ROWS)
    rows, sampler = training_rows(train, "sasrec"), None if loss in ("ce", "sce") else NegativeSampler(train, 12)
    found = []
    for together in ([ALONE], [Peers(0, 2), Peers(1, 2)]):
        model.zero_grad()
        total = 0.0
        for peers in together:
            rng = np.random.default_rng(0)
            batch = make_batch(rows, np.array(chosen), values, 12, sampler, rng, peers=peers)
            share, embedded = batch_loss(model, values, batch)
            assert torch.equal(embedded, model.embedding.rows(batch.items))
            share.backward()
            total += share.item()
        found.append([torch.tensor(total), *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
    assert len(found[0]) > 2
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two)


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("part", ["loss", "last states"])
def test_backward_passes_with_two_threads_are_equal_bit_for_bit(part: str, two_threads: None) -> None:
    # Few items, each of which many positions share: threads that add to one row at once would add in any order.
    torch.manual_seed(0)
    values = np.random.default_rng(0).integers(1, 31, (64, 20))
    chosen = RatSettings(
        loss="bce", negatives=64, hidden_size=64, layers=1, max_length=50, dropout=0, method="none", backbone="sasrec"
    )
    model, train = Recommender(chosen, 30, ItemTable(30, 64)), ragged(values.tolist())
    sampler = NegativeSampler(ragged([[1]] * 64), 30)
    batch = make_batch(training_rows(train, "sasrec"), np.arange(64), chosen, 30, sampler, np.random.default_rng(0))
    sequences = torch.randint(1, 31, (768, 50))
    found = []
    for _ in range(3):
        model.zero_grad()
        value = batch_loss(model, chosen, batch)[0] if part == "loss" else model.last_states(sequences).pow(2).sum()
        value.backward()
        found.append(torch.cat([p.grad.flatten().clone() for p in model.parameters() if p.grad is not None]))
    assert all(torch.equal(found[0], other) for other in found[1:])


@given(found=st.lists(st.integers(0, 40), max_size=30), beyond=st.integers(0, 2000))
def test_distinct_items_are_those_of_a_set_in_order_for_small_and_large_catalogues(
    found: list[int], beyond: int
) -> None:
    got = distinct_items(np.array(found, dtype=np.int64), 40 + beyond)
    assert got.dtype == np.int64 and got.tolist() == sorted(set(found) - {0})


def test_a_catalogue_that_is_large_beside_the_batch_is_not_looked_through(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[int] = []
    monkeypatch.setattr(np, "flatnonzero", lambda marks: looked.append(len(marks)) or np.nonzero(marks)[0])
    assert distinct_items(np.array([7, 0, 7]), 3 * MARKS).tolist() == [7] and looked == [3 * MARKS + 1]
    assert distinct_items(np.array([7, 0, 7]), 3 * MARKS + 1).tolist() == [7] and len(looked) == 1


def test_seeding_for_a_step_gives_the_stream_of_torchs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(2**62 + 5)
    expected = torch.rand(5), torch.randint(99, (5,))
    # It also keeps a stack trace for every device that is not in use, which takes longer than a small step.
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("torch.manual_seed was called"))
    seed_torch(2**62 + 5)
    assert torch.equal(torch.rand(5), expected[0]) and torch.equal(torch.randint(99, (5,)), expected[1])
    assert torch.initial_seed() == 2**62 + 5


def test_seeding_reaches_the_generators_of_all_cards_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    cards = [torch.Generator(), torch.Generator()]
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "default_generators", cards)
    seed_torch(11)
    assert [card.initial_seed() for card in cards] == [11, 11]


def test_logit_adjustment_takes_popularity_out_of_the_scores() -> None:
    # Histories that say nothing: all there is to learn is how often each item comes.
    rng = np.random.default_rng(3)
    share = 0.5 ** np.arange(8)
    rows = [(1 + rng.choice(8, 12, p=share / share.sum())).tolist() for _ in range(200)]
    train = ragged(rows)
    counts = np.bincount(train.values, minlength=9)[1:]
    fresh = 1 + rng.choice(8, (200, 5), p=share / share.sum())
    chosen = RatSettings(backbone="gru4rec", method="none", loss="ce", hidden_size=D, max_length=12, dropout=0)
    slopes = []
    for tau in (0.0, 1.0):
        torch.manual_seed(0)
        model = Recommender(chosen, 8, ItemTable(8, D))
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        offset = popularity_offset(train, 8, tau)
        batch = make_batch(training_rows(train, "gru4rec"), np.arange(200), chosen, 8, None, rng)
        for _ in range(60):
            optimizer.zero_grad()
            batch_loss(model, chosen, batch, offset)[0].backward()
            optimizer.step()
        with torch.no_grad():
            states = model.train(False).encode(torch.tensor(fresh))
            scores = (states @ model.item_table.T)[:, 1:].mean(dim=0)
        slopes.append(np.polyfit(np.log(counts), scores.numpy(), 1)[0])
    assert slopes[0] == pytest.approx(1, abs=0.2)
    assert slopes[1] == pytest.approx(0, abs=0.2)


@pytest.mark.parametrize(("share", "most"), [(1.0, 9), (0.8, 7), (0.5, 4), (0.01, 0)])
def test_logit_adjustment_tells_only_the_least_popular_share_of_items_apart(share: float, most: int) -> None:
    # Ten items that come 0, 1, ..., 9 times, in another order: of the least popular half the last comes 4 times.
    often = np.random.default_rng(1).permutation(10).tolist()
    train = ragged([[1 + item] * count for item, count in enumerate(often) if count])
    offset = popularity_offset(train, 10, 0.7, share)
    assert offset is not None
    counted = [min(count, most) + 1 for count in often]
    expected = [0.7 * math.log(one / (sum(counted) / 10)) for one in counted]
    torch.testing.assert_close(offset[1:], torch.tensor(expected))


def test_sce_with_every_item_once_is_the_full_softmax() -> None:
    torch.manual_seed(2)
    values: dict[str, Any] = {"hidden_size": D, "max_length": 7, "dropout": 0, "method": "none"}
    sampled = RatSettings(loss="sce", negatives=12, **values)
    full = RatSettings(loss="ce", **values)
    model = Recommender(sampled, 12, ItemTable(12, D, torch.randn(12, D)))
    rows = training_rows(ragged(ROWS), "sasrec")
    of = [make_batch(rows, np.arange(4), s, 12, None, np.random.default_rng(0)) for s in (sampled, full)]
    gradients = []
    for chosen, batch in zip((sampled, full), of, strict=True):
        model.zero_grad()
        batch_loss(model, chosen, batch)[0].backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for one, two in zip(*gradients, strict=True):
        torch.testing.assert_close(one, two)


def test_no_negative_is_drawn_at_padding() -> None:
    drawn: list[int] = []

    class Counting(NegativeSampler):
        def draw(self, owners: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
            drawn.append(len(owners))
            return super().draw(owners, count, rng)

    train = ragged(ROWS)
    rows, sampler = training_rows(train, "sasrec"), Counting(train, 12)
    make_batch(rows, np.arange(4), RatSettings(max_length=7), 12, sampler, np.random.default_rng(0))
    assert drawn == [6 + 1 + 2 + 7]


@pytest.mark.parametrize("temperature", [0.05, 2.0])
@pytest.mark.parametrize("block_values", [1, align.BLOCK_VALUES])
def test_infonce_of_alignment_equals_the_plain_formula_and_its_gradient(
    temperature: float, block_values: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(align, "BLOCK_VALUES", block_values)  # 1: blocks of 16 rows, the last one shorter
    torch.manual_seed(0)
    left, right = torch.randn(40, D), torch.randn(40, D)
    one, two = (left.clone().requires_grad_() for _ in range(2))
    fast = infonce(one, right, temperature)
    plain = contrastive_loss("infonce", two, right, torch.tensor(temperature))
    torch.testing.assert_close(fast, plain)
    (3 * fast).backward()
    (3 * plain).backward()
    torch.testing.assert_close(one.grad, two.grad)


@pytest.mark.parametrize("kind", ["infonce", "paper", "soft"])
def test_alignment_is_alpha_times_the_contrast_at_gamma(kind: str) -> None:
    torch.manual_seed(0)
    chosen = RatSettings(
        method="llmemb", align_loss=kind, alpha=0.3, gamma=0.7, loss="ce", hidden_size=D, max_length=7, dropout=0
    )
    model, known = Recommender(chosen, 12, ItemTable(12, D, torch.randn(12, D))), torch.randn(12, D)
    rng = np.random.default_rng(0)
    batch = make_batch(training_rows(ragged(ROWS), "sasrec"), np.array([0, 2]), chosen, 12, None, rng)
    embedded = model.embedding.rows(batch.items)
    got = align.Align(chosen, known).loss(model, Step(batch, embedded, 0, 0, 1, rng, ALONE))
    expected = contrastive_loss(kind, embedded, known[batch.items - 1], torch.tensor(0.7))
    torch.testing.assert_close(got, 0.3 * expected)


@pytest.mark.parametrize("kind", ["infonce", "paper", "soft"])
def test_alignment_of_one_item_has_nothing_to_contrast_and_is_zero(kind: str) -> None:
    chosen = RatSettings(method="llmemb", align_loss=kind, loss="ce", hidden_size=D, max_length=7, dropout=0)
    model = Recommender(chosen, 12, ItemTable(12, D, torch.randn(12, D)))
    rng = np.random.default_rng(0)
    batch = make_batch(training_rows(ragged([[9, 9]]), "sasrec"), np.array([0]), chosen, 12, None, rng)
    assert batch.items.tolist() == [9]
    embedded = model.embedding.rows(batch.items)
    loss = align.Align(chosen, torch.randn(12, D)).loss(model, Step(batch, embedded, 0, 0, 1, rng, ALONE))
    loss.backward()
    assert loss.item() == 0
    assert isinstance(model.embedding, ItemTable) and model.embedding.weight.grad is not None
    assert not model.embedding.weight.grad.any()
