"""Entry point: run the app with streams that never fail on a character, and end with the right exit code."""

from __future__ import annotations

import logging
import os
import sys
import warnings


def main() -> None:
    """The `llmemb` command."""
    for stream in (sys.stdout, sys.stderr):
        # A cp1252 console or an ASCII locale must not crash on an item's title.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Bars and chatter of libraries would break our own; LLMEMB_VERBOSE=1 lets them through.
    if not os.environ.get("LLMEMB_VERBOSE"):
        os.environ.setdefault("TQDM_DISABLE", "1")
        warnings.simplefilter("ignore")
        logging.getLogger("bitsandbytes").setLevel(logging.CRITICAL)
    try:
        from llmemb_cli.app import app

        app()
    except KeyboardInterrupt:
        # While modules are imported there is no command yet that says so.
        sys.exit(130)


if __name__ == "__main__":
    main()
