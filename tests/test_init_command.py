"""`llmemb init`: what it asks, what it refuses, what it records, what it leaves behind."""

from __future__ import annotations

import gzip
import json
import os
import pty
import random
import signal
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from typer.testing import CliRunner

from llmemb_cli.app import app
from llmemb_cli.config.data import PREPARATIONS, DataSettings
from llmemb_cli.console import PlainReporter, amount, shortened
from llmemb_cli.datasets.create import WHERE, create_workspace
from llmemb_cli.datasets.presets import PRESETS, find_preset
from llmemb_cli.datasets.readers.chunks import line_chunks
from llmemb_cli.datasets.readers.sources import find_files, plain_file
from llmemb_cli.errors import WrongUseError
from llmemb_cli.progress import Reporter, Task

LOG = "log.csv"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with own files: 130 users, 120 items, six interactions each, over a year."""
    monkeypatch.chdir(tmp_path)
    rng = random.Random(7)
    rows = [
        (f"u{user}", f"i{rng.randrange(120)}", 1_600_000_000 + rng.randrange(365) * 86_400, rng.randint(1, 5))
        for user in range(130)
        for _ in range(6)
    ]
    (tmp_path / LOG).write_text(
        "user_id,item_id,timestamp,rating\n" + "".join(",".join(map(str, row)) + "\n" for row in rows)
    )
    (tmp_path / "items.csv").write_text(
        "item_id,title,brand,review_count\n" + "".join(f"i{n},Thing {n},B{n % 7},{n}\n" for n in range(120))
    )
    return tmp_path


def llmemb(*words: str) -> Any:
    return CliRunner().invoke(app, ["init", *words])


def own(*words: str, name: str = "w") -> Any:
    return llmemb("custom", "--name", name, "--interactions", LOG, "--items", "items.csv", *words)


def settings_in(file: Path) -> dict[str, Any]:
    return tomllib.loads(file.read_text())["data"]


@pytest.mark.parametrize("preset", list(PREPARATIONS))
def test_a_preset_is_said_written_out_and_named_in_the_card(folder: Path, preset: str) -> None:
    text = (folder / LOG).read_text()
    # Twice as many interactions, so that five of everything are left by every preset.
    (folder / LOG).write_text(text + text.partition("\n")[2].replace(",i", ",i1"))
    (folder / "items.csv").write_text(
        (folder / "items.csv").read_text() + "".join(f"i1{n},Other {n},B,{n}\n" for n in range(20, 120))
    )
    done = own("--preset", preset, "--force")
    assert done.exit_code == 0, done.output
    written = settings_in(folder / "w" / "llmemb.toml")
    for key, value in PREPARATIONS[preset].items():
        assert written[key] == value
        assert key in done.stderr
    assert f"--preset {preset}" in (folder / "w" / "data" / "card.md").read_text()


def test_flags_override_a_preset_which_the_card_then_no_longer_claims(folder: Path) -> None:
    done = own("--preset", "paper", "--min-user", "4", "--no-leaking")
    assert done.exit_code == 0, done.output
    assert "min_user 4 (instead of 3)" in done.stderr and "leaking no (instead of yes)" in done.stderr
    written = settings_in(folder / "w" / "llmemb.toml")
    assert (written["min_user"], written["min_item"], written["leaking"]) == (4, 3, False)
    stats = json.loads((folder / "w" / "data" / "stats.json").read_text())
    assert stats["preset"] is None and stats["rules"]["min_user"] == 4
    assert "review_count" not in stats["attributes"]


def test_the_papers_prompts_keep_what_leaks_and_say_so(folder: Path) -> None:
    done = own("--preset", "paper")
    assert "review_count" in json.loads((folder / "w" / "data" / "stats.json").read_text())["attributes"]
    assert "--no-leaking" in done.stdout and "--no-leaking" in (folder / "w" / "data" / "card.md").read_text()


def users_of(workspace: Path) -> set[str]:
    return set(pl.read_parquet(workspace / "data" / "interactions.parquet")["user_id"])


def test_a_sample_of_users_is_the_seeds_and_no_larger_than_asked_for(folder: Path) -> None:
    made = {}
    for name, flags in {
        "share": ["--sample", "0.5"],
        "again": ["--sample", "0.5"],
        "other": ["--sample", "0.5", "--seed", "7"],
        "most": ["--max-users", "40"],
        "both": ["--sample", "0.5", "--max-users", "30"],
    }.items():
        assert own("--filter", "none", "--force", *flags, name=name).exit_code == 0
        made[name] = users_of(folder / name)
    assert made["share"] == made["again"] != made["other"]
    assert [len(made[name]) for name in ("share", "other", "most", "both")] == [65, 65, 40, 30]
    own("--filter", "none", name="all")
    whole = pl.read_parquet(folder / "all" / "data" / "interactions.parquet")
    part = pl.read_parquet(folder / "most" / "data" / "interactions.parquet")
    assert whole.filter(pl.col("user_id").is_in(made["most"])).equals(part)
    assert "seed 42" in (folder / "most" / "data" / "card.md").read_text()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--filter", "kcore"], "single-pass"),
        (["--repeats", "some"], "first"),
        (["--min-user", "0"], "min_user"),
        (["--min-rating", "nan"], "min_rating"),
        (["--sample", "0"], "sample"),
        (["--sample", "1.5"], "sample"),
        (["--max-users", "0"], "max_users"),
        (["--start", "2020-13-01"], "'2020-13-01' is not a date"),
        (["--start", "2021-01-01", "--end", "2021-01-01"], "is not after"),
        (["--split", "time"], "--valid-from"),
        (["--split", "time", "--valid-from", "2021-01-01"], "--test-from"),
        (["--split", "time", "--valid-from", "2021-01-01", "--test-from", "2020-01-01"], "must be before"),
        (["--test-from", "2021-01-01"], "--split time"),
        (["--preset", "papr"], "paper or 5-core"),
    ],
)
def test_rules_that_cannot_be_are_refused_before_anything_is_read(folder: Path, flags: list[str], said: str) -> None:
    (folder / LOG).write_text("user_id,item_id,timestamp\nnot,a,time\n")
    done = own(*flags)
    assert done.exit_code == 2 and said in done.stderr and not (folder / "w").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["yelpp"], "did you mean yelp?"),
        (["Beuty"], "did you mean beauty"),
        (["games"], "toys-and-games or video-games"),
        (["xyzzy"], "ml-100k"),
        (["amazon"], "video-games"),
        ([LOG], f"--interactions {LOG}"),
        (["fashion", "--edition", "2014"], "--edition 2023"),
        (["beauty", "--edition", "2019"], "2014, 2018 or 2023"),
        (["ml-1m", "--edition", "2018"], "--source"),
        (["ml-1m", "--interactions", LOG], "custom"),
        (["custom"], "--interactions"),
        ([], "ml-100k"),
    ],
)
def test_a_name_that_is_none_is_answered_with_what_there_is(folder: Path, words: list[str], said: str) -> None:
    done = llmemb(*words)
    assert done.exit_code == 2 and said in done.stderr
    assert sorted(path.name for path in folder.iterdir()) == ["items.csv", LOG]


def test_yelp_without_a_file_says_where_to_get_it_and_what_to_run_then(folder: Path) -> None:
    done = llmemb("yelp", "--json")
    error = json.loads(done.stdout)["error"]
    assert done.exit_code == 3 and "https://" in error["hint"] and "--source yelp_dataset.tar" in error["hint"]


@pytest.mark.parametrize("name", list(PRESETS))
def test_settings_that_a_data_set_does_not_look_at_are_refused(name: str, tmp_path: Path) -> None:
    for key in WHERE - set(PRESETS[name].uses):
        value = "latin-1" if key == "encoding" else "x"
        with pytest.raises(WrongUseError, match=f"no use for data.{key} "):
            create_workspace(tmp_path / "w", {"data.dataset": name, f"data.{key}": value}, Reporter())
    assert set(DataSettings.model_fields) >= WHERE and not (tmp_path / "w").exists()


def test_every_amazon_category_is_known_by_its_own_name() -> None:
    for name, preset in PRESETS.items():
        assert all(find_preset(category).name == name for category in preset.categories.values())


def test_a_set_that_is_left_tiny_is_refused_with_the_reasons_unless_forced(folder: Path) -> None:
    text = (folder / LOG).read_text() + "u1,nowhere,1600000000,3\n"
    (folder / LOG).write_text(text)
    done = own("--min-user", "7", "--json")
    error = json.loads(done.stdout)["error"]
    assert done.exit_code == 4 and done.stderr == "" and not (folder / "w").exists()
    assert "only 0 users and 0 items" in error["message"] and "--min-user" in error["hint"]
    assert "--force" not in error["hint"], "nothing at all is no data set"
    assert "--force" in json.loads(own("--max-users", "20", "--json").stdout)["error"]["hint"]
    assert "780 left out: user below 7 or item below 3" in error["message"]
    assert "1 rejected: unknown item" in error["message"] and f"{LOG} (781 rows)" in error["where"]
    assert own("--max-users", "20", "--force").exit_code == 0
    assert own("--max-users", "20").exit_code == 0, "what was accepted once is up to date"
    assert 0 < len(users_of(folder / "w")) <= 20


def test_the_same_again_is_up_to_date_and_another_is_refused_with_the_difference(folder: Path) -> None:
    assert json.loads(own("--json").stdout)["built"] is True
    assert json.loads(own("--json").stdout)["built"] is False
    done = own("--min-user", "4")
    assert done.exit_code == 2 and "min_user is 3 there, 4 asked for" in done.stderr and "--name" in done.stderr


def test_a_directory_with_something_else_in_it_is_left_alone(folder: Path) -> None:
    (folder / "w").mkdir()
    (folder / "w" / "thesis.txt").write_text("mine")
    done = own()
    assert done.exit_code == 2 and "in the way" in done.stderr
    assert [path.name for path in (folder / "w").iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_init_leaves_nothing_and_an_interrupted_update_what_was_there(
    folder: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    from llmemb_cli.datasets.readers import custom

    # A shell that starts the tests in the background has Ctrl-C ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    own(name="before")
    kept = (folder / "before" / "data" / "interactions.parquet").read_bytes()

    def interrupted(*_: Any, **__: Any) -> Iterator[Any]:
        signal.raise_signal(number)
        yield from ()

    monkeypatch.setattr(custom, "scan_table", interrupted)
    done = own()
    assert done.exit_code == 130 and "no workspace was made" in done.stderr
    assert not (folder / "w").exists()
    (folder / LOG).write_text((folder / LOG).read_text() + "u1,i1,1600000000,3\n")
    assert own(name="before").exit_code == 130
    assert (folder / "before" / "data" / "interactions.parquet").read_bytes() == kept


def test_what_a_killed_init_left_is_no_obstacle_but_settings_made_by_hand_are(folder: Path) -> None:
    (folder / "w" / ".data.partial").mkdir(parents=True)
    (folder / "w" / "llmemb.toml").write_text("[data]\nmin_user = 9\n")
    assert own("--min-user", "4").exit_code == 0
    assert settings_in(folder / "w" / "llmemb.toml")["min_user"] == 4
    (folder / "hand").mkdir()
    (folder / "hand" / "llmemb.toml").write_text("[data]\nmin_user = 9\n")
    assert own(name="hand").exit_code == 2
    assert (folder / "hand" / "llmemb.toml").read_text() == "[data]\nmin_user = 9\n"


@pytest.mark.parametrize("other", [(), ("--min-user", "4")])
def test_a_second_init_leaves_alone_what_the_first_is_making(
    folder: Path, monkeypatch: pytest.MonkeyPatch, other: tuple[str, ...]
) -> None:
    from llmemb_cli.datasets.readers import custom

    scan, seen = custom.scan_table, []
    words = ["init", "custom", "--name", "w", "--interactions", LOG, "--items", "items.csv", *other]

    def beside_another(*args: Any, **named: Any) -> Iterator[Any]:
        before = sorted(path.name for path in (folder / "w").iterdir())
        done = subprocess.run([sys.executable, "-m", "llmemb_cli", *words], capture_output=True, text=True)
        seen.append((done, before, sorted(path.name for path in (folder / "w").iterdir())))
        yield from scan(*args, **named)

    monkeypatch.setattr(custom, "scan_table", beside_another)
    assert own().exit_code == 0
    [(second, before, after)] = seen
    assert second.returncode == 1 and "the workspace is in use by" in second.stderr
    assert before == after and {"llmemb.toml", ".data.partial", ".llmemb.lock.json"} <= set(after)
    assert "min_user" not in settings_in(folder / "w" / "llmemb.toml")


def test_a_workspace_that_is_finished_while_another_init_waits_is_not_overwritten(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llmemb_cli.datasets import create

    real = create.write_lock

    def after_another(*args: Any) -> Any:
        monkeypatch.setattr(create, "write_lock", real)
        assert own("--min-user", "4").exit_code == 0
        return real(*args)

    monkeypatch.setattr(create, "write_lock", after_another)
    done = own()
    assert done.exit_code == 2 and "min_user is 4 there" in done.stderr
    assert settings_in(folder / "w" / "llmemb.toml")["min_user"] == 4
    assert (folder / "w" / "data" / "manifest.json").is_file()


def test_what_others_keep_in_a_directory_is_never_cleared_away(folder: Path) -> None:
    for name in ("w", "v"):
        (folder / name / ".git").mkdir(parents=True)
    (folder / "w" / ".data.partial").mkdir()
    (folder / "w" / "llmemb.toml").write_text("[data]\nmin_user = 9\n")
    assert own().exit_code == 2  # other settings: not ours to overwrite
    assert own(name="v").exit_code == 2  # in the way
    for name in ("w", "v"):
        assert (folder / name / ".git").is_dir()
    assert (folder / "w" / "llmemb.toml").read_text() == "[data]\nmin_user = 9\n"
    assert sorted(path.name for path in (folder / "v").iterdir()) == [".git"]


def test_names_come_from_the_file_and_paths_are_made(folder: Path) -> None:
    done = llmemb("--interactions", LOG, "--items", "items.csv", "--path", "deep/er")
    assert done.exit_code == 0 and (folder / "deep" / "er" / "log" / "data" / "card.md").is_file()
    assert "cd deep/er/log && llmemb run" in done.stdout


def test_names_are_shown_as_they_are_with_brackets_too(folder: Path) -> None:
    done = own(name="x[b]")
    assert "llmemb data -w 'x[b]', or 'x[b]/data/card.md'" in done.stdout
    assert "workspace x[b] made" in done.stdout and "cd 'x[b]' && llmemb run" in done.stdout, "a shell reads brackets"


def test_a_missing_time_column_is_told(folder: Path) -> None:
    (folder / LOG).write_text((folder / LOG).read_text().replace("timestamp", "when"))
    assert "--time-column" in own().stderr
    assert "--time-column" not in own("--time-column", "when", name="v").stderr
    stats = json.loads((folder / "v" / "data" / "stats.json").read_text())
    assert stats["source"]["columns"] == {
        **{"user": "user_id", "item": "item_id", "time": "when", "rating": "rating", "title": "title"}
    }


@pytest.mark.parametrize("key", ["id", "ID", "sku"])
def test_the_ids_of_a_file_of_items_may_have_a_name_of_their_own(folder: Path, key: str) -> None:
    assert own(name="same").exit_code == 0
    (folder / "items.csv").write_text((folder / "items.csv").read_text().replace("item_id", key, 1))
    assert own().exit_code == 0
    items, same = (pl.read_parquet(folder / name / "data" / "items.parquet") for name in ("w", "same"))
    assert items.equals(same) and items["title"].to_list() == [f"Thing {item[1:]}" for item in items["item_id"]]


@pytest.mark.parametrize(
    "header",
    ["User ID,Item ID,Created At,Stars", "userId,productId,eventTime,rating", "customer-id,StockCode,date,score"],
)
def test_headers_are_understood_however_they_are_spelt(folder: Path, header: str) -> None:
    (folder / LOG).write_text((folder / LOG).read_text().replace("user_id,item_id,timestamp,rating", header, 1))
    done = llmemb("custom", "--name", "w", "--interactions", LOG)
    assert done.exit_code == 0, done.stderr
    stats = json.loads((folder / "w" / "data" / "stats.json").read_text())["source"]["columns"]
    assert [stats[role] for role in ("user", "item", "time", "rating")] == header.split(",")


def test_a_log_written_twice_is_told(folder: Path) -> None:
    text = (folder / LOG).read_text()
    (folder / LOG).write_text(text + text.partition("\n")[2])
    said = " ".join(own().stderr.split())
    assert "interactions are there already" in said and "--repeats first" in said and "--time-column" not in said
    assert "already" not in own("--repeats", "first", name="once").stderr


def test_ids_that_do_not_match_show_one_of_either_file(folder: Path) -> None:
    (folder / "items.csv").write_text((folder / "items.csv").read_text().replace("\ni", "\nitem-"))
    done = own()
    said = " ".join(done.stderr.split())
    assert done.exit_code == 4 and "ids such as item-0, item-1: are those of the log written otherwise?" in said
    assert f"{LOG}, line 2: u0, i" in said


def test_without_texts_of_items_the_next_step_is_one_that_works(folder: Path) -> None:
    done = llmemb("custom", "--name", "w", "--interactions", LOG)
    assert "llmemb rat --method none" in done.stdout and "llmemb run" not in done.stdout
    refused = CliRunner().invoke(app, ["prompt", "-w", "w"])
    assert refused.exit_code == 4 and "items have no text" in refused.stderr


def test_one_file_is_not_log_and_catalogue(folder: Path) -> None:
    done = llmemb("custom", "--name", "w", "--interactions", LOG, "--items", LOG)
    assert done.exit_code == 2 and "are the same file" in done.stderr


def test_a_file_of_items_without_ids_says_what_to_call_them(folder: Path) -> None:
    (folder / "items.csv").write_text((folder / "items.csv").read_text().replace("item_id", "code", 1))
    done = own()
    assert done.exit_code == 2 and "call the column with the item ids item_id there too" in done.stderr


def test_on_a_terminal_everything_missing_is_asked_for(folder: Path) -> None:
    """A real terminal: a name that is none, own files, a file that is not there, two columns that could be meant."""
    text = (folder / LOG).read_text().replace("user_id,item_id,timestamp", "user_id,product,when")
    (folder / LOG).write_text(text.replace("rating\n", "sku\n", 1))
    (folder / "items.csv").write_text((folder / "items.csv").read_text().replace("item_id", "product", 1))
    answers = ["beuty", "custom", "nowhere.csv", LOG, "items.csv", "nothing", "product", "when"]
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "llmemb_cli", "init"],
        **{"cwd": folder, "stdin": follower, "stdout": follower, "stderr": follower},
        env=os.environ | {"TERM": "xterm", "COLUMNS": "80", "NO_COLOR": "1"},
    )
    os.close(follower)
    said = ""
    # Each answer waits for its question: what is typed before a program asks may be lost.
    questions = ["Data set:", "Data set:", "interactions:", "interactions:", "none):", "item:", "item:", "time:"]
    for question, answer in zip(questions, answers, strict=True):
        said += read_until(leader, question)
        os.write(leader, f"{answer}\n".encode())
    said += read_until(leader, "llmemb run")
    assert process.wait() == 0
    os.close(leader)
    assert "did you mean beauty" in said and "no such file" in said and "no column nothing" in said
    assert settings_in(folder / "log" / "llmemb.toml")["item_column"] == "product"
    assert settings_in(folder / "log" / "llmemb.toml")["time_column"] == "when"


def read_until(terminal: int, words: str) -> str:
    said = ""
    while words not in said:
        said += os.read(terminal, 4096).decode()
    return said


def test_completion_and_help_know_the_choices() -> None:
    text = CliRunner().invoke(app, ["init", "--help"], env={"COLUMNS": "80", "TERMINAL_WIDTH": "80"}).output
    assert all(len(line) <= 80 for line in text.splitlines())
    for shown in ("single-pass|k-core|none", "keep|first|last", "leave-one-out|time", "paper|5-core"):
        assert shown in text


class Counting(Reporter):
    """Keeps what each task was told."""

    def __init__(self) -> None:
        self.totals: list[int | None] = []
        self.done = 0

    def task(self, label: str, total: int | None = None, unit: str = "steps", done: int = 0) -> Task:
        self.totals.append(total)
        outer = self

        class Counted(Task):
            def advance(self, n: int = 1, **figures: float | str) -> None:
                assert n >= 0
                outer.done += n

        return Counted()


def test_reading_comes_to_the_size_that_was_announced_however_the_file_is_packed(tmp_path: Path) -> None:
    rng = random.Random(1)
    text = "\n".join("".join(rng.choices("abcdef0123456789", k=99)) for _ in range(40_000)).encode()
    plain, packed = tmp_path / "a_log.csv", tmp_path / "b_log.csv.gz"
    plain.write_bytes(text)
    packed.write_bytes(gzip.compress(text))
    files = {plain: plain_file(plain), packed: plain_file(packed)}
    for mode in ("w", "w:gz"):
        archive = tmp_path / f"a{len(mode)}.tar"
        with tarfile.open(archive, mode) as tar:
            tar.add(plain, "a_log.csv")
        files[archive] = find_files(archive, {"log": "a_.*"}, expected="")["log"]
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as made:
        made.write(plain, "a_log.csv")
    files[tmp_path / "a.zip"] = find_files(tmp_path / "a.zip", {"log": "a_.*"}, expected="")["log"]
    for path, file in files.items():
        report = Counting()
        assert sum(chunk.lines for chunk in line_chunks(file, report, size=1 << 20)) == 40_000
        size = path.stat().st_size if path in (plain, packed) else len(text)
        assert (report.totals, report.done) == ([size], size), path.name


def test_progress_says_rate_and_time_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("llmemb_cli.console.PLAIN_EVERY_SECONDS", 0.0)
    path = tmp_path / "log.csv"
    path.write_text("x" * 99 + "\n" + "y" * 99 + "\n")
    for _ in line_chunks(plain_file(path), PlainReporter(), size=100):
        pass
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("reading log.csv: 100 bytes of 200 bytes, ") and lines[0].endswith(" left")
    assert "/s, " in lines[0] and lines[-1].startswith("reading log.csv: 200 bytes in ")


def test_amounts_and_names_are_short_enough_to_read() -> None:
    assert [amount(n, "bytes") for n in (999, 66_632, 1_979_230, 5_300_000_000)] == [
        *("999 bytes", "66.6 kB", "2.0 MB", "5.3 GB")
    ]
    assert amount(12_345, "steps") == "12,345 steps"
    name = "reading yelp_academic_dataset_review.json"
    short = shortened(name, 24)
    assert len(short) == 24 and short.startswith("reading yelp") and short.endswith("review.json")
    assert shortened("short", 24) == "short"


@pytest.mark.parametrize("name", ["purchased_at", "order_date", "orderDate", "event.time", "Bought At"])
def test_a_column_that_is_called_as_times_are_is_taken_for_the_time(folder: Path, name: str) -> None:
    lines = (folder / LOG).read_text().replace("timestamp", name).splitlines()
    (folder / LOG).write_text("\n".join([lines[0], *sorted(lines[1:], key=lambda line: line[::-1])]) + "\n")
    done = own()
    assert done.exit_code == 0 and "--time-column" not in done.stderr
    log = pl.read_parquet(folder / "w" / "data" / "interactions.parquet")
    assert log["timestamp"].min() >= 1_600_000_000  # type: ignore[operator]
    assert all(
        times.is_sorted()
        for times in log.partition_by("user_id", as_dict=True).values()
        for times in [times["timestamp"]]
    )


def test_attributes_that_count_interest_stay_out_of_prompts(folder: Path) -> None:
    counts = ["units_sold", "viewsLastMonth", "clicks", "Sales Rank 2020", "review_count"]
    kept = ["title", "brand", "sea_view", "soldering_iron", "platform"]
    rows = [",".join([f"i{n}", *("x" for _ in (*kept, *counts))]) for n in range(120)]
    (folder / "items.csv").write_text("\n".join([",".join(["item_id", *kept, *counts]), *rows]))
    assert own().exit_code == 0
    stats = json.loads((folder / "w" / "data" / "stats.json").read_text())
    assert stats["attributes"] == kept and stats["leaking"] == counts


def test_a_split_without_anybody_to_test_is_refused_with_the_span_of_the_data(folder: Path) -> None:
    split = ("--split", "time", "--valid-from", "2030-01-01", "--test-from", "2031-01-01")
    done = own(*split)
    assert done.exit_code == 4 and "no user is left with an item to test on" in done.stderr
    assert "2020-09" in done.stderr and "2021-09" in done.stderr and not (folder / "w").exists()
    assert own(*split, "--force").exit_code == 0


def test_a_column_that_orders_nothing_is_warned_of(folder: Path) -> None:
    assert "time of the one before" not in own().stderr
    (folder / LOG).write_text(
        "user_id,item_id,quantity\n" + "".join(f"u{n % 130},i{n % 119},{n % 2}\n" for n in range(900))
    )
    done = own("--time-column", "quantity", name="v")
    assert done.exit_code == 0 and "100% of users' interactions have the time of the one before" in done.stderr


def test_times_that_cannot_be_read_are_answered_with_the_forms_that_can(folder: Path) -> None:
    lines = ["user_id,item_id,date", *(f"u{n % 130},i{n % 119},13/05/{2000 + n % 20}" for n in range(900))]
    (folder / LOG).write_text("\n".join(lines))
    done = own()
    assert done.exit_code == 4 and "dates such as 2014-05-13" in done.stderr
