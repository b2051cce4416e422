"""What an update costs, and so the wall-clock time to the threshold, of the methods that `tuned.py` compares.

    python experiments/replay/seconds.py

Run it on an otherwise idle machine. Each task's updates are timed in turns with the settings that each method chose there; steps
to the threshold are those of `tuned.json`. Writes `seconds.json`, a table and `seconds.png`, which has steps on one axis
and seconds on the other.
"""

from __future__ import annotations

import datetime
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import jax

import haepo_jax as hx
from haepo_jax.runner.comparison import machine

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[1] / "claims")]

from claims.catalogue import TASKS  # noqa: E402
from claims.report import median_interval, steps_to_threshold  # noqa: E402
from replay import tuned  # noqa: E402
from replay.run import DOCUMENT, as_result, observations  # noqa: E402
from tables import fill_in, markdown  # noqa: E402

RESULTS = Path(__file__).parent / "seconds.json"
FIGURE = Path(__file__).parent / "seconds.png"
COLOURS = {"softmax": "tab:red", "clip": "tab:blue", "no replay": "tab:gray"}
"""Of the methods that are timed; the other clips cost what the clip does."""
TABLE = "8 batches"
ROUNDS = 20


def program(task_name: str, method: str, settings: dict[str, Any]) -> tuple[Any, Any]:
    """The compiled update and a state after one to warm up."""
    task = TASKS[task_name]
    kind = tuned.METHODS[TABLE][method].kind
    env = hx.make_env(task.env, **task.env_kwargs)
    algo = kind(env, total_steps=task.total_steps, max_grad_norm=1.0, **settings, **observations(env))
    state = jax.jit(algo.init)(jax.random.key(0))
    step = jax.jit(lambda state: algo.train_step(state)[0], donate_argnums=0).lower(state).compile()
    return step, jax.block_until_ready(step(state))


def measure(task: str, runs: dict[str, Any]) -> dict[str, float]:
    """Median seconds of an update of each method, in turns."""
    programs = {m: program(task, m, runs[tuned.name_of(task, TABLE, m)]["settings"]) for m in COLOURS}
    seconds: dict[str, list[float]] = {method: [] for method in programs}
    for _ in range(ROUNDS):
        for method, (step, state) in programs.items():
            begin = time.perf_counter()
            programs[method] = (step, jax.block_until_ready(step(state)))
            seconds[method].append(time.perf_counter() - begin)
    return {method: round(statistics.median(values), 6) for method, values in seconds.items()}


def points(updates: dict[str, dict[str, float]], runs: dict[str, Any]) -> dict[tuple[str, str], tuple[float, float]]:
    """(task, method) -> median steps and seconds to the threshold; inf where half of the seeds never reach it."""
    found = {}
    for task, seconds in updates.items():
        for method, update in seconds.items():
            run = runs[tuned.name_of(task, TABLE, method)]
            steps = median_interval(steps_to_threshold(as_result(task, run)))[0]
            found[task, method] = steps, update * steps / (run["settings"]["num_envs"] * run["settings"]["num_steps"])
    return found


def table(updates: dict[str, dict[str, float]], runs: dict[str, Any]) -> str:
    found = points(updates, runs)
    rows = [
        [task, *(f"{1e3 * updates[task][m]:.1f}" for m in COLOURS), *(f"{found[task, m][1]:.2f}" for m in COLOURS)]
        for task in updates
    ]
    return markdown(["task", *(f"{m}: ms an update" for m in COLOURS), *(f"{m}: seconds" for m in COLOURS)], rows)


def draw(found: dict[tuple[str, str], tuple[float, float]]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6.5, 4.5), layout="constrained")
    markers = dict(zip(dict.fromkeys(task for task, _ in found), "os^Dv*", strict=True))
    for (task, method), point in found.items():
        axes.plot(*point, markers[task], color=COLOURS[method])
    for method, colour in COLOURS.items():
        axes.plot([], [], color=colour, linewidth=4, label=method)
    for task, marker in markers.items():
        axes.plot([], [], marker, color="black", label=task)
    axes.set(xscale="log", yscale="log", xlabel="environment steps to the threshold", ylabel="seconds on two CPU cores")
    axes.set_yticks([0.03, 0.1, 0.3])
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("")
    axes.legend(ncols=2, fontsize=8)
    figure.savefig(FIGURE, dpi=120)
    plt.close(figure)


def main() -> None:
    runs = tuned.known()["runs"]
    updates = {task: measure(task, runs) for half in tuned.HALVES for task in half}
    stored = {"machine": machine(), "jax": jax.__version__, "date": datetime.date.today().isoformat()}
    RESULTS.write_text(json.dumps({**stored, "update_seconds": updates}, indent=1) + "\n")
    fill_in(DOCUMENT, "seconds", table(updates, runs))
    draw(points(updates, runs))


if __name__ == "__main__":
    main()
