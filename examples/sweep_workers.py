"""Starts workers of a sweep with one of Hydra's launchers, such as submitit for SLURM (`pip install
hydra-submitit-launcher`). `submitit_local` starts them on this machine.

    python examples/sweep_workers.py -m hydra/launcher=submitit_slurm hydra.launcher.gpus_per_node=1 'worker=range(8)' \
        'sweep="env=CartPole-v1 algo.learning_rate=tag(log,interval(1e-4,1e-2)) num_configs=512 run_dir=/shared/sweep"'

Each job is an independent worker of the study in `run_dir`. Any number of jobs may start and end at any time.
"""

from __future__ import annotations

import dataclasses
import shlex
import subprocess
import sys

import hydra
from hydra.core.config_store import ConfigStore
from omegaconf import MISSING


@dataclasses.dataclass
class Workers:
    sweep: str = MISSING
    worker: int = 0


ConfigStore.instance().store(name="workers", node=Workers)


@hydra.main(version_base="1.3", config_path=None, config_name="workers")
def work(config: Workers) -> None:
    """Runs one worker in a subprocess, because Hydra cannot compose a second configuration in a running app."""
    subprocess.run([sys.executable, "-m", "haepo_jax.sweep", *shlex.split(config.sweep)], check=True)


if __name__ == "__main__":
    work()
