"""`hx.load`: a policy comes back as it was, and a run's directory is data and nothing else."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import haepo_jax as hx
from haepo_jax.runner.checkpoints import CheckpointError
from haepo_jax.runner.config import ConfigError
from haepo_jax.runner.run_dir import RunDir
from tests.runner.surviving import flip
from tests.toy_envs import Drift, Lock

SMALL: dict[str, Any] = {"total_steps": 64, "num_envs": 4, "num_steps": 8, "num_minibatches": 2, "num_epochs": 1}
CASES = [("cartpole", 3), ("cartpole", 4), ("pendulum", 0)]


@pytest.mark.parametrize(("name", "seed"), CASES)
def test_the_last_evaluation_is_reproduced_exactly(finished_runs: dict[str, Path], name: str, seed: int) -> None:
    directory = RunDir(finished_runs[name])
    summary, row = directory.read_summary(), directory.read_metrics()[-1]
    index = summary["seeds"].index(seed)
    algo, policy = hx.load(finished_runs[name], seed=seed)
    assert int(policy.state.env_steps.to_int()) == summary["env_steps_per_seed"][index]

    for greedy, key in ((False, "final_return_per_seed"), (True, "final_return_greedy_per_seed")):
        final = algo.evaluate(policy.state, episodes=summary["final_eval_episodes"], greedy=greedy)["return"]
        compiled = jax.jit(lambda state, greedy=greedy: algo.evaluate(state, episodes=8, greedy=greedy))(policy.state)[
            "return"
        ]
        assert np.asarray(final, np.float64).mean() == summary[key][index]
        np.testing.assert_array_equal(compiled, final)
    logged = algo.evaluate(policy.state, episodes=summary["eval_episodes"])["return"]
    # A row's evaluation plays both kinds in one program, which may round its sums otherwise than this one.
    np.testing.assert_allclose(float(jnp.mean(logged)), row["seeds"]["eval_return"][index], rtol=1e-6)


def test_the_policy_is_a_pure_function_in_the_environments_units(finished_runs: dict[str, Path]) -> None:
    algo, policy = hx.load(str(finished_runs["pendulum"]))
    keys = jax.random.split(jax.random.key(7), 64)
    _, observations = jax.vmap(algo.env.reset)(keys)
    sampled = jax.jit(jax.vmap(policy))(observations, keys)
    assert sampled.shape == (64, 1) and float(jnp.max(jnp.abs(sampled))) > 1.0, "Pendulum's torque goes to 2"
    np.testing.assert_allclose(sampled[5], policy(observations[5], keys[5]), atol=1e-5)

    greedy = jax.vmap(policy)(observations)
    np.testing.assert_array_equal(greedy, jax.vmap(policy)(observations))
    assert float(jnp.std(sampled - greedy)) > 0.1

    without = dataclasses.replace(policy, state=dataclasses.replace(policy.state, normalizer=None))
    assert float(jnp.max(jnp.abs(jax.vmap(without)(observations) - greedy))) > 1e-3, "the normaliser takes part"


def test_a_policy_plays_in_the_environment(finished_runs: dict[str, Path]) -> None:
    algo, policy = hx.load(finished_runs["cartpole"], seed=4, checkpoint="best")
    state, observation = algo.env.reset(jax.random.key(0))
    step = jax.jit(lambda policy, key, state, observation: algo.env.step(key, state, policy(observation)))
    for index in range(5):
        state, observation, reward, terminated, _ = step(policy, jax.random.key(index), state, observation)
        assert float(reward) == 1.0 and not bool(terminated)


def test_a_call_is_compiled_once(finished_runs: dict[str, Path]) -> None:
    """Where it initialised the network anew, a call took a second."""
    _, policy = hx.load(finished_runs["cartpole"])
    observation = np.zeros(4, np.float32)
    action = policy(observation)
    with jax.log_compiles(), warnings_of_jax() as compilations:
        begin = time.perf_counter()
        actions = [policy(observation) for _ in range(20)]
        seconds = time.perf_counter() - begin
    assert compilations == [] and seconds < 2 and all(int(other) == int(action) for other in actions)
    assert int(jax.jit(policy)(observation)) == int(action)
    assert jax.jit(jax.vmap(policy))(jnp.zeros((3, 4))).shape == (3,)


@contextlib.contextmanager
def warnings_of_jax() -> Iterator[list[str]]:
    found: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: found.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("jax")
    logger.addHandler(handler)
    try:
        yield found
    finally:
        logger.removeHandler(handler)


@dataclasses.dataclass(frozen=True)
class Memory:
    """A policy that counts its steps and, every third one, goes right."""

    def init(self, key: jax.Array, observation: Any) -> tuple[Any, Any]:
        return {"right": jnp.float32(5.0)}, jnp.int32(0)

    def apply(self, params: Any, carry: Any, observation: Any, is_first: jax.Array) -> tuple[Any, Any]:
        def one(count: jax.Array, first: jax.Array) -> tuple[Any, Any]:
            count = jnp.where(first, 0, count) + 1
            return count, jnp.stack([jnp.float32(0), jnp.where(count % 3 == 0, params["right"], -params["right"])])

        return one(carry, is_first) if is_first.ndim == 0 else jax.lax.scan(one, carry, is_first)


def test_a_recurrent_policy_acts_step_by_step() -> None:
    algo = hx.HAEPO("CartPole-v1", policy=Memory())
    policy = hx.TrainedPolicy(algo, algo.init(jax.random.key(0)))
    observation = jnp.zeros(4)
    with pytest.raises(TypeError, match=r"policy\.act"):
        policy(observation)
    carry, actions = policy.initial_carry(), []
    for index in range(6):
        carry, action = policy.act(carry, observation, jnp.bool_(index == 0))
        actions.append(int(action))
    assert actions == [0, 0, 1, 0, 0, 1]


def test_a_policy_asks_for_the_mask_of_its_environment() -> None:
    algo = hx.PPO(Lock(), total_steps=64)
    policy = hx.TrainedPolicy(algo, jax.jit(algo.init)(jax.random.key(0)))
    for seed in range(8):
        state, observation = algo.env.reset(jax.random.key(seed))
        mask = algo.env.action_mask(state)
        assert mask[policy(observation, action_mask=mask)]
    with pytest.raises(TypeError, match=r"toy/lock has action masks: pass action_mask=env\.action_mask\(state\)"):
        policy(observation)


def test_another_algorithm_or_environment_than_the_runs(finished_runs: dict[str, Path], tmp_path: Path) -> None:
    trained = r"but the run in .* trained HAEPO on CartPole-v1"
    for algo, given in (
        (hx.PPO("CartPole-v1", hidden_sizes=(8,)), "PPO on CartPole-v1"),
        (hx.HAEPO("Acrobot-v1", hidden_sizes=(8,)), "HAEPO on Acrobot-v1"),
    ):
        with pytest.raises(ConfigError, match=f"algorithm is {given}, {trained}"):
            hx.load(finished_runs["cartpole"], algorithm=algo)
    hx.train(hx.PPO(Drift(horizon=5), **SMALL), run_dir=tmp_path / "drift", progress=False)
    with pytest.warns(
        UserWarning, match=r"algorithm has env=\S+Drift \(contents \w+\), but the run in .* has env=\S+Drift \("
    ):
        hx.load(tmp_path / "drift", algorithm=hx.PPO(Drift(horizon=6), **SMALL))


def test_what_cannot_be_loaded(finished_runs: dict[str, Path], tmp_path: Path) -> None:
    run = finished_runs["cartpole"]
    for arguments, message in [
        ({"seed": 0}, r"seed=0 is not in this run, which has seeds=\[3, 4\]"),
        ({"checkpoint": "first"}, "must be one of last, best"),
    ]:
        with pytest.raises(ConfigError, match=message):
            hx.load(run, **arguments)
    with pytest.raises(ValueError, match="is not a directory"):
        hx.load(tmp_path / "nowhere")
    for file, message in (
        ("sweep.json", "the directory of a sweep"),
        ("comparison.json", "the directory of a comparison"),
    ):
        (tmp_path / file).write_text("{}")
        with pytest.raises(ConfigError, match=message):
            hx.load(tmp_path)
        (tmp_path / file).unlink()
    shutil.copytree(run, tmp_path / "bare", ignore=shutil.ignore_patterns("checkpoints"))
    with pytest.raises(ConfigError, match="has no checkpoint yet"):
        hx.load(tmp_path / "bare")


def test_arrays_are_held_against_their_hashes(finished_runs: dict[str, Path], tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished_runs["cartpole"], run)
    checkpoints = sorted((run / "checkpoints").iterdir())
    checkpoints.append(run / "checkpoints" / checkpoints[-1].name.replace(checkpoints[-1].name[:6], "000099", 1))
    shutil.copytree(checkpoints[-2], checkpoints[-1])

    def damage(checkpoint: Path) -> None:
        flip(max((file for file in checkpoint.rglob("*") if file.is_file()), key=lambda file: file.stat().st_size))

    damage(checkpoints.pop())
    with pytest.warns(UserWarning, match="000099.* has changed since it was written") as warned:
        hx.load(run)
    assert warned[0].filename == __file__, "the line of the caller"
    for checkpoint in checkpoints:
        damage(checkpoint)
    with pytest.raises(CheckpointError, match="is intact"):
        hx.load(run)


def test_nothing_in_the_directory_is_executed(finished_runs: dict[str, Path], tmp_path: Path) -> None:
    run, mark = RunDir(tmp_path / "run"), tmp_path / "mark"
    shutil.copytree(finished_runs["cartpole"], run.path)
    text = run.config.read_text()
    for line in (
        f"env: !!python/object/apply:os.system ['touch {mark}']",
        "env: ${oc.env:HOME}",
        "env_kwargs: {_target_: os.system}",
        "algo: {name: haepo, _target_: os.system}",
    ):
        key = line.partition(":")[0]
        kept = (
            [old for old in text.splitlines() if not old.startswith(f"{key}:")]
            if key != "algo"
            else text.split("algo:")[0].splitlines()
        )
        run.config.write_text("\n".join([*kept, line]))
        with pytest.raises(ConfigError):
            hx.load(run.path)
    assert not mark.exists() and json.loads(run.summary.read_text())
