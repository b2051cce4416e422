"""Settings of the command lines, checked completely before jax is imported.

This module declares them as algorithms declare their hyperparameters: dataclasses whose fields carry a type, a range and a
description. `values` builds and checks such a dataclass from plain values, `arguments` from a command line, and `help`
prints it. Every mistake is a `ConfigError` of one line. Nothing here imports jax.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from haepo_jax.algorithms import declared
from haepo_jax.algorithms.declared import ALGORITHMS, PRESETS
from haepo_jax.algorithms.fields import COUNT, POSITIVE, HyperparameterError, Range, leaf, static
from haepo_jax.messages import did_you_mean, one_line, short

DEFAULT_ALGORITHM = "haepo"
ALGORITHM_NAMES = (*ALGORITHMS, *PRESETS)
SEEDS = Range(0, 2**31 - 1)

_TOTAL_STEPS: Any = declared.hyperparameters(DEFAULT_ALGORITHM)["total_steps"]


class ConfigError(ValueError):
    """A setting that cannot be used; the message is one line that names it and says what would be right."""


@dataclasses.dataclass(frozen=True)
class AlgoConfig:
    """An algorithm by the name the user gave, which may be a preset's, with all its hyperparameters."""

    name: str
    hyperparameters: dict[str, Any]


def setting(default: Any, kind: type, doc: str, **keywords: Any) -> Any:
    """A field of a command's settings, declared as a hyperparameter is; it may be null if that is its default."""
    return static(default, kind, doc, optional=default is None, **keywords)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The settings of one training run (`python -m haepo_jax.train`)."""

    env: str = setting("", str, "the environment, such as CartPole-v1, brax/ant or haepo/bandit (required)")
    algo: AlgoConfig = setting(None, AlgoConfig, f"the algorithm or preset: {', '.join(ALGORITHM_NAMES)}")
    seed: int = setting(0, int, "the first seed", within=SEEDS)
    num_seeds: int = setting(1, int, "number of seeds, trained in one compiled call", within=COUNT)
    total_steps: int = dataclasses.field(default=_TOTAL_STEPS.default, metadata=_TOTAL_STEPS.metadata)
    seeds: tuple[int, ...] | None = setting(
        None, tuple, "the seeds by number, such as [3,5,8], in place of seed and num_seeds", within=SEEDS
    )
    final_eval_episodes: int | None = setting(
        None, int, "evaluation episodes per seed for the final return; 0: none; null: 128, fewer in a short run",
        within=SEEDS,
    )  # fmt: skip
    env_kwargs: dict[str, Any] = setting(None, dict, "keyword arguments of the environment: env_kwargs.<name>=<value>")
    init_from: str | None = setting(None, str, "directory of a run whose policy (of its first seed) to start from")
    run_dir: str | None = setting(None, str, "directory for the results; null: runs/<env>-<algo>-<seed>-<time>")
    resume: str = setting(
        "false", str, "resume the run in run_dir from its newest intact checkpoint; auto: or start one",
        choices=("false", "true", "auto"),
    )  # fmt: skip
    checkpoint_minutes: float | None = leaf(
        5.0, "minutes between checkpoints; null: only one at the end", within=POSITIVE, optional=True
    )
    keep_checkpoints: int = setting(
        3, int, "number of most recent checkpoints kept, beside the best by return", within=COUNT
    )
    shard: str = setting(
        "none", str, "what to shard over all devices: the environments of each update, or nothing",
        choices=("none", "environments"),
    )  # fmt: skip
    tensorboard: bool = setting(True, bool, "write TensorBoard events")
    wandb: bool = setting(False, bool, "log to Weights & Biases (needs the extra `wandb`)")
    completions: int = setting(
        2, int, "token tasks: prompts whose completions are logged with every row; 0: none", within=Range(0, 1000)
    )
    dry_run: bool = setting(False, bool, "check everything, then exit without training")

    def __post_init__(self) -> None:
        if self.seeds is not None:
            count, place = len(self.seeds), f"seeds={short(list(self.seeds))}"
            if not count:
                raise ConfigError("seeds=[] must list at least one seed")
            if self.seed not in (0, self.seeds[0]) or self.num_seeds not in (1, count):
                raise ConfigError(f"{place} does not go with seed={self.seed} and num_seeds={self.num_seeds}")
            if len({*self.seeds}) < count:
                raise ConfigError(f"{place} repeats a seed")
            object.__setattr__(self, "seed", self.seeds[0])
            object.__setattr__(self, "num_seeds", count)

    @property
    def seed_numbers(self) -> list[int]:
        """The seeds of the run, in order."""
        return list(self.seeds or range(self.seed, self.seed + self.num_seeds))

    def check(self) -> None:
        """Raises ConfigError where settings do not go together."""
        if not self.env:
            other = "" if self.run_dir is None else f"; to resume the run in {short(self.run_dir)}, add resume=true"
            raise ConfigError(
                f"env= is missing: name an environment, such as env=CartPole-v1 (--list-envs lists them){other}"
            )
        if not self.seeds and self.seed + self.num_seeds > 2**31:
            raise ConfigError(
                f"seed={self.seed} with num_seeds={self.num_seeds} goes past the largest seed, {SEEDS.high}"
            )

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain values, as `config.yaml` holds them and `from_dict` reads them."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        algo = {"name": self.algo.name, **self.algo.hyperparameters}
        values["algo"] = {k: list(v) if isinstance(v, tuple) else v for k, v in algo.items()}
        values["seeds"] = list(self.seeds) if self.seeds else None
        return values


@dataclasses.dataclass(frozen=True, kw_only=True)
class CustomConfig(RunConfig):
    """The settings of a run of custom objects, which only the user's program can build; they are recorded by name.

    Attributes:
      objects: the class names of the algorithm, its environment, networks and schedules, each with a hash of its contents.
    """

    objects: dict[str, str] = dataclasses.field(default_factory=dict)


def algorithm_class(name: object) -> type[declared.Declaration]:
    """The declared hyperparameters of an algorithm, a preset or a custom `module:Class`; raises ConfigError, with a near
    match."""
    try:
        return declared.declaration(name if isinstance(name, str) else "")
    except KeyError:
        hint = did_you_mean(name, ALGORITHM_NAMES) or f"; there are: {', '.join(ALGORITHM_NAMES)}"
        raise ConfigError(f"unknown algorithm {short(name)}{hint}") from None
    except (ImportError, SyntaxError, HyperparameterError) as error:
        raise ConfigError(f"algo={short(name)}: {one_line(str(error))}") from None


def hyperparameter_fields(name: str) -> dict[str, dataclasses.Field[Any]]:
    """The fields that `algo.<field>=` sets for an algorithm or preset; `total_steps` is a setting of the run."""
    algorithm_class(name)
    return {key: field for key, field in declared.hyperparameters(name).items() if key != "total_steps"}


def hyperparameter_defaults(name: str) -> dict[str, Any]:
    """The defaults of an algorithm or preset."""
    return {key: field.default for key, field in hyperparameter_fields(name).items()}
