"""MovieLens: 100K, 1M, latest-small and 32M, as GroupLens ships them and as RecBole carries them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from llmemb_cli.assets.fetch import Asset
from llmemb_cli.datasets.presets import PRESETS
from llmemb_cli.datasets.readers import movielens
from llmemb_cli.errors import BadDataError, WrongUseError
from llmemb_cli.progress import Reporter
from tests.dataset_fixtures import prepare, tar_of, write_files, zip_of
from tests.movielens_records import ML_1M, ML_100K, latest

FILMS = "The movie item has the following attributes:\n"
EDITIONS = {"ml-100k": ML_100K, "ml-1m": ML_1M} | {name: latest(name) for name in ("ml-latest-small", "ml-32m")}


def test_100k_has_latin_1_titles_and_genre_flags(tmp_path: Path) -> None:
    (tmp_path / "ml-100k.zip").write_bytes(zip_of(ML_100K))
    data = prepare(tmp_path / "ws", "ml-100k", source=tmp_path / "ml-100k.zip")
    assert data.rows() == [
        *(("196", "1412", 878887116), ("196", "1", 881250949)),
        *(("186", "302", 891717742), ("186", "543", 891717742)),
    ]
    assert data.log["rating"].to_list() == [1, 3, 3, 5]
    assert data.prompts() == {
        "1": FILMS + "title is Toy Story; year is 1995; genres is Animation, Children's, Comedy",
        "302": FILMS + "title is L.A. Confidential; year is 1997; genres is Crime, Film-Noir, Mystery, Thriller",
        "543": FILMS + "title is Misérables, Les; year is 1995; genres is Drama, Musical",
        "1412": FILMS + "title is Land Before Time III: The Time of the Great Giving; year is 1995; "
        "genres is Animation, Children's",
    }
    assert data.stats["rows_read"] == {"u.item": 5, "u.data": 4}
    assert data.stats["items_without_interactions"] == 1 and data.stats["rejected"] == 0
    assert data.accounts_for_every_row()


def test_1m_separates_by_two_colons(tmp_path: Path) -> None:
    data = prepare(tmp_path / "ws", "ml-1m", source=write_files(tmp_path / "in", ML_1M))
    assert data.rows() == [
        *(("1", "1193", 978300760), ("1", "73", 978302109)),
        *(("2", "1193", 978298413), ("2", "1", 978298413)),
    ]
    assert data.prompts() == {
        "1": FILMS + "title is Toy Story; year is 1995; genres is Animation, Children's, Comedy",
        "73": FILMS + "title is Misérables, Les; year is 1995; genres is Drama, Musical",
        "1193": FILMS + "title is One Flew Over the Cuckoo's Nest; year is 1975; genres is Drama",
    }
    assert data.accounts_for_every_row()


@pytest.mark.parametrize("name", ["ml-latest-small", "ml-32m"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_csv_editions_quote_titles(tmp_path: Path, name: str, line_end: str) -> None:
    (tmp_path / "in.zip").write_bytes(zip_of(latest(name, line_end)))
    data = prepare(tmp_path / "ws", name, source=tmp_path / "in.zip")
    assert data.items.select("item_id", "title", "year", "genres").rows() == [
        ("1", "Toy Story", "1995", "Adventure, Animation, Children, Comedy, Fantasy"),
        ("11", "American President, The", "1995", "Comedy, Drama, Romance"),
        ("100553", '"Great Performances" Cats', "1998", "Musical"),
        ("108583", "Fawlty Towers", "1975", "Comedy"),
        ("82684", "Trinity and Sartana Are Coming (Trinità e Sartana figli di...)", "1972", "Comedy, Western"),
        ("140956", "Ready Player One", None, "Action, Sci-Fi, Thriller"),
        ("147250", "The Adventures of Sherlock Holmes and Doctor Watson", None, None),
        ("40697", "Babylon 5", None, "Sci-Fi"),
    ]
    assert data.log["rating"].to_list() == [0.5, 5, 4, 3.5, 1, 2, 3, 2.5]
    assert data.rows()[0] == ("1", "11", 964981247)
    assert data.prompts()["147250"] == FILMS + "title is The Adventures of Sherlock Holmes and Doctor Watson"
    assert data.accounts_for_every_row() and data.stats["rejected"] == 0


@pytest.mark.parametrize("name", EDITIONS)
@pytest.mark.parametrize("form", ["folder", "zip", "tgz", "file"])
def test_every_form_gives_the_same(tmp_path: Path, name: str, form: str) -> None:
    files = EDITIONS[name]
    folder = write_files(tmp_path / "in", files)
    (tmp_path / "in.zip").write_bytes(zip_of(files))
    (tmp_path / "in.tgz").write_bytes(tar_of(files, "gz"))
    first = folder / next(iter(files))
    source = {"folder": folder, "zip": tmp_path / "in.zip", "tgz": tmp_path / "in.tgz", "file": first}[form]
    expected, data = prepare(tmp_path / "a", name, source=folder), prepare(tmp_path / "b", name, source=source)
    assert data.log.equals(expected.log) and data.items.equals(expected.items)
    assert data.stats["source"]["edition"] == f"{name}, GroupLens"


def test_recbole_tables_of_100k_are_taken_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tables = {
        "ml-100k.inter": b"user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
        b"196\t1\t3\t881250949\n186\t302\t3\t891717742\n196\t543\t1\t878887116\n",
        "ml-100k.item": "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
        "1\tToy Story\t1995\tAnimation Children's Comedy\n"
        "302\tL.A. Confidential\t1997\tCrime Film-Noir Mystery Thriller\n"
        "543\tMisérables, Les\t1995\tDrama Musical\n".encode(),
    }
    folder = write_files(tmp_path / "in", tables)
    data = prepare(tmp_path / "ws", "ml-100k", source=folder)
    assert data.prompts() == {
        "1": FILMS + "title is Toy Story; year is 1995; genres is Animation, Children's, Comedy",
        "302": FILMS + "title is L.A. Confidential; year is 1997; genres is Crime, Film-Noir, Mystery, Thriller",
        "543": FILMS + "title is Misérables, Les; year is 1995; genres is Drama, Musical",
    }
    assert data.rows() == [("196", "543", 878887116), ("196", "1", 881250949), ("186", "302", 891717742)]
    # Without a source they come out of the wheel, into the cache.
    fetched: list[str] = []
    monkeypatch.setattr(movielens, "fetch", fake_fetch(folder, fetched))
    same = prepare(tmp_path / "fetched", "ml-100k")
    assert same.log.equals(data.log) and fetched == ["ml-100k.inter", "ml-100k.item"]
    assert same.stats["source"]["edition"] == "1998, as carried by RecBole 1.2.1"


def fake_fetch(folder: Path, fetched: list[str]) -> Callable[[Asset, Reporter], Path]:
    def fetch(asset: Asset, report: Reporter) -> Path:
        fetched.append(asset.filename)
        return folder / asset.filename

    return fetch


def test_zip_is_fetched_and_read_where_it_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ml-1m.zip").write_bytes(zip_of(ML_1M))
    fetched: list[str] = []
    monkeypatch.setattr(movielens, "fetch", fake_fetch(tmp_path, fetched))
    data = prepare(tmp_path / "ws", "ml-1m")
    assert len(data.log) == 4 and fetched == ["ml-1m.zip"]
    assert [entry["name"] for entry in data.stats["source"]["files"]] == ["ml-1m.zip"]


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    folder = write_files(tmp_path / "in", {"ml-1m/movies.dat": ML_1M["ml-1m/movies.dat"]})
    with pytest.raises(WrongUseError, match=r"no file with the ratings there \(movies.dat\)") as caught:
        prepare(tmp_path / "ws", "ml-1m", source=folder)
    assert "ml-1m.zip, or its folder with ratings.dat and movies.dat" in str(caught.value.hint)
    with pytest.raises(WrongUseError, match="no such file or folder"):
        prepare(tmp_path / "ws", "ml-1m", source=tmp_path / "nowhere.zip")
    with pytest.raises(WrongUseError, match="no file with the ratings and the films"):
        (tmp_path / "other.zip").write_bytes(zip_of(ML_100K))
        prepare(tmp_path / "ws", "ml-1m", source=tmp_path / "other.zip")


@pytest.mark.parametrize("name", EDITIONS)
def test_empty_and_damaged_files_are_named(tmp_path: Path, name: str) -> None:
    files = EDITIONS[name]
    films = movielens.EDITIONS[name].movies
    emptied = {path: b"" if path.endswith(films) else content for path, content in files.items()}
    with pytest.raises((WrongUseError, BadDataError), match=r"empty|no rows"):
        prepare(tmp_path / "ws", name, source=write_files(tmp_path / "in", emptied))
    (tmp_path / "cut.zip").write_bytes(zip_of(files)[:-30])
    with pytest.raises(BadDataError, match="damaged or cut off"):
        prepare(tmp_path / "ws", name, source=tmp_path / "cut.zip")


@pytest.mark.parametrize(
    ("name", "bad", "reason"),
    [
        ("ml-100k", b"196\t1\t3\n", "unreadable line: 3 fields where the header has 4"),
        ("ml-100k", b"196\t1\t3\t88125", None),
        ("ml-1m", b"1::1193::5::978300760::\n", "unreadable line: 5 fields where the header has 4"),
        ("ml-1m", b"1::11\x00::5::978300760\n", "unreadable line: NUL byte"),
        ("ml-1m", b"1::9999::5::978300760\n", "unknown item"),
        ("ml-32m", b"1,1,\n", "unreadable line: 3 fields where the header has 4"),
        ("ml-32m", b'1,"1,4.0,964982703\n', "unreadable line: a quote is never closed"),
        ("ml-32m", b"1,1,four,964982703\n", "rating is not a number"),
        ("ml-latest-small", b"1,1,\xff,964982703\n", "unreadable line: not UTF-8"),
        ("ml-latest-small", b",1,4,964982703\n", "no user id"),
    ],
)
def test_a_bad_line_costs_itself_alone(tmp_path: Path, name: str, bad: bytes, reason: str | None) -> None:
    files = dict(EDITIONS[name])
    ratings = next(path for path in files if path.endswith(movielens.EDITIONS[name].ratings))
    whole = prepare(tmp_path / "whole", name, source=write_files(tmp_path / "in", files))
    files[ratings] += bad
    data = prepare(tmp_path / "ws", name, source=write_files(tmp_path / "bad", files))
    rows = len(whole.log)
    if reason is None:
        assert len(data.log) == rows + 1  # a time cut short is a time all the same
    else:
        header = 1 if ratings.endswith(".csv") else 0
        assert [(r["line"], r["reason"]) for r in data.rejects] == [(rows + header + 1, reason)]
        assert data.log.equals(whole.log)
    assert data.accounts_for_every_row()


def test_pinned_hashes_are_sha256_and_every_zip_has_two_sources() -> None:
    for name in ("ml-1m", "ml-latest-small", "ml-32m"):
        (asset,) = PRESETS[name].assets
        assert len(asset.sha256) == 64 and len({source.address for source in asset.sources}) == 2
        # What comes over plain http is not to be trusted without its hash.
        assert {source.address.split(":")[0] for source in asset.sources} == {"https", "http"}
