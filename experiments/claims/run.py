"""Tunes, trains and stores what `report.py` draws: `python experiments/claims/run.py small` (or `full`).

Each piece of work is one JSON file in `experiments/claims/results`; one that is there is not done again, so the command
can be ended and started again at any time, and several can share the work by naming other tasks.

  python experiments/claims/run.py small                      four tasks, fewer seeds and configurations, for a laptop
  python experiments/claims/run.py full                       everything, as in the report
  python experiments/claims/run.py full tasks=cartpole,catch methods=haepo,ppo
  python experiments/claims/run.py full parts=ablations
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import json
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import catalogue
import jax
import jax.numpy as jnp
import numpy as np
import yaml
from catalogue import ABLATIONS, EPISODIC, METHODS, TASKS, WEIGHTS, Task
from scoring import play_and_score

import haepo_jax as hx
from haepo_jax.algorithms.base import Algorithm
from haepo_jax.algorithms.state import TrainState
from haepo_jax.losses.numerics import rank_correlation
from haepo_jax.rollout import collect_episodes, environment_keys
from haepo_jax.runner.comparison import machine
from haepo_jax.runner.config import algorithm_class, hyperparameter_defaults
from haepo_jax.runner.run_dir import write_atomically

RESULTS = Path(__file__).parent / "results"
LIBRARIES = ("jax", "flax", "optax", "gymnax", "brax", "playground")
PARTS = (
    "methods",
    "choice",
    "ablations",
    "episodic",
    "deep_sea",
    "probes",
    "held_out",
    "larger",
    "small_advantages",
    "long",
)


@dataclasses.dataclass(frozen=True)
class Size:
    """How much is done: of the full suite, or less of it in another folder."""

    folder: Path
    tasks: tuple[str, ...]
    methods: tuple[str, ...]
    ablations: dict[str, tuple[str, ...]]
    episodic_tasks: tuple[str, ...]
    probe_tasks: tuple[str, ...]
    num_configs: int
    report_seeds: Sequence[int]
    ablation_seeds: Sequence[int]
    deep_sea_sizes: tuple[int, ...]
    deep_sea_seeds: Sequence[int]


SIZES = {
    "small": Size(
        RESULTS / "small", ("cartpole", "catch", "pendulum", "bandit"),
        ("haepo_default", "ppo_default", "haepo", "ppo", "grpo", "dpo"),
        {"cartpole": WEIGHTS}, (), (), 4, range(5), range(100, 103), (8,), range(2),
    ),
    "full": Size(
        RESULTS, tuple(TASKS), tuple(METHODS),
        dict.fromkeys(catalogue.ABLATION_STEPS, tuple(ABLATIONS)) | dict.fromkeys(catalogue.WEIGHTS_STEPS, WEIGHTS),
        tuple(catalogue.EPISODIC_STEPS), catalogue.PROBE_TASKS, 32,
        catalogue.REPORT_SEEDS, catalogue.ABLATION_SEEDS, catalogue.DEEP_SEA_SIZES, catalogue.DEEP_SEA_SEEDS,
    ),
}  # fmt: skip


def main(argv: list[str]) -> int:
    """Does the work that is missing; returns the exit status: 0, or 2 for arguments that cannot be used."""
    size = SIZES.get(argv[0] if argv else "")
    chosen = dict(argument.partition("=")[::2] for argument in argv[1:])
    known = {"tasks": tuple(TASKS), "methods": tuple(METHODS), "parts": PARTS}
    wrong = [f"{key}={value}" for key, value in chosen.items() if set(value.split(",")) - set(known.get(key, ()))]
    if size is None or wrong:
        told = wrong[0] if wrong else f"{argv[0] if argv else 'nothing'} is no size"
        choices = "; ".join(f"{key}: {','.join(names)}" for key, names in known.items())
        print(f"error: {told}: write small or full, then key=a,b with {choices}", file=sys.stderr)
        return 2
    pick = {key: tuple(chosen[key].split(",")) if key in chosen else names for key, names in known.items()}
    tasks = [task for task in pick["tasks"] if task in size.tasks or "tasks" in chosen]
    methods = [method for method in pick["methods"] if method in size.methods or "methods" in chosen]
    missing = [job for job in _jobs(size, tasks, methods, pick["parts"]) if not job[0].exists()]
    installed = {distribution.name: distribution.version for distribution in metadata.distributions()}
    begin = time.perf_counter()
    for number, (path, work) in enumerate(missing, start=1):
        left = (time.perf_counter() - begin) / max(number - 1, 1) * (len(missing) - number + 1)
        estimate = f", about {left / 60:.0f} min left" if number > 1 else ""
        print(f"[{number}/{len(missing)}{estimate}] {path.relative_to(size.folder)}", flush=True)
        if path.exists():  # somebody else has done it meanwhile
            continue
        start = time.perf_counter()
        result = work()
        made = {
            "command": shlex.join(["python", "experiments/claims/run.py", *argv]),
            "date": datetime.date.today().isoformat(),
            "machine": machine(),
            "versions": {name: installed[name] for name in LIBRARIES if name in installed},
            "wall_seconds": round(time.perf_counter() - start, 1),
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps({**made, **_rounded(result)}, separators=(",", ":")) + "\n")
    return 0


def _jobs(size: Size, tasks: Sequence[str], methods: Sequence[str], parts: Sequence[str]) -> Iterator[tuple[Path, Any]]:
    if "methods" in parts:
        for task in tasks:
            for method in methods:
                yield (
                    size.folder / "methods" / f"{task}.{method}.json",
                    lambda task=task, method=method: tune_and_train(size, task, method),
                )
    if "choice" in parts and size.folder == RESULTS:
        for method in (method for method in methods if method in catalogue.CHOSEN):
            for task in catalogue.DEVELOPMENT:
                yield (
                    size.folder / "choice" / f"{task}.{method}.json",
                    lambda task=task, method=method: choose(task, method),
                )
    if "ablations" in parts:
        for task in (task for task in size.ablations if task in tasks):
            for name in size.ablations[task]:
                yield (
                    size.folder / "ablations" / f"{task}.{_file(name)}.json",
                    lambda task=task, name=name: ablate(size, task, "haepo", name, ABLATIONS[name]),
                )
    if "episodic" in parts:
        for task in (task for task in size.episodic_tasks if task in tasks):
            for name, changes in EPISODIC.items():
                yield (
                    size.folder / "episodic" / f"{task}.{_file(name)}.json",
                    lambda task=task, name=name, changes=changes: ablate(size, task, "haepo_episodic", name, changes),
                )
    larger = catalogue.LARGER_EVALUATION
    for part, envs, own, how in (
        ("held_out", catalogue.HELD_OUT, catalogue.HELD_OUT_METHODS, {}),
        ("larger", catalogue.LARGER, catalogue.LARGER_METHODS, larger),
        # Replay buffers of five seeds with their large observations do not fit the caches of a CPU.
        ("larger", catalogue.GAMES, catalogue.GAMES_METHODS, {**larger, "one_by_one": True}),
        ("small_advantages", catalogue.SMALL_ADVANTAGES_TASKS, catalogue.SMALL_ADVANTAGES, larger),
        ("long", catalogue.LONG, catalogue.LONG_METHODS, catalogue.LONG_EVALUATION),
    ):
        for env, (total_steps, seeds) in envs.items() if part in parts and size.folder == RESULTS else ():
            for name, setting in own.items():
                task = Task(env, total_steps, 0, 0, 1)
                yield (
                    size.folder / part / f"{env.replace('/', '_')}.{_file(name)}.json",
                    functools.partial(one_setting, task, seeds, name, *setting, **how),
                )
    if "deep_sea" in parts:
        for name in catalogue.DEEP_SEA:
            for side in size.deep_sea_sizes:
                yield (
                    size.folder / "deep_sea" / f"{side}.{_file(name)}.json",
                    lambda side=side, name=name: deep_sea(size, side, name),
                )
    if "probes" in parts:
        for task in (task for task in size.probe_tasks if task in tasks):
            for method in methods:
                yield (
                    size.folder / "probes" / f"{task}.{method}.json",
                    lambda task=task, method=method: probe(size, task, method),
                )


def _file(name: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in name)


def tune_and_train(size: Size, task_name: str, name: str) -> dict[str, Any]:
    """A sweep on the tuning seeds, its best configurations, the default and what else the catalogue names on others, and the best
    of these on the reported ones."""
    task, method = TASKS[task_name], METHODS[name]
    fixed = _fixed(method)
    found = search(size, task, method) if len(fixed) < len(method.space) else {}
    earlier = catalogue.EARLIER.get((task_name, name))
    return trained(size, task, name, fixed, found, {"earlier search": earlier} if earlier else {})


def search(size: Size, task: Task, method: catalogue.Method) -> dict[str, Any]:
    """What a sweep of a method's space, and a smaller one of each of its widened spaces, found."""
    found = swept(task, method.algo, method.space, size.num_configs)
    for space in method.widened if size.folder == RESULTS else ():
        more = swept(task, method.algo, space, catalogue.WIDENED_CONFIGS)
        found |= {key: found[key] + more[key] for key in ("seconds", "configs", "area", "returns", "solved")}
        found["widened"] = [*found.get("widened", ()), space]
    return found


def swept(task: Task, algo: str, space: dict[str, str], num_configs: int) -> dict[str, Any]:
    """What a sweep found."""
    seeds = catalogue.TUNING_SEEDS
    start = time.perf_counter()
    found = hx.sweep(
        task.env, algo, space | {f"env_kwargs.{k}": str(v) for k, v in task.env_kwargs.items()},
        total_steps=task.total_steps, num_configs=num_configs, num_seeds=len(seeds), seed=seeds[0],
        curve_points=catalogue.CURVE_POINTS, final_eval_episodes=32, search="random",
    )  # fmt: skip
    curves = np.where(np.isnan(found.curves), task.floor, found.curves)
    numbers = {key: yaml.safe_load(text) for key, text in space.items() if _is_number(text)}
    return {
        "space": space, "seeds": list(seeds), "seconds": time.perf_counter() - start,
        "configs": [numbers | config for config in found.configs], "area": curves.mean(axis=(1, 2)).tolist(),
        "returns": found.returns.tolist(),
        "solved": (found.returns.mean(axis=1) >= task.threshold).tolist(),
    }  # fmt: skip


def trained(
    size: Size, task: Task, name: str, fixed: dict[str, Any], swept: dict[str, Any], others: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    """The result of a method: of its best configuration, where it has a sweep."""
    algo, best = METHODS[name].algo, fixed
    if swept:
        finalists = {str(i): {**fixed, **_own(swept["configs"][i])} for i in best_configurations(swept["area"])}
        finalists |= METHODS[name].finalists | others
        again = {}
        for number, settings in finalists.items():
            curves = _train(task, algo, settings, catalogue.CHOICE_SEEDS)["eval_return"]
            again[number] = float(np.mean(np.where(np.isnan(curves), task.floor, curves)))
        chosen = max(again, key=again.__getitem__)
        swept |= {"chosen": chosen, "seeds_again": list(catalogue.CHOICE_SEEDS), "area_again": again}
        best = finalists[chosen]
    return {
        "task": dataclasses.asdict(task), "method": name, "algo": algo, "hyperparameters": best,
        "sweep": swept,
        **_train(task, algo, best, size.report_seeds, log_points=catalogue.REPORTED_POINTS),
    }  # fmt: skip


def best_configurations(area: Sequence[float]) -> list[int]:
    """The three best of a search, and those that were the three best before it was widened: two seeds are few, and a widened search
    shall not lose what it had."""
    first = SIZES["full"].num_configs
    sizes = range(min(len(area), first), len(area) + 1, catalogue.WIDENED_CONFIGS)
    return list(dict.fromkeys(int(i) for size in sizes for i in np.argsort(-np.array(area[:size]))[:3]))


def choose(task_name: str, method: str) -> dict[str, Any]:
    """Scores, on other seeds, of the method's finalists and the three configurations that its search finds best on the
    development tasks together, and of the four best of a widened one: two seeds are few."""
    paths = {name: RESULTS / "methods" / f"{name}.{method}.json" for name in catalogue.DEVELOPMENT}
    sweeps = {name: json.loads(path.read_text())["sweep"] for name, path in paths.items()}
    searched = {name: _score(TASKS[name], sweep["area"]) for name, sweep in sweeps.items()}
    means, first = np.mean([*searched.values()], axis=0), SIZES["full"].num_configs
    best = dict.fromkeys(
        [*np.argsort(-means[:first])[:3], *(np.argsort(-means)[:4] if METHODS[method].widened else ())]
    )
    configs = {str(i): {**_fixed(METHODS[method]), **_own(sweeps[task_name]["configs"][i])} for i in best}
    configs |= METHODS[method].finalists
    task, algo = TASKS[task_name], METHODS[method].algo
    curves = {name: _train(task, algo, own, catalogue.CHOICE_SEEDS)["eval_return"] for name, own in configs.items()}
    return {
        "task": dataclasses.asdict(task), "method": method, "configurations": configs, "seeds": list(catalogue.CHOICE_SEEDS),
        "searched": {str(i): searched[task_name][i] for i in best},
        "scores": {name: _score(task, curve).mean(axis=1) for name, curve in curves.items()},
    }  # fmt: skip


def one_setting(task: Task, seeds: int, name: str, algo: str, changes: dict[str, Any], **how: Any) -> dict[str, Any]:
    """One setting of a method on a task that none was chosen on."""
    trained = _train(task, algo, changes, range(seeds), **how)
    return {"method": name, "algo": algo, "hyperparameters": changes, "total_steps": task.total_steps, **trained}


def _score(task: Task, returns: Any) -> Any:
    """Returns, 0 at the task's floor and 1 at its top."""
    return (np.asarray(returns, np.float64) - task.floor) / (task.top - task.floor)


def _own(config: dict[str, Any]) -> dict[str, Any]:
    return {key.removeprefix("algo."): value for key, value in config.items() if key.startswith("algo.")}


def _fixed(method: catalogue.Method) -> dict[str, Any]:
    """The hyperparameters that a method's space gives one number."""
    return {key.removeprefix("algo."): yaml.safe_load(text) for key, text in method.space.items() if _is_number(text)}


def _is_number(text: str) -> bool:
    """Whether a sweep's entry is one number and not a choice."""
    return isinstance(yaml.safe_load(text), int | float)


def ablate(size: Size, task_name: str, algo: str, name: str, changes: dict[str, Any]) -> dict[str, Any]:
    """The defaults of an algorithm with something changed."""
    lengths = {"haepo": catalogue.ABLATION_STEPS | catalogue.WEIGHTS_STEPS, "haepo_episodic": catalogue.EPISODIC_STEPS}
    task = dataclasses.replace(TASKS[task_name], total_steps=lengths[algo][task_name])
    trained = _train(task, algo, changes, size.ablation_seeds)
    return {"task": dataclasses.asdict(task), "ablation": name, "hyperparameters": changes, **trained}


def deep_sea(size: Size, side: int, name: str) -> dict[str, Any]:
    """A deep sea of `side` x `side`, whose one treasure takes `side` right moves in a row."""
    task = Task("DeepSea-bsuite", catalogue.DEEP_SEA_STEPS, 0.9, 0, 0.99, {"size": side})
    algo, changes = catalogue.DEEP_SEA[name]
    trained = _train(task, algo, changes, size.deep_sea_seeds, coverage)
    return {"task": dataclasses.asdict(task), "method": name, "algo": algo, "hyperparameters": changes, **trained}


def probe(size: Size, task_name: str, name: str) -> dict[str, Any]:
    """What the updates of a method, as it was tuned, do to the probabilities of fresh episodes."""
    path = size.folder / "methods" / f"{task_name}.{name}.json"
    if not path.exists():
        sys.exit(f"error: {path.name} is missing: parts=methods makes it, and probes need what it has tuned")
    tuned = json.loads(path.read_text())
    task = TASKS[task_name]
    trained = _train(task, tuned["algo"], tuned["hyperparameters"], catalogue.PROBE_SEEDS, alignment)
    return {key: tuned[key] for key in ("task", "method", "algo", "hyperparameters")} | trained


Probe = Callable[[Algorithm, TrainState], dict[str, jax.Array]]


def with_probe(kind: type[Algorithm], probe: Probe) -> type[Algorithm]:
    """An algorithm whose history says at every row what `probe` finds."""

    class Probed(kind):  # type: ignore[misc, valid-type]
        def progress(self, state: TrainState) -> dict[str, Any]:
            return super().progress(state) | probe(self, state)

    made: type[Algorithm] = jax.tree_util.register_dataclass(dataclasses.dataclass(frozen=True)(Probed))
    return made


def alignment(algorithm: Algorithm, state: TrainState) -> dict[str, jax.Array]:
    """How one more update, which is then forgotten, changes the probabilities of episodes that no update has seen.

    Returns:
      Rank correlations, () each, NaN where all returns are equal: `alignment_update` between an episode's return and by
      how much the update raised its log-likelihood, `alignment_likelihood` between return and log-likelihood before it.
    """
    after, _ = algorithm.train_step(state)
    key = jax.random.fold_in(state.key, 0xF4E5)
    keys = (environment_keys(one, 64) for one in jax.random.split(key))
    _, scores, log_likelihoods, returns = play_and_score(algorithm, state, after, *keys)
    everyone, apart = jnp.ones(64, bool), jnp.ptp(returns) > 0
    found = {"alignment_update": scores, "alignment_likelihood": log_likelihoods - scores}
    return {name: jnp.where(apart, rank_correlation(x, returns, everyone), jnp.nan) for name, x in found.items()}


def coverage(algorithm: Algorithm, state: TrainState) -> dict[str, jax.Array]:
    """`cells` of a deep sea, (size^2,) bool, that 64 episodes of the policy pass through."""

    def act(carry: Any, observation: Any, is_first: Any, action_mask: Any, key: Any) -> tuple[Any, Any, None]:
        carry, distribution = algorithm.act_distribution(state, carry, observation, is_first, action_mask)
        return carry, distribution.sample(key), None

    keys = [environment_keys(key, 64) for key in jax.random.split(jax.random.fold_in(state.key, 0xF4E5))]
    steps, _, _ = collect_episodes(algorithm.env, act, algorithm.initial_carry(), *keys)
    assert steps is not None
    return {"cells": jnp.any(steps.observation != 0, axis=(0, 1)).reshape(-1)}


def build(
    task: Task, algo: str, hyperparameters: dict[str, Any], probe: Probe | None = None, **evaluation: Any
) -> Algorithm:
    """The algorithm of a method on a task."""
    defaults = hyperparameter_defaults(algo) | {
        "log_points": catalogue.CURVE_POINTS,
        "eval_episodes": catalogue.EVAL_EPISODES,
    }
    kind = getattr(hx, algorithm_class(algo).__name__)
    made: Algorithm = (with_probe(kind, probe) if probe else kind)(
        hx.make_env(task.env, **task.env_kwargs),
        total_steps=task.total_steps,
        **defaults | evaluation | hyperparameters,
    )
    return made


def _train(
    task: Task,
    algo: str,
    hyperparameters: dict[str, Any],
    seeds: Sequence[int],
    probe: Probe | None = None,
    one_by_one: bool = False,
    **evaluation: Any,
) -> dict[str, Any]:
    """Trains all seeds in one compiled program, together or one after the other."""
    made = build(task, algo, hyperparameters, probe, **evaluation)
    keys = jax.vmap(jax.random.key)(np.array(seeds, np.uint32))
    begin = time.perf_counter()
    # The numbers are arguments, so variants that differ in nothing else are the same program for jax's compilation cache.
    over_seeds = jax.lax.map if one_by_one else lambda train, keys: jax.vmap(train)(keys)
    train = jax.jit(lambda algorithm, keys: over_seeds(algorithm.train, keys)).lower(made, keys).compile()
    compiled = time.perf_counter()
    state, history = jax.block_until_ready(train(made, keys))
    done = time.perf_counter()
    history = jax.device_get(history)
    side = task.env_kwargs.get("size", 0)
    return {
        "seeds": list(seeds),
        "compile_seconds": compiled - begin,
        "train_seconds": done - compiled,
        "env_steps": history["env_steps"].to_int(),
        "eval_return": history["eval_return"],
        "eval_return_greedy": history["eval_return_greedy"],
        "entropy": history["entropy"],
        "ess": history.get("ess"),
        "alignment": history.get("alignment"),
        "diverged_at": np.asarray(state.status.diverged_at),
        **{name: history[name] for name in ("alignment_update", "alignment_likelihood") if name in history},
        # The share of a deep sea's cells, the half on and below the diagonal, that episodes so far have seen.
        **({"covered": 2 * covered(history["cells"]) / (side * (side + 1))} if probe is coverage else {}),
    }


def covered(cells: Any) -> Any:
    """How many of the cells (seeds, rows, cells) were seen in a row or before it, (seeds, rows)."""
    return np.logical_or.accumulate(cells, axis=1).sum(axis=2)


def _rounded(value: Any) -> Any:
    """Plain data with six digits; None where a number is not finite."""
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if np.isfinite(value) else None
    return value


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
