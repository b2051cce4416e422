"""A trained policy back from its run: `algo, policy = hx.load("runs/x", seed=0)`."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from haepo_jax.algorithms.base import Algorithm
from haepo_jax.algorithms.state import Start, TrainState
from haepo_jax.messages import short
from haepo_jax.rollout import to_env_action
from haepo_jax.runner.checkpoints import Checkpoint, CheckpointError, Checkpoints
from haepo_jax.runner.config import ConfigError, RunConfig
from haepo_jax.runner.program import build
from haepo_jax.runner.resume import check_written_with
from haepo_jax.runner.run_dir import RunDir

CHECKPOINTS = ("last", "best")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainedPolicy:
    """One trained policy as a pure function of one observation, its observation normaliser included.

    It is a pytree, so it may be passed into `jax.jit` and `jax.vmap`; `jax.jit(jax.vmap(policy))(observations, keys)`
    acts in many environments at once.

    Attributes:
      algorithm: what it was trained by, on the environment it was trained in.
      state: the train state of its seed; `algorithm.evaluate(state)` plays episodes, `algorithm.train_step(state)`
        trains on.
    """

    algorithm: Algorithm
    state: TrainState

    def __call__(
        self, observation: Any, key: jax.Array | None = None, action_mask: jax.Array | None = None
    ) -> jax.Array:
        """An action in the environment's own units, as `env.step` takes it.

        Args:
          observation: of one environment, as `env.reset` and `env.step` return it.
          key: a typed PRNG key to sample with; None: the greedy action, the mode of the distribution.
          action_mask: the valid actions (n,) bool, where the environment has such a notion.

        Raises:
          TypeError: for a policy that remembers; `act` takes and returns its carry.
        """
        carry = self.initial_carry()
        if jax.tree.leaves(carry):
            raise TypeError("this policy has a memory: call policy.act(carry, observation, is_first, key)")
        return self.act(carry, observation, jnp.bool_(True), key, action_mask)[1]

    @property
    def start(self) -> Start:
        """For another training to start from: `algo.init(key, policy.start)`."""
        return Start(self.algorithm.policy_params(self.state.params), self.state.normalizer)

    def initial_carry(self) -> Any:
        """The memory before the first step of an episode; an empty tuple for a feed-forward policy."""
        return self.algorithm.initial_carry()

    def act(
        self,
        carry: Any,
        observation: Any,
        is_first: jax.Array,
        key: jax.Array | None = None,
        action_mask: jax.Array | None = None,
    ) -> tuple[Any, jax.Array]:
        """As a call, for any policy: takes its memory and whether this is the episode's first step () bool, and returns
        the memory for the next step with the action."""
        carry, distribution = self.algorithm.act_distribution(self.state, carry, observation, is_first, action_mask)
        action = distribution.mode() if key is None else distribution.sample(key)
        return carry, to_env_action(self.algorithm.env, action)


def load(run_dir: str | Path, *, seed: int | None = None, checkpoint: str = "last") -> tuple[Algorithm, TrainedPolicy]:
    """The algorithm of a run and the policy of one of its seeds.

    Examples:
      >>> algo, policy = hx.load("runs/x", seed=0)
      >>> action = policy(observation)
      >>> returns = algo.evaluate(policy.state)["return"]

    Nothing in the directory is executed: settings are checked against this library's own, and arrays against a manifest
    of hashes.

    Args:
      run_dir: the directory of the run, finished or not.
      seed: which of the run's seeds, by its own number; None: the first.
      checkpoint: `last`, or `best` by return.

    Raises:
      ConfigError (a ValueError): for a directory without a run or a checkpoint, and for a seed that the run has not.
      CheckpointError (a RuntimeError): where no checkpoint is intact. A warning names a newest one that is not.
    """
    algorithm, config, states = load_run(
        RunDir(Path(run_dir)), checkpoint, lambda text: warnings.warn(text, stacklevel=3)
    )
    return algorithm, policy_of(algorithm, config, states, seed)


def policy_of(algorithm: Algorithm, config: RunConfig, states: TrainState, seed: int | None) -> TrainedPolicy:
    """The policy of one seed, of what `load_run` returns; raises ConfigError."""
    lane = seed_lane(config, seed)
    return TrainedPolicy(algorithm, jax.tree.map(lambda x: x[lane], states))


def start_of(config: RunConfig, algorithm: Algorithm) -> Start | None:
    """What a run starts from where it has `init_from`, on the host; raises ConfigError where that does not fit."""
    if config.init_from is None:
        return None
    try:
        start = load(config.init_from)[1].start
        jax.eval_shape(algorithm.init, jax.random.key(0), start)
    except (CheckpointError, ValueError) as error:  # a ConfigError of the other run among them
        raise ConfigError(f"init_from={short(config.init_from)}: {error}") from None
    host: Start = jax.device_get(start)
    return host


def load_run(
    directory: RunDir, checkpoint: str, warn: Callable[[str], None]
) -> tuple[Algorithm, RunConfig, TrainState]:
    """The algorithm, the settings and the train states of a run's seeds, which are every leaf's first axis.

    `warn` is told in one line what is wrong with a checkpoint that was passed over. Raises as `load` does.
    """
    if checkpoint not in CHECKPOINTS:
        raise ConfigError(f"checkpoint={checkpoint!r} must be one of {', '.join(CHECKPOINTS)}")
    config = directory.read_config()
    while True:
        found = _find(directory, checkpoint, warn)
        try:
            check_written_with(found, config)
            algorithm = build(config)
            return algorithm, config, _restored(found, algorithm, config.num_seeds)
        except CheckpointError:
            # A run that is going on takes its older checkpoints away; there is a newer one then.
            if found.path.exists():
                raise


def last_states(directory: RunDir, algorithm: Algorithm, num_seeds: int, warn: Callable[[str], None]) -> TrainState:
    """The last train states of a run of an algorithm that is at hand, likewise. Raises as `load` does."""
    return _restored(_find(directory, "last", warn), algorithm, num_seeds)


def _find(directory: RunDir, which: str, warn: Callable[[str], None]) -> Checkpoint:
    checkpoints = Checkpoints(directory.checkpoints)
    found = checkpoints.best() if which == "best" else checkpoints.newest(lambda one: None, warn)
    if found is None:
        what = "no checkpoint with a return" if which == "best" and checkpoints.all() else "no checkpoint yet"
        raise ConfigError(f"run_dir={str(directory.path)!r} has {what}")
    return found


def _restored(checkpoint: Checkpoint, algorithm: Algorithm, num_seeds: int) -> TrainState:
    # The run of one seed has no axis for it.
    key, init = jax.random.key(0), algorithm.init
    if num_seeds > 1:
        key, init = jax.random.split(key, num_seeds), jax.vmap(init)
    like = jax.eval_shape(init, key)
    states = jax.tree.map(jnp.asarray, checkpoint.restore(like))
    return states if num_seeds > 1 else jax.tree.map(lambda x: x[None], states)


def seed_lane(config: RunConfig, seed: int | None) -> int:
    """Where a seed of a run stands on the leading axis; raises ConfigError."""
    if seed is None:
        return 0
    if not 0 <= seed - config.seed < config.num_seeds:
        last = config.seed + config.num_seeds - 1
        known = f"seed {config.seed}" if config.num_seeds == 1 else f"seeds {config.seed} to {last}"
        raise ConfigError(f"seed={seed} is not in this run, which has {known}")
    return seed - config.seed
