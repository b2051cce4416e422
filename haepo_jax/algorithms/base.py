"""The base class of all algorithms: common hyperparameters, initialisation, training, evaluation and the policy.

An algorithm is a frozen pytree. Its methods are pure, so they can be jitted, vmapped and scanned; its numeric
hyperparameters are leaves, so `jax.vmap(lambda lr: algo.replace(learning_rate=lr).train(key))(rates)` trains with all
learning rates at once.
"""

from __future__ import annotations

import abc
import dataclasses
from typing import Any, Self

import chex
import jax
import jax.numpy as jnp
import numpy as np
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
    check_divides,
    check_redeclared,
    check_value,
    leaf,
    short,
    static,
)
from haepo_jax.algorithms.network_checks import check_action_options, check_networks
from haepo_jax.algorithms.optimizers import clip_by_global_norm
from haepo_jax.algorithms.other_names import SignatureOfInit, check_keywords
from haepo_jax.algorithms.state import (
    InitialPolicy,
    Metrics,
    TrainingStatus,
    TrainState,
    check_fits,
    check_metrics,
    check_single,
    keep_finite,
)
from haepo_jax.counting import StepCount
from haepo_jax.distributions import Distribution, action_distribution
from haepo_jax.envs import make_env
from haepo_jax.envs.base import check_environment, first_observation
from haepo_jax.losses import AUTO
from haepo_jax.networks import Policy, as_policy, default_network
from haepo_jax.normalization import RunningStatistics
from haepo_jax.sequence_networks import sequence_policy
from haepo_jax.spaces import Box, Space, is_unscaled_vector, space_leaves


@dataclasses.dataclass(frozen=True)
class Algorithm(abc.ABC):
    """Base class of all algorithms.

    A subclass defines `update`, or derives from `SegmentAlgorithm` or `TrajectoryAlgorithm` and defines `loss`.

    Attributes:
      env: an environment, its name, or an environment object of another library; see `make_env`.
      policy: a Flax Linen module, a function rngs -> NNX module, or an object with `init` and `apply`; None: the
        default network given by `network`.

    Raises:
      HyperparameterError: at construction, for an invalid value.
      TypeError: at construction, for an unknown hyperparameter.
    """

    env: Any
    policy: Any = dataclasses.field(default=None, kw_only=True, metadata={"static": True})
    total_steps: int = static(500_000, int, "environment steps to train for", within=Range(1, 2**62))
    num_envs: int = static(8, int, "number of parallel environments", within=COUNT)
    num_epochs: int = static(16, int, "epochs over the batch in each update", within=COUNT)
    num_minibatches: int = static(1, int, "minibatches per epoch", within=COUNT)
    learning_rate: Scheduled = leaf(3e-3, "learning rate of Adam", within=NOT_NEGATIVE, scheduled=True)
    anneal_learning_rate: bool = static(True, bool, "decay a constant learning_rate linearly to 0 over the run")
    max_grad_norm: float = leaf(1.0, "maximum global norm of the gradients", within=POSITIVE)
    entropy_coef: Scheduled = leaf(0.01, "weight of the entropy bonus", within=NOT_NEGATIVE, scheduled=True)
    network: str = static(
        "mlp",
        str,
        "type of the default networks; all but mlp are recurrent",
        choices=("mlp", "gru", "lstm", "transformer"),
    )
    hidden_sizes: tuple[int, ...] = static(
        (64, 64), tuple, "hidden layer sizes; gru, lstm: the last is the cell size; transformer: one per block"
    )
    activation: str = static(
        "tanh", str, "activation of the hidden layers (the transformer uses gelu)", choices=("tanh", "relu", "swish")
    )
    layer_norm: bool = static(
        False, bool, "apply layer normalisation before each activation (the transformer always normalises)"
    )
    num_heads: int = static(4, int, "transformer: attention heads per block", within=COUNT)
    context: int | None = static(
        None,
        int,
        "transformer: attention window in steps, including the current one; null: the whole episode",
        within=COUNT,
        optional=True,
    )
    squash_actions: bool = static(
        False, bool, "squash continuous actions to their bounds with tanh instead of clipping them"
    )
    state_dependent_std: bool = static(
        False, bool, "default networks: make the action standard deviation depend on the observation"
    )
    normalize_observations: bool | None = static(
        None,
        bool,
        "standardise observations with running statistics; null: only if they are vectors with values outside [0, 1]",
        optional=True,
    )
    log_points: int = static(50, int, "number of rows in the metrics, evenly spaced in environment steps", within=COUNT)
    eval_episodes: int = static(
        16,
        int,
        "evaluation episodes per row of metrics, as many again with greedy actions; 0: no evaluation",
        within=Range(0, 2**31 - 1),
    )
    on_nan: str = static(
        "stop",
        str,
        "what to do about a non-finite update. stop: end at the last finite state; skip: discard and count the update",
        choices=("stop", "skip"),
    )

    def __new__(cls, *args: Any, **keywords: Any) -> Self:
        check_redeclared(cls)
        check_keywords(cls, keywords)
        return super().__new__(cls)

    __signature__ = SignatureOfInit()

    def __post_init__(self) -> None:
        # JAX rebuilds the object with tracers and placeholders as leaves, so nothing here may touch those.
        if isinstance(self.env, str) or type(self.env) is tuple or jax.tree_util.all_leaves([self.env]):
            object.__setattr__(self, "env", make_env(self.env))
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name in ("policy", "value") and value is not None:
                object.__setattr__(self, field.name, as_policy(value))
            elif isinstance(value, list) and (field.metadata.get("kind") is tuple or field.metadata.get("scheduled")):
                object.__setattr__(self, field.name, tuple(value))
            elif field.metadata.get("scheduled") and callable(value) and not isinstance(value, jax.tree_util.Partial):
                object.__setattr__(self, field.name, jax.tree_util.Partial(value))
            elif field.metadata.get("kind") is int and isinstance(value, float | np.integer) and value.is_integer():
                object.__setattr__(self, field.name, int(value))
            elif isinstance(value, str) and value == "auto" and field.metadata.get("word") == "auto":
                object.__setattr__(self, field.name, AUTO)
        self.check()
        if hasattr(self.env, "action_space"):
            check_action_options(self.env, self.squash_actions, self.state_dependent_std)
            check_networks(self.env, self.policy, getattr(self, "value", None))

    def check(self) -> None:
        """Raises HyperparameterError for the first invalid hyperparameter.

        It also runs without JAX, so it may only use the hyperparameters of `self` and names from `fields` (see there).
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
                raise HyperparameterError(f"hidden_sizes={sizes} must be equal for network=transformer, one per block")
            check_divides("hidden_sizes[0]", width, "2 * num_heads", 2 * self.num_heads)

    def replace(self, **changes: Any) -> Self:
        """A copy with some hyperparameters changed; numbers may be tracers."""
        return dataclasses.replace(self, **changes)

    # One update.

    def train_step(self, state: TrainState) -> tuple[TrainState, Metrics]:
        """One update: collect experience, compute the loss, optimise.

        An update with a non-finite loss, gradient, parameter or optimiser state is discarded. With `on_nan="skip"` it
        is counted and the run continues with new experience; with `on_nan="stop"` the state stays frozen from then on.

        Returns:
          The next state, and metrics: float32 scalars with the same names in every update. `episode_return` and
          `episode_length` are 0 if `episodes`, the number of episodes that ended, is 0.
        """
        check_single(state)
        new, metrics = self.update(state)
        chex.assert_trees_all_equal_shapes_and_dtypes(new, state)
        check_metrics(metrics)
        metrics = {name: jnp.asarray(value) for name, value in metrics.items()}
        return keep_finite(state, new, self.discarded(state, new), metrics, self.on_nan), metrics

    def discarded(self, state: TrainState, new: TrainState) -> TrainState:
        """The state of a run that a non-finite update has frozen: that before the update."""
        return state

    @abc.abstractmethod
    def update(self, state: TrainState) -> tuple[TrainState, Metrics]:
        """One update, implemented by subclasses: the next state, with `update` and `env_steps` incremented, and
        metrics, including "loss". `train_step` discards it if it is not finite."""

    def scheduled(self, progress: jax.Array) -> Self:
        """A copy with every schedule replaced by its value at `progress` (), the fraction of the run done."""
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
        """Gradient clipping and Adam; `apply_gradients` applies the scheduled learning rate."""
        return optax.chain(clip_by_global_norm(self.max_grad_norm), optax.scale_by_adam(eps=1e-5))

    def apply_gradients(self, params: Any, opt_state: Any, gradients: Any) -> tuple[Any, Any]:
        """One optimiser step: the next parameters and optimiser state; `self` must be `scheduled`."""
        chex.assert_trees_all_equal_shapes(params, gradients)
        with jax.numpy_dtype_promotion("standard"):  # optax does not support strict promotion
            updates, opt_state = self.optimizer.update(gradients, opt_state, params)
        return optax.apply_updates(params, jax.tree.map(lambda u: -self.learning_rate * u, updates)), opt_state

    # Initialisation.

    def init(self, key: jax.Array, start: InitialPolicy | None = None) -> TrainState:
        """A new train state from a PRNG key, `jax.random.key(seed)`.

        `start` initialises the policy and a fixed reference policy, for example `algo.init(key, policy.start)` with a
        policy from `haepo_jax.load`. A value function is always initialised randomly.

        Raises:
          ValueError: `start` has different network shapes, or only one of the two normalises observations; or a
            hyperparameter is an array of several numbers.
        """
        check_environment(self.env)
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            # Not in the constructor, where arrays of values are what `jax.vmap` is given.
            if field.metadata.get("kind") is float and hasattr(value, "shape") and value.shape:
                raise HyperparameterError(
                    f"{field.name} has the shape {value.shape}, not (): use jax.vmap for several values"
                )
        if not hasattr(key, "dtype"):
            raise TypeError(f"key={short(key)} must be a PRNG key, such as jax.random.key(0)")
        if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):  # of `jax.random.PRNGKey`
            key = jax.random.wrap_key_data(key)
        params_key, run_key = jax.random.split(key)
        observation = self.example_observation()
        params = self.init_params(params_key, observation)
        normalize = self.normalize_observations
        if normalize is None:
            normalize = is_unscaled_vector(self.env.observation_space)
        normalizer = RunningStatistics.of(observation) if normalize else None
        if start is not None:
            check_fits(start, InitialPolicy(self.policy_params(params), normalizer))
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
            status=TrainingStatus.new(),
        )
        return dataclasses.replace(state, extra=self.init_extra(state))

    def init_params(self, key: jax.Array, observation: Any) -> Any:
        """Randomly initialised parameters, given one example observation."""
        return self.policy_network.init(key, observation)[0]

    def init_reference(self, params: Any) -> Any:
        """`TrainState.reference` at the start of a run."""
        return None

    def init_extra(self, state: TrainState) -> Any:
        """`TrainState.extra` at the start of a run; `state` has all other fields."""
        return None

    # Whole runs and evaluation.

    train, advance, progress, evaluate = running.train, running.advance, running.progress, running.evaluate

    # The policy as a function.

    @property
    def policy_network(self) -> Policy:
        """The policy network, a pair of pure functions; see `haepo_jax.networks`."""
        return self.policy or self.default_network(self.env.action_space)

    def default_network(self, action_space: Space | None, with_features: bool = False) -> Policy:
        """The default network given by `network`: a policy, or a value function if `action_space` is None.

        `with_features`: a policy returns a pair, its output and its last hidden layer."""
        space = self.env.observation_space
        if self.network != "mlp":
            context = min(self.context or self.env.horizon, self.env.horizon)
            return sequence_policy(
                self.network, space, action_space, hidden_sizes=self.hidden_sizes, activation=self.activation, layer_norm=self.layer_norm,
                num_heads=self.num_heads, context=context, state_dependent_std=self.state_dependent_std,
                with_features=with_features,
            )  # fmt: skip
        hidden = self.hidden_sizes, self.activation, self.layer_norm
        return default_network(space, action_space, *hidden, self.state_dependent_std, with_features)

    def initial_carry(self) -> Any:
        """The initial policy carry of one environment."""
        # The carry holds no parameters, so under jit their initialisation is dead code.
        return self.policy_network.init(jax.random.key(0), self.example_observation())[1]

    def example_observation(self) -> Any:
        """An observation of zeros."""
        return jax.tree.map(jnp.zeros_like, first_observation(self.env))

    def act_distribution(
        self, state: TrainState, carry: Any, observation: Any, is_first: jax.Array, action_mask: jax.Array | None = None
    ) -> tuple[Any, Distribution]:
        """The next carry and the action distribution of the current policy in one environment."""
        observation = self.normalized(state.normalizer, observation)
        carry, output = self.policy_network.apply(self.policy_params(state.params), carry, observation, is_first)
        return carry, self.distribution(output, action_mask)

    def distribution(self, output: Any, action_mask: jax.Array | None) -> Distribution:
        """The action distribution described by the output of the policy network."""
        if self.squash_actions:
            output = squashed(self.env.action_space, output)
        return action_distribution(self.env.action_space, output, action_mask)

    def normalized(self, normalizer: RunningStatistics | None, observation: Any) -> Any:
        """The normalised observation, as the networks see it; discrete parts stay integers (networks use one-hot)."""
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
        """The parameters with those of the policy replaced."""
        return policy_params
