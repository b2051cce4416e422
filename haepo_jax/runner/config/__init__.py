"""Settings: what the command lines accept, checked in full before jax is loaded.

Here is what there is to set, as dataclasses whose fields say their type, range and meaning; the hyperparameters come from
the algorithms' own classes (`haepo_jax.algorithms.declared`). `values` makes such a dataclass of plain
values and checks it, `arguments` of a command line, and `help` describes it. Whatever is wrong becomes a `ConfigError`
of one line. Nothing here imports jax.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from haepo_jax.algorithms import declared
from haepo_jax.algorithms import fields as hp
from haepo_jax.messages import one_line, short

DEFAULT_ALGORITHM = "haepo"
ALGORITHM_NAMES = (*declared.ALGORITHMS, *declared.PRESETS)

_TOTAL_STEPS = declared.hyperparameters(DEFAULT_ALGORITHM)["total_steps"]

SHARD_NOTHING = "distributed=true needs shard=environments: training over several hosts shares out environments"


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
    """A field of a command's settings: described and checked just as a hyperparameter is; null where that is the default."""
    return hp.static(default, kind, doc, optional=default is None, **keywords)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The settings of one training run (`python -m haepo_jax.train`)."""

    env: str = setting("", str, "the environment, such as CartPole-v1, brax/ant or haepo/bandit (required)")
    algo: AlgoConfig = setting(None, AlgoConfig, f"the algorithm or preset: {', '.join(ALGORITHM_NAMES)}")
    seed: int = setting(0, int, "the first seed", within=hp.Range(0, 2**31 - 1))
    num_seeds: int = setting(1, int, "seeds trained side by side in one compiled call", within=hp.Range(1, 2**31 - 1))
    total_steps: int = dataclasses.field(
        default=declared.defaults(DEFAULT_ALGORITHM)["total_steps"], metadata=_TOTAL_STEPS.metadata
    )
    final_eval_episodes: int = setting(128, int, "episodes per seed behind the final return", within=hp.COUNT)
    env_kwargs: dict[str, Any] = setting(None, dict, "passed to the environment: env_kwargs.<name>=<value>")
    init_from: str | None = setting(
        None, str, "start from the policy of this run (the first of its seeds): its directory"
    )
    run_dir: str | None = setting(None, str, "where the results go; null: runs/<env>-<algo>-<seed>-<time>")
    resume: str = setting(
        "false",
        str,
        "go on with the run in run_dir from its newest intact checkpoint; auto: or start",
        choices=("false", "true", "auto"),
    )
    checkpoint_minutes: float | None = hp.leaf(
        5.0, "minutes from one checkpoint to the next; null: not by time", within=hp.POSITIVE, optional=True
    )
    checkpoint_steps: int | None = setting(
        None, int, "live steps per seed from one checkpoint to the next; null: not by steps", within=hp.Range(1, 2**62)
    )
    keep_checkpoints: int = setting(
        3, int, "how many of the last checkpoints stay, beside the best by return", within=hp.COUNT
    )
    shard: str = setting(
        "none",
        str,
        "what is shared out over devices: each update's environments, of one run over all devices, or nothing",
        choices=("none", "environments"),
    )
    distributed: bool = setting(
        False, bool, "several hosts: each process of the cluster's job has its share of the run (with shard=)"
    )
    tensorboard: bool = setting(True, bool, "write TensorBoard events")
    wandb: bool = setting(False, bool, "log to Weights & Biases (needs the extra `wandb`)")
    completions: int = setting(
        2, int, "token tasks: prompts whose completions are logged at every row; 0: none", within=hp.Range(0, 1000)
    )
    weights: int = setting(
        0,
        int,
        "new episodes at every row whose weights are logged beside their returns; 0: none",
        within=hp.Range(0, 100_000),
    )
    dry_run: bool = setting(False, bool, "check everything, then stop before training")

    def check(self) -> None:
        """Raises ConfigError where settings do not go together."""
        if not self.env:
            raise ConfigError(
                "env= is missing: name an environment, for example env=CartPole-v1 (--list-envs lists them)"
            )
        if self.seed + self.num_seeds > 2**31:
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
        return values


@dataclasses.dataclass(frozen=True, kw_only=True)
class OwnConfig(RunConfig):
    """The settings of a run of objects that only a user's program has: they are described here, not to be built from.

    Attributes:
      objects: what the algorithm, its environment and its networks are, by the names of their classes.
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
    except (ImportError, SyntaxError, hp.HyperparameterError) as error:
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


def did_you_mean(name: str, names: Iterable[str]) -> str:
    near = difflib.get_close_matches(name.lower(), list(names), n=1) if len(name) < 100 else []
    return f"; did you mean {near[0]!r}?" if near else ""
