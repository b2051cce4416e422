"""What is compared: the tasks, the methods with their search spaces, and the ablations. Data only; see `run.py`."""

from __future__ import annotations

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Task:
    """A task, the live steps that every method gets, and the return that counts as solved.

    Attributes:
      floor: a return as low as doing nothing; stands in where no episode has ended yet.
      top: the best return there is, or the best published; figures put floor and top at 0 and 1.
      noise: what the episodes of the evaluation, the same for every seed and method, pay above the mean whatever is done: the
        noise of a bandit's rewards.
    """

    env: str
    total_steps: int
    threshold: float
    floor: float
    top: float
    env_kwargs: dict[str, Any] = dataclasses.field(default_factory=dict)
    noise: float = 0.0


TASKS: dict[str, Task] = {
    "cartpole": Task("CartPole-v1", 50_000, 475, 9, 500),
    "acrobot": Task("Acrobot-v1", 60_000, -100, -500, -75),
    "pendulum": Task("Pendulum-v1", 80_000, -250, -1400, -130),
    "catch": Task("Catch-bsuite", 24_000, 0.9, -1, 1),
    "four_rooms": Task("FourRooms-misc", 60_000, 0.9, 0, 1),
    "bandit": Task("haepo/bandit", 16_000, 19.2, 0, 20.25, noise=-0.613),  # the best arm pays 2.025 a pull, ten pulls
    "random_walk": Task("haepo/random_walk", 24_000, 0.95, 0, 1, {"length": 20, "horizon": 200}),
    "bandit_100": Task("haepo/bandit", 24_000, 25.1, 0, 26.42, {"num_arms": 100}, noise=-0.613),
    "random_walk_50": Task("haepo/random_walk", 100_000, 0.95, 0, 1, {"length": 50, "horizon": 500}),
    "mountain_car": Task("MountainCar-v0", 100_000, -130, -200, -110),
    "mountain_car_continuous": Task("MountainCarContinuous-v0", 100_000, 85, -50, 94),
    "inverted_pendulum": Task("brax/inverted_pendulum", 60_000, 195, 5, 200, {"episode_length": 200}),
}

BASELINES = ("ppo_default", "haepo", "ppo", "ppo_replay_tuned", "grpo", "dpo")

RATE = "tag(log,interval(3e-4,1e-2))"
ENTROPY = "choice(0,0.003,0.01,0.03)"
KL = "tag(log,interval(0.01,3))"
CLIP = "choice(0.1,0.2,0.3)"
WIDE_CLIP = {
    "algo.clip_eps": "tag(log,interval(0.05,1))", "algo.learning_rate": RATE, "algo.entropy_coef": ENTROPY,
    "algo.discount": "choice(0.95,0.97,0.99)", "algo.gae_lambda": "choice(0.9,0.95,0.98)", "algo.num_envs": "8",
    "algo.num_steps": "32",
}  # fmt: skip
FRESH_CLIP = {**WIDE_CLIP, "algo.num_epochs": "16", "algo.num_minibatches": "8"}
REPLAYED_CLIP = {
    **WIDE_CLIP, "algo.clip_around": "choice(behaviour,current)", "algo.replay_batches": "8", "algo.num_epochs": "4",
    "algo.num_minibatches": "16",
}  # fmt: skip
KL_PENALTY = "tag(log,interval(0.03,1))"
SOFTMAX = {
    "algo.learning_rate": RATE, "algo.entropy_coef": ENTROPY, "algo.discount": "choice(0.95,0.97,0.99)",
    "algo.gae_lambda": "choice(0.9,0.95,0.98)", "algo.temperature": "tag(log,interval(0.1,1))",
    "algo.history_decay": "choice(0.8,0.9,0.95)", "algo.kl_coef": KL_PENALTY, "algo.num_envs": "8", "algo.num_steps": "32",
    "algo.num_minibatches": "16",
}  # fmt: skip
BUFFERS = {"algo.replay_batches": "choice(8,16)", "algo.num_epochs": "choice(4,8)"}
WIDENED_CONFIGS = 16
GROUPS = {"algo.num_envs": "choice(8,32)", "algo.num_epochs": "choice(4,16)", "algo.num_minibatches": "1"}


HAEPOS_REPLAY: dict[str, float] = {
    "num_envs": 8, "num_steps": 32, "replay_batches": 8, "num_epochs": 4, "num_minibatches": 16, "learning_rate": 0.002,
    "entropy_coef": 0.01, "gae_lambda": 0.95, "max_grad_norm": 1.0, "clip_eps": 0.2,
}  # fmt: skip
"""PPO's clip with the buffer, minibatches and settings of HAEPO's default."""


SEARCHED: dict[str, dict[str, Any]] = {
    "haepo": {
        "num_envs": 8, "num_steps": 32, "replay_batches": 8, "num_epochs": 4, "num_minibatches": 16,
        "learning_rate": 3.43797e-4, "entropy_coef": 0.0, "discount": 0.99, "gae_lambda": 0.95,
        "temperature": 0.299576, "history_decay": 0.95, "kl_coef": 0.572598,
    },
    "ppo": {
        "num_envs": 8, "num_steps": 32, "replay_batches": 4, "num_epochs": 4, "num_minibatches": 16,
        "learning_rate": 3.17797e-3, "entropy_coef": 0.003, "discount": 0.97, "gae_lambda": 0.9, "clip_eps": 0.1,
    },
}  # fmt: skip
"""HAEPO and PPO with a replay buffer: of the first 32 configurations of a search, the best one on the development tasks together,
by the seeds of `choice`."""


FORMER: dict[str, Any] = {
    "num_envs": 32, "num_epochs": 8, "num_minibatches": 4, "learning_rate": 3e-3, "entropy_coef": 0.01,
}  # fmt: skip
"""Shared by the former defaults of the methods that learn from complete episodes."""


@dataclasses.dataclass(frozen=True)
class Method:
    """A method and what its sweep draws from, in the sweep's language, the same configurations on every task; a method without a
    space is taken as it is.

    Attributes:
      finalists: settings that are always among the finalists, by name; where nothing is said, the algorithm's default.
      widened: more spaces, where the first one was too narrow; `WIDENED_CONFIGS` are drawn from each.
    """

    algo: str
    space: dict[str, str]
    colour: str
    finalists: dict[str, dict[str, Any]] = dataclasses.field(default_factory=lambda: {"default": {}})
    widened: tuple[dict[str, str], ...] = ()


def _constant(settings: dict[str, Any]) -> dict[str, str]:
    return {f"algo.{name}": str(value) for name, value in settings.items()}


METHODS: dict[str, Method] = {
    "haepo_default": Method("haepo", {}, "tab:red"),
    "ppo_default": Method("ppo", {}, "tab:cyan"),
    "ppo_replay": Method("ppo", _constant(HAEPOS_REPLAY), "tab:gray"),
    "haepo_searched": Method("haepo", _constant(SEARCHED["haepo"]), "darkred"),
    "ppo_replay_searched": Method("ppo", _constant(SEARCHED["ppo"]), "darkblue"),
    "haepo": Method(
        "haepo", {**SOFTMAX, "algo.num_epochs": "4"}, "tab:pink", widened=({**BUFFERS, **SOFTMAX},),
    ),
    "ppo": Method(
        "ppo",
        {
            "algo.learning_rate": RATE, "algo.entropy_coef": ENTROPY, "algo.discount": "choice(0.95,0.97,0.99)",
            "algo.gae_lambda": "choice(0.9,0.95,0.98)", "algo.clip_eps": CLIP, "algo.num_envs": "8",
            "algo.num_steps": "choice(32,128)", "algo.num_epochs": "choice(4,16)",
            "algo.num_minibatches": "choice(4,8)",
        },
        "tab:blue", widened=(FRESH_CLIP, {"algo.kl_coef": KL_PENALTY, **FRESH_CLIP}),
    ),
    "ppo_replay_tuned": Method(
        "ppo",
        {
            "algo.learning_rate": RATE, "algo.entropy_coef": ENTROPY, "algo.discount": "choice(0.95,0.97,0.99)",
            "algo.gae_lambda": "choice(0.9,0.95,0.98)", "algo.clip_eps": CLIP,
            "algo.clip_around": "choice(behaviour,current)", "algo.num_envs": "8", "algo.num_steps": "32",
            "algo.replay_batches": "choice(4,8)", "algo.num_epochs": "choice(4,8)", "algo.num_minibatches": "16",
        },
        "tab:olive", finalists={"HAEPO's settings": HAEPOS_REPLAY},
        widened=(REPLAYED_CLIP, {"algo.kl_coef": KL_PENALTY, **REPLAYED_CLIP}, {**REPLAYED_CLIP, **BUFFERS}),
    ),
    "grpo": Method(
        "grpo",
        {"algo.learning_rate": RATE, "algo.entropy_coef": ENTROPY, "algo.kl_coef": KL, "algo.clip_eps": CLIP, **GROUPS},
        "tab:green", finalists={"default": {}, "former default": {**FORMER, "kl_coef": 0.04, "clip_eps": 0.2}},
    ),
    "dpo": Method(
        "dpo",
        {
            "algo.learning_rate": RATE, "algo.entropy_coef": ENTROPY,
            "algo.beta": "tag(log,interval(0.03,3))", **GROUPS,
        },
        "tab:purple", finalists={"default": {}, "former default": {**FORMER, "beta": 0.1}},
    ),
    "haepo_episodic": Method(
        "haepo_episodic",
        {
            "algo.learning_rate": RATE, "algo.entropy_coef": ENTROPY, "algo.kl_coef": KL,
            "algo.temperature": "tag(log,interval(0.1,10))", **GROUPS,
        },
        "tab:orange", finalists={"default": {}, "former default": {**FORMER, "kl_coef": (3.0, 0.1), "temperature": 1.0}},
    ),
    "haepo_paper": Method(
        "haepo_paper",
        {
            "algo.learning_rate": RATE, "algo.entropy_coef": ENTROPY, "algo.kl_coef": KL,
            "algo.temperature": "tag(log,interval(0.1,10))", **GROUPS,
        },
        "tab:brown", finalists={"default": {}, "former default": {**FORMER, "kl_coef": (3.0, 0.1)}},
    ),
}  # fmt: skip

GROUP_OF_8: dict[str, Any] = {"num_envs": 8, "num_epochs": 8, "num_minibatches": 1}
RAW_8 = {**GROUP_OF_8, "normalize_observations": False}
RAW_32: dict[str, Any] = {"num_envs": 32, "num_epochs": 8, "num_minibatches": 1, "normalize_observations": False}
EARLIER: dict[tuple[str, str], dict[str, Any]] = {
    ("four_rooms", "grpo"): {**RAW_8, "learning_rate": 0.00455742, "entropy_coef": 0.03, "kl_coef": 0.023615, "clip_eps": 0.3},
    ("bandit", "grpo"): {**RAW_8, "learning_rate": 0.00455742, "entropy_coef": 0.03, "kl_coef": 0.023615, "clip_eps": 0.3},
    ("bandit_100", "grpo"): {**RAW_8, "learning_rate": 0.00455742, "entropy_coef": 0.03, "kl_coef": 0.023615, "clip_eps": 0.3},
    ("mountain_car_continuous", "grpo"): {
        **GROUP_OF_8, "learning_rate": 0.00948986, "entropy_coef": 0.01, "kl_coef": 0.0382342, "clip_eps": 0.2,
    },
    ("inverted_pendulum", "grpo"): {
        **GROUP_OF_8, "learning_rate": 0.00061634, "entropy_coef": 0.003, "kl_coef": 0.337947, "clip_eps": 0.3,
    },
    ("catch", "dpo"): {
        **RAW_32, "num_epochs": 16, "learning_rate": 0.000445383, "entropy_coef": 0.03, "beta": 0.190072,
    },
    ("four_rooms", "dpo"): {**RAW_8, "learning_rate": 0.00055796, "entropy_coef": 0.01, "beta": 0.166889},
    ("bandit", "dpo"): {**RAW_32, "learning_rate": 0.00612954, "entropy_coef": 0.03, "beta": 0.131786},
    ("bandit_100", "dpo"): {**RAW_32, "learning_rate": 0.00612954, "entropy_coef": 0.03, "beta": 0.131786},
    ("mountain_car_continuous", "dpo"): {
        **GROUP_OF_8, "num_epochs": 16, "learning_rate": 0.000668714, "entropy_coef": 0.03, "beta": 0.234697,
    },
    ("inverted_pendulum", "dpo"): {**GROUP_OF_8, "learning_rate": 0.00061634, "entropy_coef": 0.003, "beta": 0.514631},
    ("catch", "haepo_episodic"): {
        **RAW_32, "learning_rate": 0.00211629, "entropy_coef": 0.03, "kl_coef": 0.96371, "temperature": 8.18517,
    },
    ("four_rooms", "haepo_episodic"): {
        **RAW_8, "learning_rate": 0.00948986, "entropy_coef": 0.01, "kl_coef": 0.0382342, "temperature": 2.18157,
    },
    ("bandit", "haepo_episodic"): {
        **RAW_8, "learning_rate": 0.00948986, "entropy_coef": 0.01, "kl_coef": 0.0382342, "temperature": 2.18157,
    },
    ("catch", "haepo_paper"): {**RAW_32, "learning_rate": 0.00612954, "entropy_coef": 0.03, "kl_coef": 0.0625294},
    ("four_rooms", "haepo_paper"): {**RAW_8, "learning_rate": 0.00455742, "entropy_coef": 0.03, "kl_coef": 0.023615},
    ("bandit", "haepo_paper"): {**RAW_32, "learning_rate": 0.00612954, "entropy_coef": 0.03, "kl_coef": 0.0625294},
}  # fmt: skip
"""What smaller searches had found before, by the reported curve, when observations were standardised with continuous actions
only; among the finalists of a task and method."""

DEVELOPMENT = ("cartpole", "pendulum", "acrobot", "mountain_car", "random_walk", "random_walk_50")
"""The tasks on which defaults were chosen."""
CHOSEN = ("ppo", "haepo", "ppo_replay_tuned", "grpo", "dpo", "haepo_episodic")
"""Methods whose default, and other finalists, are compared with the best of their search on the development tasks together."""
TUNING_SEEDS = range(1_000_000, 1_000_002)
CHOICE_SEEDS = range(2_000_000, 2_000_008)
REPORT_SEEDS = range(20)
CURVE_POINTS = 40
REPORTED_POINTS = 80
"""Of the curves from which the time to the threshold is read."""
EVAL_EPISODES = 16

ABLATION_STEPS = {"cartpole": 30_000, "pendulum": 50_000, "acrobot": 30_000}
WEIGHTS_STEPS = {
    "catch": 16_000, "four_rooms": 30_000, "mountain_car": 60_000, "mountain_car_continuous": 50_000,
    "inverted_pendulum": 40_000,
}  # fmt: skip
"""Tasks on which only `WEIGHTS` are compared."""
ABLATION_SEEDS = range(100, 106)
WEIGHTS = ("default", "uniform weights", "uniform weights, KL 1", "uniform weights, KL 3")
ONE_BATCH = {"replay_batches": 1, "num_minibatches": 2, "num_epochs": 32}
ABLATIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "uniform weights": {"temperature": 1000.0},
    "uniform weights, KL 1": {"temperature": 1000.0, "kl_coef": 1.0},
    "uniform weights, KL 3": {"temperature": 1000.0, "kl_coef": 3.0},
    "temperature 0.1": {"temperature": 0.1},
    "temperature 1": {"temperature": 1.0},
    "no history in the score (h = 0)": {"history_decay": 0.0},
    "h = 0.99": {"history_decay": 0.99},
    "no KL": {"kl_coef": 0.0},
    "KL 0.1": {"kl_coef": 0.1},
    "KL 1": {"kl_coef": 1.0},
    "KL 1, learning rate 1e-3": {"kl_coef": 1.0, "learning_rate": 1e-3},
    "no entropy": {"entropy_coef": 0.0},
    "advantages divided by at least 0.03": {"min_advantage_std": 0.03},
    "raw observations": {"normalize_observations": False},
    "1 batch": ONE_BATCH,
    "1 batch, uniform weights": {**ONE_BATCH, "temperature": 1000.0},
    "4 batches": {"replay_batches": 4, "num_minibatches": 8, "num_epochs": 8},
    "16 batches": {"replay_batches": 16, "num_minibatches": 32, "num_epochs": 2},
    "1 epoch": {"num_epochs": 1},
    "8 epochs": {"num_epochs": 8},
    "8 epochs, uniform weights": {"num_epochs": 8, "temperature": 1000.0},
    "16 epochs of 1 minibatch": {"num_epochs": 16, "num_minibatches": 1},
    "groups of 2": {"group_size": 2},
    "groups of 8": {"group_size": 8, "num_minibatches": 8, "num_epochs": 8},
}
"""HAEPO's default with the named hyperparameters changed. With other batches or groups it keeps its 64 gradient steps an update,
and with other batches their size, too."""

EPISODIC_STEPS = {"cartpole": 60_000, "four_rooms": 60_000}
EPISODIC: dict[str, dict[str, Any]] = {
    "default": {},
    "uniform weights": {"temperature": 1000.0},
    "temperature 0.3": {"temperature": 0.3},
    "temperature 1": {"temperature": 1.0},
    "no KL": {"kl_coef": 0.0},
    "KL 1": {"kl_coef": 1.0},
    "KL 1, uniform weights": {"kl_coef": 1.0, "temperature": 1000.0},
    "h = 0.9": {"history_decay": 0.9},
    "h = 1": {"history_decay": 1.0},
    "starts not shared": {"shared_start": False},
    "groups of 2": {"group_size": 2},
    "groups of 4": {"group_size": 4},
    "32 environments": {"num_envs": 32},
    "32 environments, groups of 32": {"num_envs": 32, "group_size": 32},
    "4 epochs": {"num_epochs": 4},
    "learning rate 3e-3": {"learning_rate": 3e-3},
    "credit by trajectory": {"credit": "trajectory"},
    "credit by trajectory, likelihood": {"credit": "trajectory", "score": "likelihood"},
    "credit by trajectory, mean likelihood": {"credit": "trajectory", "score": "mean_likelihood"},
    "credit by trajectory, centred returns": {"credit": "trajectory", "normalize": "center"},
    "credit by trajectory, ranks": {"credit": "trajectory", "normalize": "rank"},
    "credit by trajectory, raw returns": {"credit": "trajectory", "normalize": "none"},
    "credit by trajectory, starts not shared": {"credit": "trajectory", "shared_start": False},
    "credit by trajectory, entropy and KL of weights": {"credit": "trajectory", "entropy": "weights", "kl": "weights"},
}
"""What only `EpisodicHAEPO` has, changed in its default."""

PROBE_TASKS = ("cartpole", "acrobot", "pendulum", "catch", "four_rooms", "bandit", "random_walk")
PROBE_SEEDS = range(5)

DEEP_SEA_SIZES = (8, 10, 14)
DEEP_SEA_STEPS = 60_000
DEEP_SEA_SEEDS = range(5)
DEEP_SEA: dict[str, tuple[str, dict[str, Any]]] = {
    "haepo_explore": ("haepo_explore", {}),
    "haepo": ("haepo", {}),
    "haepo, rewards as they are": ("haepo", {"normalize_rewards": False}),
    "ppo, bonus, rewards as they are": ("ppo", {"normalize_rewards": False, "surprisal_bonus": 0.01}),
    "ppo": ("ppo", {}),
    "ppo, rewards as they are": ("ppo", {"normalize_rewards": False}),
    "grpo": ("grpo", {}),
    "dpo": ("dpo", {}),
    "haepo_episodic": ("haepo_episodic", {}),
    "haepo_paper": ("haepo_paper", {}),
    "haepo_paper, no entropy bonus": ("haepo_paper", {"entropy_coef": 0.0}),
    "haepo_episodic, entropy bonus 0.3": ("haepo_episodic", {"entropy_coef": 0.3}),
    "grpo, entropy bonus 0.3": ("grpo", {"entropy_coef": 0.3}),
    "dpo, entropy bonus 0.3": ("dpo", {"entropy_coef": 0.3}),
}
"""Who looks for the deep sea's treasure: the algorithm, and what is changed in its defaults."""

HELD_OUT: dict[str, tuple[int, int]] = {
    "Reacher-misc": (60_000, 10), "PointRobot-misc": (60_000, 10), "UmbrellaChain-bsuite": (60_000, 10),
    "DiscountingChain-bsuite": (60_000, 10), "Swimmer-misc": (100_000, 10), "SpaceInvaders-MinAtar": (150_000, 5),
    "Asterix-MinAtar": (150_000, 5), "Freeway-MinAtar": (150_000, 5),
}  # fmt: skip
"""Tasks that no method was run on before this list was written: steps and seeds."""
HELD_OUT_METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "haepo_default": ("haepo", {}),
    "ppo_default": ("ppo", {}),
    "clip on HAEPO's replay": ("ppo", HAEPOS_REPLAY),
    "haepo_searched": ("haepo", SEARCHED["haepo"]),
    "ppo_replay_searched": ("ppo", SEARCHED["ppo"]),
}
"""Defaults, PPO's clip with HAEPO's buffer, minibatches and settings, and what a search found on the development tasks."""

LARGER: dict[str, tuple[int, int]] = {
    "brax/reacher": (300_000, 5), "brax/hopper": (300_000, 5), "brax/halfcheetah": (300_000, 5),
    "playground/CartpoleBalance": (300_000, 5), "playground/CartpoleSwingup": (300_000, 5),
}  # fmt: skip
"""Tasks with episodes of 1,000 steps: steps and seeds. No setting was chosen on them."""
GAMES = {f"{game}-MinAtar": (500_000, 5) for game in ("Breakout", "Asterix", "SpaceInvaders", "Freeway")}
"""More larger tasks."""
LARGER_EVALUATION = {"log_points": 20, "eval_episodes": 8}
LARGER_METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: HELD_OUT_METHODS[name] for name in ("haepo_default", "ppo_default", "haepo_searched", "ppo_replay_searched")},
    "ppo, published": (
        "ppo",
        {
            "num_envs": 1, "num_steps": 2048, "num_epochs": 10, "num_minibatches": 32, "learning_rate": 3e-4,
            "clip_eps": 0.2, "entropy_coef": 0.0, "discount": 0.99, "gae_lambda": 0.95,
        },
    ),
}  # fmt: skip
"""The last one has the settings for MuJoCo of PPO's paper (arXiv 1707.06347, table 3)."""
GAMES_METHODS = LARGER_METHODS | {"ppo, published": ("ppo_minatar", {}), "haepo_minatar": ("haepo_minatar", {})}
"""Here "published" are PureJaxRL's settings for these games, which `haepo_minatar` has, too, with HAEPO's loss."""

SMALL_ADVANTAGES_TASKS = {env: number for env, number in LARGER.items() if env != "brax/reacher"}
SMALL_ADVANTAGES: dict[str, tuple[str, dict[str, Any]]] = {
    "haepo_default, 0.01": ("haepo", {"min_advantage_std": 0.01}),
    "haepo_default, 0.03": ("haepo", {"min_advantage_std": 0.03}),
    "ppo_replay_searched, 0.03": ("ppo", {**SEARCHED["ppo"], "min_advantage_std": 0.03}),
}
"""Settings of `LARGER_METHODS` with advantages divided by at least this."""

LONG: dict[str, tuple[int, int]] = {"CartPole-v1": (300_000, 10)}
"""Six times the steps of `TASKS`."""
LONG_EVALUATION = {"log_points": 100, "eval_episodes": 8}
LONG_METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "haepo_default": ("haepo", {}),
    **{f"haepo_default, advantages / {std}": ("haepo", {"min_advantage_std": std}) for std in (0.01, 0.1)},
    "haepo_default, learning rate 5e-4": ("haepo", {"learning_rate": 5e-4}),
    "haepo_default, KL 3": ("haepo", {"kl_coef": 3.0}),
    "haepo_default, learning rate 1e-3, KL 1": ("haepo", {"learning_rate": 1e-3, "kl_coef": 1.0}),
    "ppo_default": ("ppo", {}),
    "clip on HAEPO's replay": ("ppo", HAEPOS_REPLAY),
    "clip on HAEPO's replay, learning rate 5e-4": ("ppo", {**HAEPOS_REPLAY, "learning_rate": 5e-4}),
    "clip on HAEPO's replay, KL 3": ("ppo", {**HAEPOS_REPLAY, "kl_coef": 3.0}),
    "clip on HAEPO's replay, learning rate 1e-3, KL 1": (
        "ppo",
        {**HAEPOS_REPLAY, "learning_rate": 1e-3, "kl_coef": 1.0},
    ),
}
"""Which of them keep what they have learned; PPO's default has a learning rate of 5e-4."""
