"""What every test shares: no colour, no hub, no cache but its own, and no connection beyond loopback."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# A busy machine must not fail a test: what is asserted is behaviour, never time.
# With CI set every run meets the same examples, so that what fails is due to the change. `--hypothesis-profile soak`
# looks for rare ones.
PATIENT = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("llmemb", **PATIENT, derandomize=bool(os.environ.get("CI")))
settings.register_profile("soak", **PATIENT, max_examples=3000)
settings.load_profile("llmemb")

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["NO_COLOR"] = "1"
os.environ.pop("LLMEMB_WORKSPACE", None)


@pytest.fixture(autouse=True)
def only_loopback(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A test that reaches for the network fails, wherever it runs."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: object) -> None:
        host = address[0] if isinstance(address, tuple) else "local"
        if host not in ("127.0.0.1", "::1", "localhost", "local"):
            raise AssertionError(f"a test tried to reach {host}")
        connect(self, address)  # type: ignore[arg-type]

    monkeypatch.setattr(socket.socket, "connect", guarded)
    yield


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Downloads and converted models of a test stay out of the user's cache."""
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("LLMEMB_CACHE", str(cache))
    return cache
