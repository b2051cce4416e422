"""Where might the history help? Softmax and clips where replayed data is stale, steps are large, rewards late or observations
partial; and other weights of histories in the place of the softmax.

    python experiments/replay/regimes.py [only="stale: cartpole,late rewards: cartpole"]

On every line of the table each method chooses its bound and its learning rate: of eight configurations the one with the best mean
score over three seeds is trained with 20 others. The softmax has HAEPO's KL penalty; the clips have none, which does not help
them (see `run.py`). What `regimes.json` holds is not trained again.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
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
from haepo_jax.algorithms.fields import POSITIVE, leaf
from haepo_jax.algorithms.segments import Batch
from haepo_jax.envs import Environment, TimeStep
from haepo_jax.envs.base import Replaceable
from haepo_jax.losses.numerics import masked_mean
from haepo_jax.runner.run_dir import write_atomically

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[1] / "claims")]

from claims.catalogue import TASKS  # noqa: E402
from claims.report import mean_scores  # noqa: E402
from replay.run import CLIP, DOCUMENT, SEEDS, SHARED, as_result, earlier, stored, summarised  # noqa: E402
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
    """What all methods share on a task, and the learning rates that they choose from; `env` stands in for the task's own."""

    tasks: tuple[str, ...]
    shared: dict[str, Any] = dataclasses.field(default_factory=dict)
    rates: tuple[float, float] = (1e-3, 3e-3)
    late: bool = False
    env: str = ""


REGIMES: dict[str, Regime] = {
    "eight batches": Regime(("pendulum",)),
    "stale": Regime(("cartpole", "pendulum"), {"replay_batches": 32, "num_epochs": 1, "num_minibatches": 64}),
    "large steps": Regime(("pendulum",), rates=(1e-2, 3e-2)),
    "late rewards": Regime(("cartpole", "pendulum"), late=True),
    "hidden velocities": Regime(
        ("cartpole",), {"network": "gru", "hidden_sizes": (32, 32)}, env="haepo/hidden_cartpole"
    ),
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


def sparsemax(scores: jax.Array, mask: jax.Array, temperature: jax.Array) -> jax.Array:
    """The point of the simplex nearest to the scores (arXiv 1602.02068), with the slope of the softmax where all are equal.

    This and the other weights take every member of a group for valid, as `hx.HAEPO` has them.
    """
    size = scores.shape[-1]
    scaled = scores / (size * temperature)
    ordered = jnp.sort(scaled, descending=True)
    excess = jnp.cumsum(ordered, axis=-1) - 1
    rank = jnp.arange(1, size + 1)
    support = jnp.sum(rank * ordered > excess, axis=-1, keepdims=True)
    return jnp.maximum(scaled - jnp.take_along_axis(excess, support - 1, axis=-1) / support, 0)


def pairwise(scores: jax.Array, mask: jax.Array, temperature: jax.Array) -> jax.Array:
    """Smooth ranks: how often a member beats another (Bradley-Terry), with the slope of the softmax where all are equal."""
    ahead = scores[..., :, None] - scores[..., None, :]
    return 2 * jnp.mean(jax.nn.sigmoid(2 * ahead / temperature[..., None]), axis=-1) / scores.shape[-1]


def constant_ess(scores: jax.Array, mask: jax.Array, target: jax.Array) -> jax.Array:
    """The softmax at the lowest temperature from 0.03 to 30 whose effective sample size is the target, a share of the group.

    The loss multiplies by its temperature, here the target; the gradient is that of a loss that multiplies by the one found.
    """

    def halve(ends: tuple[jax.Array, jax.Array], _: None) -> tuple[tuple[jax.Array, jax.Array], None]:
        low, high = ends
        middle = jnp.sqrt(low * high)
        weights = jax.nn.softmax(jax.lax.stop_gradient(scores) / middle)
        enough = 1 / (scores.shape[-1] * jnp.sum(weights**2, axis=-1, keepdims=True)) >= target
        return (jnp.where(enough, low, middle), jnp.where(enough, middle, high)), None

    ends = jnp.full_like(scores[..., :1], 0.03), jnp.full_like(scores[..., :1], 30.0)
    (_, temperature), _ = jax.lax.scan(halve, ends, length=12)
    weights = jax.nn.softmax(scores / temperature)
    fixed = jax.lax.stop_gradient(weights)
    return fixed + (weights - fixed) * temperature / target


def in_groups(x: jax.Array, size: int) -> jax.Array:
    """(N, T) -> (T, groups, size)."""
    return x.T.reshape(x.shape[1], -1, size)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SoftmaxAndClip(hx.HAEPO):
    """HAEPO whose gradient stops at steps where PPO's would: beyond the clip range, in the direction of the advantage."""

    clip_eps: float = leaf(0.2, "half-width of the range of a step's ratio", within=POSITIVE)

    def loss(self, params: Any, batch: Batch) -> tuple[jax.Array, dict[str, jax.Array]]:
        def clipped(action: Any) -> jax.Array:
            log_prob = current.log_prob(action)
            ratio = jnp.exp(log_prob - batch.log_prob)
            better = batch.advantage > masked_mean(batch.advantage, batch.mask)
            is_beyond = jnp.where(better, ratio > 1 + self.clip_eps, ratio < 1 - self.clip_eps)
            return jnp.where(is_beyond, jax.lax.stop_gradient(log_prob), log_prob)

        inputs = batch.observation, batch.is_first, batch.action_mask, batch.carry
        current, values = self.outputs(params, *inputs)
        grouped = functools.partial(in_groups, size=self.group_size)
        loss, metrics = hx.losses.haepo_advantage_loss(
            grouped(clipped(batch.action)), grouped(batch.log_prob), grouped(batch.advantage), grouped(batch.is_first),
            mask=grouped(batch.mask), history_decay=self.history_decay, temperature=self.temperature,
            entropy_coef=self.entropy_coef, kl_coef=self.kl_coef, policy_entropy=grouped(current.entropy()),
            policy_kl=grouped(batch.reference.kl_to(current)),
        )  # fmt: skip
        value_loss = masked_mean((values - batch.value_target) ** 2, batch.mask) / 2
        return loss + self.value_coef * value_loss, metrics


VARIANTS: dict[str, tuple[type[hx.Algorithm], str, tuple[float, ...], dict[str, Any]]] = {
    "sparsemax": (hx.HAEPO, "temperature", (0.1, 0.3, 1.0, 3.0), {"group_size": 4, "weight_function": sparsemax}),
    "pairwise": (hx.HAEPO, "temperature", (0.1, 0.3, 1.0, 3.0), {"group_size": 4, "weight_function": pairwise}),
    "constant ESS": (
        hx.HAEPO,
        "temperature",
        (0.5, 0.7, 0.9, 0.97),
        {"group_size": 4, "weight_function": constant_ess},
    ),
    "softmax and clip": (SoftmaxAndClip, "clip_eps", (0.1, 0.2, 0.3, 0.6), {"group_size": 4, "temperature": 1.0}),
}
"""In the place of the softmax, on the lines of `VARIED`; what `constant_ess` chooses is the share of effective samples."""
VARIED = ("eight batches: pendulum", "stale: cartpole")
EVERY = METHODS | VARIANTS


def name_of(regime: str, task: str) -> str:
    return f"{regime}: {task}"


LINES = {name_of(name, task): (regime, task) for name, regime in REGIMES.items() for task in regime.tasks}


def train(regime: Regime, task_name: str, method: str, configs: list[tuple[float, float]], seeds: range) -> Any:
    """Evaluation returns (configurations, seeds, points) and steps (points,), from one compiled program."""
    task, (kind, bound, _, own) = TASKS[task_name], EVERY[method]
    env = hx.make_env(regime.env or task.env, **task.env_kwargs)
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


def chosen_and_trained(line: str, method: str) -> dict[str, Any]:
    """The best configuration of a method on a line, and its runs with the reported seeds."""
    (regime, task), begin = LINES[line], time.perf_counter()
    configs = list(itertools.product(regime.rates, EVERY[method][2]))
    returns, steps = train(regime, task, method, configs, TUNING_SEEDS)
    tuned = [
        round(float(mean_scores(as_result(task, {"eval_return": some, "env_steps": steps})).mean()), 4)
        for some in returns
    ]
    best = configs[int(np.argmax(tuned))]
    returns, steps = train(regime, task, method, [best], SEEDS)
    return {
        "configs": configs, "scores": tuned, "learning_rate": best[0], EVERY[method][1]: best[1],
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
        found = {method: as_result(task, run) for method, run in runs.items()}
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


def variants(results: dict[str, Any]) -> str:
    """Other weights of histories: how each does, and how often it is better than the softmax and the clips."""
    rivals, rows = [method for method in METHODS if method != "clip around current"], []
    for line, variant in itertools.product(VARIED, VARIANTS):
        runs = [results["runs"].get(f"{line}, {method}") for method in (variant, *rivals)]
        if None in runs:
            continue
        found = [as_result(LINES[line][1], run) for run in runs]
        own, *others = map(mean_scores, found)
        better = [probability_of_improvement([own], [other]) for other in others]
        rows.append(
            [line, variant, summarised(found[0])[1], *(f"{p:.2f} ({low:.2f} to {high:.2f})" for p, low, high in better)]
        )
    return markdown(["", "weights", "result", *(f"P(better than {rival})" for rival in rivals)], rows)


def main(argv: list[str]) -> int:
    """Trains what is missing and writes the table; returns the exit status."""
    chosen = dict(argument.partition("=")[::2] for argument in argv)
    lines = chosen.get("only", ",".join(LINES)).split(",")
    if set(chosen) - {"only"} or set(lines) - set(LINES):
        print(f"error: {' '.join(argv)}: write only= and some of {','.join(LINES)}, or nothing", file=sys.stderr)
        return 2
    jobs = [*itertools.product(lines, METHODS), *itertools.product([x for x in lines if x in VARIED], VARIANTS)]
    for line, method in jobs:
        name = f"{line}, {method}"
        if name not in stored(RESULTS, "regimes.py")["runs"]:
            print(name, flush=True)
            found = chosen_and_trained(line, method)
            results = stored(RESULTS, "regimes.py") | {"tuning_seeds": list(TUNING_SEEDS)}
            results["runs"][name] = found
            write_atomically(RESULTS, json.dumps(results, separators=(",", ":")) + "\n")
    fill_in(DOCUMENT, "regimes", table(stored(RESULTS, "regimes.py")))
    fill_in(DOCUMENT, "variants", variants(stored(RESULTS, "regimes.py")))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
