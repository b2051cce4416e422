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

MAX_BYTES = 2**30
"""The oldest entries beyond it are deleted; a program takes about 1 MB."""


def keep_compiled() -> None:
    """Turns the cache on, in `$XDG_CACHE_HOME/haepo_jax` (`~/.cache/haepo_jax`), where that can be written, in a folder for
    this kind of processor: what XLA compiles for one may not run on another that shares the home directory.

    Whatever the user has said counts: jax's own environment variables, of which JAX_ENABLE_COMPILATION_CACHE=false turns
    it off, or `jax.config` where jax is loaded already.
    """
    # A full disk or a damaged entry: jax then compiles, but would speak of it.
    warnings.filterwarnings("ignore", message="Error (reading|writing) persistent compilation cache entry")
    if "jax" in sys.modules or "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    directory = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "haepo_jax", _processor())
    try:
        directory = directory.expanduser().absolute()
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        _delete_oldest(directory)
    except (OSError, RuntimeError):  # RuntimeError: nobody's home directory is known
        return
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


def _delete_oldest(directory: Path) -> None:
    # jax's own bound needs a further package, and a lock for every read.
    entries = []
    for path in directory.glob("*-cache"):
        status = path.stat()
        entries.append((status.st_mtime, status.st_size, path))
    total = sum(size for _, size, _ in entries)
    for _, size, path in sorted(entries):
        if total <= MAX_BYTES:
            return
        path.unlink(missing_ok=True)
        total -= size
