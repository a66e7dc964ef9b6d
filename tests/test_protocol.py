"""The protocol is the same for all: candidates over methods and processes, bytes over repeats, tests by hand."""

from __future__ import annotations

import itertools
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from llmemb_cli.config.settings import Settings
from llmemb_cli.datasets.prepare import prepare
from llmemb_cli.datasets.split import load_split
from llmemb_cli.errors import BadDataError
from llmemb_cli.evaluation.candidates import read_candidates
from llmemb_cli.evaluation.compare import compare_runs
from llmemb_cli.evaluation.significance import paired_test
from llmemb_cli.evaluation.stage import run_eval
from llmemb_cli.pipeline import eval_stage
from llmemb_cli.progress import Reporter
from llmemb_cli.ranking import rank_of_target
from llmemb_cli.reporting.popularity import popularity_curve
from llmemb_cli.reporting.tables import protocol_label
from llmemb_cli.reporting.variants import protocols
from llmemb_cli.srs.train import run_rat
from llmemb_cli.workspace.locate import Workspace
from llmemb_cli.workspace.stage import LOG, output_fingerprint, stage_state
from llmemb_cli.workspace.store import read_jsonl
from tests.dataset_fixtures import prepare as prepare_set
from tests.make_workspace import make_workspace

RUN = "sasrec-llmemb-42"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, Settings]:
    """Two methods, barely trained."""
    workspace, settings = make_workspace(
        tmp_path_factory.mktemp("protocol") / "ws", users=200, items=140, length=6, rat__hidden_size=8, rat__epochs=1
    )
    run_rat(workspace, settings, Reporter())
    return workspace, settings


def sampled(settings: Settings) -> Settings:
    return settings.model_copy(update={"eval": settings.eval.model_copy(update={"protocol": "sampled"})})


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "manifest.json"}


def test_all_methods_meet_the_same_candidates_and_they_are_named(trained: tuple[Workspace, Settings]) -> None:
    workspace, settings = trained
    folder = workspace.candidates("sampled-100-uniform-42")
    run_eval(workspace, sampled(settings), "sasrec-none-42", Reporter())
    first, fingerprint = files(folder), output_fingerprint(folder)
    run_eval(workspace, sampled(settings), "sasrec-llmemb-42", Reporter())
    assert files(folder) == first and output_fingerprint(folder) == fingerprint
    users = pl.read_parquet(folder / "users.parquet")["user_id"].to_list()
    items = dict(pl.read_parquet(folder / "items.parquet").select("number", "item_id").iter_rows())
    ranks = pl.read_parquet(workspace.evaluation("sasrec-none-42", "sampled-100-uniform-42") / "ranks.parquet")
    assert ranks["user_id"].to_list() == users
    log = pl.read_parquet(workspace.data / "interactions.parquet")
    own = dict(log.group_by("user_id").agg("item_id").iter_rows())
    catalogue = set(pl.read_parquet(workspace.data / "items.parquet")["item_id"])
    for user, row in zip(users, read_candidates(folder), strict=True):
        names = {items[number] for number in row}
        assert len(names) == 100 and names <= catalogue - set(own[user])


def test_another_process_draws_the_same_candidates(trained: tuple[Workspace, Settings]) -> None:
    workspace, settings = trained
    run_eval(workspace, sampled(settings), "sasrec-none-42", Reporter())
    code = """
import sys
from pathlib import Path
from llmemb_cli.datasets.split import load_split
from llmemb_cli.evaluation.candidates import draw_candidates
sys.stdout.buffer.write(draw_candidates(load_split(Path(sys.argv[1])), 100, "uniform", 42).tobytes())
"""
    here = read_candidates(workspace.candidates("sampled-100-uniform-42"))
    for seed, threads in (("0", "1"), ("77", "2")):
        done = subprocess.run(
            [sys.executable, "-c", code, str(workspace.data)],
            capture_output=True,
            env=os.environ | {"PYTHONHASHSEED": seed, "OMP_NUM_THREADS": threads},
        )
        assert done.stdout == here.tobytes(), done.stderr


@pytest.mark.parametrize("protocol", ["full", "sampled", "validation"])
def test_two_evaluations_of_a_run_give_the_same_files(trained: tuple[Workspace, Settings], protocol: str) -> None:
    workspace, settings = trained
    chosen = sampled(settings) if protocol == "sampled" else settings
    folder = workspace.evaluation("sasrec-llmemb-42", "full" if protocol == "full" else "sampled-100-uniform-42")
    run_eval(workspace, chosen, "sasrec-llmemb-42", Reporter())
    first = files(folder)
    other_blocks = chosen.model_copy(update={"eval": chosen.eval.model_copy(update={"batch_users": 37})})
    run_eval(workspace, other_blocks, "sasrec-llmemb-42", Reporter(), force=True)
    assert files(folder) == first and {"ranks.parquet", "metrics.json"} <= first.keys()


@pytest.mark.parametrize(
    ("protocol", "unused"),
    [("full", {"negatives", "candidates", "candidate_seed"}), ("sampled", {"history"})],
)
def test_settings_of_the_other_protocol_leave_an_evaluation_up_to_date(
    trained: tuple[Workspace, Settings], protocol: str, unused: set[str]
) -> None:
    workspace, settings = trained
    chosen = settings.eval.model_copy(update={"protocol": protocol})
    one = settings.model_copy(update={"eval": chosen})
    run_eval(workspace, one, RUN, Reporter())
    changes = {"negatives": 7, "candidates": "popularity", "candidate_seed": 1, "history": "keep", "k": [5]}
    for key, value in changes.items():
        other = settings.model_copy(update={"eval": chosen.model_copy(update={key: value})})
        state = stage_state(eval_stage(workspace, other, RUN)).state
        assert (state == "up-to-date") == (key in unused), key
    apart = settings.model_copy(update={"eval": chosen.model_copy(update={"tail_threshold": 3})})
    run_eval(workspace, apart, RUN, Reporter())
    share = apart.model_copy(update={"data": apart.data.model_copy(update={"tail_share": 0.5})})
    assert stage_state(eval_stage(workspace, share, RUN)).state == "up-to-date", "the threshold says what the tail is"
    run_eval(workspace, one, RUN, Reporter())


def test_another_split_of_the_same_data_is_refused(trained: tuple[Workspace, Settings], tmp_path: Path) -> None:
    workspace, settings = trained
    run_eval(workspace, settings, "sasrec-none-42", Reporter())
    other, chosen = make_workspace(
        tmp_path / "other", users=200, items=140, length=6, rat__hidden_size=8, rat__epochs=1, rat__method="none"
    )
    data = chosen.data.model_copy(update={"repeats": "last"})
    prepare(other, chosen.model_copy(update={"data": data}), Reporter(), force=True)
    run_rat(other, chosen, Reporter())
    run_eval(other, chosen, "sasrec-none-42", Reporter())
    with pytest.raises(BadDataError, match="other data"):
        compare_runs(workspace, settings, ["sasrec-none-42", str(other.run("sasrec-none-42"))])


SCORES = st.sampled_from([-math.inf, -2.0, -0.5, 0.0, 0.5, 3.0])


@given(
    rows=st.lists(
        st.tuples(st.one_of(SCORES, st.just(math.nan)), st.lists(SCORES, min_size=7, max_size=7)),
        min_size=1,
        max_size=5,
    )
)
def test_rank_counts_those_that_compete_and_are_not_beaten(rows: list[tuple[float, list[float]]]) -> None:
    target = torch.tensor([own for own, _ in rows])
    others = torch.tensor([scores for _, scores in rows])
    expected = [1 + sum(one != -math.inf and not one < own for one in scores) for own, scores in rows]
    assert rank_of_target(target, others).tolist() == expected


def test_student_and_wilcoxon_by_hand() -> None:
    ours = np.array([0.62, 0.51, 0.70, 0.33, 0.48, 0.81, 0.55, 0.64])
    theirs = np.array([0.58, 0.53, 0.61, 0.30, 0.49, 0.70, 0.50, 0.58])
    gaps = [a - b for a, b in zip(ours, theirs, strict=True)]
    count = len(gaps)
    mean = sum(gaps) / count
    error = math.sqrt(sum((gap - mean) ** 2 for gap in gaps) / (count - 1) / count)
    p = 2 * stats.t.sf(abs(mean / error), count - 1)
    reach = stats.t.ppf(0.975, count - 1) * error
    found = paired_test(ours, theirs, "t")
    assert found.p == pytest.approx(p) and found.interval == pytest.approx((mean - reach, mean + reach))
    assert found.effect == pytest.approx(mean / error / math.sqrt(count))
    order = sorted(range(count), key=lambda i: abs(gaps[i]))
    rank = {i: place + 1 for place, i in enumerate(order)}
    positive = sum(rank[i] for i in range(count) if gaps[i] > 0)
    total = count * (count + 1) // 2
    sums = [
        sum(place for place, up in enumerate(signs, 1) if up) for signs in itertools.product([0, 1], repeat=count)
    ]
    extreme = min(positive, total - positive)
    exact = sum(one <= extreme or one >= total - extreme for one in sums) / len(sums)
    assert paired_test(ours, theirs, "wilcoxon").p == pytest.approx(exact)


def on_validation(settings: Settings) -> Settings:
    return settings.model_copy(update={"eval": settings.eval.model_copy(update={"protocol": "validation"})})


@pytest.mark.parametrize("backbone", ["sasrec", "gru4rec", "bert4rec"])
def test_on_validation_items_a_run_has_the_figures_it_was_stopped_by(tmp_path: Path, backbone: str) -> None:
    workspace, settings = make_workspace(
        tmp_path / "ws", rat__hidden_size=8, rat__epochs=6, rat__method="none", rat__backbone=backbone
    )
    manifest = run_rat(workspace, settings, Reporter()).manifest
    name = f"{backbone}-none-42"
    summary = run_eval(workspace, on_validation(settings), name, Reporter()).manifest["summary"]
    assert math.isclose(summary["overall"]["NDCG@10"], manifest["summary"]["best_validation"], rel_tol=1e-9)
    log = read_jsonl(workspace.run(name) / LOG)[0]
    best = next(record for record in log if record["epoch"] == manifest["summary"]["best_epoch"])
    assert math.isclose(summary["overall"]["HR@10"], best["HR@10"], rel_tol=1e-9)
    assert summary["protocol"]["kind"] == "validation"

    # By hand: the group of each user is that of the validation item.
    data = load_split(workspace.data)
    table = pl.read_parquet(workspace.evaluation(name, "validation") / "ranks.parquet")
    targets = dict(zip(data.user_ids, data.item_ids.gather(data.valid - 1), strict=True))
    assert table["item_id"].to_list() == [targets[user] for user in table["user_id"]]
    counts = dict(zip(data.item_ids, data.train_counts[1:], strict=True))
    assert table["train_count"].to_list() == [counts[item] for item in table["item_id"]]
    tail = next(group for group in summary["groups"]["popularity"] if group["name"] == "tail")
    chosen = table.filter(pl.col("popularity") == "tail")
    assert tail["n"] == len(chosen) and math.isclose(tail["HR@10"], chosen["HR@10"].mean())  # type: ignore[arg-type]


def test_validation_figures_stand_apart_from_those_of_test_items(trained: tuple[Workspace, Settings]) -> None:
    workspace, settings = trained
    for chosen in (settings, on_validation(settings)):
        run_eval(workspace, chosen, "sasrec-none-42", Reporter())
        run_eval(workspace, chosen, RUN, Reporter())
    label = protocol_label(compare_runs(workspace, on_validation(settings), [])["protocol"])
    assert label == "full ranking of validation items without the user's own history"
    assert [one.eval.protocol for one in protocols(workspace, settings) if one.eval.protocol != "sampled"] == ["full"]
    curve = popularity_curve(workspace, [{"low": 0, "high": 10**9}], RUN)
    assert curve["run"]["protocol"]["kind"] in ("full", "sampled")


def test_nothing_of_what_comes_after_the_validation_item_is_known_before_it(tmp_path: Path) -> None:
    rows = "".join(f"u{user},i{(3 * user + day) % 40},{86_400 * day}\n" for user in range(60) for day in range(30))
    (tmp_path / "log.csv").write_text("user_id,item_id,timestamp\n" + rows)
    times = {"split": "time", "valid_from": "1970-01-11", "test_from": "1970-01-21"}
    made = prepare_set(tmp_path / "ws", "custom", interactions=str(tmp_path / "log.csv"), **times)
    data = load_split(made.workspace.data)
    before = data.before_validation()
    for user in range(data.n_users):
        trained_on = data.train.row(user).tolist()
        assert before.test_history().row(user).tolist() == trained_on
        assert before.full_history().row(user).tolist() == [*trained_on, int(data.valid[user])]
