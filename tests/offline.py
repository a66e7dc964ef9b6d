"""Commands run one after the other in a process whose connections all fail."""

from __future__ import annotations

import json
import os
import subprocess
import sys

SCRIPT = """
import json, socket, sys
def refuse(*args, **kwargs):
    raise SystemExit(f"reached for the network: {args}")
socket.socket.connect = socket.getaddrinfo = socket.create_connection = refuse
from llmemb_cli.__main__ import main
for command in json.loads(sys.argv[1]):
    sys.argv = ["llmemb", *command]
    try:
        main()
    except SystemExit as end:
        if end.code:
            raise
"""


def run_offline(commands: list[list[str]], **variables: str) -> subprocess.CompletedProcess[str]:
    """What the commands print; `variables` are set, those of the hub's library are not, unless given."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")} | variables
    arguments = [sys.executable, "-c", SCRIPT, json.dumps(commands)]
    return subprocess.run(arguments, capture_output=True, text=True, timeout=300, env=environment)
