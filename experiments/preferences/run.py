"""Preferences between completions: DPO and HAEPO on the same pairs, against the true reward and the KL they spend.

    python experiments/preferences/run.py

The supervised model of `experiments/language` completes every prompt twice. The true reward is the share of right digits; which of
two completions is preferred is drawn from the Bradley-Terry model, so some preferences are wrong. Both losses then
pass over the same pairs many times, as long as it takes to do too much of it. Results: experiments/preferences/results.json
and reward.png.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import haepo_jax as hx
from haepo_jax.algorithms.state import InitialPolicy, TrainState
from haepo_jax.runner.run_dir import write_atomically
from haepo_jax.statistics import bootstrap_interval

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

from language.run import HELD_OUT, NETWORK, TASK, supervised  # noqa: E402
from tables import fill_in, markdown  # noqa: E402

RESULTS = Path(__file__).parent / "results.json"
DOCUMENT = Path(__file__).parent / "README.md"
FIGURE = DOCUMENT.parent / "reward.png"
SEEDS = 5
PAIRS, MINIBATCH = 4096, 128
SCALE = 8.0
"""Of the Bradley-Terry model: a completely right answer is preferred to a completely wrong one with odds of e^8."""
EPOCHS, POINTS = 6, 24
LEARNING_RATE = 3e-5


def right_digits(prompt: jax.Array, answer: jax.Array, completion: jax.Array) -> jax.Array:
    """The share of the answer's tokens, its end included, that the completion has in their places."""
    return jnp.mean((completion == answer).astype(jnp.float32))


TRAINING, JUDGED = (dataclasses.replace(task, reward=right_digits) for task in (TASK, HELD_OUT))
PAIRED = hx.EpisodicHAEPO(TRAINING, num_envs=2 * PAIRS, group_size=2, **NETWORK)
JUDGE = dataclasses.replace(PAIRED, env=JUDGED, num_envs=1024)

Loss = Callable[[jax.Array, jax.Array], jax.Array]


def dpo(beta: float) -> Loss:
    """(N, 2) log-ratios to the reference, and 1 where a completion is the preferred one."""
    return lambda ratio, chosen: hx.dpo_loss(ratio, chosen, reference_log_likelihood=jnp.zeros_like(ratio), beta=beta)[
        0
    ]


def haepo(temperature: float) -> Loss:
    """A group is a pair, and its return whether it was preferred: J = tanh((s_chosen - s_rejected) / (2 tau))."""
    return lambda ratio, chosen: hx.haepo_loss(
        ratio, chosen, score="log_ratio", behaviour_log_likelihood=jnp.zeros_like(ratio), temperature=temperature
    )[0]


LOSSES: dict[str, Loss] = {
    **{f"DPO, beta {beta:g}": dpo(beta) for beta in (0.03, 0.3, 1.0)},
    **{f"HAEPO, temperature {tau:g}": haepo(tau) for tau in (0.1, 0.3, 1.0)},
}


def log_ratios(params: Any, reference: Any, steps: Any) -> jax.Array:
    """log pi(completion) - log pi_reference(completion) of each trajectory, (G, K)."""
    now, then = (
        PAIRED.sequence_distribution(p, steps.observation, steps).log_prob(steps.action) for p in (params, reference)
    )
    return hx.trajectory_log_likelihood(now - jax.lax.stop_gradient(then), steps.decisions)


def train(loss: Loss, start: InitialPolicy, key: jax.Array) -> dict[str, jax.Array]:
    """One seed: its own pairs, its own order. `reward` and `kl` (POINTS + 1,) on held-out prompts; `agreement`, ()."""
    algorithm = PAIRED.replace(learning_rate=LEARNING_RATE)
    state = algorithm.init(key, start)
    play_key, label_key, order_key, judge_key = jax.random.split(key, 4)
    steps, returns, _, _ = algorithm.collect(state, play_key)
    returns = returns.reshape(PAIRS, 2)
    first_wins = jax.random.bernoulli(label_key, jax.nn.sigmoid(SCALE * (returns[:, 0] - returns[:, 1])))
    chosen = jnp.stack([first_wins, ~first_wins], axis=1).astype(jnp.float32)

    def objective(params: Any, pairs: jax.Array) -> jax.Array:
        taken = jax.tree.map(lambda x: jnp.take(x, pairs, axis=1), steps)
        return loss(log_ratios(params, start.params, taken), chosen[pairs])

    def update(now: tuple[Any, Any], pairs: jax.Array) -> tuple[tuple[Any, Any], None]:
        params, opt_state = now
        return algorithm.apply_gradients(params, opt_state, jax.grad(objective)(params, pairs)), None

    def judge(state: TrainState) -> dict[str, jax.Array]:
        played, earned, _, _ = JUDGE.collect(state, judge_key)
        return {"reward": jnp.mean(earned), "kl": jnp.mean(log_ratios(state.params, start.params, played))}

    def point(state: TrainState, order: jax.Array) -> tuple[TrainState, dict[str, jax.Array]]:
        (params, opt_state), _ = jax.lax.scan(update, (state.params, state.opt_state), order)
        state = dataclasses.replace(state, params=params, opt_state=opt_state)
        return state, judge(state)

    orders = jax.vmap(lambda key: jax.random.permutation(key, PAIRS))(jax.random.split(order_key, EPOCHS))
    _, found = jax.lax.scan(point, state, orders.reshape(POINTS, -1, MINIBATCH))
    curves = jax.tree.map(lambda first, rest: jnp.concatenate([first[None], rest]), judge(state), found)
    apart = returns[:, 0] != returns[:, 1]
    agreement = jnp.mean(first_wins == (returns[:, 0] > returns[:, 1]), where=apart)
    return {**curves, "agreement": agreement}


def table(results: dict[str, Any]) -> str:
    """The best true reward and the last, means over seeds, and the KL that each took."""
    rows = []
    for name, found in results["runs"].items():
        reward, kl, last = (
            np.mean(found["reward"], axis=0),
            np.mean(found["kl"], axis=0),
            np.array(found["reward"])[:, -1],
        )
        best = int(np.argmax(reward))
        end = f"{last.mean():.3f} ({last.min():.3f} to {last.max():.3f})"
        rows.append([name, f"{reward[best]:.3f}", f"{kl[best]:.2f}", end, f"{kl[-1]:.2f}"])
    return markdown(["", "best", "at a KL of", "at the end (worst to best seed)", "at a KL of"], rows)


def figure(results: dict[str, Any]) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    page = Figure(figsize=(11, 4.2), layout="constrained")
    FigureCanvasAgg(page)
    by_kl, by_epoch = page.subplots(1, 2, sharey=True)
    colours = {
        "DPO": ("#c6b7e2", "#a387d0", "#7d56b8", "#4b2a86"),
        "HAEPO": ("#f6b8b0", "#ec8478", "#d94e41", "#96231a"),
    }
    epochs = np.linspace(0, EPOCHS, POINTS + 1)
    for place, (name, found) in enumerate(results["runs"].items()):
        colour = colours[name.split(",")[0]][place % 3]
        reward = np.array(found["reward"])
        by_kl.plot(np.mean(found["kl"], axis=0), reward.mean(0), color=colour, label=name, marker=".", markersize=4)
        band = np.array([bootstrap_interval(column) for column in reward.T])
        by_epoch.plot(epochs, reward.mean(0), color=colour)
        by_epoch.fill_between(epochs, band[:, 0], band[:, 1], color=colour, alpha=0.15, linewidth=0)
    by_kl.set_xscale("symlog", linthresh=0.1)
    by_kl.set_xlabel("KL to the supervised model (nats per completion)")
    by_kl.set_ylabel("true reward on held-out prompts")
    by_epoch.set_xlabel("passes over the pairs")
    page.legend(loc="outside right center")
    for axes in (by_kl, by_epoch):
        axes.grid(alpha=0.3)
    page.savefig(FIGURE, dpi=120)


def main() -> None:
    results: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"runs": {}}
    missing = [name for name in LOSSES if name not in results["runs"]]
    if missing:
        start, results["supervised"] = supervised()
    for name in missing:
        keys = jax.vmap(jax.random.key)(jnp.arange(SEEDS))
        run = jax.jit(jax.vmap(lambda key, loss=LOSSES[name]: train(loss, start, key)))
        found = {key: np.asarray(value) for key, value in run(keys).items()}
        results["runs"][name] = {key: np.round(value, 5).tolist() for key, value in found.items()}
        write_atomically(RESULTS, json.dumps(results, separators=(",", ":")) + "\n")
        best = found["reward"].mean(0)
        print(
            f"{name:24} true reward {best[0]:.3f}, best {best.max():.3f} at KL {found['kl'].mean(0)[best.argmax()]:.2f}, "
            f"at the end {best[-1]:.3f} at KL {found['kl'].mean(0)[-1]:.2f}; "
            f"{found['agreement'].mean():.0%} of the preferences are right", flush=True,
        )  # fmt: skip
    figure(results)
    fill_in(DOCUMENT, "preferences", table(results))


if __name__ == "__main__":
    main()
