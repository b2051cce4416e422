"""An algorithm object as settings, for `config.yaml`."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np

from haepo_jax.algorithms import declared
from haepo_jax.algorithms.base import Algorithm
from haepo_jax.envs import make_env
from haepo_jax.envs.objects import PlainEnvironment
from haepo_jax.losses.weights import Auto
from haepo_jax.networks import LinenPolicy, NNXPolicy
from haepo_jax.runner.config import AlgoConfig, CustomConfig, RunConfig
from haepo_jax.runner.config.values import from_dict


def describe(algo: Algorithm, settings: dict[str, Any]) -> RunConfig:
    """The settings that make this algorithm, if there are such; otherwise a description of its parts. `settings` are those
    of the run, such as `seed` and `run_dir`. Raises ConfigError where they cannot be used."""
    names = {where: name for name, where in declared.ALGORITHMS.items()}
    numbers, objects = {}, {"algorithm": _qualified(type(algo)), "env": _qualified(_unwrapped(algo.env))}
    for field in dataclasses.fields(algo):
        value = getattr(algo, field.name)
        if field.name in ("env", "total_steps") or (value is None and "kind" not in field.metadata):
            continue
        try:
            numbers[field.name] = _plain(value)
        except TypeError:
            objects[field.name] = _qualified(_unwrapped(value))
    name = names.get(f"{type(algo).__module__}:{type(algo).__qualname__}")
    common = {"total_steps": algo.total_steps, **settings}
    env = str(getattr(algo.env, "name", type(algo.env).__name__))
    if name is not None and len(objects) == 2:
        try:
            config = from_dict({"env": env, "algo": {"name": name, **numbers}, **common}, RunConfig)
            if jax.tree.all(jax.tree.map(np.array_equal, make_env(config.env), algo.env)):
                return config
        # The environment has no such name, or its structure is not that of the named one; a schedule is a function.
        except (ValueError, TypeError, ImportError):
            pass
    config = CustomConfig(
        env=env, algo=AlgoConfig(name or type(algo).__name__, numbers), env_kwargs={}, objects=objects, **common
    )
    config.check()
    return config


def _plain(value: Any) -> Any:
    """A number, a switch, a word or a list of them, as a file holds it; raises TypeError for anything else."""
    if isinstance(value, Auto):
        return "auto"
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        return np.asarray(value).tolist()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError


def _unwrapped(value: Any) -> Any:
    """What the user gave, in place of what has been put around it."""
    if isinstance(value, PlainEnvironment):
        return value.holder.value
    if isinstance(value, jax.tree_util.Partial):  # a schedule
        return value.func
    if isinstance(value, LinenPolicy):
        return value.module
    return value.create if isinstance(value, NNXPolicy) else value


def _qualified(value: Any) -> str:
    named = value if hasattr(value, "__qualname__") else type(value)
    return f"{named.__module__}.{named.__qualname__}"
