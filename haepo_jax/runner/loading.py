"""A trained policy back from its run: `algo, policy = hx.load("runs/x", seed=0)`."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from haepo_jax.algorithms.base import Algorithm
from haepo_jax.algorithms.declared import ALGORITHMS, PRESETS
from haepo_jax.algorithms.state import InitialPolicy, TrainState
from haepo_jax.envs.base import has_action_mask
from haepo_jax.messages import short
from haepo_jax.rollout import to_env_action
from haepo_jax.runner.checkpoints import CheckpointError, Checkpoints
from haepo_jax.runner.config import ConfigError, CustomConfig, RunConfig
from haepo_jax.runner.describe import parts
from haepo_jax.runner.devices import describe_device
from haepo_jax.runner.errors import warn
from haepo_jax.runner.program import build
from haepo_jax.runner.run_dir import RunDir
from haepo_jax.spaces import space_leaves

CHECKPOINTS = ("last", "best")
POLICY_HYPERPARAMETERS = {
    "network", "hidden_sizes", "activation", "layer_norm", "num_heads", "context", "squash_actions", "state_dependent_std",
}  # fmt: skip
"""Hyperparameters without which a checkpoint would be read as another policy."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class TrainedPolicy:
    """A trained policy as a pure function of one observation, including observation normalisation.

    Calls are compiled: the first one takes seconds, later ones well under a millisecond. `jax.jit(policy)` and
    `jax.jit(jax.vmap(policy))(observations, keys)` work, and since it is a pytree it may also be an argument of a jitted
    function.

    Attributes:
      algorithm: the algorithm that trained it, on its environment.
      state: the train state of its seed; `algorithm.evaluate(state)` plays episodes, `algorithm.train_step(state)`
        continues training.
    """

    algorithm: Algorithm
    state: TrainState

    def __repr__(self) -> str:
        return f"TrainedPolicy({type(self.algorithm).__name__} on {self.algorithm.env.name})"

    def __call__(
        self, observation: Any, key: jax.Array | None = None, action_mask: jax.Array | None = None
    ) -> jax.Array:
        """An action in the environment's own units, as `env.step` takes it.

        Args:
          observation: of one environment, as `env.reset` and `env.step` return it; NumPy arrays also work.
          key: a typed PRNG key to sample with; None: the greedy action, the mode of the distribution.
          action_mask: the valid actions (n,) bool, for environments that have action masks.

        Raises:
          TypeError: the observation has another shape; or the policy is recurrent, and `act` takes and returns its carry.
        """
        return _act_at_once(self._acting(), observation, key, action_mask)

    @property
    def start(self) -> InitialPolicy:
        """For another training to start from: `algo.init(key, policy.start)`."""
        return InitialPolicy(self.algorithm.policy_params(self.state.params), self.state.normalizer)

    def initial_carry(self) -> Any:
        """The carry (recurrent state) before the first step of an episode; an empty tuple for a feed-forward policy."""
        return _initial_carry(self.algorithm)

    def act(
        self,
        carry: Any,
        observation: Any,
        is_first: jax.Array,
        key: jax.Array | None = None,
        action_mask: jax.Array | None = None,
    ) -> tuple[Any, jax.Array]:
        """Like a call, for any policy: takes the carry and whether this is the episode's first step () bool, and returns
        the next carry with the action."""
        return _act(self._acting(), carry, observation, is_first, key, action_mask)

    def _acting(self) -> TrainedPolicy:
        """Without what acting does not need, because every leaf of an argument costs time."""
        state = dataclasses.replace(self.state, opt_state=None, reference=None, extra=None)
        return TrainedPolicy(self.algorithm, state)


@jax.jit
def _initial_carry(algorithm: Algorithm) -> Any:
    return algorithm.initial_carry()


@jax.jit
def _act(
    policy: TrainedPolicy, carry: Any, observation: Any, is_first: jax.Array, key: jax.Array | None, action_mask: Any
) -> tuple[Any, jax.Array]:
    algorithm = policy.algorithm
    _check_shapes(algorithm.env, observation)
    if action_mask is None and has_action_mask(algorithm.env):
        raise TypeError(f"{algorithm.env.name} has action masks: pass action_mask=env.action_mask(state)")
    carry, distribution = algorithm.act_distribution(policy.state, carry, observation, is_first, action_mask)
    action = distribution.mode() if key is None else distribution.sample(key)
    return carry, to_env_action(algorithm.env, action)


@jax.jit
def _act_at_once(policy: TrainedPolicy, observation: Any, key: jax.Array | None, action_mask: Any) -> jax.Array:
    carry = policy.algorithm.initial_carry()
    if jax.tree.leaves(carry):
        raise TypeError("this policy is recurrent: call policy.act(carry, observation, is_first, key)")
    return _act(policy, carry, observation, jnp.bool_(True), key, action_mask)[1]


def _check_shapes(env: Any, observation: Any) -> None:
    shapes = [jnp.shape(part) for part in jax.tree.leaves(observation)]
    wanted = [space.shape for space in space_leaves(env.observation_space)]
    if shapes != wanted:
        raise TypeError(
            f"an observation of {env.name} has the shape {', '.join(map(str, wanted))}, not {', '.join(map(str, shapes))}; "
            "a policy takes one observation as an array, jax.vmap(policy) several"
        )


def load(
    run_dir: str | Path, *, seed: int | None = None, checkpoint: str = "last", algorithm: Algorithm | None = None
) -> tuple[Algorithm, TrainedPolicy]:
    """The algorithm of a run and the policy of one of its seeds.

    Examples:
      >>> algo, policy = hx.load("runs/x", seed=0)
      >>> action = policy(observation)
      >>> returns = algo.evaluate(policy.state)["return"]

    Nothing in the directory is executed: settings are checked against this library's own, and checkpoints against their
    hashes.

    Args:
      run_dir: the directory of the run, finished or not.
      seed: one of the run's seeds; None: the first.
      checkpoint: `last`, or `best` by return.
      algorithm: the algorithm that the run trained, for a run of custom objects (an environment, network or algorithm
        class of your own), which cannot be built from the directory alone.

    Raises:
      ConfigError (a ValueError): for a directory without a run or a checkpoint, a seed that the run does not have, and an
        `algorithm` whose networks have other settings.
      CheckpointError (a RuntimeError): no checkpoint is intact, or its arrays have other shapes than those of `algorithm`.
        If only the newest is damaged, it warns (UserWarning) and loads the one before.
    """
    algorithm, config, states = load_run(
        RunDir(Path(run_dir)), checkpoint, algorithm, lambda text: warnings.warn(text, stacklevel=5)
    )
    index = seed_index(config.seed_numbers, seed)
    return algorithm, TrainedPolicy(algorithm, jax.tree.map(lambda x: x[index], states))


def start_of(config: RunConfig, algorithm: Algorithm, policy: TrainedPolicy | None = None) -> InitialPolicy | None:
    """What a run with `init_from` starts from, on the host: a policy given in Python, or that of another run. Raises
    ConfigError where it does not fit."""
    if config.init_from is None:
        return None
    try:
        if policy is None:
            custom = isinstance(RunDir(Path(config.init_from)).read_config(custom=True), CustomConfig)
            trained, _, states = load_run(RunDir(Path(config.init_from)), "last", algorithm if custom else None)
            policy = TrainedPolicy(trained, jax.tree.map(lambda x: x[0], states))
        jax.eval_shape(algorithm.init, jax.random.key(0), policy.start)
    except (CheckpointError, ValueError) as error:  # a ConfigError of the other run among them
        raise ConfigError(f"init_from={short(config.init_from)}: {error}") from None
    return jax.device_get(policy.start)


def load_run(
    directory: RunDir, checkpoint: str, algorithm: Algorithm | None = None, warn: Callable[[str], None] = warn
) -> tuple[Algorithm, RunConfig, TrainState]:
    """The algorithm, the settings and the train states of a run's seeds, which are every leaf's first axis. Raises as
    `load` does."""
    if checkpoint not in CHECKPOINTS:
        raise ConfigError(f"checkpoint={checkpoint!r} must be one of {', '.join(CHECKPOINTS)}")
    describe_device()  # raises where there is none
    config = directory.read_config(custom=algorithm is not None)
    if algorithm is not None and not isinstance(algorithm, Algorithm):
        raise ConfigError(f"algorithm={short(algorithm)} is not an algorithm, such as hx.HAEPO('CartPole-v1')")
    recorded = {} if algorithm is None else config.algo.hyperparameters
    for name in recorded.keys() & POLICY_HYPERPARAMETERS:
        if not np.array_equal(has := getattr(algorithm, name), had := recorded[name]):
            raise ConfigError(
                f"algorithm has {name}={short(has)}, but the run in {directory.path} has {name}={short(had)}"
            )
    checkpoints = Checkpoints(directory.checkpoints)
    found = checkpoints.best() if checkpoint == "best" else checkpoints.newest(warn)
    if found is None:
        what = "no checkpoint with a return" if checkpoints.all() else "no checkpoint yet"
        raise ConfigError(f"run_dir={str(directory.path)!r} has {what}")
    is_given, algorithm = algorithm is not None, build(config) if algorithm is None else algorithm
    # The run of one seed has no axis for it.
    several, key, init = config.num_seeds > 1, jax.random.key(0), algorithm.init
    if several:
        key, init = jax.random.split(key, config.num_seeds), jax.vmap(init)
    if isinstance(config, CustomConfig):
        objects = parts(algorithm)[1]
        for part in ("env", "policy", "value"):
            if (now := objects.get(part)) != (before := config.objects.get(part)):
                warn(f"algorithm has {part}={now}, but the run in {directory.path} has {part}={before}")
    try:
        states = found.restore(jax.eval_shape(init, key))
    except CheckpointError as error:
        name = PRESETS.get(config.algo.name, (config.algo.name,))[0]
        kind = ALGORITHMS.get(name, name).rpartition(":")[2]
        given, trained = f"{type(algorithm).__name__} on {algorithm.env.name}", f"{kind} on {config.env}"
        if is_given and given != trained:
            raise ConfigError(
                f"algorithm is {given}, but the run in {directory.path} trained {trained} ({error})"
            ) from None
        raise
    return algorithm, config, jax.tree.map(lambda x: jnp.asarray(x if several else x[None]), states)


def seed_index(numbers: Sequence[int], seed: int | None) -> int:
    """Where a seed of a run stands on the leading axis, None being the first; raises ConfigError."""
    if seed is not None and seed not in numbers:
        raise ConfigError(f"seed={seed} is not in this run, which has seeds={short(numbers)}")
    return 0 if seed is None else numbers.index(seed)
