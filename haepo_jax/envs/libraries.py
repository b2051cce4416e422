"""Shared parts of the adapters: importing optional libraries, and the base class of their environments."""

import abc
import contextlib
import dataclasses
import functools
import importlib
import warnings
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from haepo_jax.envs.base import Array, PyTree, Replaceable, TimeStep, finish_step, static_field, strongly_typed
from haepo_jax.envs.kwargs import check_range, check_type
from haepo_jax.envs.names import LIBRARIES
from haepo_jax.messages import first_line, short

_CONFIG: Any = jax.config  # its flags are untyped


@dataclasses.dataclass(frozen=True, eq=False)
class LibraryEnvironment(Replaceable, abc.ABC):
    """Base class of the adapters; subclasses define `_reset` and `_step` in the dtypes of the library.

    Its leaves are `params`, so `env.replace(params=...)` can be vmapped. `horizon` is fixed at construction: params
    with a smaller limit shorten episodes, a larger one has no effect. The library always computes in 32 bits,
    regardless of `jax_enable_x64`: no library is tested with 64 bits, and several fail.
    """

    params: Any
    inner: Any = static_field()
    name: str = static_field()
    horizon: int = static_field()
    observation_space: Any = static_field()
    action_space: Any = static_field()

    def reset(self, key: Array) -> tuple[PyTree, PyTree]:
        """Starts an episode; returns (state, observation)."""
        with tracing():
            return strongly_typed(self._reset(key))

    def step(self, key: Array, state: PyTree, action: Array) -> TimeStep:
        """One step, without the library's auto-reset."""
        with tracing():
            if hasattr(self.action_space, "dtype"):
                action = jnp.asarray(action, self.action_space.dtype)
            return finish_step(self.name, state, *self._step(key, state, action))

    @abc.abstractmethod
    def _reset(self, key: Array) -> tuple[PyTree, PyTree]:
        """Returns (state, observation)."""

    @abc.abstractmethod
    def _step(self, key: Array, state: Any, action: Array) -> tuple[PyTree, PyTree, Any, Any, Any]:
        """Returns (state, observation, reward, terminated, truncated); both flags may be true."""


def load(name: str, library: str, module: str) -> Any:
    """Imports `module`, required by the environment `name`, `<prefix>/<task>`.

    Raises:
        ImportError: it, or one of its dependencies, is not installed; the message names what to install.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        absent = (error.name or module).partition(".")[0]
        prefix = name.partition("/")[0] if "/" in name else "gymnax"
        raise ImportError(
            f"{name} requires {library}, but {absent} is not installed: pip install {LIBRARIES[prefix].extra}"
        ) from error


@functools.cache
def make(library: Any, task: str) -> Any:
    """Returns `library.make(task)`, cached because JAX's caches compare environment objects by identity."""
    return library.make(task)


@contextlib.contextmanager
def library_errors(name: str, settings: dict[str, Any]) -> Iterator[None]:
    """Converts any exception of a library to a one-line ValueError that names the settings."""
    try:
        yield
    except Exception as error:
        if not settings:
            raise
        raise ValueError(f"{name} cannot be built with {short(settings)}: {first_line(error)}") from error


def check_horizon(name: str, setting: str, value: Any) -> int:
    """Returns `value` if it is a valid time limit; raises ValueError or TypeError otherwise."""
    check_type(f"{name}: {setting}", value, 1)
    check_range(f"{name}: {setting}", value, 1)
    return int(value)


def x64_enabled() -> bool:
    """Whether JAX creates 64-bit arrays by default."""
    return bool(_CONFIG.jax_enable_x64)


def in_32_bits() -> contextlib.AbstractContextManager[Any]:
    """A context with JAX's 32-bit default dtypes, regardless of `jax_enable_x64`."""
    return jax.enable_x64(False) if x64_enabled() else contextlib.nullcontext()


@contextlib.contextmanager
def usual_promotion() -> Iterator[None]:
    """A context with JAX's default promotion rules: the libraries are not written for the strict ones."""
    with contextlib.ExitStack() as stack:
        if _CONFIG.jax_numpy_dtype_promotion != "standard":
            stack.enter_context(jax.numpy_dtype_promotion("standard"))
        if _CONFIG.jax_numpy_rank_promotion != "allow":
            stack.enter_context(jax.numpy_rank_promotion("allow"))
        yield


@contextlib.contextmanager
def tracing() -> Iterator[None]:
    """A context for tracing library code: 32 bits, default promotion, no warnings about its dtypes and names."""
    with in_32_bits(), usual_promotion(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="scatter inputs have incompatible types", category=FutureWarning)
        warnings.filterwarnings("ignore", message="Explicitly requested dtype", category=UserWarning)
        # Brax accesses MuJoCo's data by deprecated names.
        warnings.simplefilter("ignore", DeprecationWarning)
        yield
