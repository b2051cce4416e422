"""What the adapters share: importing libraries that may be missing, and building their environments."""

import contextlib
import importlib
import warnings
from collections.abc import Iterator
from typing import Any

from haepo_jax.envs.settings import check_type
from haepo_jax.messages import short


def load(name: str, library: str, module: str, extra: str) -> Any:
    """Import `module`, which the environment `name` needs.

    Raises:
        ImportError: it, or something that it needs, is not installed; the extra that brings it is named.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ImportError(
            f"{name} needs {library}, and {error.name} is not installed: pip install 'haepo_jax[{extra}]'"
        ) from error


@contextlib.contextmanager
def building(name: str, settings: dict[str, Any]) -> Iterator[None]:
    """Whatever a library raises over settings becomes a ValueError of one line that names them."""
    try:
        yield
    except Exception as error:
        if not settings:
            raise
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ValueError(f"{name} cannot be built with {short(settings)}: {reason}") from error


def check_horizon(name: str, setting: str, value: Any) -> int:
    """`value`, where it is a time limit that an environment can have; raises ValueError or TypeError."""
    check_type(f"{name}: {setting}", value, 1)
    if value < 1:
        raise ValueError(f"{name}: {setting} must be at least 1, got {value}")
    return int(value)


@contextlib.contextmanager
def quiet_types() -> Iterator[None]:
    """Silence what the type conversions of gymnax 0.0.9 and of Jumanji make JAX warn of, once per trace."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="scatter inputs have incompatible types", category=FutureWarning)
        warnings.filterwarnings("ignore", message="Explicitly requested dtype", category=UserWarning)
        yield
