"""Training over several devices and several processes, from the command line."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from haepo_jax.runner.checkpoints import Checkpoints
from haepo_jax.runner.commands import train
from haepo_jax.runner.config import ConfigError
from haepo_jax.runner.processes import join
from tests.jobs import Job, ended, run
from tests.runner.surviving import assert_same_end

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


def rows(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def parameters(directory: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Of the newest checkpoint, which must be intact."""
    from orbax.checkpoint import PyTreeCheckpointer

    newest = Checkpoints(directory / "checkpoints").all()[-1]
    newest.verify()
    arrays = PyTreeCheckpointer().restore(newest.path.absolute() / "arrays")
    return {name: array for name, array in arrays.items() if name.startswith("params")}


def assert_close(one: Path, other: Path) -> None:
    """The runs came to the same numbers, up to rounding."""
    ours, theirs = rows(one), rows(other)
    assert [row["env_steps"] for row in ours] == [row["env_steps"] for row in theirs]
    for mine, row in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine["loss"], row["loss"], rtol=1e-3, atol=1e-5)
    mine, other_parameters = parameters(one), parameters(other)
    assert mine.keys() == other_parameters.keys() and mine
    for name, array in mine.items():
        np.testing.assert_allclose(array, other_parameters[name], rtol=1e-3, atol=1e-5, err_msg=name)


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


def test_without_a_job_around_it(tmp_path: Path) -> None:
    alone = run([*HAEPO, "shard=environments", "distributed=true", f"run_dir={tmp_path}/a"])
    assert alone.returncode == 2 and alone.stderr.count("\n") == 1 and "JAX_COORDINATOR_ADDRESS" in alone.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "variables, expected",
    [
        ({"JAX_COORDINATOR_ADDRESS": "here"}, "JAX_COORDINATOR_ADDRESS=here is not host:port"),
        ({"JAX_NUM_PROCESSES": "two"}, "JAX_NUM_PROCESSES=two is not a number"),
    ],
)
def test_variables_that_make_no_sense(
    variables: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=expected):
        join()


def test_hosts_share_environments_or_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main([*HAEPO[2:], "distributed=true"]) == 2
    assert "distributed=true needs shard=environments" in capsys.readouterr().err


def test_two_processes_train_and_go_on(tmp_path: Path) -> None:
    """What two processes come to is what one with as many devices does; the first one alone has the files."""
    arguments = [*HAEPO, "shard=environments", "algo.log_points=3", "total_steps=300"]
    done = run([*arguments, f"run_dir={tmp_path}/one"], 2)
    assert done.returncode == 0, done.stderr
    arguments += ["distributed=true", f"run_dir={tmp_path}/two"]
    with Job(arguments) as job:
        assert job.wait() == [0, 0], ended(job)
        assert "2 x cpu" in job.output(0)[0] and job.output(1) == ("", "")
    assert_close(tmp_path / "one", tmp_path / "two")
    assert [row["row"] for row in rows(tmp_path / "two")] == [0, 1, 2]

    with Job(arguments) as job:
        assert job.wait() == [2, 2], ended(job)
        assert "already holds a run" in job.output(0)[1] and job.output(1) == ("", "")


SIGNALLED = """
import os, signal, sys, time
from haepo_jax.runner.commands import train
from haepo_jax.runner import loop
from haepo_jax.runner.program import Program
hit = os.environ["JAX_PROCESS_ID"] == sys.argv[1]
advance, calls = Program.advance, 0
def counted(self, *arguments):
    global calls
    calls += 1
    if hit and calls == 5:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1)  # the others wait meanwhile
    return advance(self, *arguments)
Program.advance = counted
loop.SLICE_SECONDS = 0  # an update to a call
sys.exit(train.main(sys.argv[2:]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("algo", ALGORITHMS)
def test_a_signal_to_one_process_ends_all_and_the_run_goes_on(algo: str, tmp_path: Path) -> None:
    settings = ["shard=environments", "distributed=true", "algo.log_points=10", "total_steps=3000"]
    arguments = [*ALGORITHMS[algo][2:], *settings]
    with Job(["-m", "haepo_jax.train", *arguments, f"run_dir={tmp_path}/whole"]) as job:
        assert job.wait() == [0, 0], ended(job)
    for hit in (0, 1):
        directory = tmp_path / f"hit{hit}"
        with Job(["-c", SIGNALLED, str(hit), *arguments, f"run_dir={directory}"]) as job:
            assert job.wait() == [143, 143], ended(job)
            assert "resume=true distributed=true" in job.output(0)[1] and job.output(1) == ("", "")
        assert Checkpoints(directory / "checkpoints").all() and not (directory / "summary.json").exists()
        with Job(["-m", "haepo_jax.train", f"run_dir={directory}", "resume=true", "distributed=true"]) as job:
            assert job.wait() == [0, 0], ended(job)
        assert_same_end(directory, tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_where_one_process_is_killed_the_other_ends_too(killed: int, tmp_path: Path) -> None:
    script = SIGNALLED.replace("SIGTERM", "SIGKILL")
    arguments = [*HAEPO[2:], "shard=environments", "distributed=true", "total_steps=3000", f"run_dir={tmp_path}/a"]
    with Job(["-c", script, str(killed), *arguments]) as job:
        status = job.wait()
        assert status[killed] == -signal.SIGKILL and status[1 - killed] != 0
        assert "Traceback" not in job.output(1 - killed)[1]


DISK_FULL = """
import os, sys
from haepo_jax.runner.commands import train
from haepo_jax.runner import loggers
def full(self, row):
    raise OSError(28, "No space left on device", "metrics.jsonl")
loggers.FileLogger.on_row = full
sys.exit(train.main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_where_the_first_process_cannot_write_all_end(tmp_path: Path) -> None:
    arguments = [*HAEPO[2:], "shard=environments", "distributed=true", "total_steps=3000", f"run_dir={tmp_path}/a"]
    with Job(["-c", DISK_FULL, *arguments]) as job:
        assert job.wait() == [1, 1], ended(job)
        assert "No space left on device" in job.output(0)[1] and job.output(1) == ("", "")
        assert "Traceback" not in job.output(0)[1]
