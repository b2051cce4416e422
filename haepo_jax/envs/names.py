"""The names of all environments, without importing JAX or any environment library.

The tasks of a library are parsed from the source of its registry, so that the command line rejects `env=CartPol-v1`
within milliseconds. Tests compare the parsed names with the registries.
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
        files: the source files of its registry, relative to the package.
        pattern: a regular expression for a task name in a line that is not commented out.
        extra: what to install, as an argument of pip.
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
"""Prefix -> library."""

HAEPO: tuple[str, ...] = ("bandit", "random_walk", "hidden_cartpole", "addition", "reverse", "countdown")

_DOWNLOADS = "is not supported: it downloads its {} on construction"
_AGENTS = "is not supported: it is multi-agent"
REFUSED: dict[str, str] = {
    "MNISTBandit-bsuite": _DOWNLOADS.format("data"),
    "jumanji/Sokoban-v0": _DOWNLOADS.format("levels"),
    "jumanji/Connector-v3": _AGENTS,
    "jumanji/LevelBasedForaging-v0": _AGENTS,
    "jumanji/SearchAndRescue-v0": _AGENTS,
    "jumanji/MultiCVRP-v0": "is not supported: it has one action more than its action mask has entries",
    "pgx/bridge_bidding": "is not supported: it requires double-dummy results that have to be downloaded",
}
"""Tasks that `make_env` does not support by name, and why; see also `refusal`."""

_LIST_COMMAND = "hx.list_envs() or python -m haepo_jax.train --list-envs"


def list_envs() -> list[str]:
    """The names that `make_env` accepts in this installation, without importing any environment library.

    gymnax tasks are listed by their plain names, others as `brax/...`, `haepo/...` and, for installed optional
    libraries, `jumanji/...` and so on.
    """
    names = [*_full_names("gymnax"), *_full_names("brax"), *(f"haepo/{name}" for name in HAEPO)]
    names += [name for prefix in LIBRARIES if prefix not in ("gymnax", "brax") for name in _full_names(prefix)]
    return [name for name in names if refusal(name) is None]


def resolve_name(name: str) -> str:
    """The canonical form of an environment name: `gymnax/CartPole-v1` becomes `CartPole-v1`, others are unchanged.

    Names of a library that is not installed are not checked; `make_env` then reports what to install.

    Raises:
        TypeError: `name` is not a string.
        ValueError: the environment does not exist (installed near matches are suggested), or it is not supported.
    """
    if not isinstance(name, str):
        raise TypeError(f"the name of an environment must be a string, got {type(name).__name__}")
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
    """Why `make_env` does not support a task by name, or None."""
    if name.startswith("xminigrid/XLand-"):
        return "requires a ruleset: pass the environment as an object with its params, hx.make_env((env, params))"
    return REFUSED.get(name)


def is_installed(prefix: str) -> bool:
    """Whether the library with this prefix is installed."""
    return importlib.util.find_spec(LIBRARIES[prefix].package) is not None


@functools.cache
def tasks_of(prefix: str) -> tuple[str, ...]:
    """All names in the registry of a library, in its order, also unsupported ones; empty if it is not installed."""
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
    """Names that the user has added with `gymnax.register`, if gymnax has been imported."""
    return list(getattr(sys.modules.get("gymnax.registration"), "registered_envs", ()))
