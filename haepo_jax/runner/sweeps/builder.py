"""From a configuration to its algorithm, and to the command that trains it alone."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import shlex
from typing import Any

import jax
import numpy as np

from haepo_jax.algorithms.base import Algorithm
from haepo_jax.envs.objects import PlainEnvironment
from haepo_jax.messages import first_line, short
from haepo_jax.runner.config import ConfigError, OwnConfig
from haepo_jax.runner.config.arguments import command_of, value_text
from haepo_jax.runner.describe import describe
from haepo_jax.runner.program import build
from haepo_jax.runner.sweeps.plan import Custom, SweepPlan
from haepo_jax.runner.sweeps.space import Choice, Values

NOT_HYPERPARAMETERS = ("env", "policy", "value", "total_steps")


class Builder:
    """Builds the algorithms of a sweep's trials; environments that are alike are built once.

    Attributes:
      plan: the sweep.
      env: a custom environment; None: it is named in the plan.
      algorithm: a custom algorithm, whose other hyperparameters are kept; None: it is named in the plan.
    """

    def __init__(self, plan: SweepPlan, *, env: Any = None, algorithm: Algorithm | None = None) -> None:
        self.plan = plan
        self._env, self._algorithm = env, algorithm
        self._envs: dict[str, Any] = {}

    def __call__(self, values: Values) -> Algorithm:
        """The algorithm of a configuration; raises ConfigError where it does not fit its environment."""
        if self._algorithm is not None:
            changes = {key.removeprefix("algo."): value for key, value in values.items() if key != "seed"}
            try:
                changes = {"total_steps": self.plan.settings.total_steps, **self.plan.fixed, **changes}
                return self._algorithm.replace(**changes)
            except Exception as error:  # a custom algorithm answers a value that it cannot use with whatever it likes
                name = type(self._algorithm).__name__
                raise ConfigError(f"cannot set up {name} with {short(values, 200)}: {first_line(error)}") from error
        config = self.plan.run_config(values)
        key = json.dumps([config.env, config.env_kwargs], sort_keys=True)
        algorithm = build(config, self._envs.get(key, self._env))
        self._envs[key] = algorithm.env
        return algorithm

    def check(self) -> None:
        """Builds the ends of the space, every environment and every algorithm, and whatever is compiled in of a custom
        one, so that what does not fit is reported before anything trains."""
        plan = self.plan
        ends: list[Values] = [
            {d.key: d.values[end] if isinstance(d, Choice) else d.bounds()[end] for d in plan.dimensions}
            for end in (0, -1)
        ]
        named = [d for d in plan.dimensions if d.key in ("env", "algo") and isinstance(d, Choice)]
        more = [{d.key: value} for d in named for value in d.values]
        if self._algorithm is not None:
            more += [values for name in plan.bases for values in plan.compiled_combinations(name)]
        for values in [*ends, *(ends[0] | values for values in more)]:
            self({key: value for key, value in values.items() if plan.belongs(key, plan.algorithm(values))})

    def varying(self, algorithm: Algorithm) -> list[bool]:
        """Which leaves differ between trials of one shape; the environment's only where `env_kwargs` are swept."""
        env_varies = any(dimension.key.startswith("env_kwargs") for dimension in self.plan.dimensions)
        paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(algorithm)]
        return [env_varies or path[0].name != "env" for path in paths]

    def command(self, values: Values) -> str:
        """The command line that trains a configuration alone; a comment that says why where there is none."""
        config = self.plan.run_config(values)
        if self.plan.custom is not None:
            seeds = list(range(config.seed, config.seed + config.num_seeds))
            common = {key: getattr(config, key) for key in ("seed", "num_seeds", "final_eval_episodes")}
            config = describe(self(values), common)
            if isinstance(config, OwnConfig):
                changes = ", ".join(f"{key}={value_text(value)}" for key, value in values.items())
                kind = "environment" if self.plan.custom.fields is None else "algorithm or environment"
                return (
                    f"# no command line: the {kind} is a custom object. In Python, with found = hx.sweep(...): "
                    f"hx.train(found.algorithm(i), seeds=range({seeds[0]}, {seeds[-1] + 1}))  # {changes}"
                )
        return shlex.join(["python", "-m", "haepo_jax.train", *command_of(config)])


def custom_of(env: Any, algorithm: Algorithm | None) -> Custom | None:
    """The objects among a sweep's environment and algorithm; None: both are named."""
    if isinstance(env, str) and algorithm is None:
        return None
    given = {"env": env, "algorithm": algorithm}
    fields = None
    if algorithm is not None:
        if jax.tree_util.all_leaves([algorithm]):
            name = type(algorithm).__name__
            raise ConfigError(f"{name} is not a pytree: put @jax.tree_util.register_dataclass above the class")
        fields = {f.name: f for f in dataclasses.fields(algorithm) if f.name not in NOT_HYPERPARAMETERS}
    name = env if isinstance(env, str) else str(getattr(env, "name", type(env).__name__))
    return Custom(name, fields, json.dumps({key: fingerprint(value) for key, value in given.items()}))


def fingerprint(value: Any) -> str:
    """Text that tells one object from another and is the same in every process: its class, structure and numbers."""
    if isinstance(value, PlainEnvironment):
        value = value.holder.value
    leaves, structure = jax.tree.flatten(value)
    parts = [type(value).__qualname__, str(structure)]
    for leaf in leaves:
        if isinstance(leaf, bool | int | float | str | np.ndarray | np.generic | jax.Array):
            parts.append(f"{np.asarray(leaf).dtype}{np.shape(leaf)}{np.asarray(leaf).tolist()}")
        else:
            parts.append(
                f"{type(leaf).__module__}.{type(leaf).__qualname__}{sorted(getattr(leaf, '__dict__', {}).items())}"
            )
    text = re.sub(r" at 0x[0-9a-f]+", "", " ".join(parts))
    return f"{type(value).__module__}.{type(value).__qualname__} {hashlib.sha256(text.encode()).hexdigest()[:16]}"
