"""Where might the history help? Softmax and clips where replayed data is stale, steps are large or rewards late.

    python experiments/replay/regimes.py [only="stale: cartpole,late rewards: cartpole"]

On every line of the table each method chooses its bound and its learning rate: of eight configurations the one with the best mean
score over three seeds is trained with 20 others. The softmax has HAEPO's KL penalty; the clips have none, which does not help
them (see `run.py`). What `regimes.json` holds is not trained again.
"""

from __future__ import annotations

import dataclasses
import datetime
import itertools
import json
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import haepo_jax as hx
from haepo_jax.envs import Environment, TimeStep
from haepo_jax.envs.base import Replaceable
from haepo_jax.runner.run_dir import write_atomically

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[1] / "claims")]

from claims.catalogue import TASKS  # noqa: E402
from claims.report import mean_scores  # noqa: E402
from replay.run import CLIP, DOCUMENT, SEEDS, SHARED, earlier, stored, summarised  # noqa: E402
from tables import fill_in, markdown  # noqa: E402

from haepo_jax.statistics import probability_of_improvement  # noqa: E402

RESULTS = Path(__file__).parent / "regimes.json"
TUNING_SEEDS = range(400, 403)
POINTS = 40


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class LateReward(Replaceable):
    """Pays the sum of an episode's rewards at its end."""

    env: Environment

    @property
    def name(self) -> str:
        return f"late {self.env.name}"

    @property
    def horizon(self) -> int:
        return self.env.horizon

    @property
    def observation_space(self) -> Any:
        return self.env.observation_space

    @property
    def action_space(self) -> Any:
        return self.env.action_space

    def reset(self, key: jax.Array) -> tuple[Any, jax.Array]:
        state, observation = self.env.reset(key)
        return (state, jnp.float32(0)), observation

    def step(self, key: jax.Array, state: Any, action: jax.Array) -> TimeStep:
        after = self.env.step(key, state[0], action)
        owed = state[1] + after.reward
        ends = after.terminated | after.truncated
        return after._replace(state=(after.state, owed), reward=jnp.where(ends, owed, 0.0))


@dataclasses.dataclass(frozen=True)
class Regime:
    """What all methods share on a task, and the learning rates that they choose from."""

    tasks: tuple[str, ...]
    shared: dict[str, Any] = dataclasses.field(default_factory=dict)
    rates: tuple[float, float] = (1e-3, 3e-3)
    late: bool = False


REGIMES: dict[str, Regime] = {
    "stale": Regime(("cartpole", "pendulum"), {"replay_batches": 32, "num_epochs": 1, "num_minibatches": 64}),
    "large steps": Regime(("pendulum",), rates=(1e-2, 3e-2)),
    "late rewards": Regime(("cartpole", "pendulum"), late=True),
}
"""All make 64 gradient steps an update and use every step 32 times, of a replay buffer of 8 batches of 256 steps where nothing
else is said."""
METHODS: dict[str, tuple[type[hx.Algorithm], str, tuple[float, ...], dict[str, Any]]] = {
    "softmax": (hx.HAEPO, "temperature", (0.1, 0.3, 1.0, 3.0), {"group_size": 4}),
    "clip": (hx.PPO, "clip_eps", (0.1, 0.2, 0.3, 0.6), CLIP),
    "clip, V-trace": (hx.PPO, "clip_eps", (0.1, 0.2, 0.3, 0.6), {**CLIP, "advantage_estimator": "vtrace"}),
    "clip around current": (hx.PPO, "clip_eps", (0.1, 0.2, 0.3, 0.6), {**CLIP, "clip_around": "current"}),
}
"""The algorithm, its bound and the values it chooses from, and its settings."""


def name_of(regime: str, task: str) -> str:
    return f"{regime}: {task}"


LINES = {name_of(name, task): (regime, task) for name, regime in REGIMES.items() for task in regime.tasks}


def train(regime: Regime, task_name: str, method: str, configs: list[tuple[float, float]], seeds: range) -> Any:
    """Evaluation returns (configurations, seeds, points) and steps (points,), from one compiled program."""
    task, (kind, bound, _, own) = TASKS[task_name], METHODS[method]
    env = hx.make_env(task.env, **task.env_kwargs)
    settings = {**SHARED, **own, **regime.shared}
    algo = kind(
        LateReward(env) if regime.late else env, total_steps=task.total_steps, log_points=POINTS, eval_episodes=16,
        **settings,
    )  # fmt: skip

    def run(config: jax.Array, key: jax.Array) -> Any:
        metrics = algo.replace(learning_rate=config[0], **{bound: config[1]}).train(key)[1]
        return metrics["eval_return"], metrics["env_steps"]

    keys = jax.vmap(jax.random.key)(np.array(seeds, np.uint32))
    returns, steps = jax.jit(jax.vmap(jax.vmap(run, (None, 0)), (0, None)))(jnp.array(configs, jnp.float32), keys)
    returns = [
        [[float(f"{x:.4g}") if np.isfinite(x) else None for x in row] for row in one] for one in returns.tolist()
    ]
    return returns, steps.to_int()[0, 0].tolist()


def as_result(task: str, returns: Any, steps: list[int]) -> dict[str, Any]:
    """In the form that the functions of `claims/report.py` take."""
    return {"task": vars(TASKS[task]), "eval_return": returns, "env_steps": [steps] * len(returns)}


def chosen_and_trained(line: str, method: str) -> dict[str, Any]:
    """The best configuration of a method on a line, and its runs with the reported seeds."""
    (regime, task), begin = LINES[line], time.perf_counter()
    configs = list(itertools.product(regime.rates, METHODS[method][2]))
    returns, steps = train(regime, task, method, configs, TUNING_SEEDS)
    tuned = [round(float(mean_scores(as_result(task, some, steps)).mean()), 4) for some in returns]
    best = configs[int(np.argmax(tuned))]
    returns, steps = train(regime, task, method, [best], SEEDS)
    return {
        "configs": configs, "scores": tuned, "learning_rate": best[0], METHODS[method][1]: best[1],
        "eval_return": returns[0], "env_steps": steps, "seconds": round(time.perf_counter() - begin, 1),
        "date": datetime.date.today().isoformat(),
    }  # fmt: skip


def table(results: dict[str, Any]) -> str:
    """Steps to the threshold, seeds that arrived and mean score; which is earlier, and how often the softmax is better."""
    rows = []
    for line, (_, task) in LINES.items():
        runs = {method: results["runs"].get(f"{line}, {method}") for method in METHODS}
        if None in runs.values():
            continue
        found = {method: as_result(task, run["eval_return"], run["env_steps"]) for method, run in runs.items()}
        cells = {method: summarised(result) for method, result in found.items()}
        steps = {method: cell[0] for method, cell in cells.items()}
        means = {method: mean_scores(result) for method, result in found.items()}
        better = [
            f"{probability_of_improvement([means['softmax']], [means[m]])[0]:.2f}" for m in METHODS if m != "softmax"
        ]
        rows.append(
            [
                line,
                *(text for _, text in cells.values()),
                *(earlier(steps, m) for m in METHODS if m != "softmax"),
                *better,
            ]
        )
    others = [method for method in METHODS if method != "softmax"]
    head = ["", *METHODS, *(f"softmax or {m}" for m in others), *(f"P(softmax better than {m})" for m in others)]
    return markdown(head, rows)


def main(argv: list[str]) -> int:
    """Trains what is missing and writes the table; returns the exit status."""
    chosen = dict(argument.partition("=")[::2] for argument in argv)
    lines = chosen.get("only", ",".join(LINES)).split(",")
    if set(chosen) - {"only"} or set(lines) - set(LINES):
        print(f"error: {' '.join(argv)}: write only= and some of {','.join(LINES)}, or nothing", file=sys.stderr)
        return 2
    for line, method in itertools.product(lines, METHODS):
        name = f"{line}, {method}"
        if name not in stored(RESULTS, "regimes.py")["runs"]:
            print(name, flush=True)
            found = chosen_and_trained(line, method)
            results = stored(RESULTS, "regimes.py") | {"tuning_seeds": list(TUNING_SEEDS)}
            results["runs"][name] = found
            write_atomically(RESULTS, json.dumps(results, separators=(",", ":")) + "\n")
    fill_in(DOCUMENT, "regimes", table(stored(RESULTS, "regimes.py")))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
