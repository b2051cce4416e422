"""Replay with equal freedom: softmax, clips and PPO without replay each choose their settings on each task.

    python experiments/replay/tuned.py [tasks=cartpole,pendulum] [tables="8 batches"] [part=tuning] [share=0/4]

Learning rate, entropy, discount, lambda and KL penalty are drawn alike for all methods and all tasks, beside each one's own
bound: 32 configurations of every method on each buffer, 64 of PPO without replay. Whichever has the best mean curve over
three seeds is trained with twenty others. `tuned.json` is written after every program and what it holds is not trained again,
so the command can be stopped and started at any time, and several of it can share the work. The tuning is meant for a GPU,
where 96 runs in one program take as long as one; its two parts can run on different machines. `settings/` holds what each
method chose, for `python -m haepo_jax.train --config`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import fcntl
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import yaml

import haepo_jax as hx
from haepo_jax.runner.run_dir import write_atomically
from haepo_jax.statistics import interquartile_mean, probability_of_improvement

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[1] / "claims")]

from claims.catalogue import TASKS  # noqa: E402
from claims.report import mean_scores, scores, steps_to_threshold, stratified_interval  # noqa: E402
from replay.run import DOCUMENT, POINTS, SEEDS, as_result, earlier, observations, stored, summarised  # noqa: E402
from tables import fill_in, markdown  # noqa: E402

RESULTS = Path(__file__).parent / "tuned.json"
SETTINGS = Path(__file__).parent / "settings"
TUNING_SEEDS = range(300, 303)
ORDER = (
    "cartpole", "pendulum", "bandit", "acrobot", "catch", "four_rooms", "bandit_100", "random_walk", "mountain_car",
    "mountain_car_continuous", "random_walk_50",
)  # fmt: skip
"""Tasks in the order in which they are trained. The inverted pendulum is left out: on a GPU, a step of Brax is thousands of
kernels."""


@dataclasses.dataclass(frozen=True)
class Method:
    """What is compared: the algorithm, the setting of its own bound, and the shapes that its configurations are divided among."""

    kind: type
    bound: str
    shapes: tuple[dict[str, Any], ...]
    configurations: int = 32

    def rows(self, shape: int) -> list[int]:
        """The configurations of a shape, as rows of `draws`: the first two are usual values, the others its own share."""
        each = self.configurations // len(self.shapes)
        return [0, 1, *range(2 + shape * (each - 2), (shape + 1) * (each - 2) + 2)]


EIGHT = {"num_envs": 8, "num_steps": 32, "replay_batches": 8, "num_epochs": 4, "num_minibatches": 16}
FRESH: tuple[dict[str, Any], ...] = (
    {"num_envs": 8, "num_steps": 32, "num_epochs": 16, "num_minibatches": 4},
    {"num_envs": 8, "num_steps": 128, "num_epochs": 16, "num_minibatches": 8},
    {"num_envs": 8, "num_steps": 32, "num_epochs": 4, "num_minibatches": 4},
    {"num_envs": 32, "num_steps": 128, "num_epochs": 10, "num_minibatches": 16},
)


METHODS: dict[str, dict[str, Method]] = {
    "8 batches": {
        "softmax": Method(hx.HAEPO, "temperature", ({**EIGHT, "group_size": 4},)),
        "clip": Method(hx.PPO, "clip_eps", (EIGHT,)),
        "clip, V-trace": Method(hx.PPO, "clip_eps", ({**EIGHT, "advantage_estimator": "vtrace"},)),
        "clip around current": Method(hx.PPO, "clip_eps", ({**EIGHT, "clip_around": "current"},)),
        "no replay": Method(hx.PPO, "clip_eps", FRESH, 64),
    },
}
"""By the table in which they are compared."""
HALVES = ["cartpole", "pendulum", "acrobot", "random_walk"], ["bandit", "catch", "four_rooms", "bandit_100"]
"""The tasks on which all methods are compared, halved for one configuration for several tasks. HAEPO's defaults were found on the
first half, among others."""
USUAL: tuple[dict[str, float], ...] = (
    {"learning_rate": 2e-3, "entropy_coef": 0.01, "discount": 0.99, "gae_lambda": 0.95, "kl_coef": 0.3},
    {"learning_rate": 1e-3, "entropy_coef": 0.01, "discount": 0.99, "gae_lambda": 0.95, "kl_coef": 0.0},
)
"""The first two configurations: HAEPO's defaults and PPO's former ones."""
OWN = {"temperature": (0.03, 3.0, 0.3), "clip_eps": (0.05, 1.0, 0.2)}
"""Lowest value, highest value, and that of the first two configurations."""


def draws(bound: str) -> dict[str, np.ndarray]:
    """All configurations, as columns. Methods differ in the bound alone."""
    generator, size = np.random.default_rng(0), 64
    kl = np.exp(generator.uniform(np.log(0.03), np.log(1.0), size))
    columns = {
        "learning_rate": np.exp(generator.uniform(np.log(3e-4), np.log(1e-2), size)),
        "entropy_coef": generator.choice([0.0, 0.003, 0.01, 0.03], size),
        "discount": generator.choice([0.95, 0.97, 0.99], size),
        "gae_lambda": generator.choice([0.8, 0.9, 0.95, 0.98], size),
        "kl_coef": np.where(generator.random(size) < 1 / 3, 0.0, kl),
    }
    low, high, usual = OWN[bound]
    columns[bound] = low * (high / low) ** generator.random(size)
    for row, values in enumerate(USUAL):
        for name, value in {**values, bound: usual}.items():
            columns[name][row] = value
    return {name: np.asarray(column, np.float32) for name, column in columns.items()}


@contextlib.contextmanager
def alone(name: str) -> Iterator[None]:
    """Waits until no other process of this machine is within a block of this name."""
    with open(Path(tempfile.gettempdir()) / f"haepo_jax-tuned-{name}.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def curves(task_name: str, method: Method, shape: int, rows: list[int], seeds: range, points: int) -> dict[str, Any]:
    """Evaluation returns (configurations, seeds, points) and their steps, from one compiled program."""
    task, begin = TASKS[task_name], time.perf_counter()
    env = hx.make_env(task.env, **task.env_kwargs)
    algo = method.kind(
        env, total_steps=task.total_steps, max_grad_norm=1.0, log_points=points, eval_episodes=16,
        **method.shapes[shape], **observations(env),
    )  # fmt: skip

    def run(values: dict[str, jax.Array], key: jax.Array) -> Any:
        metrics = algo.replace(**values).train(key)[1]
        return metrics["eval_return"], metrics["env_steps"]

    columns = {name: jnp.asarray(column[rows]) for name, column in draws(method.bound).items()}
    keys = jax.vmap(jax.random.key)(np.array(seeds, np.uint32))
    program = jax.jit(jax.vmap(jax.vmap(run, (None, 0)), (0, None))).lower(columns, keys).compile()
    # Programs of several processes would only slow one another down on an accelerator; they compile meanwhile.
    with alone("device") if jax.default_backend() != "cpu" else contextlib.nullcontext():
        started = time.perf_counter()
        returns, steps = jax.device_get(program(columns, keys))
    return {
        "returns": [[[float(f"{x:.4g}") if np.isfinite(x) else None for x in row] for row in rows] for rows in returns],
        "env_steps": steps.to_int()[0, 0].tolist(),
        "seconds": round(time.perf_counter() - started, 1),
        "seconds_compiling": round(started - begin, 1),
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "date": datetime.date.today().isoformat(),
    }


def tune(task: str, method: Method, shape: int) -> dict[str, Any]:
    """The mean score of every configuration of a shape, a mean over its rows."""
    found = curves(task, method, shape, method.rows(shape), TUNING_SEEDS, POINTS // 2)
    steps = found.pop("env_steps")
    means = [scores(as_result(task, {"eval_return": some, "env_steps": steps})).mean() for some in found.pop("returns")]
    return {"scores": [round(float(mean), 4) for mean in means], **found}


def name_of(task: str, table: str, method: str, shape: int | None = None) -> str:
    """In the results: of what a method chose, or with a shape, of the tuning."""
    return f"{task}, {table}, {method}" + ("" if shape is None else f", shape {shape}")


def chosen(results: dict[str, Any], task: str, table: str, method: str) -> tuple[int, int, float] | None:
    """The best shape, its best row of `draws`, and their score; None while the tuning is not complete."""
    known = METHODS[table][method]
    found = [results["tuning"].get(name_of(task, table, method, shape)) for shape in range(len(known.shapes))]
    if None in found:
        return None
    score, shape, place = max(
        (s, shape, place) for shape, one in enumerate(found) for place, s in enumerate(one["scores"])
    )
    return shape, known.rows(shape)[place], score


def final(task: str, table: str, method: str, shape: int, row: int) -> dict[str, Any]:
    """The chosen configuration with the seeds of the table."""
    known = METHODS[table][method]
    found = curves(task, known, shape, [row], SEEDS, POINTS)
    values = {name: float(f"{column[row]:.4g}") for name, column in draws(known.bound).items()}
    return {"settings": {**known.shapes[shape], **values}, "eval_return": found.pop("returns")[0], **found}


def settings_file(task_name: str, table: str, method: str, found: dict[str, Any]) -> tuple[str, str]:
    """The name and the content of a file of settings that `--config` reads."""
    task, kind = TASKS[task_name], METHODS[table][method].kind
    values = dict(found["settings"])
    if kind is hx.PPO and not values["kl_coef"]:
        del values["kl_coef"]
    name = "haepo" if kind is hx.HAEPO else "ppo"
    content: dict[str, Any] = {"env": task.env, "total_steps": task.total_steps}
    content |= {"env_kwargs": task.env_kwargs} if task.env_kwargs else {}
    env = hx.make_env(task.env, **task.env_kwargs)
    content["algo"] = {"name": name, **values, "max_grad_norm": 1.0, **observations(env)}
    words = [task_name, *(() if method == "no replay" else table.split()), *method.replace(",", "").split()]
    return f"{'-'.join(words)}.yaml", yaml.safe_dump(content, sort_keys=False)


def table_of(results: dict[str, Any], table: str) -> str:
    """Thousands of steps to the threshold, seeds that arrived and mean score; and which of two methods is earlier."""
    rows = []
    for task in ORDER:
        cells, steps = [], {}
        for method in METHODS[table]:
            if (found := results["runs"].get(name_of(task, table, method))) is None:
                cells.append("")
                continue
            steps[method], cell = summarised(as_result(task, found))
            cells.append(cell)
        if steps:
            rows.append([task, *cells, *(earlier(steps, other) for other in METHODS[table] if other != "softmax")])
    return markdown(["task", *METHODS[table], *(f"softmax or {m}" for m in METHODS[table] if m != "softmax")], rows)


def all_tasks(results: dict[str, Any]) -> str:
    """What the runs of `HALVES` come to together."""
    found = {
        method: [as_result(task, results["runs"][name_of(task, "8 batches", method)]) for task in HALVES[0] + HALVES[1]]
        for method in METHODS["8 batches"]
    }
    areas = {method: np.array([mean_scores(one) for one in some]) for method, some in found.items()}
    ours, rows = areas["softmax"], []
    others = np.array([not TASKS[task].env.startswith("haepo/") for task in HALVES[0] + HALVES[1]])
    for method, area in areas.items():
        low, high = stratified_interval(area)
        arrived = sum(int(np.isfinite(steps_to_threshold(one)).sum()) for one in found[method])
        pairs = [probability_of_improvement(list(ours[some]), list(area[some])) for some in (others | True, others)]
        each = [f"{probability_of_improvement([x], [y])[0]:.2f}" for x, y in zip(ours, area, strict=True)]
        better = ["{:.2f} ({:.2f} to {:.2f})".format(*pair) for pair in pairs] + each
        cells = [f"{interquartile_mean(area.reshape(-1)):.3f} ({low:.3f} to {high:.3f})", f"{area.mean():.3f}"]
        rows.append(
            [method, *cells, f"{arrived} of {area.size}", *([""] * len(better) if method == "softmax" else better)]
        )
    head = ["method", "score, interquartile mean", "mean", "runs that reached the threshold", "P(softmax better)"]
    return markdown([*head, f"on the {others.sum()} of other libraries", *HALVES[0], *HALVES[1]], rows)


def one_setting(results: dict[str, Any]) -> str:
    """Mean scores of the tuning where one configuration has to do for all tasks: chosen on some, and what it is worth on others."""
    rows = []
    for method, known in METHODS["8 batches"].items():
        found = {}
        for task in HALVES[0] + HALVES[1]:
            tuned = [results["tuning"][name_of(task, "8 batches", method, n)] for n in range(len(known.shapes))]
            found[task] = np.concatenate([one["scores"] for one in tuned])
        first, second = (np.mean([found[task] for task in half], axis=0) for half in HALVES)
        both = (first + second) / 2
        cells = [f"{on[np.argmax(on)]:.2f}, {off[np.argmax(on)]:.2f}" for on, off in ((first, second), (second, first))]
        rows.append([method, *cells, *(f"{np.quantile(both, q):.2f}" for q in (1, 0.25, 0.5, 0))])
    names = [", ".join(half) for half in HALVES]
    head = [f"chosen on {on}: score on these, on the others" for on in names]
    return markdown(["method", *head, "best on all", "lower quartile", "median", "worst"], rows)


def tables(results: dict[str, Any]) -> dict[str, str]:
    """All tables of the document of which there are results, by name."""
    known = [table for table in METHODS if any(f", {table}, " in name for name in results["runs"])]
    made = {table: table_of(results, table) for table in known}
    needed = [name_of(task, "8 batches", method) for task in HALVES[0] + HALVES[1] for method in METHODS["8 batches"]]
    if results["runs"].keys() >= set(needed):
        made |= {"all tasks": all_tasks(results), "one setting": one_setting(results)}
    return made


def keep(part: str, name: str, found: dict[str, Any]) -> None:
    """Adds something to the results, which other processes may have added to meanwhile."""
    with alone("results"):
        results = known()
        results[part][name] = found
        write_atomically(RESULTS, json.dumps(results, separators=(",", ":")) + "\n")


def known() -> dict[str, Any]:
    return {"tuning": {}} | stored(RESULTS, "tuned.py") | {"tuning_seeds": list(TUNING_SEEDS)}


OPTIONS = {"tasks": ",".join(ORDER), "tables": ",".join(METHODS), "part": "all", "share": "0/1"}


def arguments(argv: list[str]) -> dict[str, str] | None:
    """`OPTIONS` with what a command line says; None, with a line on stderr, where it cannot be read."""
    found = OPTIONS | dict(argument.partition("=")[::2] for argument in argv)
    shares = {f"{number}/{of}" for of in range(1, 33) for number in range(of)}
    allowed = {"tasks": set(ORDER), "tables": set(METHODS), "part": {"all", "tuning"}, "share": shares}
    if found.keys() - OPTIONS.keys() or any(set(found[name].split(",")) - some for name, some in allowed.items()):
        print(f"error: {' '.join(argv)}: the options and their values are {OPTIONS}", file=sys.stderr)
        return None
    return found


def main(argv: list[str]) -> int:
    """Trains what is missing and writes the tables; returns the exit status."""
    if (options := arguments(argv)) is None:
        return 2
    tasks = [task for task in ORDER if task in options["tasks"].split(",")]
    tables = [table for table in METHODS if table in options["tables"].split(",")]
    mine, of = map(int, options["share"].split("/"))
    jobs = [(task, table, method) for table in tables for task in tasks for method in METHODS[table]]
    tuning = [(*job, shape) for job in jobs for shape in range(len(METHODS[job[1]][job[2]].shapes))][mine::of]
    for number, (task, table, method, shape) in enumerate(tuning, start=1):
        name = name_of(task, table, method, shape)
        if name not in known()["tuning"]:
            print(f"[{number}/{len(tuning)}] {name}", flush=True)
            keep("tuning", name, tune(task, METHODS[table][method], shape))
    if options["part"] == "tuning":
        return 0
    for number, (task, table, method) in enumerate(jobs[mine::of], start=1):
        name, best = name_of(task, table, method), chosen(known(), task, table, method)
        if name not in known()["runs"]:
            print(
                f"[{number}/{len(jobs[mine::of])}] {name}{'' if best else ': another share still tunes it'}", flush=True
            )
            if best is not None:
                keep("runs", name, final(task, table, method, *best[:2]))
    write_documents()
    return 0


def write_documents() -> None:
    """The tables, and the files of settings."""
    results = known()
    for name, table in tables(results).items():
        fill_in(DOCUMENT, name, table)
    for table, methods in METHODS.items():
        for task in ORDER:
            for method in methods:
                if (found := results["runs"].get(name_of(task, table, method))) is not None:
                    name, content = settings_file(task, table, method, found)
                    (SETTINGS / name).write_text(content)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
