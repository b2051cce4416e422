"""An algorithm object as settings, for `config.yaml`."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any

import jax
import numpy as np

from haepo_jax.algorithms import declared
from haepo_jax.algorithms.base import Algorithm
from haepo_jax.envs import make_env
from haepo_jax.envs.base import check_members
from haepo_jax.envs.libraries import LibraryEnvironment
from haepo_jax.envs.objects import PlainEnvironment
from haepo_jax.losses.weights import Auto
from haepo_jax.networks import LinenPolicy, NNXPolicy
from haepo_jax.runner.config import AlgoConfig, CustomConfig, RunConfig
from haepo_jax.runner.config.values import from_dict
from haepo_jax.runner.fingerprints import fingerprint


def describe(algo: Algorithm, settings: dict[str, Any]) -> RunConfig:
    """The settings that make this algorithm, if there are such; otherwise a description of its parts. `settings` are those
    of the run, such as `seed` and `run_dir`. Raises ConfigError where they cannot be used, TypeError where `env` is no environment."""
    check_members(algo.env)
    names = {where: name for name, where in declared.ALGORITHMS.items()}
    numbers, objects = parts(algo)
    name = names.get(f"{type(algo).__module__}:{type(algo).__qualname__}")
    common = {"total_steps": algo.total_steps, **settings}
    env = str(algo.env.name)
    if name is not None and len(objects) == 2:
        try:
            settings = {"env": env, "env_kwargs": _env_kwargs(algo.env), "algo": {"name": name, **numbers}, **common}
            config = from_dict(settings, RunConfig)
            if jax.tree.all(jax.tree.map(np.array_equal, make_env(config.env, **config.env_kwargs), algo.env)):
                return config
        # The environment has no such name, or its structure is not that of the named one; a schedule is a function.
        except (ValueError, TypeError, ImportError):
            pass
    config = CustomConfig(
        env=env, algo=AlgoConfig(name or type(algo).__name__, numbers), env_kwargs={}, objects=objects, **common
    )
    config.check()
    return config


def parts(algo: Algorithm) -> tuple[dict[str, Any], dict[str, str]]:
    """The hyperparameters of an algorithm that a file can hold, and the fingerprints of its class, its environment and its
    other objects, such as networks and schedules."""
    numbers, objects = {}, {"algorithm": fingerprint(type(algo)), "env": fingerprint(unwrapped(algo.env))}
    for field in dataclasses.fields(algo):
        value = getattr(algo, field.name)
        if field.name in ("env", "total_steps") or (value is None and "kind" not in field.metadata):
            continue
        try:
            numbers[field.name] = _plain(value)
        except TypeError:
            objects[field.name] = fingerprint(unwrapped(value))
    return numbers, objects


def _env_kwargs(env: Any) -> dict[str, Any]:
    """What `make_env` was given with its name, or if that is not known, the numbers that are not those of the named environment."""
    if (given := vars(env).get("_make_env_settings")) is not None:
        return {key: _plain(value) for key, value in given.items()}
    usual = _numbers(make_env(str(env.name)))
    return {key: value for key, value in _numbers(env).items() if value != usual.get(key)}


def _numbers(env: Any) -> dict[str, Any]:
    """The numbers and switches among the attributes of a task, or of the params of a library's environment."""
    owner = env.params if isinstance(env, LibraryEnvironment) else env
    found = {}
    for name, value in getattr(owner, "__dict__", {}).items():
        with contextlib.suppress(TypeError):
            if isinstance(number := _plain(value), int | float):
                found[name] = number
    return found


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


def unwrapped(value: Any) -> Any:
    """What the user gave, in place of what has been put around it."""
    if isinstance(value, PlainEnvironment):
        return value.holder.value
    if isinstance(value, jax.tree_util.Partial) and not (value.args or value.keywords):  # a schedule
        return value.func
    if isinstance(value, LinenPolicy):
        return value.module
    return value.create if isinstance(value, NNXPolicy) else value
