"""Assets: resumed after a broken transfer, checked, cached, and an honest message when nothing can be reached."""

from __future__ import annotations

import hashlib
import http.server
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmemb_cli.assets.fetch import Asset, Source, _extract, cache_root, fetch
from llmemb_cli.errors import LlmembError, MissingError
from llmemb_cli.progress import Reporter

CONTENT = bytes(range(256)) * 8192


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves CONTENT with ranges; `/broken` cuts the first two transfers short."""

    requests: list[tuple[str, str | None]] = []  # noqa: RUF012

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        Handler.requests.append((self.path, wanted))
        if self.path == "/missing":
            self.send_error(404)
            return
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted else 0
        if start >= len(CONTENT):
            self.send_error(416)
            return
        body = CONTENT[start:]
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.path == "/broken" and len(Handler.requests) <= 2:
            body = body[: len(body) // 2]
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


@pytest.fixture
def server() -> Iterator[str]:
    Handler.requests = []
    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=running.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{running.server_address[1]}"
    running.shutdown()
    thread.join()
    running.server_close()


def asset(*sources: Source, sha256: str = hashlib.sha256(CONTENT).hexdigest()) -> Asset:
    return Asset("thing", "thing.bin", sha256, sources)


def test_fetched_once_and_then_from_the_cache(server: str) -> None:
    path = fetch(asset(Source("http", f"{server}/file")), Reporter())
    assert path.read_bytes() == CONTENT and path.is_relative_to(cache_root())
    assert fetch(asset(Source("http", f"{server}/file")), Reporter()) == path
    assert len(Handler.requests) == 1


def test_broken_transfer_goes_on_where_it_was(server: str) -> None:
    path = fetch(asset(Source("http", f"{server}/broken")), Reporter())
    assert path.read_bytes() == CONTENT
    starts = [int((r or "bytes=0-")[6:-1]) for _, r in Handler.requests]
    assert starts == [0, len(CONTENT) // 2, len(CONTENT) * 3 // 4]


def test_rest_of_an_earlier_process_is_used_and_a_wrong_rest_is_thrown_away(server: str) -> None:
    folder = cache_root() / "thing"
    folder.mkdir(parents=True)
    (folder / "thing.bin.part").write_bytes(CONTENT[:1000])
    assert fetch(asset(Source("http", f"{server}/file")), Reporter()).read_bytes() == CONTENT
    assert Handler.requests[-1][1] == "bytes=1000-"
    (folder / "thing.bin").unlink()
    (folder / "thing.bin.part").write_bytes(b"other" * 100)
    assert fetch(asset(Source("http", f"{server}/file")), Reporter()).read_bytes() == CONTENT


def test_damaged_cache_is_fetched_again(server: str) -> None:
    path = fetch(asset(Source("http", f"{server}/file")), Reporter())
    path.write_bytes(b"damaged")
    assert fetch(asset(Source("http", f"{server}/file")), Reporter()).read_bytes() == CONTENT


def test_next_source_is_tried_and_all_are_named_when_none_works(server: str, tmp_path: Path) -> None:
    own = tmp_path / "own.bin"
    own.write_bytes(CONTENT)
    good = asset(Source("http", f"{server}/missing"), Source("path", str(own)))
    assert fetch(good, Reporter()).read_bytes() == CONTENT
    (cache_root() / "thing" / "thing.bin").unlink()
    with pytest.raises(MissingError) as caught:
        fetch(asset(Source("http", f"{server}/missing"), Source("http", "http://127.0.0.1:9/x")), Reporter())
    assert f"{server}/missing" in caught.value.message and "http://127.0.0.1:9/x" in caught.value.message
    assert caught.value.where == str(cache_root() / "thing" / "thing.bin") and caught.value.exit_code == 3


def test_content_with_another_hash_is_refused_and_not_kept(server: str) -> None:
    with pytest.raises(MissingError, match="SHA-256"):
        fetch(asset(Source("http", f"{server}/file"), sha256="0" * 64), Reporter())
    assert not list(cache_root().rglob("*.bin*"))


def test_only_the_named_member_leaves_an_archive(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as archive:
        archive.writestr("../escape.txt", "bad")
        archive.writestr("good.txt", "good")
    target = tmp_path / "out" / "good.txt"
    target.parent.mkdir()
    _extract(tmp_path / "a.whl", "good.txt", target, hashlib.sha256(b"good").hexdigest())
    assert target.read_text() == "good" and not (tmp_path / "escape.txt").exists()
    with pytest.raises(LlmembError, match="has no"):
        _extract(tmp_path / "a.whl", "other.txt", target, "")
