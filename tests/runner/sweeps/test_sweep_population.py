"""The pure functions on stacked train states, against NumPy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haepo_jax.counting import StepCount
from haepo_jax.runner.sweeps import population
from tests.runner.sweeps.toy_algorithm import Toy, alone


@pytest.mark.parametrize("count", [1, 2, 7, 27])
@pytest.mark.parametrize("eta", [2, 3, 4])
def test_survivors_are_the_best(count: int, eta: int) -> None:
    values = np.random.default_rng(count).permutation(count).astype(float)
    kept = population.survivors(values, eta)
    assert len(kept) == -(-count // eta) and list(kept) == sorted(kept)
    assert set(values[kept]) == set(np.sort(values)[::-1][: len(kept)])


def test_survivors_of_ties_and_nan() -> None:
    assert population.survivors([np.nan, 1.0, 1.0, 1.0, -np.inf, np.nan], 3).tolist() == [1, 2]
    assert population.survivors([np.nan, np.nan], 2).tolist() == []


def test_rungs_are_powers_of_eta() -> None:
    assert population.rung_shares(3, 2) == pytest.approx([1 / 9, 1 / 3, 1])


def test_exploit_replaces_the_worst_quarter_by_members_of_the_best() -> None:
    values = np.random.default_rng(0).normal(size=16).astype(np.float32)
    values[3] = np.nan
    order = np.argsort(-np.where(np.isnan(values), -np.inf, values), kind="stable")
    best, worst = set(order[:4].tolist()), set(order[-4:].tolist())
    chosen = set()
    for seed in range(20):
        source = np.asarray(population.exploit(jax.random.key(seed), values))
        for member in range(16):
            assert source[member] in best if member in worst else source[member] == member
        chosen |= {int(source[member]) for member in worst}
    assert 3 in worst and chosen == best
    assert np.asarray(population.exploit(jax.random.key(0), values[:3])).tolist() == [0, 1, 2], (
        "too few to have a quarter"
    )


def test_explore_multiplies_and_stays_in_range() -> None:
    values = np.linspace(0.5, 2, 200).astype(np.float32)
    new = np.asarray(population.explore(jax.random.key(1), values, 0.5, 2.0))
    up, down = np.clip(values * np.float32(1.25), 0.5, 2), np.clip(values * np.float32(0.8), 0.5, 2)
    assert np.all(np.isclose(new, up) | np.isclose(new, down))
    assert 60 < np.isclose(new, up).sum() < 140


def stacked(rates: list[float], seeds: list[int]) -> tuple[Toy, population.Lane]:
    toys = Toy(learning_rate=jnp.array(rates), entropy_coef=jnp.zeros(len(rates)), env=jnp.zeros(len(rates)))
    return toys, jax.vmap(lambda toy, seed: population.start(toy, seed, 4))(toys, jnp.array(seeds, jnp.uint32))


def until(count: int, steps: int) -> StepCount:
    return StepCount(jnp.zeros(count, jnp.uint32), jnp.full(count, steps, jnp.uint32))


def test_advance_stops_each_lane_at_its_own_end_and_all_after_so_many_updates() -> None:
    toys, lanes = stacked([0.1, 0.2, 5.0], [3, 4, 5])
    advance = jax.jit(jax.vmap(population.advance, (0, 0, 0, None)))
    few = advance(toys, lanes, until(3, 60), jnp.int32(2))
    assert few.state.update.tolist() == [2, 2, 2]
    done = advance(toys, few, until(3, 60), jnp.int32(1000))
    for lane, (rate, seed) in enumerate([(0.1, 3), (0.2, 4), (5.0, 5)]):
        state = alone(Toy(learning_rate=rate), seed, 60)
        assert done.state.env_steps.to_int()[lane] == state.env_steps.to_int()
        np.testing.assert_allclose(done.state.params[lane], state.params, rtol=1e-6)
    assert done.state.status.diverged_at.tolist() == [-1, -1, 2], "one that diverges does not hurt the others"


def test_the_learning_curve_holds_the_returns_of_each_part() -> None:
    toys, lanes = stacked([0.1], [3])
    lane = jax.vmap(population.advance, (0, 0, 0, None))(toys, lanes, until(1, 100), jnp.int32(1000))
    state, key = 0, jax.random.key(3)
    returns: list[list[int]] = [[] for _ in range(4)]
    for update in range(int(lane.state.update[0])):
        state += 5 + int(jax.random.randint(jax.random.fold_in(key, update), (), 0, 4))
        returns[min(3, state * 4 // 100)].append(update + 1)
    assert lane.curve_count[0].tolist() == [len(part) for part in returns]
    assert lane.curve_sum[0].tolist() == [sum(part) for part in returns]


def test_take_and_put() -> None:
    _, lanes = stacked([0.1, 0.2, 0.3], [0, 1, 2])
    swapped = population.take(lanes, jnp.array([2, 2, 0]))
    assert jax.random.key_data(swapped.state.key)[:, -1].tolist() == [2, 2, 0]
    back = population.put(lanes, jnp.array([1, 3, 0]), swapped)
    assert jax.random.key_data(back.state.key)[:, -1].tolist() == [0, 2, 2], "3 is past the end"


def test_who_inherits_keeps_its_own_key_and_story() -> None:
    _, lanes = stacked([0.1, 0.2], [0, 1])
    new = population.inherit(lanes, jnp.array([1, 1]))
    assert new.state.params[0].tolist() == lanes.state.params[1].tolist()
    assert jax.random.key_data(new.state.key).tolist() == jax.random.key_data(lanes.state.key).tolist()
