"""Additions in text: from a supervised model that solves some of the prompts to one that solves more, by each algorithm.

    python experiments/language/run.py

A small transformer learns from demonstrations until it adds 40% of the held-out pairs of numbers. From there
HAEPO, its form on complete episodes, its literal form, PPO with and without replay, GRPO and DPO go on with the same
budget of tokens, on prompts that are never the held-out ones. Each tries the same five learning rates and uses every
completion 4 or 16 times, on a seed that is not used again, and then trains five seeds at the best. What was done before
is not done again. Results: experiments/language/results.json and curves.png.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import haepo_jax as hx
from haepo_jax.algorithms.state import InitialPolicy
from haepo_jax.counting import StepCount
from haepo_jax.envs import TokenTask
from haepo_jax.envs.tokens import join, number
from haepo_jax.runner.run_dir import write_atomically
from haepo_jax.statistics import bootstrap_interval

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

from tables import fill_in, markdown  # noqa: E402

RESULTS = Path(__file__).parent / "results.json"
DOCUMENT = Path(__file__).parent / "README.md"
FIGURE = DOCUMENT.parent / "curves.png"
SEEDS = 5
RATES = (3e-5, 1e-4, 3e-4, 1e-3, 3e-3)
USES = (4, 16)
"""How often each completion is used: epochs, or epochs times the batches of a replay buffer."""
TOKENS = 100_000
"""Of each run, prompts included; about 12,000 completions."""
POINTS = 10
HELD_OUT_PROMPTS = 512

NETWORK: dict[str, Any] = {"network": "transformer", "hidden_sizes": (48, 48), "eval_episodes": 0}
SHARED: dict[str, Any] = {**NETWORK, "total_steps": TOKENS, "num_envs": 64, "num_minibatches": 2, "entropy_coef": 0.0}
SEGMENTS: dict[str, Any] = {**SHARED, "num_steps": 16, "discount": 1.0}
PPO: dict[str, Any] = {**SEGMENTS, "gae_lambda": 0.95, "clip_eps": 0.2}
EPISODIC: dict[str, Any] = {**SHARED, "temperature": 1.0, "kl_coef": (3.0, 0.1)}


def addition(held_out: bool) -> TokenTask:
    """`haepo/addition` of two digits, on a fifth of all pairs or on the others."""
    pairs = np.random.default_rng(0).permutation(
        np.stack(np.meshgrid(np.arange(100), np.arange(100)), -1).reshape(-1, 2)
    )
    pairs = pairs[:2000] if held_out else pairs[2000:]

    def sample(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        terms = jnp.asarray(pairs)[jax.random.randint(key, (), 0, len(pairs))]
        prompt = join(number(terms[0], 2), 11, number(terms[1], 2), 12, length=6)
        return prompt, join(number(terms[0] + terms[1], 3), length=4)

    return TokenTask("addition", "0123456789+=", 6, 4, sample)


TASK, HELD_OUT = addition(held_out=False), addition(held_out=True)
ALGORITHMS: dict[str, Any] = {
    "haepo": hx.HAEPO(TASK, group_size=8, replay_batches=4, **SEGMENTS),
    "haepo_episodic": hx.EpisodicHAEPO(TASK, **EPISODIC),
    "haepo_paper": hx.EpisodicHAEPO(TASK, credit="trajectory", score="likelihood", **EPISODIC),
    "grpo": hx.GRPO(TASK, kl_coef=0.04, **SHARED),
    "dpo": hx.DPO(TASK, beta=0.1, **SHARED),
    "ppo": hx.PPO(TASK, **PPO),
    "ppo_replay": hx.PPO(TASK, replay_batches=4, **PPO),
}


def solved(algorithm: Any, state: Any) -> jax.Array:
    """Share of held-out prompts that a sampled completion answers rightly, ()."""
    judge = dataclasses.replace(algorithm, env=HELD_OUT)
    return jnp.mean(judge.evaluate(state, episodes=HELD_OUT_PROMPTS)["return"])


def supervised() -> tuple[InitialPolicy, dict[str, Any]]:
    """A model that has learnt from demonstrations until it solves at least 40 % of the held-out prompts."""
    algorithm = hx.Supervised(TASK, num_envs=256, anneal_learning_rate=False, total_steps=10**8, **NETWORK)
    state = jax.jit(algorithm.init)(jax.random.key(0))
    advance, judge = jax.jit(algorithm.advance), jax.jit(lambda state: solved(algorithm, state))
    share, tokens = 0.0, 0
    while share < 0.4:
        tokens += 100_000
        state, _ = advance(state, StepCount.of(tokens))
        share = float(judge(state))
    print(f"supervised: {share:.3f} of the held-out prompts after {tokens:,} tokens", flush=True)
    return InitialPolicy(state.params, None), {"solved": share, "tokens": tokens}


def run(algorithm: Any, start: InitialPolicy) -> Any:
    """A function (rates, keys) -> shares of held-out prompts solved (lanes, points), compiled once."""

    def begin(key: jax.Array) -> Any:
        return algorithm.init(key, start)

    def advance(rate: jax.Array, state: Any, until: StepCount) -> Any:
        now = algorithm.replace(learning_rate=rate)
        state, _ = now.advance(state, until)
        return state, solved(now, state)

    begin, advance = jax.jit(jax.vmap(begin)), jax.jit(jax.vmap(advance, in_axes=(0, 0, None)))

    def curves(rates: Any, keys: jax.Array) -> np.ndarray[Any, Any]:
        state, points = begin(keys), []
        for point in range(1, POINTS + 1):
            state, share = advance(jnp.asarray(rates), state, StepCount.of(TOKENS * point // POINTS))
            points.append(np.asarray(share))
        return np.stack(points, axis=1)

    return curves


def table(results: dict[str, Any]) -> str:
    """Held-out prompts solved at the end, the best first."""
    rows = []
    for name, found in sorted(results["runs"].items(), key=lambda run: -np.mean(run[1]["final"])):
        low, high = found["interval"]
        solved = f"{np.mean(found['final']):.3f} ({low:.3f} to {high:.3f})"
        rows.append([name, str(found["uses"]), f"{found['learning_rate']:g}", solved, f"{min(found['final']):.3f}"])
    return markdown(["", "uses", "learning rate", "solved", "worst"], rows)


def figure(results: dict[str, Any]) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    page = Figure(figsize=(7, 4.2), layout="constrained")
    FigureCanvasAgg(page)
    axes = page.add_subplot()
    tokens = np.linspace(0, TOKENS, POINTS + 1)
    first = results["supervised"]["solved"]
    for name, found in results["runs"].items():
        values = np.array([[first, *curve] for curve in found["curves"]])
        (line,) = axes.plot(tokens, values.mean(0), label=f"{name}, {found['uses']} uses")
        band = np.array([bootstrap_interval(column) for column in values.T])
        axes.fill_between(tokens, band[:, 0], band[:, 1], color=line.get_color(), alpha=0.15, linewidth=0)
    axes.axhline(first, color="grey", linewidth=1, linestyle=":")
    axes.set_xlabel("tokens, prompts included")
    axes.set_ylabel("held-out prompts solved")
    axes.set_title(f"Adding two numbers in text, {SEEDS} seeds", fontsize=11)
    axes.legend()
    axes.grid(alpha=0.3)
    page.savefig(FIGURE, dpi=120)


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None).parse_args()
    results: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"runs": {}}
    missing = [name for name in ALGORITHMS if name not in results["runs"]]
    if missing:
        start, results["supervised"] = supervised()
    for name in missing:
        begin = time.perf_counter()
        algorithm = ALGORITHMS[name]
        batches = getattr(algorithm, "replay_batches", 1)
        curves = {uses: run(algorithm.replace(num_epochs=uses // batches), start) for uses in USES}
        keys = jax.vmap(jax.random.key)(jnp.full(len(RATES), 100))
        tried = np.stack([curves[uses](RATES, keys) for uses in USES])
        # The best over the second half of the run: its last point alone would be decided by chance.
        row, column = np.unravel_index(np.argmax(tried[..., POINTS // 2 :].mean(-1)), tried.shape[:2])
        uses, rate = USES[row], RATES[column]
        found = curves[uses](np.full(SEEDS, rate), jax.vmap(jax.random.key)(jnp.arange(SEEDS)))
        results["runs"][name] = {
            "learning_rate": rate,
            "uses": uses,
            "tried": {
                f"{uses} uses, {rate:g}": curve.tolist()
                for uses, group in zip(USES, tried, strict=True)
                for rate, curve in zip(RATES, group, strict=True)
            },
            "curves": found.tolist(),
            "final": found[:, -1].tolist(),
            "interval": [float(x) for x in bootstrap_interval(found[:, -1])],
            "seconds": time.perf_counter() - begin,
        }
        write_atomically(RESULTS, json.dumps(results, separators=(",", ":")) + "\n")
        final = results["runs"][name]
        print(
            f"{name:12} {uses} uses, learning rate {rate:g}: {found[:, -1].mean():.3f}, seeds",
            *(f"{x:.3f}" for x in final["final"]), f"in {final['seconds']:.0f} s", flush=True,
        )  # fmt: skip
    figure(results)
    fill_in(DOCUMENT, "language", table(results))


if __name__ == "__main__":
    main()
