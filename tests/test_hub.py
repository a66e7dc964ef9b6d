"""Models from a hub or a mirror of it: fetched once, no login shown to a mirror, kind when it does not work."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from llmemb_cli.assets.catalogue import describe_model
from tests.offline import run_offline
from tests.tiny_llm import with_prompts
from tests.tiny_model import tiny_llama


class Mirror(http.server.BaseHTTPRequestHandler):
    """As much of a hub as one public model needs; notes what it is shown."""

    folder: Path
    seen: ClassVar[list[tuple[str, str | None]]] = []
    status = 200

    def _answer(self, body: bytes) -> None:
        type(self).seen.append((self.path, self.headers.get("Authorization")))
        if self.status != 200:
            self.send_response(self.status)
            if self.status == 403:
                self.send_header("X-Error-Code", "GatedRepo")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if self.path.startswith("/api/models/"):
            files = sorted(self.folder.iterdir())
            listed = [{"type": "file", "path": f.name, "size": f.stat().st_size, "oid": "b" * 40} for f in files]
            about = {"id": "me/tiny", "sha": "a" * 40, "siblings": [{"rfilename": f.name} for f in files]}
            data = json.dumps(listed if "/tree/" in self.path else about).encode()
        elif (self.folder / self.path.rsplit("/", 1)[-1]).is_file():
            data = (self.folder / self.path.rsplit("/", 1)[-1]).read_bytes()
        else:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("X-Repo-Commit", "a" * 40)
        self.send_header("ETag", hashlib.sha256(data).hexdigest())
        self.end_headers()
        if body:
            self.wfile.write(data)

    def do_GET(self) -> None:
        self._answer(b"yes")

    def do_HEAD(self) -> None:
        self._answer(b"")

    def log_message(self, *args: object) -> None:
        """Quiet."""


@pytest.fixture
def mirror(tmp_path: Path) -> Iterator[str]:
    Mirror.folder, Mirror.seen, Mirror.status = tiny_llama(tmp_path / "served"), [], 200
    (Mirror.folder / "consolidated.safetensors").write_bytes(b"the same weights again")
    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Mirror)
    thread = threading.Thread(target=running.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{running.server_address[1]}"
    running.shutdown()
    thread.join()
    running.server_close()


def fetch_command(home: Path, endpoint: str, **more: str) -> subprocess.CompletedProcess[str]:
    """`llmemb models me/tiny --fetch` as a person with a login for the hub runs it."""
    (home / "hf").mkdir(parents=True, exist_ok=True)
    (home / "hf" / "token").write_text("hf_login_for_the_real_hub")
    variables = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    variables |= {"HF_HOME": str(home / "hf"), "HF_ENDPOINT": endpoint, "LLMEMB_CACHE": str(home / "cache")} | more
    command = [sys.executable, "-m", "llmemb_cli", "models", "me/tiny", "--fetch", "--json"]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=variables)


def test_a_mirror_is_used_once_and_never_shown_the_login_of_the_hub(tmp_path: Path, mirror: str) -> None:
    done = fetch_command(tmp_path, mirror)
    assert done.returncode == 0, done.stdout + done.stderr
    entry = json.loads(done.stdout)
    assert entry["hidden_size"] == 64 and Path(entry["path"], "model.safetensors").is_file()
    assert not Path(entry["path"], "consolidated.safetensors").exists()
    assert Mirror.seen and {token for _, token in Mirror.seen} == {None}
    Mirror.seen.clear()
    # From now on nothing asks the hub or its mirror for anything, whatever is done with the model.
    workspace, _ = with_prompts(tmp_path / "ws", Path("me/tiny"), steps=1)
    at = ["-w", str(workspace.root)]
    commands = [["models", "me/tiny", "--fetch"], ["prompt", *at], ["scft", "--dry-run", *at], ["scft", *at]]
    done = run_offline([*commands, ["embed", *at]], HF_HOME=str(tmp_path / "hf"), HF_ENDPOINT=mirror)
    assert done.returncode == 0, done.stderr
    assert Mirror.seen == []


def test_a_token_set_by_the_user_goes_to_the_mirror(tmp_path: Path, mirror: str) -> None:
    assert fetch_command(tmp_path, mirror, HF_TOKEN="hf_for_the_mirror").returncode == 0
    assert "Bearer hf_for_the_mirror" in {token for _, token in Mirror.seen}


def test_a_gated_model_says_what_to_accept_and_set_and_where_to_put_files(tmp_path: Path, mirror: str) -> None:
    Mirror.status = 403
    done = fetch_command(tmp_path, mirror)
    assert done.returncode == 3
    error = json.loads(done.stdout)["error"]
    assert "gated" in error["message"] and "huggingface.co/me/tiny" in error["where"]
    assert "HF_TOKEN" in error["hint"] and str(tmp_path / "cache" / "models" / "me--tiny") in error["hint"]


def test_an_unreachable_hub_is_exit_code_3_with_a_way_by_hand(tmp_path: Path) -> None:
    done = fetch_command(tmp_path, "http://127.0.0.1:9")
    assert done.returncode == 3
    hint = json.loads(done.stdout)["error"]["hint"]
    assert "HF_ENDPOINT" in hint and "me--tiny" in hint


def test_doctor_reports_this_machine_and_what_is_here() -> None:
    shutil.copytree(tiny_llama(Path(os.environ["LLMEMB_CACHE"]) / "t"), describe_model("someone/llm")["by_hand"])
    command = [sys.executable, "-m", "llmemb_cli", "doctor", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert found["models_here"] == ["someone--llm"] and found["cache"]["path"] == os.environ["LLMEMB_CACHE"]
    assert found["machine"]["memory"] > found["machine"]["memory_available"] > 0
    assert found["packages"]["torch"] == torch.__version__
    assert {check["what"] for check in found["checks"] if check["works"]} >= {
        "cache can be written",
        "an LLM is here",
    }
