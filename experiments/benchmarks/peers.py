"""The other libraries: each in a virtual environment of its own, for they need different versions of jax and gymnax."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]

PACKAGES = {
    "rejax": ("rejax==0.1.3", "gymnax<1", "six"),
    "brax": ("brax", "jax<0.9"),
    # The exact version finds PyPI's own file for the CPU; any other brings gigabytes for a GPU.
    "sb3": ("torch==2.13.0", "stable-baselines3"),
}


def interpreter(side: str) -> str:
    """Python with the library of a side: this one for ours, else that of an environment, which is made at its first
    use in `$XDG_CACHE_HOME/haepo_jax_benchmarks`."""
    if side not in PACKAGES:
        return sys.executable
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "haepo_jax_benchmarks"
    folder, done = cache / side, cache / f"{side}.json"
    python = folder / "bin" / "python"
    if not done.exists() or json.loads(done.read_text()) != list(PACKAGES[side]):
        print(f"installing {', '.join(PACKAGES[side])} in {folder}", file=sys.stderr, flush=True)
        venv.create(folder, clear=True, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *PACKAGES[side]], check=True)
        done.write_text(json.dumps(PACKAGES[side]))
    return str(python)


def environment(side: str, **changes: str) -> dict[str, str]:
    """Of a process of that side: the CPU, no compilation cache but one that is asked for, and ours in this checkout."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("JAX_") and key != "PYTHONPATH"}
    ours = {} if side in PACKAGES else {"PYTHONPATH": str(REPOSITORY)}
    return kept | {"JAX_PLATFORMS": os.environ.get("JAX_PLATFORMS", "cpu")} | ours | changes


class Worker:
    """A process of one side that waits for requests; see `worker.py`."""

    def __init__(self, side: str) -> None:
        self.side = side
        self.process = subprocess.Popen(
            [interpreter(side), str(HERE / "worker.py"), "serve", side],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment(side, JAX_ENABLE_COMPILATION_CACHE="false"),
        )
        self.versions = self._read()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def ask(self, **request: Any) -> Any:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return self._read()

    def _read(self) -> Any:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):  # some libraries speak on standard output
                return json.loads(line)
        raise RuntimeError(f"the process of {self.side} ended with exit status {self.process.wait()}")
