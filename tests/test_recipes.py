"""Recipes: settings that go together, written into llmemb.toml by name and taken out again."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any, get_args

import pytest
from typer.testing import CliRunner

from llmemb_cli.app import app
from llmemb_cli.config.backbones import BACKBONES
from llmemb_cli.config.methods import METHODS
from llmemb_cli.config.recipes import RECIPES, RecipeName
from llmemb_cli.config.settings import Settings, load_settings, update_settings, write_settings
from tests.make_workspace import make_workspace


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with a log and a catalogue of one's own."""
    monkeypatch.chdir(tmp_path)
    rng = random.Random(3)
    rows = [f"u{user},i{rng.randrange(110)},{1_600_000_000 + place}" for user in range(120) for place in range(6)]
    (tmp_path / "log.csv").write_text("\n".join(["user_id,item_id,timestamp", *rows]) + "\n")
    (tmp_path / "items.csv").write_text("id,title\n" + "".join(f"i{n},Thing {n}\n" for n in range(110)))
    return tmp_path


def call(*args: str, code: int = 0) -> dict[str, Any]:
    done = CliRunner().invoke(app, [*args, "--json"])
    assert done.exit_code == code, done.output
    return dict(json.loads(done.stdout))


def make(name: str, *args: str) -> Path:
    words = ["--interactions", "log.csv", "--items", "items.csv", "--name", name, "--force"]
    call("init", "custom", *words, *args)
    return Path(name) / "llmemb.toml"


def in_force(file: Path, key: str) -> Any:
    """A setting, that of "rat.llmemb.dropout" where that method is trained."""
    section, *table, name = key.split(".")
    which = dict.fromkeys(table, None)
    overrides = {f"rat.{'method' if one in METHODS else 'backbone'}": one for one in which}
    return getattr(getattr(load_settings(file, overrides), section), name)


def test_every_name_of_a_recipe_has_one() -> None:
    assert set(RECIPES) == set(get_args(RecipeName))


@pytest.mark.parametrize("name", RECIPES)
def test_init_and_config_write_the_same_settings_and_all_are_in_force(shop: Path, name: RecipeName) -> None:
    made, changed = make("made", "--recipe", name), make("changed")
    document = call("config", "--recipe", name, "-w", "changed")
    assert document["changed"].keys() == RECIPES[name].settings.keys()
    assert load_settings(made) == load_settings(changed)
    for key, value in RECIPES[name].settings.items():
        assert in_force(made, key) == value, key
    assert call("config", "--recipe", name, "-w", "changed")["changed"] == {}


@pytest.mark.parametrize("name", RECIPES)
def test_the_papers_recipe_takes_any_other_out_again(shop: Path, name: RecipeName) -> None:
    file = make("w")
    before = {
        (backbone, method): load_settings(file, {"rat.backbone": backbone, "rat.method": method})
        for backbone in BACKBONES
        for method in METHODS
    }
    call("config", "--recipe", name, "-w", "w")
    call("config", "--recipe", "paper", "-w", "w")
    tables = {"rat_tables", "rat_flags"}
    for (backbone, method), settings in before.items():
        after = load_settings(file, {"rat.backbone": backbone, "rat.method": method})
        assert after.model_dump(exclude=tables) == settings.model_dump(exclude=tables)


def test_flags_of_init_win_and_what_a_recipe_does_not_name_stays(shop: Path) -> None:
    file = make("w", "--recipe", "long-tail", "--set", "rat.logit_adjustment=0.5", "--set", "rat.llmemb.dropout=0.2")
    assert in_force(file, "rat.logit_adjustment") == 0.5
    assert in_force(file, "rat.llmemb.dropout") == 0.2
    update_settings(file, {"rat.epochs": 3, "rat.llmemb.alpha": 0.5})
    call("config", "--recipe", "long-tail", "-w", "w")
    assert in_force(file, "rat.logit_adjustment") == 1.0
    assert (in_force(file, "rat.epochs"), in_force(file, "rat.llmemb.alpha")) == (3, 0.5)


def test_a_workspace_that_is_there_keeps_its_settings_and_says_so(shop: Path) -> None:
    before = make("w").read_text()
    words = ["--interactions", "log.csv", "--items", "items.csv", "--name", "w", "--force", "--recipe", "long-tail"]
    done = CliRunner().invoke(app, ["init", "custom", *words])
    assert done.exit_code == 0 and "`llmemb config --recipe long-tail` changes it" in done.stderr
    assert (shop / "w" / "llmemb.toml").read_text() == before


def test_a_recipe_that_is_none_and_one_with_other_words_are_refused(shop: Path) -> None:
    before = make("w").read_text()
    assert "long-tail" in call("config", "--recipe", "longtail", "-w", "w", code=2)["error"]["message"]
    call("config", "rat", "--recipe", "long-tail", "-w", "w", code=2)
    call("config", "--recipe", "long-tail", "--set", "rat.alpha=1", "-w", "w", code=2)
    assert (shop / "w" / "llmemb.toml").read_text() == before


def test_a_run_by_the_recipe_has_a_plain_name_and_its_settings(tmp_path: Path) -> None:
    workspace, _ = make_workspace(tmp_path / "ws")
    root = str(workspace.root)
    call("config", "--recipe", "long-tail", "-w", root)
    update_settings(workspace.settings_file, {"rat.hidden_size": 8, "rat.epochs": 1, "rat.max_length": 8})
    (run,) = call("rat", "-w", root)["runs"]
    assert run["run"] == "sasrec-llm2x-42"
    (shown,) = call("runs", "show", run["run"], "-w", root)["runs"]
    wanted = {key.removeprefix("rat."): value for key, value in RECIPES["long-tail"].settings.items()}
    for key in ("loss", "negatives", "similarity", "logit_adjustment", "start_decay", "averaging", "vectors"):
        assert shown["settings"][key] == wanted[key]


def test_a_changed_setting_takes_the_place_of_its_comment(tmp_path: Path) -> None:
    path = tmp_path / "llmemb.toml"
    write_settings(path, Settings())
    lines = path.read_text().splitlines()
    update_settings(path, {"rat.alpha": 0.05, "scft.steps": 9, "data.attributes": ["a", "b"]})
    changed = path.read_text().splitlines()
    differing = [now for before, now in zip(lines, changed, strict=True) if before != now]
    assert differing == ['attributes = ["a", "b"]', "steps = 9", "alpha = 0.05"]
    update_settings(path, {"rat.alpha": 0.06})
    assert [line for line in path.read_text().splitlines() if line.startswith("alpha")] == ["alpha = 0.06"]
