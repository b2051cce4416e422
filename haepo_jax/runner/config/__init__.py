"""Settings of the command lines, checked completely before jax is imported.

This module declares them, as dataclasses whose fields carry type, range and description; the algorithms declare their
hyperparameters in the same way, and they reach the command lines through this module alone. `values` builds and checks
such a dataclass from plain values, `arguments` from a command line, and `help` prints it. Every mistake is a
`ConfigError` of one line. Nothing here imports jax.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from haepo_jax.algorithms import declared

# What algorithms declare comes from there to the command lines through here alone.
from haepo_jax.algorithms.declared import ALGORITHMS as ALGORITHMS
from haepo_jax.algorithms.declared import PRESETS as PRESETS
from haepo_jax.algorithms.fields import COUNT as COUNT
from haepo_jax.algorithms.fields import POSITIVE as POSITIVE
from haepo_jax.algorithms.fields import HyperparameterError as HyperparameterError
from haepo_jax.algorithms.fields import Range as Range
from haepo_jax.algorithms.fields import check_value as check_value
from haepo_jax.algorithms.fields import leaf as leaf
from haepo_jax.algorithms.fields import static as static
from haepo_jax.messages import did_you_mean, one_line, short

DEFAULT_ALGORITHM = "haepo"
ALGORITHM_NAMES = (*ALGORITHMS, *PRESETS)

_TOTAL_STEPS = declared.hyperparameters(DEFAULT_ALGORITHM)["total_steps"]
_TOTAL_STEPS_DEFAULT = declared.defaults(DEFAULT_ALGORITHM)["total_steps"]

SHARD_NOTHING = "distributed=true needs shard=environments: training on several hosts shards environments"


class ConfigError(ValueError):
    """A setting that cannot be used; the message is one line that names it and says what would be right."""


@dataclasses.dataclass(frozen=True)
class AlgoConfig:
    """An algorithm by the name the user gave, which may be a preset's, with all its hyperparameters."""

    name: str
    hyperparameters: dict[str, Any]

    @property
    def class_name(self) -> str:
        """The name of the class: `EpisodicHAEPO` for `haepo_episodic` and for `haepo_paper`."""
        known = self.name in ALGORITHM_NAMES or ":" in self.name
        return algorithm_class(self.name).__name__ if known else self.name


def setting(default: Any, kind: type, doc: str, **keywords: Any) -> Any:
    """A field of a command's settings, declared as a hyperparameter is; it may be null if that is its default."""
    return static(default, kind, doc, optional=default is None, **keywords)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The settings of one training run (`python -m haepo_jax.train`)."""

    env: str = setting("", str, "the environment, such as CartPole-v1, brax/ant or haepo/bandit (required)")
    algo: AlgoConfig = setting(None, AlgoConfig, f"the algorithm or preset: {', '.join(ALGORITHM_NAMES)}")
    seed: int = setting(0, int, "the first seed", within=Range(0, 2**31 - 1))
    num_seeds: int = setting(1, int, "number of seeds, trained in one compiled call", within=Range(1, 2**31 - 1))
    total_steps: int = dataclasses.field(default=_TOTAL_STEPS_DEFAULT, metadata=_TOTAL_STEPS.metadata)
    seeds: tuple[int, ...] | None = setting(
        None,
        tuple,
        "the seeds by number, such as [3,5,8], in place of seed and num_seeds",
        within=Range(0, 2**31 - 1),
    )
    final_eval_episodes: int | None = setting(
        None,
        int,
        "episodes per seed behind the final return; 0: none; null: 128, or as many as total_steps would do for",
        within=Range(0, 2**31 - 1),
    )
    env_kwargs: dict[str, Any] = setting(None, dict, "keyword arguments of the environment: env_kwargs.<name>=<value>")
    init_from: str | None = setting(None, str, "directory of a run whose policy (of its first seed) to start from")
    run_dir: str | None = setting(None, str, "directory for the results; null: runs/<env>-<algo>-<seed>-<time>")
    resume: str = setting(
        "false",
        str,
        "resume the run in run_dir from its newest intact checkpoint; auto: or start one",
        choices=("false", "true", "auto"),
    )
    checkpoint_minutes: float | None = leaf(
        5.0, "minutes between checkpoints; null: none by time", within=POSITIVE, optional=True
    )
    checkpoint_steps: int | None = setting(
        None, int, "environment steps per seed between checkpoints; null: none by steps", within=Range(1, 2**62)
    )
    keep_checkpoints: int = setting(
        3, int, "number of most recent checkpoints kept, beside the best by return", within=COUNT
    )
    shard: str = setting(
        "none",
        str,
        "what to shard over all devices: the environments of each update, or nothing",
        choices=("none", "environments"),
    )
    distributed: bool = setting(
        False, bool, "train on several hosts, one process of a cluster job on each (needs shard=)"
    )
    tensorboard: bool = setting(True, bool, "write TensorBoard events")
    wandb: bool = setting(False, bool, "log to Weights & Biases (needs the extra `wandb`)")
    completions: int = setting(
        2, int, "token tasks: prompts whose completions are logged with every row; 0: none", within=Range(0, 1000)
    )
    weights: int = setting(
        0,
        int,
        "new episodes per row whose weights and returns are logged; 0: none",
        within=Range(0, 100_000),
    )
    dry_run: bool = setting(False, bool, "check everything, then exit without training")

    def __post_init__(self) -> None:
        if self.seeds:
            given, count = {self.seed, self.num_seeds} - {0, 1, self.seeds[0], len(self.seeds)}, len(self.seeds)
            if given or len({*self.seeds}) < count:
                wrong = (
                    f"does not go with seed={self.seed} and num_seeds={self.num_seeds}" if given else "repeats a seed"
                )
                raise ConfigError(f"seeds={short(list(self.seeds))} {wrong}")
            object.__setattr__(self, "seed", self.seeds[0])
            object.__setattr__(self, "num_seeds", count)

    @property
    def seed_numbers(self) -> list[int]:
        """The seeds of the run, in order."""
        return list(self.seeds or range(self.seed, self.seed + self.num_seeds))

    def check(self) -> None:
        """Raises ConfigError where settings do not go together."""
        if not self.env:
            raise ConfigError(
                "env= is missing: name an environment, for example env=CartPole-v1 (--list-envs lists them)"
            )
        if not self.seeds and self.seed + self.num_seeds > 2**31:
            raise ConfigError(
                f"seed={self.seed} with num_seeds={self.num_seeds} goes past the largest seed, {2**31 - 1}"
            )
        if self.distributed and self.shard == "none":
            raise ConfigError(SHARD_NOTHING)

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain values, as `config.yaml` holds them and `from_dict` reads them."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        algo = {"name": self.algo.name, **self.algo.hyperparameters}
        values["algo"] = {k: list(v) if isinstance(v, tuple) else v for k, v in algo.items()}
        values["seeds"] = list(self.seeds) if self.seeds else None
        return values


@dataclasses.dataclass(frozen=True, kw_only=True)
class OwnConfig(RunConfig):
    """The settings of a run of custom objects, which only the user's program can build; they are recorded by name.

    Attributes:
      objects: the class names of the algorithm, its environment and its networks.
    """

    objects: dict[str, str] = dataclasses.field(default_factory=dict)


def algorithm_class(name: str) -> type[declared.Declaration]:
    """The hyperparameters' dataclass of an algorithm, a preset or a custom `module:Class`; raises ConfigError, with a near
    match."""
    try:
        return declared.declaration(name)
    except KeyError:
        near = did_you_mean(name, ALGORITHM_NAMES)
        raise ConfigError(
            f"unknown algorithm {short(name)}{near or '; there are: ' + ', '.join(ALGORITHM_NAMES)}"
        ) from None
    except (ImportError, SyntaxError, HyperparameterError) as error:
        raise ConfigError(f"algo={short(name)}: {one_line(str(error))}") from None


def hyperparameter_fields(name: str) -> dict[str, dataclasses.Field[Any]]:
    """The fields that `algo.<field>=` sets for an algorithm or preset; `total_steps` is a setting of the run."""
    algorithm_class(name)
    return {key: field for key, field in declared.hyperparameters(name).items() if key != "total_steps"}


def hyperparameter_defaults(name: str) -> dict[str, Any]:
    """The defaults of an algorithm or preset."""
    algorithm_class(name)
    return {key: value for key, value in declared.defaults(name).items() if key != "total_steps"}


def default_of(field: dataclasses.Field[Any]) -> Any:
    if field.metadata["kind"] is AlgoConfig:
        return {"name": DEFAULT_ALGORITHM}
    return {} if field.metadata["kind"] is dict else field.default


def has_hyperparameters(fields: Mapping[str, dataclasses.Field[Any]]) -> bool:
    """Whether `algo=` names an algorithm of this library, whose hyperparameters are `algo.<name>`."""
    return "algo" in fields and fields["algo"].metadata["kind"] is AlgoConfig
