"""Trains many configurations together: `python -m haepo_jax.sweep env=CartPole-v1 'algo.learning_rate=...'`."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from pathlib import Path
from typing import Any

from haepo_jax.runner.config.arguments import read_arguments
from haepo_jax.runner.config.help import help_text
from haepo_jax.runner.entry import entry_point
from haepo_jax.runner.errors import Interrupted, RunError, disk_errors
from haepo_jax.runner.run_dir import as_config_error, check_sweep_dir, unused_directory
from haepo_jax.runner.sweeps.plan import SweepConfig, SweepPlan, read_sweep

HELP = """\
Trains many configurations of an algorithm, those with the same shapes in one compiled program, on all devices.

usage: python -m haepo_jax.sweep env=<environment> <key>=<values> [...] [key=value ...]

  python -m haepo_jax.sweep env=CartPole-v1 'algo.learning_rate=tag(log,interval(1e-4,1e-2))' \\
      'algo.entropy_coef=choice(0,0.001,0.01)' num_configs=256 num_seeds=4
  python -m haepo_jax.sweep env=CartPole-v1 'algo.kl_coef=interval(0,2)' search=tpe num_configs=200 run_dir=runs/a
  python -m haepo_jax.sweep env=CartPole-v1 'algo.learning_rate=tag(log,interval(1e-4,1e-1))' halving=3 num_configs=81

values, in Hydra's sweep language:
  a,b or choice(a,b)       these values
  range(start,stop,step)   numbers from start, excluding stop
  interval(low,high)       any number between; tag(log,interval(...)): log-uniform; int(interval(...)): integers
You can sweep algo.<key> and env_kwargs.<name>. Real numbers vary within one compiled program; each combination of other
values is compiled separately. For several algorithms or environments, start a sweep for each.

options:
  --help        show this text; with algo=<name>, the hyperparameters of that algorithm
  --list-envs   list the environments and exit

settings (key, default, meaning):
{settings}

algorithms and presets (algo=<name>):
{algorithms}

hyperparameters of algo={algo}:
{hyperparameters}

A sweep writes to its directory: trials.csv (one row per trial), study.db (the Optuna study), summary.json with the
command of the best configuration, and Optuna's figures. A trial fails if one of its seeds diverges; it is then never the
best. Run the same command with the same run_dir again to resume a sweep, or several times at once for several workers.
Invalid settings exit with a one-line error (status 2), a sweep whose trials all fail with status 1.
"""


@entry_point(lambda argv: help_text(HELP, SweepConfig, argv))
def main(argv: list[str]) -> int:
    """Runs the command line; returns its exit status, 0; raises RunError where every trial failed."""
    plan = read_sweep(read_arguments(argv).overrides)
    name = plan.settings.run_dir or unused_directory(f"sweep-{plan.settings.env}-{plan.settings.algo.name}")
    directory = Path(name)
    check_sweep_dir(name)
    from haepo_jax.runner.sweeps.worker import run

    _use_every_core(plan)
    plan.check()  # an environment refuses its settings before anything is written
    if plan.settings.dry_run:
        count = f"{plan.num_configs} configuration{'s' * (plan.num_configs != 1)}"
        print(f"the settings are usable: {count}, {plan.search} search; dry_run=true stops here")
        return 0
    with as_config_error(str(directory)):
        directory.mkdir(parents=True, exist_ok=True)
    try:
        with disk_errors(directory, "sweep", lambda: "; the same command resumes it"):
            result = run(plan, directory, sys.stdout)
    except KeyboardInterrupt:
        raise Interrupted(signal.SIGINT, "the sweep was interrupted; the same command resumes it") from None
    finally:
        with contextlib.suppress(OSError):
            directory.rmdir()  # only where nothing has been written to it
    if len(result.state) and (result.state == "failed").all():
        raise RunError(f"all {len(result.state)} trials failed: try smaller learning rates")
    return 0


def _use_every_core(plan: SweepPlan) -> None:
    """Makes each core of a CPU a device, unless the user has said how many there are or jax runs already.

    The matrix products of small networks cannot keep several threads busy; two devices train 1.5 times as fast as one.
    """
    import jax

    settings: Any = jax.config
    if settings.jax_num_cpu_devices < 0 and "device_count" not in os.environ.get("XLA_FLAGS", ""):
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        with contextlib.suppress(RuntimeError):
            jax.config.update("jax_num_cpu_devices", min(cores, plan.num_configs * plan.settings.num_seeds))
