"""Trains one algorithm on one environment: `python -m haepo_jax.train env=CartPole-v1`."""

from __future__ import annotations

from haepo_jax.envs import list_envs
from haepo_jax.runner.config import SHARD_NOTHING, ConfigError, RunConfig
from haepo_jax.runner.config.arguments import Arguments, peek, read_arguments
from haepo_jax.runner.config.help import training_help
from haepo_jax.runner.entry import entry_point
from haepo_jax.runner.processes import ALONE, Processes, join
from haepo_jax.runner.resume import compose_run, make_plan
from haepo_jax.runner.run_dir import check_run_dir, config_text
from haepo_jax.runner.session import run_to_resume, train_and_report, warn

HELP = """\
Trains one algorithm on one environment; every seed trains in the same compiled program.

usage: python -m haepo_jax.train env=<environment> [key=value ...]

  python -m haepo_jax.train env=CartPole-v1
  python -m haepo_jax.train env=Pendulum-v1 num_seeds=8 total_steps=1e6 algo.learning_rate=1e-3
  python -m haepo_jax.train --config runs/x/config.yaml algo.learning_rate=3e-3
  python -m haepo_jax.train env=brax/ant env_kwargs.backend=spring 'algo.entropy_coef=[0.01,0]'

options:
  --config FILE settings from a file of YAML, such as the config.yaml that a run leaves (its run_dir and resume apart);
                those on the command line win
  --help        this text; with algo=<name>, that algorithm's hyperparameters
  --cfg job     print the complete settings as YAML and stop
  --list-envs   print the environments' names and stop

several devices: shard=environments shares out each update's environments over all of them; with distributed=true over
those of every process of a job, which SLURM, Open MPI, Kubernetes or cloud TPUs tell jax of, or the environment variables
JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID.

settings (key, default, meaning):
{settings}

algorithms and presets (algo=<name>):
{algorithms}

hyperparameters of algo={algo} (a pair [start,end] changes linearly over the run):
{hyperparameters}

A run leaves in its directory: config.yaml, metrics.jsonl (one row per logged update, every seed's values beside their
mean), TensorBoard events, curve.png, summary.json and checkpoints; of a token task completions.jsonl, with weights=
weights.jsonl. Settings that cannot be used end with exit status 2.

A run that was ended goes on with: python -m haepo_jax.train run_dir=<directory> resume=true. It keeps its settings and
ends with the same numbers as if it had never been ended. A larger total_steps extends it; what changes over a run, such
as an annealed learning_rate, follows the share of total_steps that is done, and goes back to its value at that share.
SIGTERM and Ctrl-C end a run after a checkpoint; a second one ends it at once.
"""


@entry_point(lambda argv: training_help(HELP, RunConfig, argv))
def main(argv: list[str]) -> int:
    """Runs the command line; returns its exit status: 0; 1 where a run fails or diverges; 2 for settings that cannot be
    used; 128 + the number of the signal that ended it."""
    arguments = read_arguments(argv, ("--cfg", "--config"))
    if arguments.list_envs:
        print("\n".join(list_envs()))
        return 0
    processes = _processes(arguments)
    with processes.together():
        config = processes.of_first(lambda: compose_run(arguments))
        if arguments.show_config:
            processes.of_first(lambda: print(config_text(config), end=""))
            return 0
        return (
            processes.of_first(lambda: _dry_run(config))
            if config.dry_run
            else train_and_report(config, argv, processes)
        )


def _processes(arguments: Arguments) -> Processes:
    """Those that train together. They come together before anything else, because one of them decides for all."""
    keys = ("distributed", "resume", "shard")
    distributed, resume, shard = (peek(arguments.overrides, RunConfig, key) for key in keys)
    if distributed and resume == "false" and shard == "none" and arguments.settings is None:
        raise ConfigError(SHARD_NOTHING)
    return join() if distributed else ALONE


def _dry_run(config: RunConfig) -> int:
    directory = run_to_resume(config)
    if directory is None:
        check_run_dir(config)
    else:
        make_plan(config, directory, warn)
    from haepo_jax.runner.loading import start_of
    from haepo_jax.runner.program import build, mesh_of

    algorithm = build(config)
    mesh_of(config, algorithm)
    start_of(config, algorithm)
    print("the settings are usable; dry_run=true stops here")
    return 0
