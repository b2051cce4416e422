"""The names of all environments, known without importing jax, gymnax or Brax.

Command lines answer `env=CartPol-v1` from here in milliseconds; a test keeps the tables equal to the libraries' own
registries.
"""

import importlib.util
import sys
from pathlib import Path

from haepo_jax.messages import did_you_mean

GYMNAX: tuple[str, ...] = (
    "CartPole-v1",
    "Pendulum-v1",
    "Acrobot-v1",
    "MountainCar-v0",
    "MountainCarContinuous-v0",
    "Asterix-MinAtar",
    "Breakout-MinAtar",
    "Freeway-MinAtar",
    "Seaquest-MinAtar",
    "SpaceInvaders-MinAtar",
    "Catch-bsuite",
    "DeepSea-bsuite",
    "MemoryChain-bsuite",
    "UmbrellaChain-bsuite",
    "DiscountingChain-bsuite",
    "SimpleBandit-bsuite",
    "FourRooms-misc",
    "MetaMaze-misc",
    "PointRobot-misc",
    "BernoulliBandit-misc",
    "GaussianBandit-misc",
    "Reacher-misc",
    "Swimmer-misc",
    "Pong-misc",
    "FrozenLake-misc",
)
# Absent from gymnax 0.0.9.
GYMNAX_1_ONLY: tuple[str, ...] = ("Seaquest-MinAtar", "FrozenLake-misc")

BRAX: tuple[str, ...] = (
    "ant",
    "fast",
    "halfcheetah",
    "hopper",
    "humanoid",
    "humanoidstandup",
    "inverted_pendulum",
    "inverted_double_pendulum",
    "pusher",
    "reacher",
    "swimmer",
    "walker2d",
)

HAEPO: tuple[str, ...] = ("bandit", "random_walk", "hidden_cartpole", "addition", "reverse", "countdown")

PLAYGROUND: tuple[str, ...] = (
    "AcrobotSwingup",
    "AcrobotSwingupSparse",
    "BallInCup",
    "CartpoleBalance",
    "CartpoleBalanceSparse",
    "CartpoleSwingup",
    "CartpoleSwingupSparse",
    "CheetahRun",
    "FingerSpin",
    "FingerTurnEasy",
    "FingerTurnHard",
    "FishSwim",
    "HopperHop",
    "HopperStand",
    "HumanoidStand",
    "HumanoidWalk",
    "HumanoidRun",
    "PendulumSwingup",
    "PointMass",
    "ReacherEasy",
    "ReacherHard",
    "SwimmerSwimmer6",
    "WalkerRun",
    "WalkerStand",
    "WalkerWalk",
    "ApolloJoystickFlatTerrain",
    "BarkourJoystick",
    "BerkeleyHumanoidJoystickFlatTerrain",
    "BerkeleyHumanoidJoystickRoughTerrain",
    "G1JoystickFlatTerrain",
    "G1JoystickRoughTerrain",
    "Go1JoystickFlatTerrain",
    "Go1JoystickRoughTerrain",
    "Go1Getup",
    "Go1Handstand",
    "Go1Footstand",
    "H1InplaceGaitTracking",
    "H1JoystickGaitTracking",
    "Op3Joystick",
    "SpotFlatTerrainJoystick",
    "SpotGetup",
    "SpotJoystickGaitTracking",
    "T1JoystickFlatTerrain",
    "T1JoystickRoughTerrain",
    "AlohaHandOver",
    "AlohaSinglePegInsertion",
    "PandaPickCube",
    "PandaPickCubeOrientation",
    "PandaPickCubeCartesian",
    "PandaOpenCabinet",
    "PandaRobotiqPushCube",
    "LeapCubeReorient",
    "LeapCubeRotateZAxis",
    "AeroCubeRotateZAxis",
)

JUMANJI: tuple[str, ...] = (
    "BinPack-v2",
    "CVRP-v1",
    "Cleaner-v0",
    "FlatPack-v0",
    "Game2048-v1",
    "GraphColoring-v1",
    "JobShop-v0",
    "Knapsack-v1",
    "MMST-v0",
    "Maze-v0",
    "Minesweeper-v0",
    "PacMan-v1",
    "RobotWarehouse-v0",
    "RubiksCube-partly-scrambled-v0",
    "RubiksCube-v0",
    "SlidingTilePuzzle-v0",
    "Snake-v1",
    "Sudoku-v0",
    "Sudoku-very-easy-v0",
    "TSP-v1",
    "Tetris-v0",
)

CRAFTAX: tuple[str, ...] = (
    "Craftax-Symbolic-v1",
    "Craftax-Pixels-v1",
    "Craftax-Classic-Symbolic-v1",
    "Craftax-Classic-Pixels-v1",
)

PGX: tuple[str, ...] = (
    "2048",
    "animal_shogi",
    "backgammon",
    "chess",
    "connect_four",
    "gardner_chess",
    "go_9x9",
    "go_19x19",
    "hex",
    "kuhn_poker",
    "leduc_holdem",
    "minatar-asterix",
    "minatar-breakout",
    "minatar-freeway",
    "minatar-seaquest",
    "minatar-space_invaders",
    "othello",
    "shogi",
    "sparrow_mahjong",
    "tic_tac_toe",
)

XMINIGRID: tuple[str, ...] = (
    "MiniGrid-BlockedUnlockPickUp",
    "MiniGrid-DoorKey-5x5",
    "MiniGrid-DoorKey-6x6",
    "MiniGrid-DoorKey-8x8",
    "MiniGrid-DoorKey-16x16",
    "MiniGrid-Empty-5x5",
    "MiniGrid-Empty-6x6",
    "MiniGrid-Empty-8x8",
    "MiniGrid-Empty-16x16",
    "MiniGrid-EmptyRandom-5x5",
    "MiniGrid-EmptyRandom-6x6",
    "MiniGrid-EmptyRandom-8x8",
    "MiniGrid-EmptyRandom-16x16",
    "MiniGrid-FourRooms",
    "MiniGrid-LockedRoom",
    "MiniGrid-MemoryS8",
    "MiniGrid-MemoryS16",
    "MiniGrid-MemoryS32",
    "MiniGrid-MemoryS64",
    "MiniGrid-MemoryS128",
    "MiniGrid-Playground",
    "MiniGrid-Unlock",
    "MiniGrid-UnlockPickUp",
)

OPTIONAL: dict[str, tuple[str, tuple[str, ...]]] = {
    "jumanji": ("jumanji", JUMANJI),
    "craftax": ("craftax", CRAFTAX),
    "pgx": ("pgx", PGX),
    "xminigrid": ("xminigrid", XMINIGRID),
    "playground": ("mujoco_playground", PLAYGROUND),
}
"""Prefix -> the package to import, and its tasks. The extra of `pyproject.toml` that brings it is named as the prefix."""

_NO_RULES = "has no goal without a ruleset: give it one and pass it on as an object, hx.make_env((env, params))"
REFUSED: dict[str, str] = {
    "MNISTBandit-bsuite": "is not served: it downloads its data when it is built",
    "jumanji/Sokoban-v0": "is not served: it downloads its levels when it is built",
    **{
        f"jumanji/{name}": "is not served: it pays a reward to each agent, and one is needed"
        for name in ("Connector-v3", "LevelBasedForaging-v0", "SearchAndRescue-v0")
    },
    "jumanji/MultiCVRP-v0": "is not served: it has one action more than its mask of valid actions has entries",
    "pgx/bridge_bidding": "is not served: it needs results of double dummy play that have to be downloaded",
    **{
        f"xminigrid/XLand-MiniGrid-{rooms}-{size}x{size}": _NO_RULES
        for rooms, sizes in {
            "R1": (9, 11, 13, 15, 17),
            "R2": (9, 11, 13, 15, 17),
            "R4": (9, 11, 13, 15, 17),
            "R6": (13, 17, 19),
            "R9": (16, 19, 25),
        }.items()
        for size in sizes
    },
}
"""Tasks of the libraries that `make_env` does not serve by name, and why."""

ALL: tuple[str, ...] = (
    *GYMNAX,
    *(f"brax/{name}" for name in BRAX),
    *(f"haepo/{name}" for name in HAEPO),
    *(f"{prefix}/{name}" for prefix, (_, tasks) in OPTIONAL.items() for name in tasks),
)

_LIST_COMMAND = "python -c \"import haepo_jax as hx; print(*hx.list_envs(), sep='\\n')\""


def list_envs() -> list[str]:
    """Names that `make_env` accepts on this installation, without importing any environment library.

    gymnax tasks stand under their plain names, others as `brax/...`, `haepo/...` and, of the libraries in `OPTIONAL`
    that are installed, `jumanji/...` and so on.
    """
    names: list[str] = []
    if _installed("gymnax"):
        modern = gymnax_is_modern()
        names += [name for name in GYMNAX if modern or name not in GYMNAX_1_ONLY]
    if _installed("brax"):
        names += [f"brax/{name}" for name in BRAX]
    names += [f"haepo/{name}" for name in HAEPO]
    for prefix, (package, tasks) in OPTIONAL.items():
        if _installed(package):
            names += [f"{prefix}/{name}" for name in tasks]
    return names


def resolve_name(name: str) -> str:
    """The canonical form of an environment's name: `gymnax/CartPole-v1` becomes `CartPole-v1`, others stay.

    Whether the library behind the name is installed is not asked here.

    Raises:
        TypeError: `name` is no string.
        ValueError: no environment has that name (the near matches are named), or it is one of `REFUSED`.
    """
    if not isinstance(name, str):
        raise TypeError(f"an environment's name is a string, got {type(name).__name__}")
    canonical = name.removeprefix("gymnax/")
    if canonical in REFUSED:
        raise ValueError(f"{canonical} {REFUSED[canonical]}")
    if canonical in ALL or canonical in _registered_at_runtime():
        return canonical
    raise ValueError(f"unknown environment {name!r}{did_you_mean(canonical, ALL, 3)} (list: {_LIST_COMMAND})")


def gymnax_is_modern() -> bool:
    """Whether the gymnax installed is 1.x, told by a module that came with it and without importing it."""
    spec = importlib.util.find_spec("gymnax")
    folders = spec.submodule_search_locations if spec else None
    return any((Path(folder) / "environments" / "misc" / "frozen_lake.py").is_file() for folder in folders or ())


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _registered_at_runtime() -> list[str]:
    """Names a user has added with `gymnax.register`, which needs gymnax imported."""
    registration = sys.modules.get("gymnax.registration")
    return [name for name in getattr(registration, "registered_envs", ()) if name not in REFUSED]
