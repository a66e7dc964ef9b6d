"""Third-party progress bars and warnings stay off the terminal; ours say what matters."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Within the context transformers shows neither bars nor warnings."""
    from transformers.utils import logging as hf

    level = hf.get_verbosity()
    hf.set_verbosity_error()
    hf.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        hf.set_verbosity(level)


def import_bitsandbytes() -> bool:
    """Import bitsandbytes, which PEFT does anyway, so that it fetches nothing; whether it is here.

    On some processors it downloads a kernel from the hub and runs it when the package `kernels` is installed, and
    complains when that is not.
    """
    logger = logging.getLogger("bitsandbytes")
    level, kernels = logger.level, sys.modules.get("kernels")
    already = "bitsandbytes" in sys.modules
    try:
        logger.setLevel(logging.ERROR)
        if not already:
            sys.modules["kernels"] = None  # type: ignore[assignment]
        import bitsandbytes  # noqa: F401
    except ImportError:
        return False
    finally:
        logger.setLevel(level)
        if not already:
            sys.modules.pop("kernels")
            if kernels is not None:
                sys.modules["kernels"] = kernels
    return True
