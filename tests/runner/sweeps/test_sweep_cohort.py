"""Cohorts: lanes in batches, padding, halving, population-based training, devices; their pure functions against NumPy."""

from __future__ import annotations

import itertools
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
from haepo_jax.runner.sweeps.cohort import Group, Trial, run_shares, train_cohort
from haepo_jax.runner.sweeps.lanes import Lane, Programs, advance, shape_of, start
from haepo_jax.runner.sweeps.plan import SweepConfig
from tests.runner.sweeps.toy_algorithm import Toy, alone

RATES = [1e-4, 1e-3, 1e-2, 3e-1, 3e-4]


def trials(rates: list[float] = RATES, seed: int = 7, first: int = 0, env: str = "toy", **changes: Any) -> list[Trial]:
    return [Trial(first + i, Toy(learning_rate=rate, **changes), seed, env) for i, rate in enumerate(rates)]


def group_of(members: list[Trial], size: int, seeds: int = 2, programs: Programs | None = None) -> Group:
    algorithm, size = members[0].algorithm, min(size, len(members) * seeds)
    return Group(members, programs or Programs(algorithm, points=4, episodes=3, size=size), seeds)


class Ended:
    """What became of a trial, its result as attributes."""

    def __init__(self, state: str, result: dict[str, Any]) -> None:
        self.state, self.changed = state, result.get("pbt_values", {})
        self.returns, self.env_steps, self.updates, self.diverged_at = (
            result[f"{name}_per_seed"] for name in ("return", "env_steps", "updates", "diverged_at")
        )
        self.curve = result["curve_return_per_seed"]


def train(
    groups: list[Group], ranges: dict[str, tuple[float, float]] | None = None, **settings: Any
) -> tuple[dict[int, Ended], list[tuple[int, int, float]]]:
    ended: dict[int, Ended] = {}
    rungs: list[tuple[int, int, float]] = []
    train_cohort(
        groups,
        SweepConfig(**settings),
        ranges or {},
        on_rung=lambda *rung: rungs.append(rung),
        on_end=lambda number, state, result: ended.update({number: Ended(state, result)}),
    )
    return ended, rungs


@pytest.mark.parametrize("size", [1, 4, 16])
def test_every_trial_is_what_it_is_alone_whatever_the_batch(size: int) -> None:
    outcomes, _ = train([group_of(trials(), size)])
    assert list(outcomes) == [0, 1, 2, 3, 4] and all(outcome.state == "complete" for outcome in outcomes.values())
    for number, rate in enumerate(RATES):
        for lane in range(2):
            state = alone(Toy(learning_rate=rate), 7 + lane, 100)
            assert outcomes[number].env_steps[lane] == state.env_steps.to_int()
            assert outcomes[number].updates[lane] == state.update
            expected = -abs(np.log10(rate) + 2) + 1e-6 * float(state.params.sum())
            assert outcomes[number].returns[lane] == pytest.approx(expected, abs=1e-6)


def test_lanes_are_regrouped_between_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cohorts, "CALL_SECONDS", 0.0)  # one update a call
    outcomes, _ = train([group_of(trials(), 4)])
    for number, rate in enumerate(RATES):
        state = alone(Toy(learning_rate=rate), 8, 100)
        assert outcomes[number].env_steps[1] == state.env_steps.to_int()


def test_a_later_cohort_compiles_nothing_and_is_padded(monkeypatch: pytest.MonkeyPatch) -> None:
    first = group_of(trials(), 10)
    before, _ = train([first])
    monkeypatch.setattr(Programs, "_compile", None)
    second = group_of(trials(RATES[:3]), 10, programs=first.programs)
    after, _ = train([second])
    for number in range(3):
        np.testing.assert_array_equal(after[number].returns, before[number].returns)
        np.testing.assert_array_equal(after[number].curve, before[number].curve)


def test_one_compilation_for_each_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[Any] = []
    original = jax.stages.Lowered.compile

    def compile_and_count(self: Any, *arguments: Any, **keywords: Any) -> Any:
        compiled.append(self)
        return original(self, *arguments, **keywords)

    monkeypatch.setattr(jax.stages.Lowered, "compile", compile_and_count)
    outcomes, _ = train([group_of(trials(), 4), group_of(trials(first=5, stride=9), 4)])
    assert len(outcomes) == 10
    assert len(compiled) == 2 * 3, "for each shape one program that starts, one that trains and one that evaluates"


def test_a_number_and_a_pair_have_two_shapes() -> None:
    assert shape_of(Toy(learning_rate=1e-3)) == shape_of(Toy(learning_rate=1e-2)) != shape_of(Toy(stride=9))
    assert shape_of(Toy(learning_rate=1e-3)) != shape_of(Toy(learning_rate=(1e-3, 0.0)))


def test_halving_keeps_the_best_and_they_are_what_they_are_without() -> None:
    full, _ = train([group_of(trials(), 4)])
    halved, rungs = train([group_of(trials(), 4)], halving=2, halving_rungs=2)
    assert [number for number, outcome in sorted(halved.items()) if outcome.state == "complete"] == [1, 2], (
        "nearest to 1e-2"
    )
    assert sorted(number for number, _, _ in rungs) == [0, 1, 1, 2, 2, 3, 3, 4]
    for number in (1, 2):
        np.testing.assert_array_equal(halved[number].returns, full[number].returns)
        np.testing.assert_array_equal(halved[number].curve, full[number].curve)
    for outcome in halved.values():
        if outcome.state == "stopped":
            assert np.all(outcome.env_steps < 60)


def test_halving_compares_across_shapes_but_not_across_environments() -> None:
    shapes = trials(RATES[:2]), trials(RATES[2:4], first=2, stride=9)
    outcomes, _ = train([group_of(members, 4) for members in shapes], halving=4, halving_rungs=1)
    assert [number for number, outcome in outcomes.items() if outcome.state == "complete"] == [2]
    shapes = trials(RATES[:2], env="other"), trials(RATES[2:4], first=2, stride=9)
    outcomes, _ = train([group_of(members, 4) for members in shapes], halving=4, halving_rungs=1)
    assert sorted(number for number, outcome in outcomes.items() if outcome.state == "complete") == [1, 2]


def test_population_based_training_moves_towards_the_best() -> None:
    rates = [1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1]
    outcomes, rungs = train([group_of(trials(rates), 16)], {"learning_rate": (1e-5, 0.05)}, pbt=True, pbt_rounds=5)
    assert len(rungs) == 4 * 8 and all(outcome.state == "complete" for outcome in outcomes.values())
    for outcome in outcomes.values():
        changed = outcome.changed["learning_rate"]
        assert len(changed) == 5 and np.all(outcome.env_steps >= 100)
        for before, after in itertools.pairwise(changed):
            assert after == before or after <= 0.05 + 1e-6
    assert outcomes[0].changed["learning_rate"][-1] > 1e-3, "the worst copied one of the best"
    assert outcomes[5].changed["learning_rate"] == pytest.approx([1e-2] * 5), "the best stays"


def test_one_that_diverges_ends_alone() -> None:
    outcomes, _ = train([group_of(trials([1e-2, 5.0, 1e-3]), 6)])
    assert outcomes[1].diverged_at.tolist() == [2, 2] and outcomes[1].updates.tolist() == [2, 2]
    assert outcomes[0].diverged_at.tolist() == [-1, -1] and np.all(outcomes[0].env_steps >= 100)
    assert [outcomes[number].state for number in range(3)] == ["complete", "failed", "complete"]
    assert np.isnan(outcomes[1].returns).all(), "the return of the policy that it was frozen with is none of its own"


def test_halving_keeps_no_trial_that_diverged() -> None:
    # At the first rung the frozen policy of 1.5 is second best; at most one more would be kept.
    outcomes, _ = train([group_of(trials([1e-2, 1.5, 1e-5, 10**-4.5]), 8)], halving=2, halving_rungs=1)
    states = {number: outcome.state for number, outcome in outcomes.items()}
    assert states == {0: "complete", 1: "failed", 2: "stopped", 3: "complete"}
    every, _ = train([group_of(trials([2.0, 3.0]), 4)], halving=2, halving_rungs=1)
    assert [outcome.state for outcome in every.values()] == ["failed", "failed"]


def test_a_population_continues_without_those_that_diverge() -> None:
    rates = [5.0, 6.0, 7.0, 1e-2, 3e-2]
    outcomes, _ = train([group_of(trials(rates), 10)], {"learning_rate": (1e-4, 0.5)}, pbt=True, pbt_rounds=4)
    assert all(outcome.state == "complete" and np.isfinite(outcome.returns).all() for outcome in outcomes.values())
    assert all(outcomes[number].changed["learning_rate"][-1] < 1 for number in range(3)), "they copied the others"


DEVICES = """
import sys; sys.path.insert(0, sys.argv[1])
import json, jax, numpy as np
from test_sweep_cohort import trials, group_of, train
assert jax.device_count() == 8
rates = [10.0 ** -(1 + n / 4) for n in range(12)]
group = group_of(trials(rates), 16)
shares = [(shard.device.id, shard.data.shape[0]) for shard in group._lanes.state.params.addressable_shards]
assert shares == [(device, 3) for device in range(8)], shares
outcomes, _ = train([group])
shares = [(shard.device.id, shard.data.shape[0]) for shard in group._lanes.state.params.addressable_shards]
assert shares == [(device, 3) for device in range(8)], shares
print(json.dumps([outcomes[n].returns.tolist() + outcomes[n].env_steps.tolist() for n in range(12)]))
"""


def test_eight_devices_share_the_lanes_and_give_what_one_gives() -> None:
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
    outcomes, _ = train([group_of(trials(rates), 16)])
    one = [outcomes[number].returns.tolist() + outcomes[number].env_steps.tolist() for number in range(12)]
    np.testing.assert_allclose(np.array(json.loads(result.stdout)), np.array(one), atol=1e-6)


@pytest.mark.parametrize("count", [1, 2, 7, 27])
@pytest.mark.parametrize("eta", [2, 3, 4])
def test_survivors_are_the_best(count: int, eta: int) -> None:
    values = np.random.default_rng(count).permutation(count).astype(float)
    kept = cohorts.survivors(values, eta)
    assert len(kept) == -(-count // eta) and list(kept) == sorted(kept)
    assert set(values[kept]) == set(np.sort(values)[::-1][: len(kept)])


def test_survivors_of_ties_and_nan() -> None:
    assert cohorts.survivors([np.nan, 1.0, 1.0, 1.0, -np.inf, np.nan], 3).tolist() == [1, 2]
    assert cohorts.survivors([np.nan, np.nan], 2).tolist() == []


def test_rungs_are_powers_of_eta() -> None:
    assert run_shares(SweepConfig(halving=3, halving_rungs=2)) == pytest.approx([1 / 9, 1 / 3, 1])


def test_exploit_replaces_the_worst_quarter_by_members_of_the_best() -> None:
    values = np.random.default_rng(0).normal(size=16).astype(np.float32)
    values[3] = np.nan
    order = np.argsort(-np.where(np.isnan(values), -np.inf, values), kind="stable")
    best, worst = set(order[:4].tolist()), set(order[-4:].tolist())
    chosen = set()
    for seed in range(20):
        source = np.asarray(cohorts.exploit(jax.random.key(seed), values))
        for member in range(16):
            assert source[member] in best if member in worst else source[member] == member
        chosen |= {int(source[member]) for member in worst}
    assert 3 in worst and chosen == best
    assert np.asarray(cohorts.exploit(jax.random.key(0), values[:3])).tolist() == [0, 1, 2], "too few to have a quarter"


def test_explore_multiplies_and_stays_in_range() -> None:
    values = np.linspace(0.5, 2, 200).astype(np.float32)
    new = np.asarray(cohorts.explore(jax.random.key(1), values, 0.5, 2.0))
    up, down = np.clip(values * np.float32(1.25), 0.5, 2), np.clip(values * np.float32(0.8), 0.5, 2)
    assert np.all(np.isclose(new, up) | np.isclose(new, down))
    assert 60 < np.isclose(new, up).sum() < 140


def stacked(rates: list[float], seeds: list[int]) -> tuple[Toy, Lane]:
    toys = Toy(learning_rate=jnp.array(rates), entropy_coef=jnp.zeros(len(rates)), env=jnp.zeros(len(rates)))
    return toys, jax.vmap(lambda toy, seed: start(toy, seed, 4))(toys, jnp.array(seeds, jnp.uint32))


def until(count: int, steps: int) -> StepCount:
    return StepCount(jnp.zeros(count, jnp.uint32), jnp.full(count, steps, jnp.uint32))


def test_advance_stops_each_lane_at_its_own_end_and_all_after_so_many_updates() -> None:
    toys, lanes = stacked([0.1, 0.2, 5.0], [3, 4, 5])
    train_on = jax.jit(jax.vmap(advance, (0, 0, 0, None)))
    few = train_on(toys, lanes, until(3, 60), jnp.int32(2))
    assert few.state.update.tolist() == [2, 2, 2]
    done = train_on(toys, few, until(3, 60), jnp.int32(1000))
    for lane, (rate, seed) in enumerate([(0.1, 3), (0.2, 4), (5.0, 5)]):
        state = alone(Toy(learning_rate=rate), seed, 60)
        assert done.state.env_steps.to_int()[lane] == state.env_steps.to_int()
        np.testing.assert_allclose(done.state.params[lane], state.params, rtol=1e-6)
    assert done.state.status.diverged_at.tolist() == [-1, -1, 2], "one that diverges does not hurt the others"


def test_the_learning_curve_holds_the_returns_of_each_part() -> None:
    toys, lanes = stacked([0.1], [3])
    lane = jax.vmap(advance, (0, 0, 0, None))(toys, lanes, until(1, 100), jnp.int32(1000))
    state, key = 0, jax.random.key(3)
    returns: list[list[int]] = [[] for _ in range(4)]
    for update in range(int(lane.state.update[0])):
        state += 5 + int(jax.random.randint(jax.random.fold_in(key, update), (), 0, 4))
        returns[min(3, state * 4 // 100)].append(update + 1)
    assert lane.curve_count[0].tolist() == [len(part) for part in returns]
    assert lane.curve_sum[0].tolist() == [sum(part) for part in returns]


def test_take_and_put() -> None:
    _, lanes = stacked([0.1, 0.2, 0.3], [0, 1, 2])
    swapped = cohorts.take(lanes, jnp.array([2, 2, 0]))
    assert jax.random.key_data(swapped.state.key)[:, -1].tolist() == [2, 2, 0]
    back = cohorts.put(lanes, jnp.array([1, 3, 0]), swapped)
    assert jax.random.key_data(back.state.key)[:, -1].tolist() == [0, 2, 2], "3 is past the end"


def test_who_inherits_keeps_its_own_key_and_story() -> None:
    _, lanes = stacked([0.1, 0.2], [0, 1])
    new = cohorts.inherit(lanes, jnp.array([1, 1]))
    assert new.state.params[0].tolist() == lanes.state.params[1].tolist()
    assert jax.random.key_data(new.state.key).tolist() == jax.random.key_data(lanes.state.key).tolist()
