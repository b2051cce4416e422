"""Trains every environment of every installed library from the command line, for one update, and keeps the result.

    python experiments/environments/every_task.py
    python experiments/environments/every_task.py brax/ jumanji/Snake-v1

Names, or beginnings of names, limit it to those. The results replace earlier ones of the same tasks in
`every_task.json`, and `README.md` summarises them. The exit status is 1 if a task fails.
"""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import io
import json
import math
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax

from haepo_jax.envs import list_envs
from haepo_jax.envs.names import LIBRARIES
from haepo_jax.runner.commands.train import main as train

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

from tables import fill_in, markdown  # noqa: E402

RESULTS = Path(__file__).parent / "every_task.json"
DOCUMENT = Path(__file__).parent / "README.md"

SETTINGS = [
    "algo=haepo",
    "total_steps=32",
    "final_eval_episodes=2",
    "tensorboard=false",
    "algo.num_envs=4",
    "algo.num_steps=8",
    "algo.replay_batches=1",
    "algo.num_minibatches=1",
    "algo.num_epochs=1",
    "algo.log_points=1",
    "algo.eval_episodes=0",
]
METRICS = ("loss", "objective", "value_loss", "entropy", "kl", "grad_norm", "ess", "final_return_mean")


def library_of(task: str) -> str:
    """The prefix of the library of a task."""
    return task.partition("/")[0] if "/" in task else "gymnax"


def attempt(task: str) -> dict[str, Any]:
    """Trains one task; returns the date, the library's version, the CPU seconds, and what is wrong, or "" if nothing is."""
    start = time.process_time()
    short = ["env_kwargs.episode_length=4"] if library_of(task) in ("brax", "playground") else []
    said = io.StringIO()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        try:
            status = train([f"env={task}", *SETTINGS, *short, f"run_dir={folder}/run"])
            error = _objection(Path(folder, "run")) if status == 0 else said.getvalue().strip().rpartition("\n")[2]
        except Exception as failure:  # the other tasks still run
            error = f"{type(failure).__name__}: {failure}".partition("\n")[0]
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    library = library_of(task)
    package = library if library in LIBRARIES else "haepo-jax"
    seconds = round(time.process_time() - start, 1)
    return {"date": today, "version": importlib.metadata.version(package), "cpu_seconds": seconds, "error": error}


def _objection(run: Path) -> str:
    row = json.loads((run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[0])
    row["final_return_mean"] = json.loads((run / "summary.json").read_text(encoding="utf-8"))["final_return_mean"]
    if row["invalid_episodes"]:
        return f"{row['invalid_episodes']:g} invalid episodes"
    wrong = [name for name in METRICS if not math.isfinite(row[name])]
    return f"not finite: {', '.join(wrong)}" if wrong else ""


def table(done: dict[str, Any]) -> str:
    """One row per library: its version, how many of its tasks trained, and when."""
    rows = []
    for library in dict.fromkeys(library_of(task) for task in done):
        found = [result for task, result in done.items() if library_of(task) == library]
        trained = sum(not result["error"] for result in found)
        dates, versions = (sorted({result[name] for result in found}) for name in ("date", "version"))
        seconds = sum(result["cpu_seconds"] for result in found)
        rows.append([library, ", ".join(versions), f"{trained} of {len(found)}", ", ".join(dates), f"{seconds:.0f}"])
    return markdown(["library", "version", "tasks trained", "date", "CPU seconds"], rows)


def main() -> int:
    # Each program runs for milliseconds: optimising it would take most of the time.
    os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
    wanted = tuple(sys.argv[1:])
    tasks = [task for task in list_envs() if not wanted or task.startswith(wanted)]
    done: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    for task in tasks:
        done[task] = attempt(task)
        ordered = {name: done[name] for name in list_envs() if name in done}
        RESULTS.write_text(json.dumps(ordered, indent=1) + "\n", encoding="utf-8")
        fill_in(DOCUMENT, "every_task", table(ordered))
        print(f"{task}: {done[task]['error'] or 'ok'} ({done[task]['cpu_seconds']} s)", flush=True)
        jax.clear_caches()
    return int(any(done[task]["error"] for task in tasks))


if __name__ == "__main__":
    sys.exit(main())
