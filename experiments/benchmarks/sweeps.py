"""What a sweep costs: many configurations of CartPole together, one after another, in processes, and in rejax.

Every way trains the same configurations (a random search over learning_rate and entropy_coef of `--algo`) for as many
live steps, and is timed from its start to its last result, compilation included. "One after another" compiles
once, for hyperparameters are traced there too. "Separate processes" runs `python -m haepo_jax.train` for each
configuration, as many at once as there are cores; it may be measured on some of them and scaled. rejax trains its PPO,
vmapped, unevaluated, under its own interpreter: what to compare `--algo ppo` with.

Parts: `sweep`, `sequential`, `processes`, `sweep_rejax` (times); `growth` (1 to 1,024 configurations together);
`halving` (the best of successive halving against the best of the full sweep, and its steps); `seeds` (final returns of
50 seeds in a sweep against 50 alone).
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import peers

import haepo_jax as hx
from haepo_jax.runner.config import algorithm_class
from haepo_jax.runner.sweeps.results import SweepResult

SPACE = {
    "learning_rate": "tag(log,interval(3e-4,3e-2))",
    "entropy_coef": "tag(log,interval(1e-4,1e-1))",
}

REJAX = """
import json, sys, time
import jax, numpy as np, rejax
settings = json.loads(sys.argv[1])
begin = time.perf_counter()
algo = rejax.PPO.create(
    env=settings["env"], total_timesteps=settings["total_steps"], eval_freq=settings["total_steps"], num_envs=32,
    num_steps=128, num_epochs=4, num_minibatches=4, skip_initial_evaluation=True,
    agent_kwargs={"hidden_layer_sizes": (64, 64), "activation": "tanh"},
)
algo = algo.replace(eval_callback=lambda algo, state, key: ())
rates, entropies = np.float32(settings["rates"]), np.float32(settings["entropies"])
keys = jax.vmap(jax.random.key)(np.zeros(len(rates), np.uint32))
def train(rate, entropy, key):
    state, _ = algo.replace(learning_rate=rate, ent_coef=entropy).train(key)
    return state.global_step, state.actor_ts.params
steps, _ = jax.block_until_ready(jax.jit(jax.vmap(train))(rates, entropies, keys))
print(json.dumps({"seconds": time.perf_counter() - begin, "steps": int(np.sum(steps))}))
"""


def together(options: argparse.Namespace, configs: int, seeds: int = 1, **settings: Any) -> tuple[SweepResult, float]:
    """A sweep, and its seconds."""
    begin = time.perf_counter()
    found = hx.sweep(
        options.env,
        options.algo,
        SPACE,
        search="random",
        num_configs=configs,
        num_seeds=seeds,
        total_steps=options.total_steps,
        **({"batch_size": options.batch_size} if options.batch_size else {}),
        **settings,
    )
    return found, time.perf_counter() - begin


def algorithm_of(values: dict[str, Any], options: argparse.Namespace) -> Any:
    numbers = {key.removeprefix("algo."): value for key, value in values.items()}
    kind = getattr(hx, algorithm_class(options.algo).__name__)
    return kind(options.env, total_steps=options.total_steps, eval_episodes=0, log_points=1, **numbers)


def configurations(options: argparse.Namespace, count: int) -> list[dict[str, Any]]:
    """What a random search of the space draws."""
    from haepo_jax.runner.config.arguments import read_arguments
    from haepo_jax.runner.sweeps.plan import read_sweep

    arguments = [f"env={options.env}", f"algo={options.algo}", *(f"algo.{key}={text}" for key, text in SPACE.items())]
    plan = read_sweep(read_arguments(arguments).overrides)
    return [plan.planned(index) for index in range(count)]


def measure_sweep(options: argparse.Namespace) -> dict[str, Any]:
    """The command line, from its start to its tables and figures."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "haepo_jax.sweep", f"env={options.env}", f"algo={options.algo}"]
        command += [
            "search=random",
            f"num_configs={options.configs}",
            f"total_steps={options.total_steps}",
            f"run_dir={folder}/sweep",
        ]
        command += [f"algo.{key}={text}" for key, text in SPACE.items()]
        command += [f"batch_size={options.batch_size}"] if options.batch_size else []
        begin = time.perf_counter()
        subprocess.run(command, env=peers.environment("haepo_jax"), check=True, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - begin
        summary = json.loads(Path(folder, "sweep", "summary.json").read_text())
    return {"seconds": seconds, "steps": summary["env_steps"], "best": summary["best"]["return"]}


def measure_sequential(options: argparse.Namespace) -> dict[str, Any]:
    """One process, one compilation, each configuration at its own pace."""
    begin = time.perf_counter()

    def train_and_evaluate(algorithm: Any, key: jax.Array) -> Any:
        state, _ = algorithm.train(key)
        return state.env_steps, algorithm.evaluate(state, episodes=128)["return"].mean()

    run = jax.jit(train_and_evaluate)
    steps, returns = 0, []
    for values in configurations(options, options.configs):
        done, value = jax.block_until_ready(run(algorithm_of(values, options), jax.random.key(0)))
        steps += int(done.to_int())
        returns.append(float(value))
    return {"seconds": time.perf_counter() - begin, "steps": steps, "best": max(returns)}


def measure_processes(options: argparse.Namespace) -> dict[str, Any]:
    """A process for each configuration, as many at once as there are cores."""
    count = min(options.configs, options.processes_sample)
    at_once = os.cpu_count() or 1
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        waiting = configurations(options, count)
        running: list[subprocess.Popen[bytes]] = []
        while waiting or running:
            while waiting and len(running) < at_once:
                values = waiting.pop()
                command = [
                    sys.executable,
                    "-m",
                    "haepo_jax.train",
                    f"env={options.env}",
                    f"algo={options.algo}",
                    f"total_steps={options.total_steps}",
                ]
                command += [f"{key}={value!r}" for key, value in values.items()]
                command += ["algo.eval_episodes=0", "tensorboard=false", f"run_dir={folder}/{len(waiting)}"]
                running.append(subprocess.Popen(command, env=peers.environment("haepo_jax"), stdout=subprocess.DEVNULL))
            for process in [process for process in running if process.poll() is not None]:
                if process.returncode:
                    raise RuntimeError(f"a training process ended with {process.returncode}")
                running.remove(process)
            time.sleep(0.05)
    seconds = time.perf_counter() - begin
    return {"seconds": seconds * options.configs / count, "measured": count, "measured_seconds": seconds}


def measure_rejax(options: argparse.Namespace) -> dict[str, Any]:
    drawn = configurations(options, options.configs)
    settings = {
        "env": options.env,
        "total_steps": options.total_steps,
        "rates": [values["algo.learning_rate"] for values in drawn],
        "entropies": [values["algo.entropy_coef"] for values in drawn],
    }
    command = [peers.interpreter("rejax"), "-c", REJAX, json.dumps(settings)]
    variables = peers.environment("rejax")
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=variables).stdout
    measured: dict[str, Any] = json.loads(output.splitlines()[-1])
    return measured


def measure_growth(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of sweeps of growing size, compilation included."""
    rows = []
    for configs in options.growth:
        found, seconds = together(options, configs)
        rows.append({"configs": configs, "seconds": seconds, "steps": int(found.env_steps.sum())})
        print(
            f"  {configs:5d} configurations  {seconds:9.1f} s  {rows[-1]['steps'] / seconds:12,.0f} steps/s", flush=True
        )
    return {"rows": rows}


def measure_halving(options: argparse.Namespace) -> dict[str, Any]:
    """Each repeat draws its own configurations; the best by halving is judged by its own return, trained to the end."""
    rows: list[dict[str, Any]] = []
    gaps: list[float] = []
    shares: list[float] = []
    for repeat in range(options.repeats):
        settings = {"search_seed": repeat, "seed": 1000 * repeat, "seeds": options.halving_seeds}
        full, full_seconds = together(options, options.configs, **settings)
        halved, seconds = together(options, options.configs, halving=3, **settings)
        best, found = full.best(), halved.best()
        assert best is not None and found is not None
        gap = (full.value[best] - halved.value[found]) / abs(full.value[best])
        share = halved.env_steps.sum() / full.env_steps.sum()
        rows.append(
            {
                "best": float(full.value[best]),
                "found": float(halved.value[found]),
                "gap": float(gap),
                "share_of_steps": float(share),
                "seconds": [full_seconds, seconds],
            }
        )
        gaps.append(float(gap))
        shares.append(float(share))
        print(
            f"  repeat {repeat}: best {rows[-1]['best']:.1f}, found {rows[-1]['found']:.1f}, {share:.0%} of the steps",
            flush=True,
        )
    within = sum(gap <= 0.02 for gap in gaps)
    return {"rows": rows, "within_2_percent": within, "largest_share_of_steps": max(shares)}


def measure_seeds(options: argparse.Namespace) -> dict[str, Any]:
    """Final returns of one configuration: seeds inside a sweep of two configurations, and alone."""
    from scipy.stats import ks_2samp

    rates = [3e-3, 1e-2]
    found = hx.sweep(options.env, options.algo, {"learning_rate": rates}, num_seeds=50, total_steps=options.total_steps)
    algorithm = algorithm_of({"algo.learning_rate": rates[0]}, options)

    def train_and_evaluate(key: jax.Array) -> jax.Array:
        return algorithm.evaluate(algorithm.train(key)[0], episodes=128)["return"].mean()

    run = jax.jit(train_and_evaluate)
    alone = np.array([float(run(jax.random.key(seed))) for seed in range(50)])
    test = ks_2samp(found.returns[0], alone)
    return {"in_sweep": found.returns[0].tolist(), "alone": alone.tolist(), "p_value": float(test.pvalue)}


MEASURES: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "sweep": measure_sweep,
    "sequential": measure_sequential,
    "processes": measure_processes,
    "sweep_rejax": measure_rejax,
    "growth": measure_growth,
    "halving": measure_halving,
    "seeds": measure_seeds,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("sweeps")
    group.add_argument("--env", default="CartPole-v1")
    group.add_argument("--algo", default="haepo", choices=("haepo", "haepo_episodic", "ppo"))
    group.add_argument("--configs", type=int, help="(quick: 4, full: 256)")
    group.add_argument("--total-steps", type=int, help="(quick: 20,000, full: 200,000)")
    group.add_argument("--batch-size", type=int, help="configurations in one call (default: as many as pay off)")
    group.add_argument("--processes-sample", type=int, default=16, help="run so many processes and scale the time")
    group.add_argument("--growth", type=int, nargs="+", help="(quick: 1 4, full: 1 4 16 64 256 1024)")
    group.add_argument("--repeats", type=int, default=10, help="of the comparison of halving with the full sweep")
    group.add_argument("--halving-seeds", type=int, default=1, help="seeds of each configuration there")


def _sized(options: argparse.Namespace, measure: Callable[[argparse.Namespace], dict[str, Any]]) -> dict[str, Any]:
    full = options.size == "full"
    options.configs = options.configs or (256 if full else 4)
    options.total_steps = options.total_steps or (200_000 if full else 20_000)
    options.growth = options.growth or ([1, 4, 16, 64, 256, 1024] if full else [1, 4])
    asked = {name: getattr(options, name) for name in ("env", "algo", "configs", "total_steps", "batch_size")}
    return {**asked, **measure(options)}


PARTS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    name: functools.partial(_sized, measure=measure) for name, measure in MEASURES.items()
}
