"""One task of each optional library, trained by PPO and by HAEPO, beside the policy they start from, which is nearly
uniform; and our stepping beside the library's own vmapped loop.

    python experiments/environments/run.py

A library that is not installed is passed over. Every result goes to `results.json` as soon as it is there,
so a run that was stopped goes on where it was.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import haepo_jax as hx
from haepo_jax.envs import list_envs
from haepo_jax.statistics import bootstrap_interval

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

from tables import fill_in, markdown  # noqa: E402

RESULTS = Path(__file__).parent / "results.json"
DOCUMENT = Path(__file__).parent / "README.md"
SEEDS, EPISODES = 5, 128
LANES, STEPS, ROUNDS = 32, 200, 41

# Settings that make an episode short, and live steps: the table takes minutes on two cores.
TASKS: dict[str, tuple[dict[str, Any], int]] = {
    "xminigrid/MiniGrid-Empty-5x5": ({"max_steps": 50}, 25_000),
    "pgx/tic_tac_toe": ({}, 25_000),
    "jumanji/Snake-v1": ({"num_rows": 5, "num_cols": 5, "time_limit": 60}, 25_000),
    "craftax/Craftax-Classic-Symbolic-v1": ({"max_timesteps": 60}, 25_000),
    "playground/CartpoleBalance": ({"episode_length": 200}, 100_000),
}


def train(name: str, algorithm: str) -> dict[str, Any]:
    """Mean returns of every seed before and after training, on the same episodes, and their 95% intervals."""
    settings, total_steps = TASKS[name]
    algo = getattr(hx, algorithm)(hx.make_env(name, **settings), total_steps=total_steps, log_points=1, eval_episodes=0)
    keys = jax.random.split(jax.random.key(0), SEEDS)
    played = jax.jit(jax.vmap(lambda state: algo.evaluate(state, episodes=EPISODES)["return"]))
    start = time.perf_counter()
    trained, _ = jax.block_until_ready(jax.jit(jax.vmap(algo.train))(keys))
    seconds = time.perf_counter() - start
    before, after = (
        np.mean(played(states), axis=1).tolist() for states in (jax.jit(jax.vmap(algo.init))(keys), trained)
    )
    return {
        "settings": settings, "total_steps": total_steps, "seconds": seconds, "untrained": before, "trained": after,
        "untrained_interval": [float(end) for end in bootstrap_interval(before)],
        "trained_interval": [float(end) for end in bootstrap_interval(after)],
    }  # fmt: skip


def speed(name: str) -> dict[str, Any]:
    """CPU seconds of ours and of the library's own stepping with one fixed action, in turns in one process.

    Neither resets: both are a scan over a vmapped step, and both keep the sum of rewards. Of Pgx a game for one player
    is taken: with another player, ours stops computing where games are over, and the library's does not.
    """
    settings, _ = TASKS[name]
    name = {"pgx/tic_tac_toe": "pgx/minatar-breakout"}.get(name, name)
    env: Any = hx.make_env(name, **settings)
    action = jnp.ones(env.action_space.shape, env.action_space.dtype)
    reset, step = own_stepping(name, env, action)

    def loop(reset: Callable[..., Any], step: Callable[..., Any]) -> Callable[[jax.Array], jax.Array]:
        def run(key: jax.Array) -> jax.Array:
            state = jax.vmap(reset)(jax.random.split(key, LANES))

            def body(carry: Any, key: jax.Array) -> tuple[Any, None]:
                state, total = carry
                state, reward = jax.vmap(step)(jax.random.split(key, LANES), state)
                return (state, total + reward), None

            return jax.lax.scan(body, (state, jnp.zeros(LANES)), jax.random.split(key, STEPS))[0][1]

        compiled = jax.jit(run)
        compiled(jax.random.key(0)).block_until_ready()
        return compiled

    def ours(key: jax.Array, state: Any) -> tuple[Any, jax.Array]:
        after = env.step(key, state, action)
        return after.state, after.reward

    loops = {"ours": loop(lambda key: env.reset(key)[0], ours), "library": loop(reset, step)}
    seconds: dict[str, list[float]] = {which: [] for which in loops}
    for turn in range(ROUNDS):
        for which, run in loops.items():
            start = time.process_time()
            run(jax.random.key(turn)).block_until_ready()
            seconds[which].append(time.process_time() - start)
    ratios = np.array(seconds["library"]) / np.array(seconds["ours"])
    return {
        "task": name, "lanes": LANES, "steps": STEPS, "cpu_seconds": seconds, "ratio": float(np.median(ratios))
    }  # fmt: skip


def own_stepping(name: str, env: Any, action: jax.Array) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The library's functions, as key -> state and (key, state) -> (state, reward)."""
    library, inner = name.partition("/")[0], env.inner
    if library == "jumanji":

        def jumanji_step(key: jax.Array, state: Any) -> tuple[Any, jax.Array]:
            state, step = inner.step(state, action)
            return state, step.reward

        return lambda key: inner.reset(key)[0], jumanji_step
    if library == "xminigrid":
        params = env.params

        def xminigrid_step(key: jax.Array, state: Any) -> tuple[Any, jax.Array]:
            state = inner.step(params, state, action)
            return state, state.reward

        return lambda key: inner.reset(params, key), xminigrid_step
    if library == "craftax":

        def craftax_step(key: jax.Array, state: Any) -> tuple[Any, jax.Array]:
            _, state, reward, _, _ = inner.step(key, state, action, env.params)
            return state, reward

        return lambda key: inner.reset(key, env.params)[1], craftax_step

    if library == "playground":

        def playground_step(key: jax.Array, state: Any) -> tuple[Any, jax.Array]:
            state = inner.step(state, action)
            return state, state.reward

        return inner.reset, playground_step

    def pgx_step(key: jax.Array, state: Any) -> tuple[Any, jax.Array]:
        state = inner.step(state, action, key)
        return state, state.rewards[0]

    return inner.init, pgx_step


def table(done: dict[str, Any]) -> str:
    """Mean returns with their intervals, and the throughput."""
    rows = []
    for name, found in done.items():
        trained = []
        for algorithm in ("PPO", "HAEPO"):
            low, high = found[algorithm]["trained_interval"]
            trained.append(f"{np.mean(found[algorithm]['trained']):.2f} ({low:.2f} to {high:.2f})")
        untrained = f"{np.mean(found['PPO']['untrained']):.2f}"
        rows.append([f"`{name}`", untrained, *trained, f"{found['speed']['ratio']:.2f}"])
    return markdown(["task", "untrained", "PPO", "HAEPO", "throughput"], rows)


def main() -> None:
    done = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    jobs: list[tuple[str, str, Callable[..., Any], tuple[str, ...]]] = []
    for name in TASKS:
        jobs.append((name, "speed", speed, (name,)))
        jobs += [(name, algorithm, train, (name, algorithm)) for algorithm in ("PPO", "HAEPO")]
    for name, part, job, arguments in jobs:
        if name not in list_envs() or part in done.get(name, {}):
            continue
        done.setdefault(name, {})[part] = job(*arguments)
        done[name]["version"] = importlib.metadata.version(name.partition("/")[0])
        RESULTS.write_text(json.dumps(done, indent=1) + "\n", encoding="utf-8")
        found = done[name][part]
        print(name, part, found["ratio"] if part == "speed" else (found["untrained"], found["trained"]), flush=True)
    fill_in(DOCUMENT, "environments", table({name: found for name, found in done.items() if "HAEPO" in found}))


if __name__ == "__main__":
    main()
