"""Training over several devices, from the command line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.jobs import run
from tests.runner.surviving import final_arrays, rows

COMMON = [
    "-m", "haepo_jax.train", "tensorboard=false", "algo.hidden_sizes=[8]", "algo.eval_episodes=0",
    "final_eval_episodes=4", "algo.num_minibatches=2", "algo.num_epochs=2",
]  # fmt: skip
ALGORITHMS = {
    "haepo": [
        *COMMON, "env=haepo/random_walk", "env_kwargs.length=4", "env_kwargs.horizon=8", "algo=haepo",
        "algo.num_envs=16", "algo.num_steps=8", "algo.replay_batches=2", "algo.group_size=4",
    ],
    "haepo_episodic": [
        *COMMON, "env=haepo/random_walk", "env_kwargs.length=4", "env_kwargs.horizon=8", "algo=haepo_episodic",
        "algo.num_envs=16", "algo.group_size=4",
    ],
    "ppo": [*COMMON, "env=CartPole-v1", "algo=ppo", "algo.num_envs=16", "algo.num_steps=8"],
}  # fmt: skip
STEPS = {"haepo": 384, "haepo_episodic": 300, "ppo": 384}
"""About three updates, so that differences in the last digit have not grown apart."""
HAEPO = ALGORITHMS["haepo"]


def assert_close(one: Path, other: Path) -> None:
    """The runs came to the same numbers, up to rounding."""
    ours, theirs = rows(one), rows(other)
    assert [row["env_steps"] for row in ours] == [row["env_steps"] for row in theirs]
    for mine, row in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine["loss"], row["loss"], rtol=1e-3, atol=1e-5)
    arrays, expected = final_arrays(one), final_arrays(other)
    parameters = [name for name in expected if name.startswith("params")]
    assert arrays.keys() == expected.keys() and parameters
    for name in parameters:
        np.testing.assert_allclose(arrays[name], expected[name], rtol=1e-3, atol=1e-5, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("algo", ALGORITHMS)
def test_eight_devices_share_a_run(algo: str, tmp_path: Path) -> None:
    arguments = [*ALGORITHMS[algo], f"total_steps={STEPS[algo]}", "algo.log_points=3"]
    for name, devices, shard in (("one", 1, "none"), ("eight", 8, "environments")):
        done = run([*arguments, f"shard={shard}", f"run_dir={tmp_path}/{name}"], devices)
        assert done.returncode == 0, done.stderr
    assert "8 x cpu" in (tmp_path / "eight" / "summary.json").read_text()
    assert_close(tmp_path / "one", tmp_path / "eight")


EACH_DEVICE_HAS_ITS_SHARE = """
import re, sys
from haepo_jax.runner.config import RunConfig
from haepo_jax.runner.config.arguments import compose, read_arguments
from haepo_jax.runner.program import EvaluationSize
from haepo_jax.runner.program import Program, build, mesh_of
config = compose(read_arguments(sys.argv[1:]).overrides, RunConfig)
algorithm = build(config)
program = Program(algorithm, seeds=config.seed_numbers, final=EvaluationSize(4), mesh=mesh_of(config, algorithm))
state = program.init()
assert all(leaf.is_fully_replicated and len(leaf.sharding.device_set) == 8 for leaf in __import__("jax").tree.leaves(state))
text = program._advance.as_text()
assert "all-reduce" in text or "all-gather" in text
# Of what the sixteen environments are asked at every step, a device computes two.
print(sorted(set(re.findall(r"f32\\[(?:3,)?(16|2),4\\]", text))), text.count("all-reduce("))
loops = [line for line in text.splitlines() if " while(" in line]
print(any(re.search(r"f32\\[(3,)?2,4\\]", line) for line in loops))
"""


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize("algo", ALGORITHMS)
def test_each_device_plays_its_share_of_the_environments(algo: str, seeds: int) -> None:
    arguments = [*ALGORITHMS[algo][2:], "env=CartPole-v1", "shard=environments", f"num_seeds={seeds}"]
    arguments = [argument for argument in arguments if not argument.startswith("env_kwargs")]
    done = run(["-c", EACH_DEVICE_HAS_ITS_SHARE, *arguments], 8)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "True", done.stdout


def test_sizes_that_devices_cannot_share_are_refused() -> None:
    done = run([*HAEPO, "shard=environments", "algo.num_envs=24", "dry_run=true"], 16)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert (
        "algo.num_envs=24 is not a multiple of the number of devices=16; the nearest that are: 16 or 32" in done.stderr
    )
