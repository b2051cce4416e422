"""What `python -m haepo_jax.compare` accepts: its settings, those of each of its runs, and their directories; without jax."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import TYPE_CHECKING

from haepo_jax.messages import short
from haepo_jax.runner.config import ALGORITHM_NAMES, ConfigError, RunConfig, algorithm_class, setting
from haepo_jax.runner.config.arguments import check_form, compose, own_overrides, read_arguments
from haepo_jax.runner.config.values import value_text
from haepo_jax.runner.resume import allowed, existing_run, flat
from haepo_jax.runner.run_dir import RunDir, check_run_dir, unused_directory

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

BASELINES = ("haepo", "ppo", "grpo", "dpo")
DEFAULTS = {"num_seeds": 10, "tensorboard": False}
"""Defaults of the runs of a comparison that differ from those of `haepo_jax.train`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """The settings of `python -m haepo_jax.compare` beside those of its runs. Every algorithm is trained on every
    environment."""

    env: tuple[str, ...] = setting((), list, "the environments: one or more (required)")
    algo: tuple[str, ...] = setting(BASELINES, list, "the algorithms or presets")
    run_dir: str | None = setting(None, str, "directory for the results; null: runs/compare-<time>")


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A comparison to be made: its directory, and the settings of each run by its directory's name."""

    run_dir: str | None
    runs: dict[str, RunConfig]

    @property
    def any_run(self) -> RunConfig:
        """For the settings that all runs share."""
        return next(iter(self.runs.values()))


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


def places(comparison: Comparison) -> tuple[Path, dict[str, RunConfig]]:
    """The comparison's directory, and its runs with theirs; raises ConfigError where one cannot be used."""
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
            f"run_dir={short(str(directory))} holds none of these runs: there is nothing to resume (resume=auto starts a comparison)"
        )
    return directory, runs
