"""What every command line shares: one-line errors with an exit status, and jax's persistent compilation cache."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import os
import platform
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from haepo_jax.envs import list_envs
from haepo_jax.runner.errors import FAILED, outcome
from haepo_jax.version import __version__

MAX_CACHE_BYTES = 2**30
"""Of compiled programs; each takes about 1 MB."""


def entry_point(
    help_text: Callable[[list[str]], str],
) -> Callable[[Callable[[list[str]], int]], Callable[[Sequence[str] | None], int]]:
    """Makes `main(argv) -> exit status` of a command; `argv` is `sys.argv[1:]` where it is None. With `--help`,
    `--version` or `--list-envs` among them, it prints that instead."""

    def decorate(command: Callable[[list[str]], int]) -> Callable[[Sequence[str] | None], int]:
        @functools.wraps(command)
        def main(argv: Sequence[str] | None = None) -> int:
            keep_compiled()
            arguments = list(sys.argv[1:] if argv is None else argv)
            try:
                status = 0
                if "--help" in arguments or "-h" in arguments:
                    print(help_text(arguments), end="")
                elif "--version" in arguments:
                    print(f"haepo_jax {__version__}")
                elif "--list-envs" in arguments:
                    print("\n".join(list_envs()))
                else:
                    status = command(arguments)
                sys.stdout.flush()
                return status
            except BrokenPipeError:
                # The reader (`| head`) has gone. Python would complain again when it flushes stdout at exit.
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                return FAILED
            except BaseException as error:
                if (known := outcome(error)) is None:
                    raise
                status, text = known
                print(text, file=sys.stderr)
                return status

        return main

    return decorate


def keep_compiled() -> None:
    """Turns jax's cache of compiled programs on, in `$XDG_CACHE_HOME/haepo_jax` (`~/.cache/haepo_jax`) if that can be
    written, in a folder for this kind of processor: what XLA compiles for one may not run on another with the same home.

    jax reads these settings from the environment when it is imported, and processes that a command starts inherit them.
    The user's own win: jax's environment variables, of which JAX_ENABLE_COMPILATION_CACHE=false turns it off, or
    `jax.config` where jax is loaded already. The key of a program covers its whole HLO, the compiler's options, the device
    and the versions, so a run is the same to the last bit with and without.
    """
    # A full disk or a damaged entry: jax then compiles, but would speak of it.
    warnings.filterwarnings("ignore", message="Error (reading|writing) persistent compilation cache entry")
    if "jax" in sys.modules or "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    with contextlib.suppress(OSError, RuntimeError):  # RuntimeError: nobody's home directory is known
        directory = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "haepo_jax", _processor())
        directory = directory.expanduser().absolute()
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        # The oldest programs go; jax's own bound needs a further package and a lock for every read.
        entries = sorted(directory.glob("*-cache"), key=lambda path: path.stat().st_mtime, reverse=True)
        for path, total in zip(entries, itertools.accumulate(path.stat().st_size for path in entries), strict=True):
            if total > MAX_CACHE_BYTES:
                path.unlink(missing_ok=True)
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
