"""The names of all environments, known without importing jax or any environment library.

A library's tasks are read off the text of its own registry, so that command lines answer `env=CartPol-v1` in
milliseconds; tests compare what is read with the registries themselves.
"""

import functools
import importlib.util
import re
import sys
from pathlib import Path
from typing import NamedTuple

from haepo_jax.messages import did_you_mean


class Library(NamedTuple):
    """Where a library lists its tasks.

    Attributes:
        package: the package to import.
        files: its registry, relative to the package.
        pattern: a task's name in a line of them, after which no comment precedes it.
        extra: what to install, as pip takes it.
    """

    package: str
    files: tuple[str, ...]
    pattern: str
    extra: str


LIBRARIES: dict[str, Library] = {
    "gymnax": Library("gymnax", ("registration.py",), r'^ +"([\w-]+)",$', "gymnax six"),
    "brax": Library("brax", ("envs/__init__.py",), r"^ +'(\w+)':", "brax"),
    "jumanji": Library("jumanji", ("__init__.py",), r'^[^#\n]*\bid="([\w-]+)"', "'haepo_jax[jumanji]'"),
    "craftax": Library(
        "craftax", ("craftax_env.py",), r'"(Craftax-(?:Classic-)?(?:Symbolic|Pixels)-v1)"', "'haepo_jax[craftax]'"
    ),
    "pgx": Library("pgx", ("core.py",), r'^ +"([\w-]+)",$', "'haepo_jax[pgx]'"),
    "xminigrid": Library("xminigrid", ("__init__.py",), r'^[^#\n]*\bid="([\w-]+)"', "'haepo_jax[xminigrid]'"),
    "playground": Library(
        "mujoco_playground",
        tuple(f"_src/{suite}/__init__.py" for suite in ("dm_control_suite", "locomotion", "manipulation")),
        r'^ +"(\w+)":',
        "'haepo_jax[playground]'",
    ),
}
"""Prefix -> the library behind it."""

HAEPO: tuple[str, ...] = ("bandit", "random_walk", "hidden_cartpole", "addition", "reverse", "countdown")

_DOWNLOADS = "is not served: it downloads its {} when it is built"
_AGENTS = "is not served: it pays a reward to each agent, and one is needed"
REFUSED: dict[str, str] = {
    "MNISTBandit-bsuite": _DOWNLOADS.format("data"),
    "jumanji/Sokoban-v0": _DOWNLOADS.format("levels"),
    "jumanji/Connector-v3": _AGENTS,
    "jumanji/LevelBasedForaging-v0": _AGENTS,
    "jumanji/SearchAndRescue-v0": _AGENTS,
    "jumanji/MultiCVRP-v0": "is not served: it has one action more than its mask of valid actions has entries",
    "pgx/bridge_bidding": "is not served: it needs results of double dummy play that have to be downloaded",
}
"""Tasks of the libraries that `make_env` does not serve by name, and why; see also `refusal`."""

_LIST_COMMAND = "python -c \"import haepo_jax as hx; print(*hx.list_envs(), sep='\\n')\""


def list_envs() -> list[str]:
    """Names that `make_env` accepts on this installation, without importing any environment library.

    gymnax tasks stand under their plain names, others as `brax/...`, `haepo/...` and, of the optional libraries that are
    installed, `jumanji/...` and so on.
    """
    names = [*_full_names("gymnax"), *_full_names("brax"), *(f"haepo/{name}" for name in HAEPO)]
    names += [name for prefix in LIBRARIES if prefix not in ("gymnax", "brax") for name in _full_names(prefix)]
    return [name for name in names if refusal(name) is None]


def resolve_name(name: str) -> str:
    """The canonical form of an environment's name: `gymnax/CartPole-v1` becomes `CartPole-v1`, others stay.

    Names of a library that is not installed are not checked; `make_env` says what to install.

    Raises:
        TypeError: `name` is no string.
        ValueError: no environment has that name (near matches among those installed are named), or it is not served.
    """
    if not isinstance(name, str):
        raise TypeError(f"an environment's name is a string, got {type(name).__name__}")
    canonical = name.removeprefix("gymnax/")
    reason = refusal(canonical)
    if reason is not None:
        raise ValueError(f"{canonical} {reason}")
    prefix = canonical.partition("/")[0] if "/" in canonical else "gymnax"
    if prefix in LIBRARIES and not is_installed(prefix):
        return canonical
    known = list_envs()
    if canonical in known or canonical in _registered_at_runtime():
        return canonical
    missing = [other for other in LIBRARIES if not is_installed(other)]
    others = f"; not installed: {', '.join(missing)}" if missing else ""
    raise ValueError(f"unknown environment {name!r}{did_you_mean(canonical, known, 3)} (list: {_LIST_COMMAND}{others})")


def refusal(name: str) -> str | None:
    """Why `make_env` does not serve a task of a library by name, or None."""
    if name.startswith("xminigrid/XLand-"):
        return "has no goal without a ruleset: give it one and pass it on as an object, hx.make_env((env, params))"
    return REFUSED.get(name)


def is_installed(prefix: str) -> bool:
    """Whether the library behind a prefix can be imported."""
    return importlib.util.find_spec(LIBRARIES[prefix].package) is not None


@functools.cache
def tasks_of(prefix: str) -> tuple[str, ...]:
    """The names in a library's registry, in its order, those not served included; empty where it is not installed."""
    library = LIBRARIES[prefix]
    spec = importlib.util.find_spec(library.package)
    found: list[str] = []
    for folder in (spec.submodule_search_locations if spec else None) or ():
        for file in library.files:
            path = Path(folder, file)
            if path.is_file():
                found += re.findall(library.pattern, path.read_text(encoding="utf-8"), re.MULTILINE)
    return tuple(dict.fromkeys(found))


def _full_names(prefix: str) -> list[str]:
    return [name if prefix == "gymnax" else f"{prefix}/{name}" for name in tasks_of(prefix)]


def _registered_at_runtime() -> list[str]:
    """Names that a user has added with `gymnax.register`, which needs gymnax imported."""
    return list(getattr(sys.modules.get("gymnax.registration"), "registered_envs", ()))
