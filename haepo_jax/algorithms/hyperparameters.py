"""Every hyperparameter of every algorithm: its default, its range and what it means.

Declared once and without jax, so that the command line can check a whole configuration before jax is loaded and the
Python constructors raise the same one-line errors. An algorithm class inherits its fields from here. `static` fields
set shapes or choose code and are compiled in; `leaf` fields are numbers that jax traces, so they vmap and change
without recompilation.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from typing import Any

from haepo_jax.messages import short

Scheduled = Any
"""A number; a pair `(start, end)` interpolated linearly over the run; or an optax schedule of the share of live steps
done, from 0 to 1 (for example `optax.cosine_decay_schedule(3e-3, 1)`)."""


@dataclasses.dataclass(frozen=True)
class Range:
    """An interval that a number must lie in; `str()` gives the usual notation, such as `(0, 1]`."""

    low: float = -math.inf
    high: float = math.inf
    low_open: bool = False
    high_open: bool = False

    def __contains__(self, value: float) -> bool:
        if isinstance(value, int) and value.bit_length() > 1023:  # more than a floating-point number holds
            return False
        above = value > self.low if self.low_open else value >= self.low
        below = value < self.high if self.high_open else value <= self.high
        return above and below and math.isfinite(value)

    def __str__(self) -> str:
        left = "(" if self.low_open or self.low == -math.inf else "["
        right = ")" if self.high_open or self.high == math.inf else "]"
        return f"{left}{self.low:g}, {self.high:g}{right}"


POSITIVE = Range(low=0, low_open=True)
NOT_NEGATIVE = Range(low=0)
UNIT = Range(low=0, high=1)
UNIT_OPEN_LOW = Range(low=0, high=1, low_open=True)
COUNT = Range(low=1, high=2**31 - 1)


def static(
    default: Any,
    kind: type,
    doc: str,
    *,
    within: Range | None = None,
    choices: tuple[str, ...] = (),
    optional: bool = False,
) -> Any:
    """A field that is compiled in: a size, a switch or the name of a rule."""
    metadata = {"static": True, "kind": kind, "doc": doc, "within": within, "choices": choices, "optional": optional}
    return dataclasses.field(default=default, metadata=metadata)


def leaf(
    default: Any, doc: str, *, within: Range, scheduled: bool = False, word: str | None = None, optional: bool = False
) -> Any:
    """A numeric field that jax traces. `word` is a string allowed in its place (the rule `auto` of a temperature)."""
    metadata = {
        "static": False, "kind": float, "doc": doc, "within": within, "scheduled": scheduled, "word": word, "optional": optional,
    }  # fmt: skip
    return dataclasses.field(default=default, metadata=metadata)


class HyperparameterError(ValueError):
    """A hyperparameter that cannot be used; the message is one line that names it, its value and what would be right."""


def check_value(field: dataclasses.Field[Any], value: Any) -> None:
    """Raises HyperparameterError where `value` cannot be used for `field`. Arrays and tracers pass unseen."""
    name, meta = field.name, field.metadata
    if value is None and meta["optional"]:
        return
    if meta["static"]:
        kind = meta["kind"]
        if kind is tuple:
            sizes = value if isinstance(value, tuple | list) else None
            within = meta["within"] or COUNT
            if sizes is None or not all(_is_int(size) and size in within for size in sizes):
                what = "positive integers, such as [64, 64]" if within is COUNT else f"integers {within}"
                raise HyperparameterError(f"{name}={short(value)} must be a list of {what}")
            return
        right_type = _is_int(value) if kind is int else isinstance(value, kind)
        if not right_type:
            raise HyperparameterError(f"{name}={short(value)} must be {_KIND_NAMES[kind]}")
        if meta["choices"] and value not in meta["choices"]:
            raise HyperparameterError(
                f"{name}={short(value)} must be one of {', '.join(meta['choices'])}{_near(value, meta['choices'])}"
            )
        if meta["within"] is not None and value not in meta["within"]:
            raise HyperparameterError(f"{name}={short(value)} is out of range {meta['within']}")
        return
    if isinstance(value, str):
        if value != meta["word"]:
            allowed = f"a number or '{meta['word']}'" if meta["word"] else "a number"
            raise HyperparameterError(f"{name}={short(value)} must be {allowed}")
        return
    if isinstance(value, bool) or value is None or isinstance(value, dict | set):
        raise HyperparameterError(f"{name}={short(value)} must be a number")
    if isinstance(value, tuple | list):
        if not meta["scheduled"] or len(value) != 2:
            pair = " or a pair [start, end]" if meta["scheduled"] else ""
            raise HyperparameterError(f"{name}={short(value)} must be a number{pair}")
        for end in value:
            if isinstance(end, str | bool | list | tuple | dict) or end is None:
                raise HyperparameterError(f"{name}={short(value)} must be a pair [start, end] of numbers")
            _check_range(name, end, meta["within"])
        return
    _check_range(name, value, meta["within"])


def _check_range(name: str, value: Any, within: Range) -> None:
    if isinstance(value, int | float) and value not in within:
        raise HyperparameterError(f"{name}={short(value)} is out of range {within}")


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


_KIND_NAMES = {int: "an integer", bool: "true or false", str: "a string"}


def _near(name: Any, names: tuple[str, ...]) -> str:
    close = difflib.get_close_matches(str(name), names, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def check_divides(whole_name: str, whole: int, part_name: str, part: int) -> None:
    """Raises HyperparameterError where `whole` is no multiple of `part`, naming the nearest multiples."""
    if whole % part:
        below, above = whole - whole % part, whole - whole % part + part
        nearest = f"{below} or {above}" if below else f"{above}"
        raise HyperparameterError(
            f"{whole_name}={whole} is not a multiple of {part_name}={part}; the nearest that are: {nearest}"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Common:
    """What every algorithm has."""

    total_steps: int = static(500_000, int, "live environment steps to train for", within=Range(1, 2**62))
    num_envs: int = static(32, int, "environments that run side by side", within=COUNT)
    num_epochs: int = static(8, int, "passes over each batch", within=COUNT)
    num_minibatches: int = static(4, int, "parts that each pass is cut into", within=COUNT)
    learning_rate: Scheduled = leaf(3e-3, "Adam's step size", within=NOT_NEGATIVE, scheduled=True)
    anneal_learning_rate: bool = static(
        True, bool, "bring a learning_rate that is one number linearly to 0 over the run"
    )
    max_grad_norm: float = leaf(1.0, "gradients are scaled down to this global norm", within=POSITIVE)
    entropy_coef: Scheduled = leaf(0.01, "weight of the entropy bonus", within=NOT_NEGATIVE, scheduled=True)
    network: str = static(
        "mlp",
        str,
        "the default networks' kind; all but mlp remember the episode",
        choices=("mlp", "gru", "lstm", "transformer"),
    )
    hidden_sizes: tuple[int, ...] = static(
        (64, 64), tuple, "widths of their hidden layers; gru, lstm: the last is the cell's; transformer: its blocks'"
    )
    activation: str = static(
        "tanh", str, "of their hidden layers (the transformer's is gelu)", choices=("tanh", "relu", "swish")
    )
    layer_norm: bool = static(
        False, bool, "normalise the hidden layers before their activation (the transformer always does)"
    )
    num_heads: int = static(4, int, "transformer: attention heads of a block", within=COUNT)
    context: int | None = static(
        None,
        int,
        "transformer: steps that a block looks back on, the present one included; null: the episode's",
        within=COUNT,
        optional=True,
    )
    squash_actions: bool = static(
        False, bool, "continuous actions are passed through tanh, rather than clipped, to their bounds"
    )
    state_dependent_std: bool = static(
        False, bool, "default networks: actions' standard deviation depends on the observation, rather than being one"
    )
    normalize_observations: bool | None = static(
        None,
        bool,
        "standardise observations with running statistics; null: where actions are continuous",
        optional=True,
    )
    log_points: int = static(50, int, "rows of the history, evenly spaced in live steps", within=COUNT)
    eval_episodes: int = static(
        16,
        int,
        "episodes of each kind, sampled and greedy, at every row of the history; 0: none",
        within=Range(0, 2**31 - 1),
    )

    on_nan: str = static(
        "stop",
        str,
        "an update that is not finite ends the run, its state kept as before; or is dropped and counted",
        choices=("stop", "skip"),
    )

    def check(self) -> None:
        """Raises HyperparameterError at the first value that cannot be used."""
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trajectory(Common):
    """What the methods that learn from groups of complete episodes have in common."""

    group_size: int = static(8, int, "episodes that are weighed against each other", within=COUNT)
    shared_start: bool = static(True, bool, "start the episodes of a group in the same state")

    def check(self) -> None:
        super().check()
        check_divides("num_envs", self.num_envs, "group_size", self.group_size)
        num_groups = self.num_envs // self.group_size
        if num_groups % self.num_minibatches:
            small = [n for n in range(1, math.isqrt(num_groups) + 1) if num_groups % n == 0]
            divisors = sorted({*small, *(num_groups // n for n in small)})
            nearest = sorted(divisors, key=lambda n: abs(n - self.num_minibatches))[:2]
            raise HyperparameterError(
                f"num_minibatches={self.num_minibatches} does not divide num_envs / group_size = {num_groups} groups; "
                f"the nearest that do: {' or '.join(map(str, sorted(nearest)))}"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Segments(Common):
    """What the methods that learn from fixed-length pieces of experience and a value function have in common."""

    num_steps: int = static(128, int, "steps of each environment in one update", within=COUNT)
    discount: float = leaf(0.99, "discount factor gamma", within=UNIT)
    gae_lambda: float = leaf(0.95, "lambda of generalised advantage estimation", within=UNIT)
    value_coef: float = leaf(0.5, "weight of the value loss", within=NOT_NEGATIVE)
    normalize_rewards: bool = static(
        True, bool, "divide rewards by the running standard deviation of the discounted return"
    )
    shared_trunk: bool = static(
        False, bool, "default networks: the value function is one more output of the policy network, not one of its own"
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class HAEPO(Segments):
    """History-Aggregated Exploratory Policy Optimization (arXiv 2508.18884) on the histories of the last policies."""

    num_envs: int = static(8, int, "environments that run side by side", within=COUNT)
    num_steps: int = static(32, int, "steps of each environment in one update", within=COUNT)
    num_epochs: int = static(16, int, "passes over the history in each update", within=COUNT)
    num_minibatches: int = static(1, int, "parts that each pass is cut into", within=COUNT)
    learning_rate: Scheduled = leaf(2e-3, "Adam's step size", within=NOT_NEGATIVE, scheduled=True)
    history_batches: int = static(
        8, int, "batches that an update learns from: its own, and those of the policies before it", within=COUNT
    )
    group_size: int = static(
        8,
        int,
        "pieces of experience that are weighed against each other, drawn anew for every pass",
        within=Range(2, 2**31 - 1),
    )
    temperature: Scheduled = leaf(
        0.3, "of the softmax over a group: how far histories may move apart", within=POSITIVE, scheduled=True
    )
    history_decay: float = leaf(0.95, "what a step of age leaves of a decision's weight", within=UNIT)
    history_bonus: Scheduled = leaf(
        0.0,
        "reward for each nat by which an action was unlikely, beside the task's",
        within=NOT_NEGATIVE,
        scheduled=True,
    )
    kl_coef: Scheduled = leaf(
        0.3, "weight of the KL penalty to the policy before the update", within=NOT_NEGATIVE, scheduled=True
    )

    def check(self) -> None:
        super().check()
        pieces, part = self.num_envs * self.history_batches, self.num_minibatches * self.group_size
        check_divides("num_envs * history_batches", pieces, "num_minibatches * group_size", part)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EpisodicHAEPO(Trajectory):
    """HAEPO (arXiv 2508.18884) on groups of complete episodes, without a value function: the paper's form among others."""

    credit: str = static(
        "prefix",
        str,
        "a reward is credited to the decisions before it, or to the whole trajectory",
        choices=("prefix", "trajectory"),
    )
    score: str = static(
        "log_ratio",
        str,
        "what the softmax over trajectories is taken of",
        choices=("log_ratio", "likelihood", "mean_likelihood"),
    )
    temperature: Scheduled | str = leaf(
        1.0,
        "of that softmax; 'auto' widens it where the weights would collapse",
        within=POSITIVE,
        scheduled=True,
        word="auto",
    )
    history_decay: float = leaf(
        0.99, "credit=prefix: what a step of age leaves of a decision's weight", within=UNIT_OPEN_LOW
    )
    normalize: str = static(
        "standardize",
        str,
        "credit=trajectory: how returns are normalised in their group",
        choices=("standardize", "center", "rank", "none"),
    )
    entropy: str = static("policy", str, "which entropy entropy_coef rewards", choices=("policy", "weights"))
    kl: str = static("policy", str, "which divergence kl_coef penalises", choices=("policy", "weights"))
    kl_coef: Scheduled = leaf(
        (3.0, 0.1), "weight of the KL penalty to the reference policy", within=NOT_NEGATIVE, scheduled=True
    )
    reference: str = static(
        "previous", str, "the frozen policy that the KL pulls towards", choices=("previous", "initial")
    )

    def check(self) -> None:
        super().check()
        if self.credit == "prefix" and self.score != "log_ratio":
            raise HyperparameterError(
                f"score={self.score!r} needs credit=trajectory; credit=prefix weighs by score=log_ratio"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class PPO(Segments):
    """Proximal Policy Optimization (arXiv 1707.06347)."""

    num_epochs: int = static(4, int, "passes over each batch", within=COUNT)
    learning_rate: Scheduled = leaf(1e-3, "Adam's step size", within=NOT_NEGATIVE, scheduled=True)
    entropy_coef: Scheduled = leaf((0.01, 0.0), "weight of the entropy bonus", within=NOT_NEGATIVE, scheduled=True)
    max_grad_norm: float = leaf(0.5, "gradients are scaled down to this global norm", within=POSITIVE)
    clip_eps: Scheduled = leaf(0.2, "how far the probability ratio may move from 1", within=POSITIVE, scheduled=True)
    value_clip_eps: float | None = leaf(
        None,
        "how far a value may move from the behaviour's before its loss is clipped; null: no clipping",
        within=POSITIVE,
        optional=True,
    )
    normalize_advantages: bool = static(True, bool, "standardise the advantages of each minibatch")
    target_kl: float | None = leaf(
        None,
        "leave out the rest of an update's minibatches once the KL to the behaviour policy passes this; null: never",
        within=POSITIVE,
        optional=True,
    )

    def check(self) -> None:
        super().check()
        check_divides("num_envs * num_steps", self.num_envs * self.num_steps, "num_minibatches", self.num_minibatches)
        if self.network != "mlp":  # a minibatch is then of whole segments
            check_divides("num_envs", self.num_envs, "num_minibatches", self.num_minibatches)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GRPO(Trajectory):
    """Group Relative Policy Optimization (arXiv 2402.03300); its later variants by option."""

    normalize: str = static(
        "standardize",
        str,
        "how returns become advantages (Dr. GRPO: center)",
        choices=("standardize", "center"),
    )
    average: str = static(
        "trajectory",
        str,
        "means over steps: of each trajectory, of the group's steps (DAPO), or sums over the horizon (Dr. GRPO)",
        choices=("trajectory", "step", "constant"),
    )
    ratio: str = static(
        "step",
        str,
        "probability ratios of steps, or of whole trajectories to the power of 1 / length (GSPO)",
        choices=("step", "trajectory"),
    )
    clip_eps: Scheduled = leaf(0.2, "how far the probability ratio may move from 1", within=POSITIVE, scheduled=True)
    clip_eps_high: float | None = leaf(
        None, "how far it may move above 1 (DAPO: 0.28); null: clip_eps", within=POSITIVE, optional=True
    )
    kl_coef: Scheduled = leaf(
        0.04, "weight of the KL penalty to the reference policy", within=NOT_NEGATIVE, scheduled=True
    )
    reference: str = static(
        "previous", str, "the frozen policy that the KL pulls towards", choices=("previous", "initial")
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DPO(Trajectory):
    """Direct Preference Optimization (arXiv 2305.18290)."""

    beta: Scheduled = leaf(0.1, "how strongly a pair's log-ratios are weighed", within=POSITIVE, scheduled=True)
    reference_interval: int = static(
        1, int, "updates between two moves of the reference to the current policy", within=COUNT
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Supervised(Common):
    """Likelihood of an expert's actions: next-token training on a task's demonstrations."""

    num_envs: int = static(64, int, "demonstrations in one update, new ones in each", within=COUNT)
    num_epochs: int = static(1, int, "passes over each batch", within=COUNT)
    num_minibatches: int = static(1, int, "parts that each pass is cut into", within=COUNT)
    entropy_coef: Scheduled = leaf(0.0, "weight of the entropy bonus", within=NOT_NEGATIVE, scheduled=True)

    def check(self) -> None:
        super().check()
        check_divides("num_envs", self.num_envs, "num_minibatches", self.num_minibatches)


ALGORITHMS: dict[str, type[Common]] = {
    "haepo": HAEPO, "haepo_episodic": EpisodicHAEPO, "ppo": PPO, "grpo": GRPO, "dpo": DPO, "supervised": Supervised,
}  # fmt: skip

PRESETS: dict[str, tuple[str, dict[str, Any]]] = {
    "haepo_explore": ("haepo", {"history_bonus": 0.01, "normalize_rewards": False}),
    "haepo_paper": (
        "haepo_episodic",
        {"credit": "trajectory", "score": "likelihood", "temperature": 1.0, "normalize": "standardize"},
    ),
    "ppo_continuous": (
        "ppo",
        {"num_epochs": 10, "num_minibatches": 8, "discount": 0.95, "entropy_coef": 0.0},
    ),
    "ppo_minatar": (
        "ppo",
        {"num_envs": 64, "num_minibatches": 8, "learning_rate": 5e-3, "entropy_coef": 0.01},
    ),
}
"""Named settings: the algorithm each one is of, and what it changes."""
