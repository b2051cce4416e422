"""Cohorts: runs in batches, padding, halving, devices; their pure functions against NumPy."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import haepo_jax
from haepo_jax.counting import StepCount
from haepo_jax.runner.sweeps import cohort as cohorts
from haepo_jax.runner.sweeps.batch import Programs, Run, advance, shape_of, start
from haepo_jax.runner.sweeps.cohort import Group, run_shares, train_cohort
from haepo_jax.runner.sweeps.plan import SweepConfig
from tests.runner.sweeps.toy_algorithm import Toy, alone

RATES = [1e-4, 1e-3, 1e-2, 3e-1, 3e-4]


def trials(rates: list[float] = RATES, first: int = 0, **changes: Any) -> dict[int, Any]:
    return {first + i: Toy(learning_rate=rate, **changes) for i, rate in enumerate(rates)}


def group_of(members: dict[int, Any], size: int, programs: Programs | None = None) -> Group:
    algorithm = next(iter(members.values()))
    return Group(members, programs or Programs(algorithm, points=4, episodes=3), range(7, 9), size)


class Ended:
    """What became of a trial, its result as attributes."""

    def __init__(self, state: str, result: dict[str, Any]) -> None:
        self.state = state
        self.returns, self.env_steps, self.updates, self.diverged_at = (
            result[f"{name}_per_seed"] for name in ("return", "env_steps", "updates", "diverged_at")
        )
        self.curve = result["curve_return_per_seed"]


def train(groups: list[Group], **settings: Any) -> dict[int, Ended]:
    ended: dict[int, Ended] = {}
    config = SweepConfig(total_steps=100, **settings)
    train_cohort(
        groups,
        config,
        on_call=lambda steps: None,
        on_rung=lambda rung, values: cohorts.survivors(values, config.halving or 1),
        on_end=lambda number, state, result: ended.update({number: Ended(state, result)}),
    )
    return ended


@pytest.mark.parametrize("size", [1, 4, 16])
def test_every_trial_is_what_it_is_alone_whatever_the_batch(size: int) -> None:
    outcomes = train([group_of(trials(), size)])
    assert list(outcomes) == [0, 1, 2, 3, 4] and all(outcome.state == "complete" for outcome in outcomes.values())
    for number, rate in enumerate(RATES):
        for seed in range(2):
            state = alone(Toy(learning_rate=rate), 7 + seed, 100)
            assert outcomes[number].env_steps[seed] == state.env_steps.to_int()
            assert outcomes[number].updates[seed] == state.update
            expected = -abs(np.log10(rate) + 2) + 1e-6 * float(state.params.sum())
            assert outcomes[number].returns[seed] == pytest.approx(expected, abs=1e-6)


def test_runs_are_regrouped_between_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cohorts, "CALL_SECONDS", 0.0)  # one update a call
    outcomes = train([group_of(trials(), 4)])
    for number, rate in enumerate(RATES):
        state = alone(Toy(learning_rate=rate), 8, 100)
        assert outcomes[number].env_steps[1] == state.env_steps.to_int()


def test_each_shape_is_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    traced: list[Any] = []
    original = Toy.train_step

    def trace(self: Any, state: Any) -> Any:
        traced.append(self)
        return original(self, state)

    monkeypatch.setattr(Toy, "train_step", trace)
    first = group_of(trials(), 4)
    before = train([first])
    once = len(traced)
    after = train([group_of(trials(RATES[:3]), 4, first.programs)])
    assert len(traced) == once > 0, "a later cohort compiles nothing: a batch that is not full is padded"
    for number in range(3):
        np.testing.assert_array_equal(after[number].returns, before[number].returns)
        np.testing.assert_array_equal(after[number].curve, before[number].curve)
    outcomes = train([group_of(trials(), 4), group_of(trials(first=5, stride=9), 4)])
    assert len(outcomes) == 10 and len(traced) == 3 * once


def test_a_number_and_a_pair_have_two_shapes() -> None:
    assert shape_of(Toy(learning_rate=1e-3)) == shape_of(Toy(learning_rate=1e-2)) != shape_of(Toy(stride=9))
    assert shape_of(Toy(learning_rate=1e-3)) != shape_of(Toy(learning_rate=(1e-3, 0.0)))


def test_halving_keeps_the_best_and_they_are_what_they_are_without() -> None:
    full = train([group_of(trials(), 4)])
    halved = train([group_of(trials(), 4)], halving=2, halving_rungs=2)
    assert [number for number, outcome in sorted(halved.items()) if outcome.state == "complete"] == [1, 2], (
        "nearest to 1e-2"
    )
    for number in (1, 2):
        np.testing.assert_array_equal(halved[number].returns, full[number].returns)
        np.testing.assert_array_equal(halved[number].curve, full[number].curve)
    for outcome in halved.values():
        if outcome.state == "stopped":
            assert np.all(outcome.env_steps < 60)


def test_halving_compares_across_shapes() -> None:
    shapes = trials(RATES[:2]), trials(RATES[2:4], first=2, stride=9)
    outcomes = train([group_of(members, 4) for members in shapes], halving=4, halving_rungs=1)
    assert [number for number, outcome in outcomes.items() if outcome.state == "complete"] == [2]


def test_one_that_diverges_ends_alone() -> None:
    outcomes = train([group_of(trials([1e-2, 5.0, 1e-3]), 6)])
    assert outcomes[1].diverged_at.tolist() == [2, 2] and outcomes[1].updates.tolist() == [2, 2]
    assert outcomes[0].diverged_at.tolist() == [-1, -1] and np.all(outcomes[0].env_steps >= 100)
    assert [outcomes[number].state for number in range(3)] == ["complete", "failed", "complete"]
    assert np.isnan(outcomes[1].returns).all(), "the return of the policy that it was frozen with is none of its own"


def test_halving_keeps_no_trial_that_diverged() -> None:
    # At the first rung the frozen policy of 1.5 is second best; at most one more would be kept.
    outcomes = train([group_of(trials([1e-2, 1.5, 1e-5, 10**-4.5]), 8)], halving=2, halving_rungs=1)
    states = {number: outcome.state for number, outcome in outcomes.items()}
    assert states == {0: "complete", 1: "failed", 2: "stopped", 3: "complete"}
    every = train([group_of(trials([2.0, 3.0]), 4)], halving=2, halving_rungs=1)
    assert [outcome.state for outcome in every.values()] == ["failed", "failed"]


DEVICES = """
import sys; sys.path.insert(0, sys.argv[1])
import json, jax, numpy as np
from test_sweep_cohort import trials, group_of, train
assert jax.device_count() == 8
rates = [10.0 ** -(1 + n / 4) for n in range(12)]
group = group_of(trials(rates), 16)
shares = [(shard.device.id, shard.data.shape[0]) for shard in group._runs.state.params.addressable_shards]
assert shares == [(device, 3) for device in range(8)], shares
outcomes = train([group])
shares = [(shard.device.id, shard.data.shape[0]) for shard in group._runs.state.params.addressable_shards]
assert shares == [(device, 3) for device in range(8)], shares
print(json.dumps([outcomes[n].returns.tolist() + outcomes[n].env_steps.tolist() for n in range(12)]))
"""


def test_eight_devices_share_the_runs_and_give_what_one_gives() -> None:
    tests = Path(__file__).parent
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(Path(haepo_jax.__file__).parents[1]),
    }
    result = subprocess.run(
        [sys.executable, "-c", DEVICES, str(tests)], env=environment, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
    rates = [10.0 ** -(1 + n / 4) for n in range(12)]
    outcomes = train([group_of(trials(rates), 16)])
    one = [outcomes[number].returns.tolist() + outcomes[number].env_steps.tolist() for number in range(12)]
    np.testing.assert_allclose(np.array(json.loads(result.stdout)), np.array(one), atol=1e-6)


@pytest.mark.parametrize("count", [1, 2, 7, 27])
@pytest.mark.parametrize("eta", [2, 3, 4])
def test_survivors_are_the_best(count: int, eta: int) -> None:
    values = dict(enumerate(np.random.default_rng(count).permutation(count).astype(float)))
    kept = cohorts.survivors(values, eta)
    assert {values[trial] for trial in kept} == {*range(count - -(-count // eta), count)}


def test_survivors_of_ties_and_nan() -> None:
    assert cohorts.survivors(dict(enumerate([np.nan, 1.0, 1.0, 1.0, -np.inf, np.nan])), 3) == {1, 2}
    assert cohorts.survivors(dict(enumerate([np.nan, np.nan])), 2) == set()


def test_rungs_are_powers_of_eta() -> None:
    assert run_shares(SweepConfig(halving=3, halving_rungs=2)) == pytest.approx([1 / 9, 1 / 3, 1])


def stacked(rates: list[float], seeds: list[int]) -> tuple[Toy, Run]:
    toys = Toy(learning_rate=jnp.array(rates), entropy_coef=jnp.zeros(len(rates)), env=jnp.zeros(len(rates)))
    return toys, jax.vmap(lambda toy, seed: start(toy, seed, 4))(toys, jnp.array(seeds, jnp.uint32))


def until(count: int, steps: int) -> StepCount:
    return StepCount(jnp.zeros(count, jnp.uint32), jnp.full(count, steps, jnp.uint32))


def test_advance_stops_each_run_at_its_own_end_and_all_after_so_many_updates() -> None:
    toys, runs = stacked([0.1, 0.2, 5.0], [3, 4, 5])
    train_on = jax.jit(jax.vmap(advance, (0, 0, 0, None)))
    few = train_on(toys, runs, until(3, 60), jnp.int32(2))
    assert few.state.update.tolist() == [2, 2, 2]
    done = train_on(toys, few, until(3, 60), jnp.int32(1000))
    for index, (rate, seed) in enumerate([(0.1, 3), (0.2, 4), (5.0, 5)]):
        state = alone(Toy(learning_rate=rate), seed, 60)
        assert done.state.env_steps.to_int()[index] == state.env_steps.to_int()
        np.testing.assert_allclose(done.state.params[index], state.params, rtol=1e-6)
    assert done.state.status.diverged_at.tolist() == [-1, -1, 2], "one that diverges does not hurt the others"


def test_the_learning_curve_holds_the_returns_of_each_segment() -> None:
    toys, runs = stacked([0.1], [3])
    run = jax.vmap(advance, (0, 0, 0, None))(toys, runs, until(1, 100), jnp.int32(1000))
    state, key = 0, jax.random.key(3)
    returns: list[list[int]] = [[] for _ in range(4)]
    for update in range(int(run.state.update[0])):
        state += 5 + int(jax.random.randint(jax.random.fold_in(key, update), (), 0, 4))
        returns[min(3, state * 4 // 100)].append(update + 1)
    assert run.curve_count[0].tolist() == [len(segment) for segment in returns]
    assert run.curve_sum[0].tolist() == [sum(segment) for segment in returns]


def test_take_and_put() -> None:
    _, runs = stacked([0.1, 0.2, 0.3], [0, 1, 2])
    swapped = cohorts.take(runs, jnp.array([2, 2, 0]))
    assert jax.random.key_data(swapped.state.key)[:, -1].tolist() == [2, 2, 0]
    back = cohorts.put(runs, jnp.array([1, 3, 0]), swapped)
    assert jax.random.key_data(back.state.key)[:, -1].tolist() == [0, 2, 2], "3 is past the end"
