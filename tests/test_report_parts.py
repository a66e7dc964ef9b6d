"""The report's parts: tables show what was measured, figures can be downloaded, odd input does no harm."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from scipy.spatial.distance import pdist

from llmemb_cli.config.runs import run_name
from llmemb_cli.config.settings import Settings
from llmemb_cli.datasets.split import load_split
from llmemb_cli.embeddings.table import EmbeddingTable, read_table, write_table
from llmemb_cli.evaluation import evaluated
from llmemb_cli.evaluation.evaluated import NameKind, read_evaluated
from llmemb_cli.evaluation.spaces import unit_vectors
from llmemb_cli.evaluation.stage import run_eval
from llmemb_cli.progress import Reporter
from llmemb_cli.prompts.stage import make_prompts
from llmemb_cli.reporting import figures
from llmemb_cli.reporting.page import make_report
from llmemb_cli.reporting.parts.data import page_tail
from llmemb_cli.reporting.parts.items import item_spaces, neighbour_part
from llmemb_cli.reporting.parts.results import result_parts
from llmemb_cli.reporting.parts.training import series_of, similarity_part, uniformity
from llmemb_cli.reporting.variants import Variant, ablations, main_variants, sweeps, variants_of
from llmemb_cli.srs.train import run_rat
from llmemb_cli.workspace.locate import Workspace
from llmemb_cli.workspace.make import run_stage
from llmemb_cli.workspace.stage import Stage
from tests.make_workspace import make_workspace

EVIL = '<script>alert("x")</script> & $x^2$ </title>'


class Page(HTMLParser):
    """Tags, texts and the downloads of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.text = ""
        self.downloads: dict[str, list[dict[str, str]]] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        found = dict(attrs)
        if found.get("id"):
            self.ids.append(str(found["id"]))
        if found.get("download"):
            assert found["download"] not in self.downloads, "every figure has a name of its own"
            text = base64.b64decode(str(found["href"]).split("base64,")[1]).decode()
            self.downloads[str(found["download"])] = list(csv.DictReader(io.StringIO(text)))

    def handle_data(self, data: str) -> None:
        self.text += data


def varied(settings: Settings, **rat: Any) -> Settings:
    seed = rat.pop("seed", settings.seed)
    return settings.model_copy(update={"seed": seed, "rat": settings.rat.model_copy(update=rat)})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, Settings, Page]:
    """A report with methods, seeds, an ablation, a sweep and both protocols; one title is an attack."""
    workspace, settings = make_workspace(
        tmp_path_factory.mktemp("report") / "ws", rat__hidden_size=8, rat__epochs=2, eval__negatives=10
    )
    items = pl.read_parquet(workspace.data / "items.parquet")
    evil = items.with_columns(
        pl.when(pl.col("item_id") == "i3").then(pl.lit(EVIL)).otherwise(pl.col("title")).alias("title")
    )
    evil.write_parquet(workspace.data / "items.parquet")
    make_prompts(workspace, settings, Reporter())
    for one in (
        varied(settings, seed=42),
        varied(settings, seed=43),
        varied(settings, without=["align"]),
        varied(settings, alpha=0.1),
        varied(settings, alpha=1.0),
    ):
        run_rat(workspace, one, Reporter(), in_file=settings)
        run_eval(workspace, settings, run_name(one, settings), Reporter())
    for seed in (42, 43):
        run_eval(workspace, settings, f"sasrec-none-{seed}", Reporter())
    sampled = settings.model_copy(update={"eval": settings.eval.model_copy(update={"protocol": "sampled"})})
    run_eval(workspace, sampled, "sasrec-none-42", Reporter())
    _tuned(workspace, settings)
    make_report(workspace, settings, Reporter())
    page = Page()
    page.feed((workspace.reports / "report.html").read_text(encoding="utf-8"))
    return workspace, settings, page


def _tuned(workspace: Workspace, settings: Settings) -> None:
    """A stand-in for fine-tuning with a log that has a key nobody has heard of."""

    def build(work: Path) -> dict[str, Any]:
        records = [{"step": 0, "held_out": {"novel": 0.1}}, {"step": 1, "loss": 2.0, "validation_loss": 2.5}]
        records += [{"step": 2, "loss": 1.0, "validation_loss": 2.0, "held_out": {"novel": 0.2}}]
        (work / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        held_out = {"before": {"retrieval": 0.25}, "after": {"retrieval": 0.5}}
        loss = {"name": "infonce"}
        return {"model": "tiny", "steps": 2, "batch_size": 4, "loss": loss, "held_out": held_out}

    run_stage(Stage("scft", workspace.scft(), 1, {"model": "tiny"}), build)


def test_titles_are_text_and_never_markup(made: tuple[Workspace, Settings, Page]) -> None:
    _, _, page = made
    assert EVIL in page.text, "the neighbours of 30 items show every title somewhere"
    assert "script" not in page.tags and page.tags.count("title") == 1


def test_page_is_one_file_with_unique_ids_and_all_its_parts(made: tuple[Workspace, Settings, Page]) -> None:
    workspace, _, page = made
    text = (workspace.reports / "report.html").read_text(encoding="utf-8")
    assert not re.findall(r"""(?:src|href)=["'](?!#|data:)""", text) and "@import" not in text
    anchors = re.findall(r'<a href="#([^"]+)"', text)
    assert anchors and set(anchors) <= set(page.ids)
    for wanted in (
        "Table 1",
        "Table 2",
        "Figure 4",
        "t-SNE",
        "Five users",
        "Nearest items",
        "sampled items",
        "view 2",
        "positions, no dates",
    ):
        assert wanted in page.text, wanted
    assert "25.0 % before" in " ".join(page.text.split())


def test_tables_show_the_means_over_seeds_that_were_measured(made: tuple[Workspace, Settings, Page]) -> None:
    workspace, _, page = made
    ranks = [
        pl.read_parquet(workspace.evaluation(f"sasrec-llmemb-{seed}", "full") / "ranks.parquet") for seed in (42, 43)
    ]
    for part in (None, "tail", "head"):
        chosen = [one if part is None else one.filter(pl.col("popularity") == part) for one in ranks]
        hits = [float((one["rank"] <= 10).mean()) for one in chosen]  # type: ignore[arg-type]
        assert re.search(rf"{np.mean(hits):.4f}\*? ± {np.std(hits, ddof=1):.4f}", page.text)


def test_downloads_hold_the_numbers_of_their_figures(made: tuple[Workspace, Settings, Page]) -> None:
    workspace, _, page = made
    metrics = [
        json.loads((workspace.evaluation(f"sasrec-none-{seed}", "full") / "metrics.json").read_text())
        for seed in (42, 43)
    ]
    for row in page.downloads["full-groups-sasrec.csv"]:
        bins = [next(b for b in one["groups"]["popularity_bins"] if b["name"] == row["bin"]) for one in metrics]
        assert int(row["users"]) == bins[0]["n"]
        assert float(row["none"]) == pytest.approx(np.mean([one["HR@10"] for one in bins]))
    swept = page.downloads["full-sweep-sasrec-llmemb-alpha.csv"]
    assert [float(row["alpha"]) for row in swept] == [0.01, 0.1, 1.0]
    assert [int(row["seeds"]) for row in swept] == [2, 1, 1]
    curve = page.downloads["popularity-curve.csv"]
    counts = [int(row["training_interactions"]) for row in curve]
    assert len(counts) == 30 and counts == sorted(counts, reverse=True)
    assert float(curve[-1]["cumulative_share"]) == pytest.approx(1)
    assert len(page.downloads["item-map.csv"]) == 30
    for method in ("none", "llmemb"):
        tables = [
            pl.read_parquet(workspace.evaluation(f"sasrec-{method}-{seed}", "full") / "ranks.parquet")
            for seed in (42, 43)
        ]
        for row in page.downloads["items-by-popularity.csv"]:
            inside = pl.col("train_count").is_between(int(row["low"]), int(row["high"]))
            hits = [(one.filter(inside)["rank"] <= 10).to_numpy() for one in tables]
            shown = row[f"HR@10 SASRec, {method}"]
            assert float(shown) == pytest.approx(np.mean(hits)) if len(hits[0]) else shown == ""
    curves = {row["figure"] for row in page.downloads["scft-curves.csv"]}
    assert curves == {"loss", "validation loss", "held out novel"}


def test_variants_are_sorted_into_methods_ablations_and_sweeps(made: tuple[Workspace, Settings, Page]) -> None:
    workspace, settings, _ = made
    runs = [path.name for path in sorted((workspace.root / "runs").iterdir())]
    variants = variants_of(read_evaluated(workspace, settings, runs), workspace, settings)
    assert [one.label for one in main_variants(variants)] == ["sasrec-none", "sasrec-llmemb"]
    assert [[one.label for one in family] for family in ablations(variants)] == [
        ["sasrec-llmemb", "sasrec-llmemb-no-align"]
    ]
    assert {"sasrec-llmemb alpha=0.1", "sasrec-llmemb alpha=1.0"} <= {one.label for one in variants}
    # All of them stand in one table, with the settings that tell them apart.
    (full, _) = result_parts(workspace, settings)
    named = [" ".join([row["name"], row["settings"]]).strip() for row in full["variants"]["rows"]]
    assert named == [
        "sasrec-none",
        "sasrec-llmemb",
        "sasrec-llmemb alpha=0.1",
        "sasrec-llmemb alpha=1.0",
        "sasrec-llmemb-no-align",
    ]
    ((key, members),) = sweeps(variants)
    assert key == "alpha" and [one.settings["alpha"] for one in members] == [0.01, 0.1, 1.0]


def test_a_setting_that_is_off_is_a_point_of_its_curve() -> None:
    def variant(**changed: Any) -> Variant:
        settings = {"backbone": "sasrec", "method": "none", "loss": "ce"} | changed
        return Variant(f"sasrec-none {changed}", ["run"], settings, NameKind(bool(changed)), {"changed": changed})

    off, half = variant(), variant(logit_adjustment=0.5)
    assert sweeps([half, off]) == [("logit_adjustment", [off, half])]


def test_the_same_run_under_another_name_is_no_further_point_of_a_curve() -> None:
    def variant(kind: NameKind, seeds: int, epochs: int) -> Variant:
        settings = {"backbone": "sasrec", "method": "none", "loss": "ce", "epochs": epochs}
        return Variant(f"none {kind}", ["run"] * seeds, settings, kind, {"changed": {}})

    plain, again = variant(NameKind.PLAIN, 2, 6), variant(NameKind.DIGEST, 1, 6)
    short, more = variant(NameKind.DIGEST, 1, 3), variant(NameKind.DIGEST, 3, 3)
    assert sweeps([again, short, plain, more]) == [("epochs", [more, plain])]


def test_a_run_that_adjust_kept_is_no_point_of_a_curve_and_stands_for_no_method() -> None:
    def variant(label: str, runs: int, **more: Any) -> Variant:
        settings = {"backbone": "sasrec", "method": "none", "loss": "ce"} | more
        kind = NameKind.OWN if "-adjusted-" in label else NameKind.DIGEST
        return Variant(label, [f"{label}-{n}" for n in range(runs)], settings, kind, {"changed": more})

    trained, half = variant("none", 1), variant("half", 1, logit_adjustment=0.5)
    kept = variant("none-adjusted-0.5", 3, logit_adjustment=0.5, trained_logit_adjustment=0.0)
    assert sweeps([kept, trained, half]) == [("logit_adjustment", [trained, half])]
    assert main_variants([kept, trained]) == [trained]
    assert main_variants([kept]) == [kept]


def test_of_equal_variants_the_one_with_a_name_of_llmemb_stands_for_its_method() -> None:
    settings = {"backbone": "sasrec", "method": "none", "without": []}
    own, digest = (
        Variant(label, [f"{label}-42"], settings, kind, {"changed": {"dropout": dropout}})
        for label, kind, dropout in (("aaa", NameKind.OWN, 0.2), ("sasrec-none dropout=0.3", NameKind.DIGEST, 0.3))
    )
    assert main_variants([own, digest]) == [digest]
    assert main_variants([own]) == [own]


def test_the_report_says_what_a_run_with_a_name_of_its_own_changed(
    made: tuple[Workspace, Settings, Page], tmp_path: Path
) -> None:
    workspace = Workspace(Path(shutil.copytree(made[0].root, tmp_path / "copy")))
    ran = [path.name for path in (workspace.root / "runs").iterdir()]
    digests = [run for run in ran if re.fullmatch(r"sasrec-llmemb-42-[0-9a-f]{6}", run)]
    for run in ran:
        if run.startswith("sasrec-llmemb") and run != digests[0]:
            shutil.rmtree(workspace.run(run))
    workspace.run(digests[0]).rename(workspace.run("mine"))
    (full, _) = result_parts(workspace, made[1])
    told = {row["name"]: row["settings"] for row in full["table1"]["rows"]}
    assert told["SASRec, none"] == "" and re.fullmatch(r"alpha=(0\.1|1\.0)", told["SASRec, llmemb"])


def test_runs_on_other_llm_vectors_are_no_points_of_a_curve_and_no_parts() -> None:
    def variant(vectors: str, **changed: Any) -> Variant:
        settings = {"backbone": "sasrec", "method": "llmemb", "alpha": 0.1, "without": []} | changed
        return Variant(
            f"llmemb {vectors} {changed}", ["run"], settings, NameKind(bool(changed)), {"changed": changed}, vectors
        )

    main, same, other = variant("a"), variant("a", alpha=1.0), variant("b", alpha=2.0)
    assert sweeps([main, same, other]) == [("alpha", [main, same])]
    aligned, strange, untuned = (
        variant("a", without=["align"]),
        variant("b", without=["align"]),
        variant("c", without=["scft"]),
    )
    assert ablations([main, aligned, strange, untuned]) == [[main, aligned, untuned]]


def test_runs_measured_on_other_data_are_named_and_left_out(
    made: tuple[Workspace, Settings, Page], tmp_path: Path
) -> None:
    workspace = Workspace(Path(shutil.copytree(made[0].root, tmp_path / "copy")))
    manifest = workspace.evaluation("sasrec-llmemb-42", "full") / "manifest.json"
    changed = json.loads(manifest.read_text())
    changed["made_from"]["inputs"]["data"] = "0" * 64
    manifest.write_text(json.dumps(changed))
    make_report(workspace, made[1], Reporter(), force=True)
    text = (workspace.reports / "report.html").read_text(encoding="utf-8")
    assert re.search(r"Left out[^.]*sasrec-llmemb-42\.", text)


def test_diversity_in_different_spaces_is_not_put_side_by_side(
    made: tuple[Workspace, Settings, Page], tmp_path: Path
) -> None:
    workspace = Workspace(Path(shutil.copytree(made[0].root, tmp_path / "copy")))
    (full, _) = result_parts(workspace, made[1])
    place = full["beyond"]["columns"].index("diversity")
    shown = [float(row["cells"][place]) for row in full["beyond"]["rows"]]
    measured = [
        json.loads((workspace.evaluation(f"sasrec-none-{seed}", "full") / "metrics.json").read_text())["beyond"]
        for seed in (42, 43)
    ]
    assert shown[0] == pytest.approx(np.mean([one["diversity"] for one in measured]), abs=5e-4)
    manifest = workspace.evaluation("sasrec-llmemb-43", "full") / "manifest.json"
    changed = json.loads(manifest.read_text())
    changed["made_from"]["inputs"]["diversity"] = "0" * 64
    manifest.write_text(json.dumps(changed))
    (full, _) = result_parts(workspace, made[1])
    assert [row["cells"][place] for row in full["beyond"]["rows"]] == [f"{shown[0]:.3f}", "–"]
    assert all("–" not in row["cells"][:place] for row in full["beyond"]["rows"])
    make_report(workspace, made[1], Reporter(), force=True)
    assert "A dash for diversity" in (workspace.reports / "report.html").read_text(encoding="utf-8")
    assert "A dash for diversity" not in made[2].text


def test_every_evaluation_is_read_once(
    made: tuple[Workspace, Settings, Page], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, read = evaluated._read, []

    def counted(run: Path, protocol: str) -> Any:
        read.append((run.name, protocol))
        return real(run, protocol)

    monkeypatch.setattr(evaluated, "_read", counted)
    result_parts(made[0], made[1])
    there = {(path.parent.parent.name, path.name) for path in (made[0].root / "runs").glob("*/eval/[!.]*")}
    assert len(read) == len(there) == 8 and set(read) == there


def test_vectors_made_before_the_data_changed_are_put_in_order_or_left_out(tmp_path: Path) -> None:
    workspace, settings = make_workspace(tmp_path / "ws")
    data = load_split(workspace.data)
    tail = page_tail(data, settings, [])
    spaces, left_out = item_spaces(workspace, data, [])
    before = neighbour_part(workspace, data, spaces, tail, settings)
    alike = similarity_part(workspace, data, settings)
    assert list(spaces) == ["LLM, untouched", "LLM, fine-tuned"] and not left_out
    tuned, plain = workspace.embeddings("scft"), workspace.embeddings("base")
    order = np.random.default_rng(1).permutation(30)
    for folder, rows in ((tuned, order), (plain, order[:-1])):
        table = read_table(folder)
        ids, vectors = table.item_ids.gather(rows), np.array(table.vectors)[rows]
        (folder / "embeddings.safetensors").unlink()
        write_table(folder, EmbeddingTable(ids, vectors))
    spaces, left_out = item_spaces(workspace, data, [])
    assert list(spaces) == ["LLM, fine-tuned"] and left_out == ["LLM, untouched"]
    for then, now in zip(before, neighbour_part(workspace, data, spaces, tail, settings), strict=True):
        assert now == then | {"lists": [one for one in then["lists"] if one["space"] == "LLM, fine-tuned"]}
    now_alike = similarity_part(workspace, data, settings)
    assert alike and now_alike
    assert now_alike["rows"] == [row for row in alike["rows"] if row["space"] == "after"]
    make_report(workspace, settings, Reporter(), force=True)
    text = (workspace.reports / "report.html").read_text(encoding="utf-8")
    assert "a vector for every item of the data: LLM, untouched." in text


def test_the_tail_of_the_page_is_that_of_its_results(tmp_path: Path) -> None:
    workspace, settings = make_workspace(
        tmp_path / "ws", rat__hidden_size=8, rat__epochs=1, rat__method="none", data__tail_share=0.1
    )
    counts = load_split(workspace.data).train_counts[1:]
    threshold = int(np.median(counts))
    with_threshold = settings.model_copy(
        update={"eval": settings.eval.model_copy(update={"tail_threshold": threshold})}
    )
    run_rat(workspace, settings, Reporter())
    run_eval(workspace, with_threshold, run_name(settings), Reporter())
    make_report(workspace, settings, Reporter())
    made = json.loads((workspace.reports / "figures.json").read_text())
    assert f"fewer than {threshold} training" in made["results"][0]["definition"]
    assert made["data"]["tail"]["items"] == (counts < threshold).sum() > 3
    kinds = [(one["kind"], one["count"] < threshold) for one in made["neighbours"]]
    assert kinds == [("head", False)] * 2 + [("tail", True)] * 3
    assert [one["target"]["count"] < threshold for one in made["users"]] == [True] * 3 + [False] * 2
    page = (workspace.reports / "report.html").read_text(encoding="utf-8")
    assert f"The tail: {(counts < threshold).sum()} items with at most {counts[counts < threshold].max()}" in page


def test_logs_become_curves_by_whatever_keys_they_have() -> None:
    records = [{"step": 0, "a": {"b": 1}}, {"step": 5, "loss": 2, "name": "x", "done": True}, {"loss": 9}]
    assert series_of(records, "step") == {"a b": ([0], [1]), "loss": ([5], [2])}


def test_uniformity_is_that_of_wang_and_isola() -> None:
    unit = unit_vectors(np.random.default_rng(0).normal(size=(60, 4)), centred=False).astype(np.float64)
    expected = np.log(np.exp(-2 * pdist(unit) ** 2).mean())
    cosines = (unit @ unit.T)[np.triu_indices(60, 1)]
    assert uniformity(cosines) == pytest.approx(expected)


def test_names_that_mean_something_to_the_drawing_library_are_drawn_as_they_are() -> None:
    svg = figures.bars(["<b>", "$x"], {"_hidden": [1, None], "a$b$": [2, 3]}, "y")
    assert "&lt;b&gt;" in svg and "_hidden" in svg and "a$b$" in svg and "$x" in svg
    with pytest.raises(ValueError, match="second time for phones"):
        figures.Figure("x", "x", [svg], {"a": [1]}, wide=True)
    with pytest.raises(ValueError, match="different lengths"):
        figures.Figure("x", "x", [], {"a": [1], "b": [1, 2]})


@pytest.mark.parametrize(("values", "decimals"), [([6.31204, 6.31201, 6.31207], 2), ([6.9, 6.5, 6.4], 1)])
def test_a_curve_that_hardly_changes_has_ticks_that_can_be_read(values: list[float], decimals: int) -> None:
    svg = figures.lines({"loss": ([1, 2, 3], values)}, "epoch", "loss")
    ticks = re.findall(r">(\d\.\d+)</text>", svg)
    assert len(ticks) >= 4 and {len(tick) for tick in ticks} == {2 + decimals}


@pytest.mark.parametrize("items", [2, 3, 11])
def test_a_page_of_a_handful_of_items_is_made(tmp_path: Path, items: int) -> None:
    workspace, settings = make_workspace(
        tmp_path / "ws", items=items, users=20, width=4, rat__hidden_size=2, rat__method="none", rat__epochs=1
    )
    run_rat(workspace, settings, Reporter())
    run_eval(workspace, settings, run_name(settings), Reporter())
    make_report(workspace, settings, Reporter())
    # A map of fewer items than neighbours that are counted says nothing.
    page = (workspace.root / "reports" / "report.html").read_text()
    assert ("t-SNE" in page) == (items > 10)
