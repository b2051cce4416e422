"""What all tests share: a compiler that does not linger, and what it has compiled before."""

import os
from importlib import metadata
from pathlib import Path

import pytest

from haepo_jax.runner.entry import keep_compiled

QUICK_COMPILER = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"


def pytest_configure(config: pytest.Config) -> None:
    # The tests compile hundreds of programs that then run for milliseconds: unoptimised, that takes a fifth of the time.
    # The slow ones run long enough to want better. XLA aborts at a flag it does not know, hence the version.
    if config.getoption("markexpr") == "not slow" and metadata.version("jaxlib") == "0.10.2":
        os.environ.setdefault("XLA_FLAGS", QUICK_COMPILER)
    # Workers share what they compile, as commands do with each other, and a second run of the tests takes half the time.
    keep_compiled()


@pytest.fixture(scope="session")
def finished_runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two small runs that have ended, for what comes afterwards: two seeds of HAEPO; PPO with a normaliser."""
    from haepo_jax.runner.commands import train

    folder = tmp_path_factory.mktemp("finished")
    shared = [
        "tensorboard=false",
        "algo.log_points=3",
        "algo.eval_episodes=4",
        "final_eval_episodes=8",
        "algo.hidden_sizes=[8]",
    ]
    small = ["algo.num_envs=8", "algo.num_steps=16", "algo.replay_batches=2", "algo.group_size=4"]
    small += ["algo.num_minibatches=2", "algo.num_epochs=2"]
    segments = ["algo.num_envs=4", "algo.num_steps=50", "algo.num_minibatches=2", "algo.num_epochs=2"]
    runs = {
        "cartpole": ["env=CartPole-v1", "algo=haepo", "num_seeds=2", "seed=3", "total_steps=3000", *small],
        "pendulum": ["env=Pendulum-v1", "algo=ppo", "total_steps=2000", *segments],
    }
    for name, arguments in runs.items():
        assert train.main([*shared, *arguments, f"run_dir={folder / name}"]) == 0
    return {name: folder / name for name in runs}
