"""A disk that is full, files that may not be read, folders that may not be written: told, and nothing left."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from llmemb_cli.errors import LlmembError
from llmemb_cli.workspace import store
from tests.dataset_fixtures import prepare, write_files
from tests.yelp_records import YELP_2020

REVIEWS = "yelp_academic_dataset_review.json"
WRITTEN = [
    *(".llmemb.lock.json", "llmemb.toml", "partial.json", "rejected.jsonl", "items.parquet", "interactions.parquet"),
    *("stats.json", "card.md", "manifest.json"),
]


@pytest.mark.parametrize("name", WRITTEN)
def test_no_space_left_is_told_and_nothing_half_made_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    folder = write_files(tmp_path / "in", YELP_2020 | {REVIEWS: YELP_2020[REVIEWS] + b"bad\n"})
    make = tempfile.mkstemp
    # /dev/full answers every write as a full disk does: the errors are those of the system and of the libraries.

    def full(*, dir: Path, prefix: str, suffix: str) -> tuple[int, str]:
        handle, path = make(dir=dir, prefix=prefix, suffix=suffix)
        if prefix == f".{name}.":
            Path(path).unlink()
            Path(path).symlink_to("/dev/full")
        return handle, path

    monkeypatch.setattr(store.tempfile, "mkstemp", full)
    with pytest.raises(LlmembError, match="no space left on the device") as caught:
        prepare(tmp_path / "ws", "yelp", source=folder)
    assert name in str(caught.value.where) and "free some space" in str(caught.value.hint)
    assert caught.value.exit_code == 1 and sorted(path.name for path in tmp_path.iterdir()) == ["in"]
    monkeypatch.undo()
    assert len(prepare(tmp_path / "ws", "yelp", source=folder).log) == 3


@contextmanager
def as_nobody() -> Iterator[None]:
    """Without root's right to read and write everything."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder that every user may look into; pytest's own are for one user."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o700)
    shutil.rmtree(folder)


def closed_file(folder: Path) -> None:
    (folder / REVIEWS).chmod(0)


def closed_folder(folder: Path) -> None:
    folder.chmod(0)


def blind_folder(folder: Path) -> None:
    folder.chmod(0o444)


@pytest.mark.parametrize("close", [closed_file, closed_folder, blind_folder])
def test_no_permission_to_read_is_told(shared: Path, close: Callable[[Path], None]) -> None:
    folder = write_files(shared / "in", YELP_2020)
    out = shared / "out"
    out.mkdir()
    out.chmod(0o777)
    prepare(shared / "warm", "yelp", source=folder)  # what is imported later cannot be as nobody
    custom_log = write_files(shared / "in", {"log.csv": b"user_id,item_id\nu,i\n"}) / "log.csv"
    custom_log.chmod(0)
    close(folder)
    with (
        as_nobody(),
        pytest.raises(LlmembError, match=r"cannot (read|look into this folder): Permission denied") as caught,
    ):
        prepare(out / "ws", "yelp", source=folder)
    assert str(folder) in str(caught.value.where) and caught.value.exit_code == 1
    with as_nobody(), pytest.raises(LlmembError, match="Permission denied"):
        prepare(out / "ws", "custom", interactions=str(custom_log))
    assert not list(out.iterdir())


def test_no_permission_to_write_is_told(shared: Path) -> None:
    folder = write_files(shared / "in", YELP_2020)
    prepare(shared / "warm", "yelp", source=folder)
    (shared / "mine").mkdir(mode=0o755)
    with as_nobody(), pytest.raises(LlmembError, match="cannot make the workspace: Permission denied"):
        prepare(shared / "ws", "yelp", source=folder)
    (shared / "mine").chmod(0o555)
    with as_nobody(), pytest.raises(LlmembError, match=r"cannot (write|make|lock).*Permission denied") as caught:
        prepare(shared / "mine", "yelp", source=folder)
    assert str(shared / "mine") in str(caught.value.where)
    assert sorted(path.name for path in shared.iterdir()) == ["in", "mine", "warm"]
    assert not list((shared / "mine").iterdir())
