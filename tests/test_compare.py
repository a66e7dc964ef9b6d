"""Comparison: tests agree with SciPy and slow references, tables say what they compare, unlike runs are refused."""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import ir_measures
import numpy as np
import polars as pl
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from ir_measures import RR, Qrel, R, ScoredDoc, Success, nDCG
from scipy import stats
from typer.testing import CliRunner

from llmemb_cli.app import app
from llmemb_cli.config.runs import run_name
from llmemb_cli.config.settings import Settings
from llmemb_cli.errors import BadDataError, WrongUseError
from llmemb_cli.evaluation.compare import compare_runs
from llmemb_cli.evaluation.significance import corrected, paired_test
from llmemb_cli.evaluation.stage import figures, run_eval
from llmemb_cli.progress import Reporter
from llmemb_cli.reporting.spreadsheet import csv_table, safe_cell
from llmemb_cli.reporting.tables import csv_text, latex, markdown, runs_behind
from llmemb_cli.srs.train import run_rat
from llmemb_cli.workspace.locate import Workspace
from tests.make_workspace import make_workspace

METRICS = {"HR": Success, "NDCG": nDCG, "MRR": RR, "Recall": R}


def test_metrics_equal_those_of_another_library() -> None:
    rng = np.random.default_rng(0)
    scores = rng.permuted(np.tile(np.arange(200.0), (300, 1)), axis=1)
    ranks = (scores >= scores[:, :1]).sum(axis=1)
    relevant = [Qrel(str(u), "d0", 1) for u in range(300)]
    run = [ScoredDoc(str(u), f"d{i}", scores[u, i]) for u in range(300) for i in range(200)]
    pairs = {f"{name}@{k}": kind @ k for name, kind in METRICS.items() for k in (5, 10, 50)} | {"MRR": RR}
    expected = ir_measures.calc_aggregate(list(pairs.values()), relevant, run)
    got = figures(ranks, [5, 10, 50])
    assert got.keys() == pairs.keys() | {"n"}
    for name, measure in pairs.items():
        assert got[name] == pytest.approx(expected[measure]), name


def test_t_and_wilcoxon_are_those_of_scipy() -> None:
    rng = np.random.default_rng(1)
    ours, theirs = rng.normal(0.2, 1, 80), rng.normal(0, 1, 80)
    ours[:10] = theirs[:10]
    got = paired_test(ours, theirs, "t")
    expected = stats.ttest_rel(ours, theirs)
    assert got.p == pytest.approx(expected.pvalue) and got.difference == pytest.approx((ours - theirs).mean())
    assert got.interval == pytest.approx(tuple(expected.confidence_interval(0.95)))
    gaps = ours - theirs
    assert got.effect == pytest.approx(gaps.mean() / math.sqrt(sum((gaps - gaps.mean()) ** 2) / 79))
    assert (got.wins, got.losses) == (int((gaps > 0).sum()), int((gaps < 0).sum()))
    assert paired_test(ours, theirs, "wilcoxon").p == pytest.approx(stats.wilcoxon(gaps[10:]).pvalue)


def test_means_over_seeds_that_are_equal_count_as_equal() -> None:
    rng = np.random.default_rng(3)
    # Hits of three seeds: differences of their means are multiples of a third, which floats hold only nearly.
    hits = (rng.random((2, 2000, 3)) < np.array([0.55, 0.5])[:, None, None]).astype(float)
    thirds = (hits[0].sum(axis=1) - hits[1].sum(axis=1)).astype(int)
    ours, theirs = (np.mean([one[:, seed] for seed in range(3)], axis=0) for one in hits)
    assert len(np.unique(np.abs(ours - theirs)[thirds != 0])) > 3, "the plain differences are no ties"
    got = paired_test(ours, theirs, "wilcoxon")
    assert got.p == pytest.approx(stats.wilcoxon(thirds[thirds != 0]).pvalue)
    # The same values in another order: a mean that differs in its last bit at most.
    values = rng.choice([0.0, 1 / np.log2(3), 0.5, 1 / np.log2(5)], (500, 3))
    first, second = (np.mean([values[:, seed] for seed in order], axis=0) for order in ((0, 1, 2), (2, 0, 1)))
    assert (first != second).any()
    for test in ("t", "wilcoxon", "permutation", "bootstrap"):
        same = paired_test(first, second, test)  # type: ignore[arg-type]
        assert (same.p, same.wins, same.losses, same.difference) == (1.0, 0, 0, 0.0)


def test_permutation_counts_all_flips_of_few_pairs() -> None:
    gaps = np.array([0.4, -0.1, 0.3, 0.6, 0.0, -0.2, 0.5])
    used = gaps[gaps != 0]
    means = [abs(np.mean(used * signs)) for signs in itertools.product([1, -1], repeat=len(used))]
    expected = np.mean([mean >= abs(used.mean()) - 1e-12 for mean in means])
    assert paired_test(gaps, np.zeros(7), "permutation").p == pytest.approx(expected)


def test_all_tests_agree_on_many_users_and_repeat_exactly() -> None:
    rng = np.random.default_rng(2)
    theirs = (rng.random(1500) < 0.20).astype(float)
    ours = np.where(rng.random(1500) < 0.1, 1 - theirs, theirs)
    by_t = paired_test(ours, theirs, "t")
    for test in ("permutation", "bootstrap"):
        found = paired_test(ours, theirs, test, seed=3)  # type: ignore[arg-type]
        assert found == paired_test(ours, theirs, test, seed=3)  # type: ignore[arg-type]
        assert found.p == pytest.approx(by_t.p, abs=0.02, rel=0.5)
        assert found.interval == pytest.approx(by_t.interval, abs=0.003)


def test_pairs_that_do_not_vary_need_no_warning() -> None:
    same = paired_test(np.ones(5), np.ones(5), "wilcoxon")
    assert (same.p, same.effect, same.difference) == (1.0, None, 0.0)
    # Of 2^5 ways to set the signs two give a mean as far from zero; two users who differ alike are no proof.
    assert paired_test(np.ones(5), np.zeros(5), "t").p == pytest.approx(2 / 2**5)
    assert paired_test(np.ones(2), np.zeros(2), "bootstrap").p == 0.5
    assert paired_test(np.ones(1), np.zeros(1), "t").p == 1.0


@given(p=st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_corrections_equal_their_definitions(p: list[float]) -> None:
    count = len(p)
    order = sorted(range(count), key=lambda i: p[i])
    for place, i in enumerate(order):
        before = [min(1.0, (count - j) * p[order[j]]) for j in range(place + 1)]
        assert corrected(p, "holm")[i] == pytest.approx(max(before))
        after = [min(1.0, count / (j + 1) * p[order[j]]) for j in range(place, count)]
        assert corrected(p, "bh")[i] == pytest.approx(min(after))
    assert corrected(p, "none") == p


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, Settings]:
    """Two variants of two seeds each, evaluated under both protocols."""
    root = tmp_path_factory.mktemp("compare") / "ws"
    workspace, settings = make_workspace(root, rat__hidden_size=8, rat__epochs=3, rat__patience=3)
    for seed in (1, 2):
        for method in ("none", "llmemb"):
            rat = settings.rat.model_copy(update={"method": method})
            chosen = settings.model_copy(update={"rat": rat, "seed": seed})
            run_rat(workspace, chosen, Reporter())
            for protocol in ("full", "sampled"):
                run_eval(workspace, with_eval(chosen, protocol=protocol), run_name(chosen), Reporter())
    return workspace, settings


def with_eval(settings: Settings, **changes: Any) -> Settings:
    return settings.model_copy(update={"eval": settings.eval.model_copy(update={"negatives": 10} | changes)})


def test_variants_are_compared_over_users_and_seeds(measured: tuple[Workspace, Settings]) -> None:
    workspace, settings = measured
    document = json.loads(json.dumps(compare_runs(workspace, settings, [], correction="none")))
    plain, ours = document["variants"]
    assert (plain["variant"], ours["variant"]) == ("sasrec-none", "sasrec-llmemb")
    assert ours["runs"] == ["sasrec-llmemb-1", "sasrec-llmemb-2"] and ours["baseline"] == "sasrec-none"
    assert plain["baseline"] is None and document["tests"] == 6
    tables = {
        run: pl.read_parquet(workspace.evaluation(run, "full") / "ranks.parquet")
        for entry in document["variants"]
        for run in entry["runs"]
    }
    for part in ("overall", "tail", "head"):
        rows = {n: t if part == "overall" else t.filter(pl.col("popularity") == part) for n, t in tables.items()}
        hits = {name: (table["rank"] <= 10).cast(pl.Float64).to_numpy() for name, table in rows.items()}
        mean = (hits["sasrec-llmemb-1"] + hits["sasrec-llmemb-2"]) / 2
        base = (hits["sasrec-none-1"] + hits["sasrec-none-2"]) / 2
        cell = ours["parts"][part]["HR@10"]
        assert cell["mean"] == pytest.approx(mean.mean()) and ours["parts"][part]["n"] == len(mean)
        assert cell["p"] == pytest.approx(stats.ttest_rel(mean, base).pvalue)
        seeds = [hits[f"sasrec-llmemb-{s}"].mean() for s in (1, 2)]
        assert cell["deviation"] == pytest.approx(np.std(seeds, ddof=1))
        others = [hits[f"sasrec-none-{s}"].mean() for s in (1, 2)]
        assert cell["p_seeds"] == pytest.approx(stats.ttest_rel(seeds, others).pvalue)
        assert cell["gain"] == pytest.approx(mean.mean() / base.mean() - 1)
        assert {cell["place"], plain["parts"][part]["HR@10"]["place"]} <= {1, None}


def test_tables_carry_marks_and_escape_names(measured: tuple[Workspace, Settings]) -> None:
    workspace, settings = measured
    document = compare_runs(workspace, settings, [], alpha=1.0, correction="bh")
    document["variants"][1]["variant"] = "odd_name & 100%"
    text = latex(document)
    assert r"odd\_name \& 100\%" in text and r"\textbf{" in text and text.count(r"\\") == 4
    lines = markdown(document).splitlines()
    assert len({line.count("|") for line in lines[:4]}) == 1 and "**" in lines[2] + lines[3]
    rows = list(csv.DictReader(csv_text(document).splitlines()))
    assert len(rows) == 2 * 3 * 2 and {row["part"] for row in rows} == {"overall", "tail", "head"}
    best = max(float(row["mean"]) for row in rows if row["part"] == "tail" and row["metric"] == "HR@10")
    assert f"**{best:.4f}" in "".join(lines)


def test_a_group_of_everybody_is_no_further_test(measured: tuple[Workspace, Settings]) -> None:
    workspace, settings = measured
    document = compare_runs(workspace, with_eval(settings, groups=["cold"]), [])
    plain, ours = document["variants"]
    assert document["tests"] == 2 and ours["parts"]["warm"] == ours["parts"]["overall"]
    for part in plain["parts"].values():
        for metric in document["metrics"]:
            alike = part[metric]["mean"] == ours["parts"]["overall"][metric]["mean"]
            assert (part[metric]["place"] is None) or not alike, "of equal figures none is the best"


def test_unlike_runs_are_refused(measured: tuple[Workspace, Settings], tmp_path: Path) -> None:
    workspace, settings = measured
    with pytest.raises(WrongUseError, match="no run"):
        compare_runs(workspace, settings, ["sasrec-nome-1"])
    with pytest.raises(WrongUseError, match="has not been evaluated"):
        compare_runs(workspace, with_eval(settings, protocol="sampled", candidate_seed=7), ["sasrec-none-1"])
    with pytest.raises(WrongUseError, match="no baseline"):
        compare_runs(workspace, settings, [], baseline="sasrec-nothing")
    with pytest.raises(WrongUseError, match="no metric"):
        compare_runs(workspace, settings, [], metrics=("HR@11",))
    other, other_settings = make_workspace(tmp_path / "other", users=140, rat__hidden_size=8, rat__epochs=1)
    chosen = other_settings.model_copy(update={"rat": other_settings.rat.model_copy(update={"method": "none"})})
    run_rat(other, chosen, Reporter())
    run_eval(other, chosen, run_name(chosen), Reporter())
    with pytest.raises(BadDataError, match="other data"):
        compare_runs(workspace, settings, ["sasrec-none-1", str(other.run(run_name(chosen)))])
    threshold = with_eval(settings, tail_threshold=30)
    run_eval(workspace, threshold, "sasrec-none-2", Reporter())
    with pytest.raises(BadDataError, match="groups"):
        compare_runs(workspace, settings, ["sasrec-none-1", "sasrec-none-2"])
    run_eval(workspace, with_eval(settings, k=[5, 10]), "sasrec-none-2", Reporter())
    # What both have can be compared, what one lacks cannot.
    assert compare_runs(workspace, settings, ["sasrec-none-1", "sasrec-none-2"])["tests"] == 0
    with pytest.raises(WrongUseError, match="no metric HR@5"):
        compare_runs(workspace, settings, ["sasrec-none-1", "sasrec-none-2"], metrics=("HR@5",))
    run_eval(workspace, with_eval(settings), "sasrec-none-2", Reporter())


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (("made_from", "inputs", "candidates"), "0" * 64, "other candidates"),
        (("made_from", "inputs", "data"), "0" * 64, "other data or split"),
        (("summary", "protocol", "negatives"), 99, "other protocol"),
    ],
)
def test_runs_ranked_among_other_items_are_refused(
    measured: tuple[Workspace, Settings], tmp_path: Path, place: tuple[str, ...], value: Any, said: str
) -> None:
    workspace = Workspace(Path(shutil.copytree(measured[0].root, tmp_path / "copy")))
    settings = with_eval(measured[1], protocol="sampled")
    assert len(compare_runs(workspace, settings, ["none", "llmemb"])["variants"]) == 2
    manifest = workspace.evaluation("sasrec-llmemb-2", "sampled-10-uniform-42") / "manifest.json"
    changed = json.loads(manifest.read_text())
    inner = changed
    for key in place[:-1]:
        inner = inner[key]
    assert inner[place[-1]] != value
    inner[place[-1]] = value
    manifest.write_text(json.dumps(changed))
    with pytest.raises(BadDataError, match=said):
        compare_runs(workspace, settings, ["none", "llmemb"])


def test_all_runs_are_those_of_the_present_data_and_the_others_are_named(
    measured: tuple[Workspace, Settings], tmp_path: Path
) -> None:
    root = Path(shutil.copytree(measured[0].root, tmp_path / "copy"))
    workspace = Workspace(root)
    shutil.rmtree(workspace.run("sasrec-llmemb-1") / "eval")
    for place in (workspace.run("sasrec-none-2"), workspace.evaluation("sasrec-none-2", "full")):
        made = json.loads((place / "manifest.json").read_text())
        made["made_from"]["inputs"]["data"] = "0" * 64
        (place / "manifest.json").write_text(json.dumps(made))

    def call(*args: str) -> tuple[int, dict[str, Any], str]:
        done = CliRunner().invoke(app, [*args, "-w", str(root)])
        shown = CliRunner().invoke(app, [*args, "-w", str(root), "--json"])
        return done.exit_code, json.loads(shown.stdout), " ".join(done.stderr.split())

    code, document, said = call("compare")
    assert code == 0 and "not evaluated: sasrec-llmemb-1" in said
    assert document["left_out"]["measured_otherwise"] == ["sasrec-none-2"]
    assert "sasrec-none-2" not in [run for one in document["variants"] for run in one["runs"]]
    code, document, said = call("eval")
    assert code == 0 and "left out, trained on other data: sasrec-none-2" in said
    assert {"sasrec-none-1", "sasrec-llmemb-1"} <= {one["run"] for one in document["runs"]}
    code, document, said = call("eval", "sasrec-none-2")
    assert code == 4 and "llmemb runs remove sasrec-none-2" in said


def test_seeds_of_a_version_that_counted_unused_settings_are_of_the_same_variant(
    measured: tuple[Workspace, Settings], tmp_path: Path
) -> None:
    workspace = Workspace(Path(shutil.copytree(measured[0].root, tmp_path / "copy")))
    before = compare_runs(workspace, measured[1], [], correction="none")["variants"]
    manifest = workspace.run("sasrec-none-1") / "manifest.json"
    older = json.loads(manifest.read_text())
    older["made_from"]["settings"] |= {"negative_weight": 3.0, "mask_ratio": 0.7}
    manifest.write_text(json.dumps(older))
    after = compare_runs(workspace, measured[1], [], correction="none")["variants"]
    assert [(one["variant"], one["runs"], one["changed"]) for one in after] == [
        (one["variant"], one["runs"], one["changed"]) for one in before
    ]


def test_variants_and_methods_are_names_too(measured: tuple[Workspace, Settings], tmp_path: Path) -> None:
    workspace = Workspace(Path(shutil.copytree(measured[0].root, tmp_path / "copy")))
    settings = measured[1]
    by_run = compare_runs(workspace, settings, [f"sasrec-{m}-{s}" for m in ("none", "llmemb") for s in (1, 2)])
    for names in (
        ["none", "llmemb"],
        ["sasrec"],
        ["sasrec-none", "sasrec-llmemb"],
        ["none", "sasrec-llmemb-1", "llmemb"],
    ):
        assert compare_runs(workspace, settings, names)["variants"] == by_run["variants"], names
    turned = compare_runs(workspace, settings, [], baseline="llmemb")
    assert [entry["baseline"] for entry in turned["variants"]] == ["sasrec-llmemb", None]
    # The same settings and seed under another name are no third seed.
    shutil.copytree(workspace.run("sasrec-none-1"), workspace.run("again"))
    # Whichever comes first: a name of one's own takes no run's place among the seeds.
    for names in ([], ["again", "none", "llmemb"], ["llmemb", "sasrec-none-2", "again", "sasrec-none-1"]):
        entries = compare_runs(workspace, settings, names)["variants"]
        found = {entry["variant"]: (entry["runs"], entry["seeds"]) for entry in entries}
        assert found == {
            "sasrec-none": (["sasrec-none-1", "sasrec-none-2"], [1, 2]),
            "again": (["again"], [1]),
            "sasrec-llmemb": (["sasrec-llmemb-1", "sasrec-llmemb-2"], [1, 2]),
        }, names


def test_variants_say_in_what_they_differ_and_stand_in_the_order_of_their_numbers(
    measured: tuple[Workspace, Settings], tmp_path: Path
) -> None:
    workspace = Workspace(Path(shutil.copytree(measured[0].root, tmp_path / "copy")))
    settings = measured[1]
    for changes in ({"negatives": 20}, {"negatives": 3}, {"contrast": "cl4srec"}):
        chosen = settings.model_copy(update={"seed": 1})
        rat = {"method": "llm2x", "loss": "sce", "negatives": 5, "epochs": 1} | changes
        chosen = chosen.model_copy(update={"rat": chosen.rat.model_copy(update=rat)})
        run_rat(workspace, chosen, Reporter(), in_file=settings)
        run_eval(workspace, with_eval(chosen), run_name(chosen, settings), Reporter())
    # A name that its owner chose stays, also if it ends like a digest.
    workspace.run(run_name(chosen, settings)).rename(workspace.run("mine-abc123"))
    # There is no plain llm2x: what counts is how they differ from llmemb.toml.
    document = compare_runs(workspace, settings, [])
    names = [entry["variant"] for entry in document["variants"]]
    # Where the name of a variant does not tell its runs, they are told beside the table.
    runs = {entry["variant"]: entry["runs"] for entry in document["variants"]}
    assert runs_behind(document) == {name: runs[name] for name in names if "=" in name}
    assert f"negatives=20: {runs[names[3]][0]}." in markdown(document).replace("\\", "")
    shown = CliRunner().invoke(app, ["compare", "-w", str(workspace.root)]).stdout
    assert f"negatives=20: {runs[names[3]][0]}" in " ".join(shown.split())
    rows = list(csv.DictReader(csv_text(document).splitlines()))
    assert {row["variant"]: row["runs"].split() for row in rows} == runs
    assert names == [
        "sasrec-none",
        "mine-abc123",
        "sasrec-llm2x epochs=1 loss=sce negatives=3",
        "sasrec-llm2x epochs=1 loss=sce negatives=20",
        "sasrec-llmemb",
    ]


def test_of_several_plain_models_the_plainest_is_the_baseline(
    measured: tuple[Workspace, Settings], tmp_path: Path
) -> None:
    workspace = Workspace(Path(shutil.copytree(measured[0].root, tmp_path / "copy")))
    settings = measured[1]
    for seed in (1, 2):
        shutil.rmtree(workspace.run(f"sasrec-none-{seed}"))
    for changes in ({"epochs": 1, "dropout": 0.1}, {"epochs": 1}):
        chosen = settings.model_copy(update={"seed": 1})
        chosen = chosen.model_copy(update={"rat": chosen.rat.model_copy(update={"method": "none"} | changes)})
        run_rat(workspace, chosen, Reporter(), in_file=settings)
        run_eval(workspace, with_eval(chosen), run_name(chosen, settings), Reporter())
    entries = compare_runs(workspace, settings, [])["variants"]
    assert [(entry["variant"], entry["baseline"]) for entry in entries] == [
        ("sasrec-none dropout=0.1 epochs=1", "sasrec-none epochs=1"),
        ("sasrec-none epochs=1", None),
        ("sasrec-llmemb", "sasrec-none epochs=1"),
    ]


def test_a_plain_model_with_a_name_of_its_own_is_no_baseline_beside_the_plain_one(
    measured: tuple[Workspace, Settings], tmp_path: Path
) -> None:
    workspace = Workspace(Path(shutil.copytree(measured[0].root, tmp_path / "copy")))
    settings = measured[1]
    chosen = settings.model_copy(update={"seed": 1})
    changes = {"method": "none", "epochs": 1, "dropout": 0.9}
    chosen = chosen.model_copy(update={"rat": chosen.rat.model_copy(update=changes)})
    run_rat(workspace, chosen, Reporter(), in_file=settings, name="a-bad-one")
    run_eval(workspace, with_eval(chosen), "a-bad-one", Reporter())
    entries = compare_runs(workspace, settings, [])["variants"]
    assert {entry["variant"]: entry["baseline"] for entry in entries} == {
        "a-bad-one": "sasrec-none",
        "sasrec-none": None,
        "sasrec-llmemb": "sasrec-none",
    }
    assert next(entry for entry in entries if entry["variant"] == "a-bad-one")["changed"] == {
        "dropout": 0.9,
        "epochs": 1,
    }
    # A baseline is named as the runs are: with seed, without it, or by what the table calls it.
    for name in ("a-bad-one", "sasrec-none-1", "sasrec-none", "none"):
        compare_runs(workspace, settings, [], baseline=name)


def test_workspaces_and_runs_of_one_name_are_told_apart(
    measured: tuple[Workspace, Settings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace, settings = measured
    other = Workspace(Path(shutil.copytree(workspace.root, tmp_path / "other" / "ws")).resolve())
    entries = compare_runs(workspace, settings, ["none", str(other.run("sasrec-none-1"))])["variants"]
    above = workspace.root.parent.name
    assert [(entry["variant"], entry["baseline"]) for entry in entries] == [
        (f"{above}/ws/sasrec-none", None),
        ("other/ws/sasrec-none", f"{above}/ws/sasrec-none"),
    ]
    # A copy of one of two seeds: what it is compared with is the mean of both.
    ranks = [
        pl.read_parquet(workspace.evaluation(f"sasrec-none-{seed}", "full") / "ranks.parquet") for seed in (1, 2)
    ]
    hits = [(one["rank"] <= 10).cast(pl.Float64).to_numpy() for one in ranks]
    cell = entries[1]["parts"]["overall"]["HR@10"]
    assert cell["wins"] == (hits[0] > hits[1]).sum() and cell["losses"] == (hits[0] < hits[1]).sum()
    assert cell["p"] == pytest.approx(stats.ttest_rel(hits[0], (hits[0] + hits[1]) / 2).pvalue)
    # Two runs of settings of their own, with names that only their seeds tell apart.
    for seed, name in ((1, "mine-1"), (2, "mine-2")):
        run = shutil.copytree(other.run(f"sasrec-none-{seed}"), other.run(name))
        manifest = json.loads((run / "manifest.json").read_text())
        manifest["made_from"]["settings"]["dropout"] = 0.1 * seed
        (run / "manifest.json").write_text(json.dumps(manifest))
    names = [str(other.run("mine-1")), str(other.run("mine-2")), "llmemb"]
    labels = [entry["variant"] for entry in compare_runs(workspace, settings, names)["variants"]]
    assert labels == ["other/ws/mine-1", "other/ws/mine-2", f"{above}/ws/sasrec-llmemb"]
    # A path to a run of the workspace itself is that run.
    monkeypatch.chdir(workspace.root)
    by_path = compare_runs(workspace, settings, ["runs/sasrec-none-1", "./runs/../runs/sasrec-none-2", "llmemb"])
    assert by_path["variants"] == compare_runs(workspace, settings, ["none", "llmemb"])["variants"]


NAMES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20)
ODD = st.sampled_from(["=1+1", "@SUM(A1)", "-2+3", " +x", "\t=1", "-5", "1e3", "a|b\nc", "<b>*x*</b>"])


@given(name=NAMES | ODD)
@example(name="\x1f=1")
@example(name="\u00a0=1")
def test_cells_are_no_formulas_and_numbers_stay(name: str) -> None:
    (_, (cell,)) = csv.reader(io.StringIO(csv_table(["a"], [[name]]), newline=""))
    plain = re.sub("\r\n?", "\n", name)
    assert cell == safe_cell(name) and cell in (plain, f"'{plain}")
    assert safe_cell(-2.5) == -2.5 and safe_cell("-5") == "-5" and safe_cell(None) == ""
    if cell == plain and name.strip()[:1] in ("=", "@", "+", "-"):
        float(name)


@given(name=NAMES | ODD)
def test_names_are_text_in_markdown_and_latex(name: str) -> None:
    cell = {"mean": 0.5, "deviation": None, "place": None}
    entry = {"variant": name, "backbone": "sasrec", "seeds": [1], "runs": [name], "baseline": None}
    document = {
        "variants": [entry | {"parts": {"overall": {"n": 3, "HR@10": cell}}}],
        "metrics": ["HR@10"],
        "definitions": {},
        "protocol": {"kind": "full", "history": "exclude"},
        "test": "t",
        "tests": 0,
    }
    row = markdown(document).split("\n")[2]
    assert len(re.findall(r"(?<!\\)(?:\\\\)*\|", row)) == 4 and "<" not in row
    own = latex(document).split("\n")[7].removesuffix(r" & 1 & 0.5000 \\")
    bare = re.sub(r"\\(?:[&%$#_{}]|text\w+\{\})|\$[<>]\$", "", own)
    assert not set(bare) & set("&%$#_{}~^\\<>|")


def test_details_are_shown_at_every_width(
    measured: tuple[Workspace, Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace, settings = measured
    cell = compare_runs(workspace, settings, [])["variants"][1]["parts"]["tail"]["HR@10"]
    text = CliRunner().invoke(app, ["compare", "-w", str(workspace.root), "--details", "--metric", "HR@10"]).stdout
    for figure in (
        f"{cell['difference']:+.4f}",
        f"{cell['effect']:+.2f}",
        f"{cell['interval'][0]:+.4f} to",
        "p over seeds",
    ):
        assert figure in text
    assert "tail: target among" in text and "full ranking" in text.lower()


def test_command_writes_the_table_it_is_asked_for(measured: tuple[Workspace, Settings], tmp_path: Path) -> None:
    workspace, _ = measured
    call = ["compare", "-w", str(workspace.root), "--test", "wilcoxon"]
    runner = CliRunner()
    document = json.loads(runner.invoke(app, [*call, "--json"]).stdout)
    assert document["test"] == "wilcoxon" and document["protocol"]["kind"] == "full"
    out = tmp_path / "table.tex"
    shown = runner.invoke(app, [*call, "--output", str(out)])
    assert shown.exit_code == 0 and "sasrec-llmemb" in shown.stdout and out.read_text().startswith(r"\begin{table}")
    assert runner.invoke(app, [*call, "--format", "csv"]).stdout.startswith("variant,seeds,baseline")
    assert runner.invoke(app, [*call, "--output", "table.doc"]).exit_code == 2


def test_another_protocol_that_runs_were_evaluated_by_is_named(
    measured: tuple[Workspace, Settings], tmp_path: Path
) -> None:
    workspace = Workspace(Path(shutil.copytree(measured[0].root, tmp_path / "copy")))
    for path in (workspace.root / "runs").glob("*/eval/full"):
        shutil.rmtree(path)
    said = CliRunner().invoke(app, ["compare", "-w", str(workspace.root)])
    assert said.exit_code == 2 and "llmemb eval` first, or take --protocol sampled" in said.stderr
    for path in (workspace.root / "runs").glob("*/eval/sampled-*"):
        shutil.rmtree(path)
    said = CliRunner().invoke(app, ["compare", "-w", str(workspace.root), "--protocol", "sampled"])
    assert "llmemb eval --protocol sampled` first\n" in said.stderr


@pytest.mark.parametrize("test", ["t", "wilcoxon", "permutation", "bootstrap"])
def test_one_user_who_differs_decides_nothing(test: Any) -> None:
    found = paired_test(np.eye(1, 40)[0], np.zeros(40), test)
    assert found.p > 0.3 and (found.wins, found.losses) == (1, 0)
    if test == "permutation":
        assert found.p == 1.0  # both signs give a mean as far from zero
