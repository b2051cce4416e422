"""One side of `benchmark_rejax.py`: a process that trains PPO whenever it is told to, and says how long it took.

It runs under the interpreter of the library it measures, so it imports no other: neither haepo_jax on rejax's side nor
rejax on ours. Settings arrive as JSON in the first argument; then one JSON request per line on standard input is
answered by one JSON line on standard output.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import jax
import numpy as np

Train = Callable[[jax.Array], tuple[jax.Array, Any]]
"""Key of one seed -> (environment steps by the library's own counter, mean return at each evaluation or ())."""


def haepo_side(settings: dict[str, Any], total_steps: int, points: int, episodes: int) -> Train:
    """PPO of haepo_jax; `episodes` = 0 turns evaluation off."""
    import haepo_jax as hx

    algo = hx.PPO(
        hx.make_env(settings["env"]),
        total_steps=total_steps,
        num_envs=settings["num_envs"],
        num_steps=settings["num_steps"],
        num_epochs=settings["num_epochs"],
        num_minibatches=settings["num_minibatches"],
        learning_rate=settings["learning_rate"],
        anneal_learning_rate=False,
        normalize_rewards=False,
        max_grad_norm=settings["max_grad_norm"],
        discount=settings["discount"],
        gae_lambda=settings["gae_lambda"],
        clip_eps=settings["clip_eps"],
        value_clip_eps=settings["clip_eps"],
        value_coef=settings["value_coef"],
        entropy_coef=settings["entropy_coef"],
        hidden_sizes=tuple(settings["hidden_sizes"]),
        activation=settings["activation"],
        normalize_observations=False,
        log_points=points,
        eval_episodes=episodes,
    )

    def train(key: jax.Array) -> tuple[Any, Any]:
        state, history = algo.train(key)
        # The parameters are returned so that the compiler cannot leave any learning out.
        return (state.env_steps, state.params), history.get("eval_return", ())

    return train


def rejax_side(settings: dict[str, Any], total_steps: int, points: int, episodes: int) -> Train:
    """PPO of rejax, whose evaluation always plays 128 episodes; `episodes` = 0 turns it off."""
    import rejax

    if episodes not in (0, 128):
        raise ValueError(f"rejax evaluates 128 episodes, not {episodes}")
    algo = rejax.PPO.create(
        env=settings["env"],
        total_timesteps=total_steps,
        eval_freq=total_steps // points,
        skip_initial_evaluation=True,
        num_envs=settings["num_envs"],
        num_steps=settings["num_steps"],
        num_epochs=settings["num_epochs"],
        num_minibatches=settings["num_minibatches"],
        learning_rate=settings["learning_rate"],
        max_grad_norm=settings["max_grad_norm"],
        gamma=settings["discount"],
        gae_lambda=settings["gae_lambda"],
        clip_eps=settings["clip_eps"],
        vf_coef=settings["value_coef"],
        ent_coef=settings["entropy_coef"],
        agent_kwargs={"hidden_layer_sizes": tuple(settings["hidden_sizes"]), "activation": settings["activation"]},
    )
    if not episodes:
        algo = algo.replace(eval_callback=lambda algo, state, key: ())

    def train(key: jax.Array) -> tuple[Any, Any]:
        state, evaluation = algo.train(key)
        counted = state.global_step, (state.actor_ts.params, state.critic_ts.params)
        return counted, evaluation[1].mean(axis=-1) if episodes else ()

    return train


SIDES = {"haepo_jax": haepo_side, "rejax": rejax_side}


def count(steps: Any) -> int:
    """Environment steps of all seeds together."""
    return int(np.sum(steps.to_int() if hasattr(steps, "to_int") else np.asarray(steps)))


def serve(side: str, settings: dict[str, Any]) -> None:
    """Answers requests until standard input ends."""
    compiled: dict[tuple[Any, ...], Any] = {}

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        shape = tuple(request[name] for name in ("seeds", "total_steps", "points", "episodes"))
        seeds, total_steps, points, episodes = shape
        base = jax.random.key(request["seed"])
        # One seed is trained the way a user would, without a vmap of one.
        keys = jax.random.split(base, seeds) if seeds > 1 else base
        answer: dict[str, Any] = {}
        if shape not in compiled:
            train = SIDES[side](settings, total_steps, points, episodes)
            start = time.perf_counter()
            compiled[shape] = jax.jit(jax.vmap(train) if seeds > 1 else train).lower(keys).compile()
            answer["compile_seconds"] = time.perf_counter() - start
        start, start_cpu = time.perf_counter(), time.process_time()
        (steps, _), returns = jax.block_until_ready(compiled[shape](keys))
        answer["seconds"], answer["cpu_seconds"] = time.perf_counter() - start, time.process_time() - start_cpu
        answer["steps"] = count(steps)
        if episodes:
            answer["returns"] = np.atleast_2d(np.asarray(returns, np.float64)).tolist()
        return answer

    libraries = (*("haepo-jax",) * (side == "haepo_jax"), *("rejax",) * (side == "rejax"), "jax", "gymnax")
    versions = {}
    for name in libraries:
        try:
            versions[name] = version(name)
        except ImportError:  # a checkout that is not installed
            versions[name] = "source"
    print(json.dumps({"versions": versions, "device": str(jax.devices()[0].platform)}), flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)


if __name__ == "__main__":
    serve(sys.argv[1], json.loads(sys.argv[2]))
