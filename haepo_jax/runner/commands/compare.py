"""Trains several algorithms alike and compares them: `python -m haepo_jax.compare env=CartPole-v1 algo=haepo,ppo`."""

from __future__ import annotations

import dataclasses
import itertools
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from haepo_jax.envs import list_envs
from haepo_jax.messages import short
from haepo_jax.runner.config import (
    ALGORITHM_NAMES,
    ConfigError,
    RunConfig,
    algorithm_class,
    setting,
)
from haepo_jax.runner.config.arguments import check_form, command_of, compose, own_overrides, read_arguments, value_text
from haepo_jax.runner.config.help import algorithm_table, settings_table
from haepo_jax.runner.entry import entry_point
from haepo_jax.runner.errors import Interrupted, RunError, disk_errors
from haepo_jax.runner.resume import allowed, existing_run, flat
from haepo_jax.runner.run_dir import (
    RunDir,
    check_run_dir,
    create_run_dir,
    json_text,
    unused_directory,
    write_atomically,
)
from haepo_jax.runner.session import train_and_report

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

HELP = """\
Trains several algorithms on the same environments, each algorithm's seeds in one compiled program, and compares them:
one figure, one table, one JSON document.

usage: python -m haepo_jax.compare env=<environment>[,...] algo=<name>[,...] [key=value ...]

  python -m haepo_jax.compare env=CartPole-v1
  python -m haepo_jax.compare env=CartPole-v1,Acrobot-v1 algo=haepo,haepo_paper,ppo num_seeds=5 total_steps=2e5
  python -m haepo_jax.compare env=CartPole-v1 algo=haepo,ppo algo.num_envs=64 haepo.kl_coef=0.5 ppo.learning_rate=1e-3

options:
  --help        this text
  --list-envs   print the environments' names and stop

settings of the comparison (key, default, meaning):
{own}

settings of its runs, shared by all of them:
{shared}

hyperparameters: algo.<key>= sets one for every algorithm that has it, <name>.<key>= for one algorithm; they are listed
by python -m haepo_jax.train --help algo=<name>. Algorithms and presets:
{algorithms}

A comparison leaves in its directory: comparison.json, comparison.md, comparison.png, and each run in a directory of its
own, named after its algorithm (and environment, where there are several), as haepo_jax.train leaves it. Settings that
cannot be used end with exit status 2.
"""

BASELINES = ("haepo", "ppo", "grpo", "dpo")
DEFAULTS = {"num_seeds": 10, "tensorboard": False}
"""Where the runs of a comparison differ from a run alone."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """The settings of `python -m haepo_jax.compare` that are not those of its runs: every algorithm meets every
    environment."""

    env: tuple[str, ...] = setting((), list, "the environments: one or more (required)")
    algo: tuple[str, ...] = setting(BASELINES, list, "the algorithms or presets")
    run_dir: str | None = setting(None, str, "where the results go; null: runs/compare-<time>")


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A comparison to be made: its directory, and the settings of each run by its directory's name."""

    run_dir: str | None
    runs: dict[str, RunConfig]

    @property
    def any_run(self) -> RunConfig:
        """For the settings that all runs share."""
        return next(iter(self.runs.values()))


def comparison_help() -> str:
    """What `--help` prints."""
    own = {field.name: field for field in dataclasses.fields(CompareConfig)}
    shared = (field for field in dataclasses.fields(RunConfig) if field.name not in own)
    return HELP.format(
        own=settings_table(own.values()),
        shared=settings_table(shared, defaults=DEFAULTS),
        algorithms=algorithm_table(),
    )


def read_comparison(overrides: tuple[Override, ...]) -> Comparison:
    """Every setting of every run, checked; raises ConfigError at the first that is wrong."""
    own = [override for override in overrides if override.key_or_group in CompareConfig.__dataclass_fields__]
    settings = compose(own, CompareConfig)
    envs, algos = settings.env, settings.algo
    if not envs:
        raise ConfigError(
            "env= is missing: name one or more environments, for example env=CartPole-v1 (--list-envs lists them)"
        )
    for key, values in (("env", envs), ("algo", algos)):
        if repeated := [value for value in values if values.count(value) > 1]:
            raise ConfigError(f"{key}={','.join(values)} names {repeated[0]!r} twice")
    for algo in algos:
        algorithm_class(algo)

    # `algo.<key>=` is for every algorithm that has the key, `<name>.<key>=` for that one.
    shared: list[Override] = []
    particular: dict[str, list[Override]] = {algo: [] for algo in algos}
    for override in (override for override in overrides if override not in own):
        text = override.input_line or ""
        if override.is_sweep_override():
            raise ConfigError(f"{short(text)}: only env and algo take several values here, see haepo_jax.sweep")
        head, _, name = override.key_or_group.partition(".")
        if not name or head not in ALGORITHM_NAMES:
            shared.append(override)
            continue
        check_form(override)
        if head not in algos:
            raise ConfigError(f"cannot use {short(text)}: {head} is not among the algorithms, algo={','.join(algos)}")
        particular[head] += read_arguments([f"algo.{name}={text.partition('=')[2]}"]).overrides

    defaults = read_arguments([f"{key}={value_text(value)}" for key, value in DEFAULTS.items()]).overrides
    runs: dict[str, RunConfig] = {}
    for env, algo in itertools.product(envs, algos):
        chosen = read_arguments([f"env={env}", f"algo={algo}"]).overrides
        try:
            config = compose([*chosen, *defaults, *own_overrides(shared, algo, algos), *particular[algo]], RunConfig)
        except ConfigError as error:
            where = f"{algo}: " if str(error).startswith("algo.") else ""
            raise ConfigError(f"{where}{error}") from None
        if config.distributed:
            raise ConfigError("distributed=true belongs to haepo_jax.train and haepo_jax.sweep")
        runs[algo if len(envs) == 1 else f"{algo}-{env.replace('/', '-')}"] = config
    return Comparison(settings.run_dir, runs)


@entry_point(lambda argv: comparison_help())
def main(argv: list[str]) -> int:
    """Runs the command line; returns its exit status: 0, or 2 for settings that cannot be used."""
    arguments = read_arguments(argv)
    if arguments.list_envs:
        print("\n".join(list_envs()))
        return 0
    return compare(read_comparison(arguments.overrides), argv)


def compare(comparison: Comparison, argv: list[str]) -> int:
    """Trains and compares; returns the exit status."""
    directory, runs = _places(comparison)
    from haepo_jax.runner.program import build

    # A combination that does not work is refused now and not after hours.
    for config in runs.values():
        build(config)
    if comparison.any_run.dry_run:
        print("the settings are usable; dry_run=true stops here")
        return 0
    create_run_dir(dataclasses.replace(comparison.any_run, run_dir=str(directory)))
    for number, config in enumerate(runs.values(), start=1):
        print(f"[{number}/{len(runs)}] {config.algo.name} on {config.env}", flush=True)
        try:
            _train(config)
        except Interrupted as interruption:
            others = [argument for argument in argv if not argument.startswith(("run_dir=", "resume="))]
            again = shlex.join(["python", "-m", "haepo_jax.compare", *others, f"run_dir={directory}", "resume=true"])
            raise Interrupted(
                interruption.signum, f"the comparison was ended in run {number} of {len(runs)}; to go on: {again}"
            ) from None
        print(flush=True)
    _report(directory, runs, argv)
    return 0


def _places(comparison: Comparison) -> tuple[Path, dict[str, RunConfig]]:
    """The comparison's directory, and its runs with theirs; raises ConfigError where one of them cannot be used."""
    resume = comparison.any_run.resume
    if comparison.run_dir is None and resume != "false":
        raise ConfigError(f"resume={resume} needs run_dir=<the directory of the comparison>")
    directory = Path(comparison.run_dir) if comparison.run_dir is not None else unused_directory("compare")
    check_run_dir(dataclasses.replace(comparison.any_run, run_dir=str(directory)))
    runs, found = {}, 0
    for name, config in comparison.runs.items():
        run = RunDir(directory / name)
        config = dataclasses.replace(config, run_dir=str(run.path), resume="false" if resume == "false" else "auto")
        if resume != "false" and existing_run("auto", config.run_dir):
            allowed(flat(run.read_config()), flat(config), run)
            found += 1
        else:
            check_run_dir(config)
        runs[name] = config
    if resume == "true" and not found:
        raise ConfigError(
            f"run_dir={short(str(directory))} holds none of these runs: there is nothing to resume (resume=auto starts)"
        )
    return directory, runs


def _train(config: RunConfig) -> None:
    """One run, as `python -m haepo_jax.train` makes it or goes on with it."""
    assert config.run_dir is not None
    try:
        train_and_report(config, command_of(config))
    except RunError as error:
        # A run in which every seed diverged has ended, and is a result.
        if not RunDir(Path(config.run_dir)).summary.exists():
            raise
        print(f"note: {error}", file=sys.stderr)


def _report(directory: Path, runs: dict[str, RunConfig], argv: list[str]) -> None:
    from haepo_jax.runner import comparison
    from haepo_jax.runner.plots import comparison_figure, write_figure

    results = [comparison.read_result(c.algo.name, c.env, RunDir(directory / name)) for name, c in runs.items()]
    improvement = comparison.improvements(results)
    document = {
        "command": shlex.join(["python", "-m", "haepo_jax.compare", *argv]),
        "machine": comparison.machine(),
        "results": results,
        "probability_of_improvement": improvement,
    }
    text = comparison.table(results, improvement)
    figure = comparison_figure([(c.algo.name, c.env, RunDir(directory / name)) for name, c in runs.items()])
    with disk_errors(directory, "comparison"):
        write_atomically(directory / "comparison.json", json_text(document, indent=2) + "\n")
        write_atomically(directory / "comparison.md", f"`{document['command']}`\n\n{text}")
        write_figure(figure, directory / "comparison.png")
    print(text)
    print(f"comparison.json, comparison.md and comparison.png in {directory}")
