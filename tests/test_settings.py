"""Settings: strict keys, clear errors, flags over file over defaults, comments that survive."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmemb_cli.config.settings import (
    SECTIONS,
    Settings,
    known_keys,
    load_settings,
    make_settings,
    parse_assignments,
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
