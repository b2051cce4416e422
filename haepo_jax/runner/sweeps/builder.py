"""From a configuration to its algorithm, and to the command that trains it alone."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from typing import Any

import jax

from haepo_jax.algorithms.base import Algorithm
from haepo_jax.envs.objects import PlainEnvironment
from haepo_jax.messages import first_line, short
from haepo_jax.runner.config import ConfigError
from haepo_jax.runner.config.arguments import command_of
from haepo_jax.runner.program import build
from haepo_jax.runner.sweeps.plan import TRIAL_SETTINGS, SweepPlan
from haepo_jax.runner.sweeps.space import Values


class Builder:
    """Builds the algorithms of a sweep's trials; environments that are alike are built once."""

    def __init__(self, plan: SweepPlan) -> None:
        self.plan = plan
        self._envs: dict[str, Any] = {}

    def __call__(self, values: Values) -> Algorithm:
        """The algorithm of a configuration; raises ConfigError if it does not fit its environment."""
        custom = self.plan.algorithm
        if custom is None:
            config = self.plan.run_config(values)
            key = json.dumps(config.env_kwargs, sort_keys=True)
            algorithm = build(config, self._envs.get(key, self.plan.env))
            self._envs[key] = algorithm.env
            return algorithm
        changes = {key.removeprefix("algo."): value for key, value in values.items()}
        try:
            algorithm = custom.replace(total_steps=self.plan.settings.total_steps, **changes)
        except Exception as error:  # a custom algorithm may raise anything at a value that it cannot use
            name = type(custom).__name__
            raise ConfigError(f"cannot set up {name} with {short(values, 200)}: {first_line(error)}") from error
        return algorithm

    def check(self) -> None:
        """Builds a sample of the algorithms, so that what does not fit is reported before anything trains."""
        for values in self.plan.samples():
            self(values)

    def command(self, values: Values) -> str:
        """The command line that trains a configuration alone; if there is none, a comment that says why."""
        config = self.plan.run_config(values)
        if self.plan.env is not None:
            what = "environment" if self.plan.algorithm is None else "algorithm"
            return (
                f"# no command line: the {what} is a Python object. With found = hx.sweep(...): "
                f"hx.train(found.algorithm(i), seeds=range({config.seed}, {config.seed + config.num_seeds}))"
            )
        return shlex.join(["python", "-m", "haepo_jax.train", *command_of(config)])


def identity(plan: SweepPlan) -> dict[str, Any]:
    """What two commands must share to work on the same sweep."""
    settings, trial = plan.settings, plan.run_config({}).to_dict()
    described = {
        "search": plan.search,
        **{name: getattr(settings, name) for name in ("search_seed", "halving", "halving_rungs", "curve_points")},
        "space": [vars(dimension) for dimension in plan.dimensions],
        "trials": {settings.algo.name: {key: trial[key] for key in TRIAL_SETTINGS}},
    }
    if plan.env is not None:
        described["custom"] = [fingerprint(plan.env), fingerprint(plan.algorithm)]
    return described


def fingerprint(value: Any) -> str:
    """Text that tells one object from another and is the same in every process: its class, structure and numbers."""
    value = value.holder.value if isinstance(value, PlainEnvironment) else value
    leaves, structure = jax.tree.flatten(value)
    parts = [leaf.tolist() if hasattr(leaf, "tolist") else getattr(leaf, "__dict__", leaf) for leaf in leaves]
    kinds = [type(leaf).__qualname__ for leaf in (value, *leaves)]
    text = re.sub(r" at 0x[0-9a-f]+", "", f"{kinds} {structure} {parts}")
    return f"{type(value).__module__}.{type(value).__qualname__} {hashlib.sha256(text.encode()).hexdigest()[:16]}"
