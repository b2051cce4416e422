"""jax's persistent compilation cache, for command lines: what one command has compiled, the next one reads.

Nothing here imports jax: it takes these settings from the environment when it is imported, and processes that a command
starts inherit them. The key of a program is made of its whole HLO, the compiler's options, the device and the versions,
and what is read is the very executable that was written, so a run is the same to the last bit with and without.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import sys
import warnings
from pathlib import Path


def keep_compiled() -> None:
    """Turns the cache on, in `$XDG_CACHE_HOME/haepo_jax` (`~/.cache/haepo_jax`) if that can be written, in a folder for
    this kind of processor: what XLA compiles for one may not run on another that shares the home directory.

    The user's own settings win: jax's environment variables, of which JAX_ENABLE_COMPILATION_CACHE=false turns it off, or
    `jax.config` where jax is loaded already.
    """
    # A full disk or a damaged entry: jax then compiles, but would speak of it.
    warnings.filterwarnings("ignore", message="Error (reading|writing) persistent compilation cache entry")
    if "jax" in sys.modules or "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    with contextlib.suppress(OSError, RuntimeError):  # RuntimeError: nobody's home directory is known
        directory = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "haepo_jax", _processor())
        directory = directory.expanduser().absolute()
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if os.access(directory, os.W_OK | os.X_OK):
            os.environ["JAX_COMPILATION_CACHE_DIR"] = str(directory)
            # Programs that compile in less than jax's second are many, and are seconds together.
            os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")


def _processor() -> str:
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        features = next(line for line in lines if line.startswith(("flags", "Features")))
        return f"{platform.machine()}-{hashlib.sha256(features.encode()).hexdigest()[:8]}"
    return platform.machine()
