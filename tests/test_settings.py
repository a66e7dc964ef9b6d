"""Settings: strict keys, clear errors, flags over file over defaults, comments that survive."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmemb_cli.config.rat import RatSettings
from llmemb_cli.config.runs import without_effect
from llmemb_cli.config.settings import (
    SECTIONS,
    Settings,
    known_keys,
    load_settings,
    make_settings,
    parse_assignments,
    rat_for,
    setting_help,
    update_settings,
    write_settings,
)
from llmemb_cli.errors import WrongUseError


def test_written_settings_are_read_back_the_same(tmp_path: Path) -> None:
    chosen = make_settings(
        {
            "seed": 7,
            "data.attributes": ["a", 'quo"te'],
            "prompt.rename": {"a b": "c"},
            "eval.k": [5, 10],
            "rat.alpha": 1e-5,
        }
    )
    write_settings(tmp_path / "llmemb.toml", chosen)
    assert load_settings(tmp_path / "llmemb.toml") == chosen


@given(text=st.text())
def test_any_text_setting_survives_the_file(text: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("s") / "llmemb.toml"
    chosen = make_settings({"prompt.instruction": text})
    write_settings(path, chosen)
    assert load_settings(path).prompt.instruction == chosen.prompt.instruction


def test_every_setting_stands_in_the_file_with_a_comment(tmp_path: Path) -> None:
    write_settings(tmp_path / "llmemb.toml", Settings())
    lines = (tmp_path / "llmemb.toml").read_text().splitlines()
    for key in known_keys():
        name = key.split(".")[-1]
        at = [i for i, line in enumerate(lines) if line.removeprefix("# ").startswith(f"{name} = ")]
        assert at and lines[at[0] - 1].startswith("# "), key


def test_a_text_for_a_list_is_its_entries_with_commas_between() -> None:
    given = ["prompt.attributes=title, brand", "run.methods=none,melt", "eval.k=5,10"]
    chosen = make_settings(parse_assignments(given))
    assert chosen.prompt.attributes == ["title", "brand"] and chosen.run.methods == ["none", "melt"]
    assert chosen.eval.k == [5, 10]
    assert make_settings({"prompt.attributes": ["a, b"]}).prompt.attributes == ["a, b"]
    with pytest.raises(WrongUseError, match=r"run\.methods"):
        make_settings(parse_assignments(["run.methods=none,nothing"]))


def test_a_misspelt_choice_is_answered_with_the_one_that_was_meant(tmp_path: Path) -> None:
    with pytest.raises(WrongUseError) as caught:
        make_settings({"rat.method": "mlet"})
    assert "'alphafuse'" in str(caught.value) and caught.value.hint == "did you mean melt?"
    with pytest.raises(WrongUseError) as caught:
        make_settings({"rat.loss": "zzz"})
    assert caught.value.hint is None


def test_unknown_key_names_line_and_near_match(tmp_path: Path) -> None:
    path = tmp_path / "llmemb.toml"
    path.write_text("seed = 1\n\n[rat]\nhidden_size = 64\nlearningrate = 0.1\n")
    with pytest.raises(WrongUseError) as caught:
        load_settings(path)
    assert caught.value.where == f"{path}, line 5"
    assert caught.value.hint == "did you mean rat.learning_rate?"


def test_wrong_value_names_line_and_what_is_allowed(tmp_path: Path) -> None:
    path = tmp_path / "llmemb.toml"
    path.write_text("[scft]\nloss = 'cosine'\n")
    with pytest.raises(WrongUseError, match=r"infonce.*paper.*soft") as caught:
        load_settings(path)
    assert "line 2" in (caught.value.where or "")
    path.write_text("\n[eval]\nk = [5, 0]\n")
    with pytest.raises(WrongUseError, match=r"eval\.k.*greater than or equal to 1") as caught:
        load_settings(path)
    assert "line 3" in (caught.value.where or "")


def test_flags_win_over_the_file_for_one_call(tmp_path: Path) -> None:
    path = tmp_path / "llmemb.toml"
    path.write_text("[rat]\nalpha = 0.5\ngamma = 3.0\n")
    settings = load_settings(path, parse_assignments(["rat.alpha=0.25"]) | {"rat.gamma": None})
    assert (settings.rat.alpha, settings.rat.gamma) == (0.25, 3.0)
    assert load_settings(path).rat.alpha == 0.5


@pytest.mark.parametrize(("bad", "hint"), [("rat.alhpa=1", "did you mean rat.alpha?"), ("rat.alpha", "for example")])
def test_wrong_assignment_is_refused(tmp_path: Path, bad: str, hint: str) -> None:
    (tmp_path / "llmemb.toml").write_text("")
    with pytest.raises(WrongUseError) as caught:
        load_settings(tmp_path / "llmemb.toml", parse_assignments([bad]))
    assert (caught.value.hint or "").startswith(hint)


def test_update_keeps_the_persons_comments(tmp_path: Path) -> None:
    path = tmp_path / "llmemb.toml"
    path.write_text("# mine\n[rat]\nalpha = 0.5  # tuned on Monday\n")
    update_settings(path, {"rat.alpha": 0.1, "data.dataset": "yelp"})
    text = path.read_text()
    assert "# mine" in text and "tuned on Monday" in text
    assert tomllib.loads(text) == {"rat": {"alpha": 0.1}, "data": {"dataset": "yelp"}}
    with pytest.raises(WrongUseError):
        update_settings(path, {"rat.alpha": -1})
    assert path.read_text() == text


def test_help_of_every_setting_says_what_it_is() -> None:
    for name, section in SECTIONS.items():
        for key in section.model_fields:
            assert len(setting_help(f"{name}.{key}")) > 8, f"{name}.{key}"


LAYERED = """
[rat]
dropout = 0.6
hidden_size = 64

[rat.bert4rec]
dropout = 0.2
learning_rate = 0.005

[rat.llmemb]
alpha = 0.5
hidden_size = 96

[rat.bert4rec-llmemb]
learning_rate = 0.002
"""


def test_tables_of_a_backbone_a_method_and_both_count_for_them_alone(tmp_path: Path) -> None:
    path = tmp_path / "llmemb.toml"
    path.write_text(LAYERED)

    def got(backbone: str, method: str, **flags: float) -> tuple[float, ...]:
        chosen = {"rat.backbone": backbone, "rat.method": method} | {f"rat.{key}": v for key, v in flags.items()}
        rat = load_settings(path, chosen).rat
        return rat.dropout, rat.hidden_size, rat.learning_rate, rat.alpha

    expected = {
        ("sasrec", "none"): (0.6, 64, 0.001, 0.01),
        ("bert4rec", "none"): (0.2, 64, 0.005, 0.01),
        ("sasrec", "llmemb"): (0.6, 96, 0.001, 0.5),
        ("bert4rec", "llmemb"): (0.2, 96, 0.002, 0.5),
    }
    for (backbone, method), values in expected.items():
        assert got(backbone, method) == values
        # A flag wins over every table, also where the run of another backbone or method follows from it.
        assert got(backbone, method, dropout=0.3) == (0.3, *values[1:])
        for (other, another), theirs in expected.items():
            flagged = load_settings(path, {"rat.backbone": backbone, "rat.method": method, "rat.dropout": 0.3})
            moved = rat_for(flagged, backbone=other, method=another)
            assert (moved.backbone, moved.method) == (other, another)
            assert (moved.dropout, moved.hidden_size, moved.learning_rate, moved.alpha) == (0.3, *theirs[1:])
    assert rat_for(load_settings(path), method="none").hidden_size == 64


def test_a_flag_can_count_for_one_backbone_or_method_alone(tmp_path: Path) -> None:
    path = tmp_path / "llmemb.toml"
    for text, plain in ((LAYERED, 0.6), ("", RatSettings().dropout)):
        path.write_text(text)
        flagged = load_settings(path, {"rat.method": "llmemb", "rat.sasrec-llmemb.dropout": 0.1})
        assert flagged.rat.dropout == 0.1
        assert rat_for(flagged, method="none").dropout == plain
        assert load_settings(path, {"rat.method": "none", "rat.sasrec-llmemb.dropout": 0.1}).rat.dropout == plain
        # As in the file, what is said of one method alone counts for it, whatever is said of all.
        for order in (1, -1):
            said = [("rat.method", "llmemb"), ("rat.llmemb.dropout", 0.1), ("rat.dropout", 0.4)][::order]
            both = load_settings(path, dict(said))
            assert both.rat.dropout == 0.1 and rat_for(both, method="none").dropout == 0.4
            assert rat_for(rat_for_settings(both, "none"), method="llmemb").dropout == 0.1
    for key, said in (("rat.llmembb.dropout", "no backbone"), ("rat.llmemb.dropuot", "unknown"), ("rat.a.b.c", "no")):
        with pytest.raises(WrongUseError, match=said) as caught:
            load_settings(path, {key: 0.1})
        assert caught.value.where == "command line"


@pytest.mark.parametrize(
    ("flags", "idle"),
    [
        ({"rat.method": "none", "rat.start_decay": 1.0, "rat.dropout": 0.1}, ["start_decay"]),
        ({"rat.method": "llm2x", "rat.start_decay": 1.0}, []),
        ({"rat.method": "none", "rat.none.melt_contexts": 2, "rat.melt.melt_contexts": 3}, ["melt_contexts"]),
        ({"rat.method": "none", "rat.loss": "ce", "rat.negatives": 5, "rat.device": "cpu"}, ["negatives"]),
        ({"rat.method": "none", "rat.averaging": 0.0}, []),
        # The table it is aligned to starts with it, the adapter itself does not.
        ({"rat.method": "llmemb", "rat.init_std": 0.05}, []),
        ({"rat.method": "llmemb", "rat.init_std": 0.05, "rat.without": ["align"]}, ["init_std"]),
        ({"rat.method": "llmemb", "rat.llmemb.init_std": 0.05}, ["init_std"]),
        ({"rat.method": "tslrec", "rat.backbone": "gru4rec", "rat.layers": 1}, []),
    ],
)
def test_flags_without_effect_are_known(tmp_path: Path, flags: dict[str, object], idle: list[str]) -> None:
    path = tmp_path / "llmemb.toml"
    path.write_text("")
    assert without_effect(load_settings(path, flags)) == idle


def rat_for_settings(settings: Settings, method: str) -> Settings:
    return settings.model_copy(update={"rat": rat_for(settings, method=method)})


@pytest.mark.parametrize(
    ("table", "line", "said", "hint"),
    [
        ("[rat.bert4rek]\ndropout = 0.1", 2, "no backbone", "did you mean [rat.bert4rec]?"),
        ("[rat.bert4rec]\ndropuot = 0.1", 3, "rat.bert4rec.dropuot", "did you mean rat.dropout?"),
        ("[rat.bert4rec]\ndropout = 2", 3, "rat.bert4rec.dropout", None),
        ("[rat.bert4rec]\nbackbone = 'sasrec'", 2, "cannot set backbone", "it belongs under [rat]"),
        ("[rat_tables.bert4rec]\ndropout = 0.1", None, "rat_tables", "[rat.bert4rec] is a table of its own"),
    ],
)
def test_wrong_table_of_a_backbone_names_line_and_fix(
    tmp_path: Path, table: str, line: int | None, said: str, hint: str | None
) -> None:
    path = tmp_path / "llmemb.toml"
    path.write_text(f"[rat]\n{table}\n")
    with pytest.raises(WrongUseError) as caught:
        load_settings(path)
    assert said in caught.value.message and caught.value.hint == hint
    assert caught.value.where == (f"{path}, line {line}" if line else str(path))


def test_a_table_of_a_backbone_can_be_written_and_updated(tmp_path: Path) -> None:
    path = tmp_path / "llmemb.toml"
    write_settings(path, Settings())
    update_settings(path, {"rat.gru4rec-none.dropout": 0.25})
    update_settings(path, {"rat.gru4rec-none.learning_rate": 0.01, "rat.dropout": 0.4})
    found = load_settings(path, {"rat.backbone": "gru4rec", "rat.method": "none"}).rat
    assert (found.dropout, found.learning_rate) == (0.25, 0.01)
    assert load_settings(path, {"rat.backbone": "gru4rec", "rat.method": "llmemb"}).rat.dropout == 0.4
    text = path.read_text()
    with pytest.raises(WrongUseError):
        update_settings(path, {"rat.gru4rec-none.dropout": -1})
    assert path.read_text() == text


def test_a_flag_counts_for_every_method_also_where_it_says_what_one_table_says(tmp_path: Path) -> None:
    path = tmp_path / "llmemb.toml"
    path.write_text("[rat]\ndropout = 0.6\n[rat.llmemb]\ndropout = 0.1\n")
    for value in (0.1, 0.3, 0.6):
        for method in ("llmemb", "none"):
            flagged = load_settings(path, {"rat.method": method, "rat.dropout": value})
            assert flagged.rat.dropout == value
            assert [rat_for(flagged, method=other).dropout for other in ("none", "llmemb", "melt")] == [value] * 3


@pytest.mark.parametrize(
    ("loss", "own"), [("auto", 1), ("bce", 1), ("sce", 500), ("gbce", 256), ("sampled-softmax", 256), ("infonce", 64)]
)
def test_negatives_are_those_of_the_loss_unless_told(tmp_path: Path, loss: str, own: int) -> None:
    path = tmp_path / "llmemb.toml"
    path.write_text("")
    assert load_settings(path, {"rat.loss": loss}).rat.negatives == own
    assert load_settings(path, {"rat.loss": loss, "rat.negatives": 7}).rat.negatives == 7
    path.write_text(f"[rat]\nloss = '{loss}'\n[rat.bert4rec]\nloss = 'gbce'\n[rat.melt]\nnegatives = 9\n")
    filed = load_settings(path)
    assert filed.rat.negatives == own
    assert rat_for(filed, backbone="bert4rec").negatives == 256 and rat_for(filed, method="melt").negatives == 9
