"""The names of all environments, known without importing jax, gymnax or Brax.

Command lines answer `env=CartPol-v1` from here in milliseconds; a test keeps the tables equal to the libraries' own
registries.
"""

import difflib
import importlib.util
import sys
from pathlib import Path

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
# Its constructor downloads the MNIST images.
NEEDS_DOWNLOAD: tuple[str, ...] = ("MNISTBandit-bsuite",)

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

ALL: tuple[str, ...] = (
    *GYMNAX,
    *(f"brax/{name}" for name in BRAX),
    *(f"haepo/{name}" for name in HAEPO),
    *(f"playground/{name}" for name in PLAYGROUND),
)

_LIST_COMMAND = "python -c \"import haepo_jax as hx; print(*hx.list_envs(), sep='\\n')\""


def list_envs() -> list[str]:
    """Names that `make_env` accepts on this installation, without importing any environment library.

    gymnax tasks stand under their plain names, others as `brax/...`, `haepo/...` and, where the `playground` package is
    installed, `playground/...`.
    """
    names: list[str] = []
    if _installed("gymnax"):
        modern = gymnax_is_modern()
        names += [name for name in GYMNAX if modern or name not in GYMNAX_1_ONLY]
    if _installed("brax"):
        names += [f"brax/{name}" for name in BRAX]
    names += [f"haepo/{name}" for name in HAEPO]
    if _installed("mujoco_playground"):
        names += [f"playground/{name}" for name in PLAYGROUND]
    return names


def resolve_name(name: str) -> str:
    """The canonical form of an environment's name: `gymnax/CartPole-v1` becomes `CartPole-v1`, others stay.

    Whether the library behind the name is installed is not asked here.

    Raises:
        TypeError: `name` is no string.
        ValueError: no environment has that name (the near matches are named), or it needs a download.
    """
    if not isinstance(name, str):
        raise TypeError(f"an environment's name is a string, got {type(name).__name__}")
    canonical = name.removeprefix("gymnax/")
    if canonical in NEEDS_DOWNLOAD:
        raise ValueError(f"{canonical} is not served: it downloads its data when it is built")
    if canonical in ALL or canonical in _registered_at_runtime():
        return canonical
    matches = near_matches(canonical, ALL)
    hint = f"did you mean {' or '.join(map(repr, matches))}? " if matches else ""
    raise ValueError(f"unknown environment {name!r}; {hint}(list: {_LIST_COMMAND})")


def near_matches(word: str, choices: tuple[str, ...] | list[str], count: int = 3) -> list[str]:
    """At most `count` of `choices` that look like `word`, best first; case and missing ends are forgiven."""
    short_forms: dict[str, str] = {}
    for choice in choices:
        for form in (choice, choice.split("/")[-1], choice.split("/")[-1].split("-")[0]):
            short_forms.setdefault(form.lower(), choice)
    found = difflib.get_close_matches(word.lower(), short_forms, n=2 * count, cutoff=0.7)
    matches = [short_forms[form] for form in found]
    if len(word) >= 3:
        matches += [choice for choice in choices if word.lower() in choice.lower()]
    return list(dict.fromkeys(matches))[:count]


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
    return [name for name in getattr(registration, "registered_envs", ()) if name not in NEEDS_DOWNLOAD]
