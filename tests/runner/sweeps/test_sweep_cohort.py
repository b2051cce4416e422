"""Cohorts: lanes in batches, turns, repetition for padding, halving, population-based training, devices."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import haepo_jax
from haepo_jax.runner.sweeps import cohort as cohorts
from haepo_jax.runner.sweeps.cohort import Candidate, Group, Outcome, Rules, group_candidates, train_cohort
from haepo_jax.runner.sweeps.compiled import Programs
from tests.runner.sweeps.toy_algorithm import Toy, alone

RATES = [1e-4, 1e-3, 1e-2, 3e-1, 3e-4]


def candidates(rates: list[float] = RATES, seed: int = 7, **changes: Any) -> list[Candidate]:
    return [Candidate(number, Toy(learning_rate=rate, **changes), seed, "toy") for number, rate in enumerate(rates)]


def group_of(members: list[Candidate], size: int, seeds: int = 2, programs: Programs | None = None) -> Group:
    algorithm, size = members[0].algorithm, min(size, len(members) * seeds)
    programs = programs or Programs(algorithm, varying=[True, True, False], points=4, episodes=3, size=size)
    return Group(members, programs, seeds)


def train(groups: list[Group], rules: Rules) -> tuple[dict[int, Outcome], list[tuple[int, int, float]]]:
    outcomes: dict[int, Outcome] = {}
    rungs: list[tuple[int, int, float]] = []
    train_cohort(
        groups, rules, on_rung=lambda *rung: rungs.append(rung), on_outcome=lambda o: outcomes.update({o.number: o})
    )
    return outcomes, rungs


@pytest.mark.parametrize("size", [1, 4, 16])
def test_every_trial_is_what_it_is_alone_whatever_the_batch(size: int) -> None:
    outcomes, _ = train([group_of(candidates(), size)], Rules())
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
    outcomes, _ = train([group_of(candidates(), 4)], Rules())
    for number, rate in enumerate(RATES):
        state = alone(Toy(learning_rate=rate), 8, 100)
        assert outcomes[number].env_steps[1] == state.env_steps.to_int()


def test_a_later_cohort_compiles_nothing_and_is_padded(monkeypatch: pytest.MonkeyPatch) -> None:
    first = group_of(candidates(), 10)
    before, _ = train([first], Rules())
    monkeypatch.setattr(Programs, "_compile", None)
    second = group_of(candidates(RATES[:3]), 10, programs=first.programs)
    after, _ = train([second], Rules())
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
    members = candidates() + [
        Candidate(5 + n, Toy(learning_rate=rate, stride=9), 7, "toy") for n, rate in enumerate(RATES)
    ]
    by_shape = group_candidates(members)
    assert [len(group) for group in by_shape.values()] == [5, 5]
    outcomes, _ = train([group_of(group, 4) for group in by_shape.values()], Rules())
    assert len(outcomes) == 10
    assert len(compiled) == 2 * 3, "for each shape one program that starts, one that trains and one that evaluates"


def test_a_number_and_a_pair_have_two_shapes() -> None:
    members = [Candidate(0, Toy(learning_rate=1e-3), 0, ""), Candidate(1, Toy(learning_rate=(1e-3, 0.0)), 0, "")]
    assert len(group_candidates(members)) == 2


def test_halving_keeps_the_best_and_they_are_what_they_are_without() -> None:
    full, _ = train([group_of(candidates(), 4)], Rules())
    halved, rungs = train([group_of(candidates(), 4)], Rules(halving=2, halving_rungs=2))
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
    members = candidates(RATES[:2]) + [
        Candidate(2 + n, Toy(learning_rate=rate, stride=9), 7, "toy") for n, rate in enumerate(RATES[2:4])
    ]
    groups = [group_of(group, 4) for group in group_candidates(members).values()]
    outcomes, _ = train(groups, Rules(halving=4, halving_rungs=1))
    assert [number for number, outcome in outcomes.items() if outcome.state == "complete"] == [2]
    apart = [Candidate(c.number, c.algorithm, c.seed, "other" if c.number < 2 else "toy") for c in members]
    groups = [group_of(group, 4) for group in group_candidates(apart).values()]
    outcomes, _ = train(groups, Rules(halving=4, halving_rungs=1))
    assert sorted(number for number, outcome in outcomes.items() if outcome.state == "complete") == [1, 2]


def test_population_based_training_moves_towards_the_best() -> None:
    rates = [1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1]
    rules = Rules(pbt_rounds=5, pbt_ranges={"learning_rate": (1e-5, 0.05)})
    outcomes, rungs = train([group_of(candidates(rates), 16)], rules)
    assert len(rungs) == 4 * 8 and all(outcome.state == "complete" for outcome in outcomes.values())
    for outcome in outcomes.values():
        changed = outcome.changed["learning_rate"]
        assert len(changed) == 5 and np.all(outcome.env_steps >= 100)
        for before, after in itertools.pairwise(changed):
            assert after == before or after <= 0.05 + 1e-6
    assert outcomes[0].changed["learning_rate"][-1] > 1e-3, "the worst copied one of the best"
    assert outcomes[5].changed["learning_rate"] == pytest.approx([1e-2] * 5), "the best stays"


def test_one_that_diverges_ends_alone() -> None:
    outcomes, _ = train([group_of(candidates([1e-2, 5.0, 1e-3]), 6)], Rules())
    assert outcomes[1].diverged_at.tolist() == [2, 2] and outcomes[1].updates.tolist() == [2, 2]
    assert outcomes[0].diverged_at.tolist() == [-1, -1] and np.all(outcomes[0].env_steps >= 100)
    assert [outcomes[number].state for number in range(3)] == ["complete", "failed", "complete"]
    assert np.isnan(outcomes[1].returns).all(), "the return of the policy that it was frozen with is none of its own"


def test_halving_keeps_no_trial_that_diverged() -> None:
    # At the first rung the frozen policy of 1.5 is second best; at most one more would be kept.
    outcomes, _ = train([group_of(candidates([1e-2, 1.5, 1e-5, 10**-4.5]), 8)], Rules(halving=2, halving_rungs=1))
    states = {number: outcome.state for number, outcome in outcomes.items()}
    assert states == {0: "complete", 1: "failed", 2: "stopped", 3: "complete"}
    every, _ = train([group_of(candidates([2.0, 3.0]), 4)], Rules(halving=2, halving_rungs=1))
    assert [outcome.state for outcome in every.values()] == ["failed", "failed"]


def test_a_population_continues_without_those_that_diverge() -> None:
    rates = [5.0, 6.0, 7.0, 1e-2, 3e-2]
    rules = Rules(pbt_rounds=4, pbt_ranges={"learning_rate": (1e-4, 0.5)})
    outcomes, _ = train([group_of(candidates(rates), 10)], rules)
    assert all(outcome.state == "complete" and np.isfinite(outcome.returns).all() for outcome in outcomes.values())
    assert all(outcomes[number].changed["learning_rate"][-1] < 1 for number in range(3)), "they copied the others"


def test_a_batch_that_does_not_fit_the_memory_is_halved(monkeypatch: pytest.MonkeyPatch) -> None:
    needed: list[int] = []
    original = Programs._compile

    def compile_and_note(self: Any, size: int, numbers: Any) -> Any:
        needed.append(size)
        return original(self, size, numbers)

    monkeypatch.setattr(Programs, "_compile", compile_and_note)
    monkeypatch.setattr(Programs, "_memory_limit", lambda self: 1e9 if self.size <= 2 else 1.0)
    outcomes, _ = train([group_of(candidates(), 8)], Rules())
    assert needed == [8, 4, 2] and len(outcomes) == 5


DEVICES = """
import sys; sys.path.insert(0, sys.argv[1])
import json, jax, numpy as np
from test_sweep_cohort import candidates, group_of, train, Rules
assert jax.device_count() == 8
rates = [10.0 ** -(1 + n / 4) for n in range(12)]
group = group_of(candidates(rates), 16)
shares = [(shard.device.id, shard.data.shape[0]) for shard in group._lanes.state.params.addressable_shards]
assert shares == [(device, 3) for device in range(8)], shares
outcomes, _ = train([group], Rules())
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
    outcomes, _ = train([group_of(candidates(rates), 16)], Rules())
    one = [outcomes[number].returns.tolist() + outcomes[number].env_steps.tolist() for number in range(12)]
    np.testing.assert_allclose(np.array(json.loads(result.stdout)), np.array(one), atol=1e-6)
