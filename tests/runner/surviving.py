"""What the tests of interrupted runs share: short runs of every algorithm, breaking them off, what must be equal."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any, Self

import pytest

from haepo_jax.runner import loggers, loop
from haepo_jax.runner.checkpoints import Checkpoints, Saver
from haepo_jax.runner.commands import train
from haepo_jax.runner.program import Program
from haepo_jax.runner.run_dir import RunDir

ALWAYS = "checkpoint_minutes=1e-9"
"""A checkpoint after every compiled call, unless one is being written."""
CLOCKS = ("wall_seconds", "env_steps_per_second")
COMMON = [
    "tensorboard=false",
    "algo.log_points=5",
    "algo.eval_episodes=2",
    "final_eval_episodes=4",
    "algo.hidden_sizes=[8]",
]
TRAJECTORY = [
    "env=haepo/random_walk", "total_steps=6000", "algo.num_envs=8", "algo.group_size=4", "algo.num_minibatches=2",
    "algo.num_epochs=2",
]  # fmt: skip
ALGORITHMS = {
    "haepo": [
        "algo=haepo", "env=Pendulum-v1", "total_steps=512", "algo.num_envs=4", "algo.num_steps=16",
        "algo.replay_batches=3", "algo.group_size=2", "algo.num_minibatches=2", "algo.num_epochs=2",
        "algo.normalize_rewards=true",
    ],
    "haepo_episodic": ["algo=haepo_episodic", "algo.reference=initial", *TRAJECTORY],
    "ppo": [
        "algo=ppo", "env=CartPole-v1", "total_steps=600", "algo.num_envs=4", "algo.num_steps=16", "algo.num_epochs=2",
        "algo.num_minibatches=2", "algo.normalize_rewards=true", "algo.normalize_observations=true",
    ],
    "grpo": ["algo=grpo", *TRAJECTORY],
    "dpo": ["algo=dpo", "algo.reference_interval=2", *TRAJECTORY],
}  # fmt: skip
"""The command line of a short run of each algorithm, with whatever makes its train state large."""


class StopAfter:
    """In the place of `StopSignals`: SIGTERM after some compiled calls."""

    calls = 0

    def __init__(self, *_: Any, **__: Any) -> None:
        self.left = StopAfter.calls

    def __call__(self) -> int | None:
        self.left -= 1
        return signal.SIGTERM if self.left < 0 else None

    def begin(self) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        pass


def compile_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each program is compiled once in a test."""
    programs: dict[str, Program] = {}

    def cached(algorithm: Any, **keywords: Any) -> Program:
        key = repr((algorithm, keywords))
        if key not in programs:
            programs[key] = Program(algorithm, **keywords)
        return programs[key]

    monkeypatch.setattr("haepo_jax.runner.loop.Program", cached)


class Runs:
    """Runs the command line in this process, about one update to a compiled call, each program compiled once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        compile_once(monkeypatch)
        monkeypatch.setattr(loop, "SLICE_SECONDS", 0.0)
        monkeypatch.setattr("haepo_jax.runner.session.StopSignals", StopAfter)
        # A checkpoint that is due while another is being written is put off; here none is.
        due = Saver.due
        monkeypatch.setattr(Saver, "due", lambda self: self.wait() or due(self))
        # The figure takes longer than the run.
        monkeypatch.setattr(loggers, "write_curve", lambda directory, summary: None)

    def __call__(self, directory: Path, *arguments: str, calls: int = 10**9) -> int:
        StopAfter.calls = calls
        return train.main([f"run_dir={directory}", *arguments])


def flip(path: Path) -> None:
    """Changes one bit of a file, or of what the host knows in a checkpoint."""
    file = path / "progress.json" if path.is_dir() else path
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 4
    file.write_bytes(data)


def rows(directory: Path) -> list[dict[str, Any]]:
    """The rows of the metrics without what the clock says."""
    every = RunDir(directory).read_metrics()
    return [{key: value for key, value in row.items() if key not in CLOCKS} for row in every]


def outcome(directory: Path) -> dict[str, Any]:
    """The parts of the summary that are the policy's and not the clock's."""
    summary = RunDir(directory).read_summary()
    names = (
        "env_steps_per_seed",
        "updates_per_seed",
        "final_return_per_seed",
        "final_return_greedy_per_seed",
        "diverged",
    )
    return {name: summary[name] for name in names}


def final_arrays(directory: Path) -> dict[str, Any]:
    """Every array of the newest checkpoint: parameters, optimiser, reference, environments, normaliser, counters."""
    from orbax.checkpoint import PyTreeCheckpointer

    newest = Checkpoints(directory / "checkpoints").all()[-1]
    newest.verify()
    arrays: dict[str, Any] = PyTreeCheckpointer().restore(newest.path.absolute() / "arrays")
    return arrays


def final_bits(directory: Path) -> dict[str, bytes]:
    """The same as bytes, with their types and shapes."""
    arrays = final_arrays(directory)
    return {name: repr((array.dtype, array.shape)).encode() + array.tobytes() for name, array in arrays.items()}


def assert_same_end(directory: Path, whole: Path) -> None:
    """The run ended with the bits, the rows and the returns of the one that was never interrupted."""
    assert rows(directory) == rows(whole)
    ours, theirs = final_bits(directory), final_bits(whole)
    assert ours.keys() == theirs.keys() and len(ours) > 8
    assert [name for name in ours if ours[name] != theirs[name]] == []
    assert outcome(directory) == outcome(whole)
