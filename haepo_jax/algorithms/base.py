"""The base of every algorithm: its hyperparameters, its policy as a function, and the life of a run.

An algorithm is a frozen pytree. Its methods are pure, so they jit, vmap and scan; its numeric hyperparameters are
leaves, so `jax.vmap(lambda lr: algo.replace(learning_rate=lr).train(key))(rates)` trains them all at once.
"""

from __future__ import annotations

import abc
import dataclasses
from typing import Any, Self

import jax
import jax.numpy as jnp
import optax

from haepo_jax.action_outputs import squashed
from haepo_jax.algorithms import running
from haepo_jax.algorithms.fields import (
    COUNT,
    NOT_NEGATIVE,
    POSITIVE,
    HyperparameterError,
    Range,
    Scheduled,
    check_value,
    leaf,
    short,
    static,
)
from haepo_jax.algorithms.network_checks import check_networks
from haepo_jax.algorithms.other_names import SignatureOfInit, check_keywords
from haepo_jax.algorithms.state import Health, Metrics, Start, TrainState, check_fits, keep_finite
from haepo_jax.counting import StepCount
from haepo_jax.distributions import Distribution, action_distribution
from haepo_jax.envs import make_env
from haepo_jax.envs.base import check_environment
from haepo_jax.losses import AUTO
from haepo_jax.networks import Policy, as_policy, default_policy, default_value
from haepo_jax.normalization import RunningStatistics
from haepo_jax.sequence_networks import sequence_policy
from haepo_jax.spaces import Box, Space, space_leaves


@dataclasses.dataclass(frozen=True)
class Algorithm(abc.ABC):
    """The base of all algorithms. A subclass has an `update`, or inherits that of `SegmentAlgorithm` or
    `TrajectoryAlgorithm` and has a `loss`.

    Attributes:
      env: an environment, its name, or an environment object of another library; see `make_env`.
      policy: a Flax Linen module, a function rngs -> NNX module, or an object with `init` and `apply`; None: the
        network that `network` names, for the environment's spaces.

    Raises:
      HyperparameterError: at construction, for a value that cannot be used.
      TypeError: at construction, for a hyperparameter that does not exist.
    """

    env: Any
    policy: Any = dataclasses.field(default=None, kw_only=True, metadata={"static": True})
    total_steps: int = static(500_000, int, "environment steps to train for", within=Range(1, 2**62))
    num_envs: int = static(32, int, "environments that run side by side", within=COUNT)
    num_epochs: int = static(8, int, "epochs over the batch in each update", within=COUNT)
    num_minibatches: int = static(4, int, "minibatches per epoch", within=COUNT)
    learning_rate: Scheduled = leaf(3e-3, "Adam's step size", within=NOT_NEGATIVE, scheduled=True)
    anneal_learning_rate: bool = static(True, bool, "decay a constant learning_rate linearly to 0 over the run")
    max_grad_norm: float = leaf(1.0, "gradients are clipped to this global norm", within=POSITIVE)
    entropy_coef: Scheduled = leaf(0.01, "weight of the entropy bonus", within=NOT_NEGATIVE, scheduled=True)
    network: str = static(
        "mlp",
        str,
        "kind of the default networks; all but mlp are recurrent",
        choices=("mlp", "gru", "lstm", "transformer"),
    )
    hidden_sizes: tuple[int, ...] = static(
        (64, 64), tuple, "widths of their hidden layers; gru, lstm: the last is the cell's; transformer: its blocks'"
    )
    activation: str = static(
        "tanh", str, "of their hidden layers (the transformer uses gelu)", choices=("tanh", "relu", "swish")
    )
    layer_norm: bool = static(
        False, bool, "normalise the hidden layers before their activation (the transformer always does)"
    )
    num_heads: int = static(4, int, "transformer: attention heads of a block", within=COUNT)
    context: int | None = static(
        None,
        int,
        "transformer: steps that a block attends to, the current one included; null: the whole episode",
        within=COUNT,
        optional=True,
    )
    squash_actions: bool = static(
        False, bool, "continuous actions are passed through tanh, rather than clipped, to their bounds"
    )
    state_dependent_std: bool = static(
        False, bool, "default networks: the standard deviation of actions depends on the observation"
    )
    normalize_observations: bool | None = static(
        None,
        bool,
        "standardise observations with running statistics; null: where actions are continuous",
        optional=True,
    )
    log_points: int = static(50, int, "rows of metrics, evenly spaced in steps", within=COUNT)
    eval_episodes: int = static(
        16,
        int,
        "episodes of each kind, sampled and greedy, at every row of metrics; 0: none",
        within=Range(0, 2**31 - 1),
    )
    on_nan: str = static(
        "stop",
        str,
        "for an update that is not finite. stop: end at the last finite state; skip: discard and count the update",
        choices=("stop", "skip"),
    )

    def __new__(cls, *args: Any, **keywords: Any) -> Self:
        check_keywords(cls, keywords)
        return super().__new__(cls)

    __signature__ = SignatureOfInit()

    def __post_init__(self) -> None:
        # jax rebuilds the object with tracers and placeholders in its leaves, so every step here leaves those alone.
        if isinstance(self.env, str) or type(self.env) is tuple or jax.tree_util.all_leaves([self.env]):
            object.__setattr__(self, "env", make_env(self.env))
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name in ("policy", "value") and value is not None:
                object.__setattr__(self, field.name, as_policy(value))
            elif field.metadata.get("kind") is tuple and isinstance(value, list):
                object.__setattr__(self, field.name, tuple(value))
            elif field.metadata.get("scheduled") and callable(value) and not isinstance(value, jax.tree_util.Partial):
                object.__setattr__(self, field.name, jax.tree_util.Partial(value))
            elif isinstance(value, str) and value == "auto" and field.metadata.get("word") == "auto":
                object.__setattr__(self, field.name, AUTO)
        self.check()
        if hasattr(self.env, "action_space"):
            self._check_actions()
            check_networks(self.env, self.policy, getattr(self, "value", None))

    def check(self) -> None:
        """Raises HyperparameterError at the first value that cannot be used.

        It is also run where no jax is loaded (see `fields`): it uses `self`'s hyperparameters and names of `fields` alone.
        """
        for field in dataclasses.fields(self):
            if "kind" in field.metadata:
                check_value(field, getattr(self, field.name))
        if self.network != "mlp" and not self.hidden_sizes:
            raise HyperparameterError(f"hidden_sizes=[] must have at least one size for network={self.network}")
        if self.network == "transformer":
            width = self.hidden_sizes[0]
            if any(size != width for size in self.hidden_sizes):
                sizes = short(list(self.hidden_sizes))
                raise HyperparameterError(f"hidden_sizes={sizes} must be equal for network=transformer, one a block")
            if width % (2 * self.num_heads):
                below, above = width - width % (2 * self.num_heads), width - width % (-2 * self.num_heads)
                nearest = f"{below} or {above}" if below else f"{above}"
                raise HyperparameterError(
                    f"hidden_sizes of {width} must be a multiple of 2 num_heads = {2 * self.num_heads} for "
                    f"network=transformer; the nearest that are: {nearest}"
                )

    def _check_actions(self) -> None:
        boxes = [part for part in space_leaves(self.env.action_space) if isinstance(part, Box)]
        for name in ("squash_actions", "state_dependent_std"):
            if getattr(self, name) and not boxes:
                raise HyperparameterError(
                    f"{name}=true needs continuous actions, and those of {self.env.name} are discrete"
                )
        if self.squash_actions and not all(box.bounded for box in boxes):
            raise HyperparameterError(
                f"squash_actions=true needs bounded actions, and those of {self.env.name} have no bounds"
            )

    def replace(self, **changes: Any) -> Self:
        """The same algorithm with some hyperparameters changed; numbers may be tracers."""
        return dataclasses.replace(self, **changes)

    # One update.

    def train_step(self, state: TrainState) -> tuple[TrainState, Metrics]:
        """One update: collect experience, compute the loss, optimise.

        An update whose loss, gradients, parameters or optimiser state are not finite never reaches the state. With
        `on_nan="skip"` it is counted and the run continues with new experience; with `on_nan="stop"` the state is frozen
        as it was before it.

        Returns:
          The next state, and metrics: float32 scalars under the same names in every update. `episode_return` and
          `episode_length` are 0 where `episodes`, the number of episodes that ended, is 0.
        """
        new, metrics = self.update(state)
        return keep_finite(state, new, metrics, self.on_nan), metrics

    @abc.abstractmethod
    def update(self, state: TrainState) -> tuple[TrainState, Metrics]:
        """What a subclass does in one update: the next state, with `update` and `env_steps` counted up, and metrics,
        "loss" among them. `train_step` keeps what is not finite out of the state."""

    def scheduled(self, progress: jax.Array) -> Self:
        """This algorithm with every schedule replaced by its value at `progress` () in [0, 1]."""
        values = {}
        for field in dataclasses.fields(self):
            if field.metadata.get("scheduled"):
                value = getattr(self, field.name)
                constant = not isinstance(value, tuple) and not callable(value)
                if field.name == "learning_rate" and self.anneal_learning_rate and constant:
                    value = (value, 0.0)
                if isinstance(value, tuple):
                    value = optax.linear_schedule(*value, transition_steps=1)(progress)
                elif callable(value):
                    value = value(progress)
                values[field.name] = value
        return self.replace(**values)

    @property
    def optimizer(self) -> optax.GradientTransformation:
        """Gradient clipping and Adam, without the step size, which depends on the fraction of the run done."""
        return optax.chain(optax.clip_by_global_norm(self.max_grad_norm), optax.scale_by_adam(eps=1e-5))

    def apply_gradients(self, params: Any, opt_state: Any, gradients: Any) -> tuple[Any, Any]:
        """One optimiser step: the next parameters and optimiser state; `self` must be `scheduled`."""
        with jax.numpy_dtype_promotion("standard"):  # optax is not written for the strict one
            updates, opt_state = self.optimizer.update(gradients, opt_state, params)
        return optax.apply_updates(params, jax.tree.map(lambda u: -self.learning_rate * u, updates)), opt_state

    # The life of a run.

    def init(self, key: jax.Array, start: Start | None = None) -> TrainState:
        """A fresh train state from a typed PRNG key (`jax.random.key(seed)`).

        With `start` the policy begins there, and so does a reference policy that is kept: `algo.init(key, policy.start)`
        for a policy that `haepo_jax.load` gave. A value function begins afresh.

        Raises:
          ValueError: `start` is of another network, or its observations were normalised and these are not.
        """
        check_environment(self.env)
        params_key, run_key = jax.random.split(key)
        observation = self.example_observation()
        params = self.init_params(params_key, observation)
        normalize = self.normalize_observations
        if normalize is None:
            normalize = any(isinstance(part, Box) for part in space_leaves(self.env.action_space))
        normalizer = RunningStatistics.of(observation) if normalize else None
        if start is not None:
            check_fits(start, Start(self.policy_params(params), normalizer))
            params, normalizer = self.with_policy_params(params, start.params), start.normalizer
        state = TrainState(
            params=params,
            opt_state=self.optimizer.init(params),
            reference=self.init_reference(params),
            normalizer=normalizer,
            extra=None,
            key=run_key,
            update=jnp.int32(0),
            env_steps=StepCount.of(0),
            health=Health.new(),
        )
        return dataclasses.replace(state, extra=self.init_extra(state))

    def init_params(self, key: jax.Array, observation: Any) -> Any:
        """Fresh parameters, for one observation's shapes."""
        return self.policy_network.init(key, observation)[0]

    def init_reference(self, params: Any) -> Any:
        """`TrainState.reference` at the start of a run."""
        return None

    def init_extra(self, state: TrainState) -> Any:
        """`TrainState.extra` at the start of a run, whose other parts `state` has."""
        return None

    def train(self, key: jax.Array, start: Start | None = None) -> tuple[TrainState, dict[str, Any]]:
        """The whole run, one compiled program under `jax.jit`; with `start` from there, as `init` says.

        Returns:
          The final state, and metrics in `log_points` rows evenly spaced in steps: those of the last update before each
          point, `env_steps` (a `StepCount`), `update`, and the mean `eval_return`, `eval_return_greedy` and `eval_length`
          of `eval_episodes` episodes. Where one update passes several points, their rows repeat.
        """
        return running.whole_run(self, self.init(key, start))

    def advance(self, state: TrainState, until: StepCount) -> tuple[TrainState, Metrics]:
        """Updates until `until` steps are done; the metrics are the last update's, 0 where there was none."""
        return running.advance(self, state, until)

    def progress(self, state: TrainState, max_steps: int | None = None) -> dict[str, Any]:
        """What a row of metrics has besides those of an update: counters, and an evaluation where `eval_episodes` > 0;
        `max_steps` as in `evaluate`."""
        return running.progress(self, state, max_steps)

    def evaluate(
        self,
        state: TrainState,
        *,
        episodes: int = 128,
        greedy: bool = False,
        key: jax.Array | None = None,
        max_steps: int | None = None,
    ) -> dict[str, jax.Array]:
        """Plays complete episodes with the current policy.

        Args:
          state: of the run.
          episodes: how many, side by side.
          greedy: take each distribution's mode instead of a sample.
          key: of starts, actions and transitions; by default one fixed key, shared by all runs and seeds, so that
            differences between them are not differences of luck.
          max_steps: end episodes after as many steps, if that is less than the environment's horizon.

        Returns:
          `return` (episodes,) float32 and `length` (episodes,) int32.
        """
        key = jax.random.key(running.EVALUATION_SEED) if key is None else key
        return running.play(self, state, episodes, jnp.bool_(greedy), key, max_steps)

    # The policy as a function.

    @property
    def policy_network(self) -> Policy:
        """The policy as a pair of pure functions."""
        return self.policy or self.default_network(self.env.action_space)

    def default_network(self, action_space: Space | None, with_features: bool = False) -> Policy:
        """The network that `network` names: a policy, or with None for an action space a value function. A policy
        `with_features` returns a pair, its output and its last hidden layer."""
        space = self.env.observation_space
        if self.network != "mlp":
            context = min(self.context or self.env.horizon, self.env.horizon)
            return sequence_policy(
                self.network, space, action_space, hidden_sizes=self.hidden_sizes, activation=self.activation, layer_norm=self.layer_norm,
                num_heads=self.num_heads, context=context, state_dependent_std=self.state_dependent_std,
                with_features=with_features,
            )  # fmt: skip
        hidden = self.hidden_sizes, self.activation, self.layer_norm
        if action_space is None:
            return default_value(space, *hidden)
        return default_policy(space, action_space, *hidden, self.state_dependent_std, with_features)

    def initial_carry(self) -> Any:
        """The carry of one environment's policy before its first step."""
        # The carry holds no parameters, so under jit the initialisation of those is dead code.
        return self.policy_network.init(jax.random.key(0), self.example_observation())[1]

    def example_observation(self) -> Any:
        """An observation of zeros."""
        shapes = jax.eval_shape(self.env.reset, jax.random.key(0))[1]
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    def act_distribution(
        self, state: TrainState, carry: Any, observation: Any, is_first: jax.Array, action_mask: jax.Array | None = None
    ) -> tuple[Any, Distribution]:
        """The action distribution of the current policy in one environment, and its next carry."""
        observation = self.normalized(state.normalizer, observation)
        carry, output = self.policy_network.apply(self.policy_params(state.params), carry, observation, is_first)
        return carry, self.distribution(output, action_mask)

    def distribution(self, output: Any, action_mask: jax.Array | None) -> Distribution:
        """The action distribution of a policy network's output."""
        if self.squash_actions:
            output = squashed(self.env.action_space, output)
        return action_distribution(self.env.action_space, output, action_mask)

    def normalized(self, normalizer: RunningStatistics | None, observation: Any) -> Any:
        """An observation as the networks see it; discrete parts stay the integers that the networks make one-hot."""
        if normalizer is None:
            return observation
        leaves, structure = jax.tree.flatten(observation)
        parts = zip(
            space_leaves(self.env.observation_space),
            leaves,
            jax.tree.leaves(normalizer.normalize(observation)),
            strict=True,
        )
        return jax.tree.unflatten(structure, [seen if isinstance(space, Box) else raw for space, raw, seen in parts])

    @staticmethod
    def policy_params(params: Any) -> Any:
        """The policy's part of the parameters."""
        return params

    @staticmethod
    def with_policy_params(params: Any, policy_params: Any) -> Any:
        """The parameters with another policy's in place of the policy's."""
        return policy_params
