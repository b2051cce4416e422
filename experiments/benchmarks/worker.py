"""One side of a comparison, run by `run.py` under the interpreter of that side, whose other libraries it does not import.

worker.py serve SIDE     answers requests, one JSON object a line, with how long a training took
worker.py solve SIDE     trains on CartPole until 16 episodes have a mean return of 475; says when it has updated first,
                         and when it has solved the task
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

PPO: dict[str, Any] = {
    "num_steps": 128,
    "num_epochs": 4,
    "num_minibatches": 4,
    "learning_rate": 1e-3,
    "max_grad_norm": 0.5,
    "clip_eps": 0.2,
    "gae_lambda": 0.95,
}
SIZES, DISCOUNT, ENTROPY, VALUE = (64, 64), 0.99, 0.01, 0.5
"""Equal for all; what cannot be made equal: rejax clips gradients element by element (ours by their global norm), treats
truncation as termination, initialises with LeCun normals (ours orthogonal) and uses Adam with eps 1e-8 (ours 1e-5)."""


def ours(request: dict[str, Any]) -> Any:
    import haepo_jax as hx

    shared = {
        "total_steps": request["total_steps"],
        "num_envs": request["num_envs"],
        "hidden_sizes": SIZES,
        "log_points": request.get("points", 1),
        "eval_episodes": request.get("episodes", 0),
    }
    env = hx.make_env(request["env"], **request.get("env_kwargs", {}))
    if request["algo"] == "haepo":
        return hx.HAEPO(env, **shared)
    return hx.PPO(
        env, **shared, **PPO, discount=DISCOUNT, entropy_coef=ENTROPY, value_coef=VALUE, value_clip_eps=PPO["clip_eps"],
        anneal_learning_rate=False, normalize_rewards=False, normalize_observations=False,
    )  # fmt: skip


def haepo_jax_train(request: dict[str, Any]) -> Callable[[Any], Any]:
    algo = ours(request)

    def train(key: Any) -> Any:
        state, history = algo.train(key)
        # The parameters are returned so that the compiler cannot leave any learning out.
        return (state.env_steps.low, state.params), history.get("eval_return", ())

    return train


def rejax_ppo(request: dict[str, Any]) -> Any:
    import rejax

    names = {"num_steps": "num_steps", "num_epochs": "num_epochs", "num_minibatches": "num_minibatches"}
    names |= {"learning_rate": "learning_rate", "max_grad_norm": "max_grad_norm", "clip_eps": "clip_eps"}
    return rejax.PPO.create(
        env=request["env"],
        total_timesteps=request["total_steps"],
        eval_freq=request["total_steps"] // request.get("points", 1),
        skip_initial_evaluation=True,
        num_envs=request["num_envs"],
        **{theirs: PPO[mine] for mine, theirs in names.items()},
        gamma=DISCOUNT,
        gae_lambda=PPO["gae_lambda"],
        vf_coef=VALUE,
        ent_coef=ENTROPY,
        agent_kwargs={"hidden_layer_sizes": SIZES, "activation": "tanh"},
    )


def rejax_train(request: dict[str, Any]) -> Callable[[Any], Any]:
    algo = rejax_ppo(request)
    episodes = request.get("episodes", 0)
    if not episodes:
        algo = algo.replace(eval_callback=lambda algo, state, key: ())

    def train(key: Any) -> Any:
        state, evaluation = algo.train(key)
        counted = state.global_step, (state.actor_ts.params, state.critic_ts.params)
        return counted, evaluation[1].mean(axis=-1) if episodes else ()

    return train


def brax_train(request: dict[str, Any]) -> dict[str, Any]:
    """Brax times its own epochs; the first holds the compilation, the last is what counts."""
    import functools

    from brax import envs
    from brax.training.agents.ppo import networks, train

    rows: list[tuple[int, float]] = []
    begin = time.perf_counter()
    train.train(
        environment=envs.get_environment(request["env"].removeprefix("brax/"), **request.get("env_kwargs", {})),
        num_timesteps=request["total_steps"],
        num_evals=3,
        num_eval_envs=1,
        episode_length=1000,
        num_envs=request["num_envs"],
        batch_size=request["num_envs"] // PPO["num_minibatches"],
        num_minibatches=PPO["num_minibatches"],
        unroll_length=PPO["num_steps"],
        num_updates_per_batch=PPO["num_epochs"],
        learning_rate=PPO["learning_rate"],
        discounting=DISCOUNT,
        entropy_cost=ENTROPY,
        seed=request["seed"],
        network_factory=functools.partial(
            networks.make_ppo_networks, policy_hidden_layer_sizes=SIZES, value_hidden_layer_sizes=SIZES
        ),
        progress_fn=lambda steps, metrics: rows.append((steps, metrics.get("training/sps", 0.0))),
    )
    last = rows[-1][0] - rows[-2][0]
    return {"steps": last, "seconds": last / rows[-1][1], "whole_seconds": time.perf_counter() - begin}


def serve(side: str) -> None:
    """Answers until standard input ends. A program is compiled once for each shape."""
    import jax
    import numpy as np

    trains = {"haepo_jax": haepo_jax_train, "rejax": rejax_train}
    compiled: dict[str, Any] = {}

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        if side == "brax":
            return brax_train(request)
        seed, seeds = request.pop("seed"), request.pop("seeds", 1)
        # One seed is trained the way a user would, without a vmap of one.
        keys = jax.random.split(jax.random.key(seed), seeds) if seeds > 1 else jax.random.key(seed)
        shape, found = json.dumps([request, seeds]), {}
        if shape not in compiled:
            train = trains[side](request)
            begin = time.perf_counter()
            compiled[shape] = jax.jit(jax.vmap(train) if seeds > 1 else train).lower(keys).compile()
            analysis = compiled[shape].memory_analysis()
            found = {"compile_seconds": time.perf_counter() - begin, "temporary_bytes": analysis.temp_size_in_bytes}
        begin, begin_cpu = time.perf_counter(), time.process_time()
        (steps, _), returns = jax.block_until_ready(compiled[shape](keys))
        found |= {"seconds": time.perf_counter() - begin, "cpu_seconds": time.process_time() - begin_cpu}
        found |= {"steps": int(np.sum(np.asarray(steps, np.int64)))}
        found |= {"peak_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}
        return found | ({"returns": np.atleast_2d(returns).tolist()} if request.get("episodes") else {})

    versions = {}
    for name in ("haepo_jax", "rejax", "brax", "jax", "gymnax"):
        try:
            versions[name] = version(name)
        except ImportError:
            continue
    print(json.dumps({"python": sys.version.split()[0]} | versions), flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)


def say(**event: Any) -> None:
    print(json.dumps(event), flush=True)


def solve_rejax(seed: int) -> None:
    import jax

    algo = rejax_ppo({"env": "CartPole-v1", "total_steps": 10**6, "num_envs": 32})
    update, evaluate = (
        jax.jit(algo.train_iteration),
        jax.jit(lambda state, key: algo.eval_callback(algo, state, key)[1]),
    )
    state = jax.jit(algo.init_state)(jax.random.key(seed))
    for turn in range(250):
        state = jax.block_until_ready(update(state))
        if turn == 0:
            say(event="updated")
        if turn % 2 and float(evaluate(state, jax.random.key(turn)).mean()) >= 475:
            return say(event="solved", steps=int(state.global_step))


def solve_sb3(seed: int) -> None:
    """With the hyperparameters of its own collection for this task: 8 environments, 20 epochs, annealed."""
    from stable_baselines3 import PPO as Theirs
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.evaluation import evaluate_policy

    evaluation = make_vec_env("CartPole-v1", n_envs=16, seed=10_000 + seed)

    class Watch(BaseCallback):
        turns = 0

        def _on_step(self) -> bool:
            return True

        def _on_rollout_start(self) -> None:
            self.turns += 1
            if self.turns == 2:
                say(event="updated")
            # Not after each of its small updates: evaluation would take longer than training.
            if self.turns % 16 == 0 and evaluate_policy(self.model, evaluation, 16, deterministic=False)[0] >= 475:
                say(event="solved", steps=self.num_timesteps)
                raise SystemExit

    model = Theirs(
        "MlpPolicy", make_vec_env("CartPole-v1", n_envs=8, seed=seed), seed=seed, device="cpu", n_steps=32, batch_size=256,
        gae_lambda=0.8, gamma=0.98, n_epochs=20, ent_coef=0.0, learning_rate=lambda left: 1e-3 * left,
        clip_range=lambda left: 0.2 * left,
    )  # fmt: skip
    model.learn(200_000, callback=Watch())


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(sys.argv[2])
    else:
        {"rejax": solve_rejax, "sb3": solve_sb3}[sys.argv[2]](int(sys.argv[3]))
