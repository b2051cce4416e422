"""What the adapters share: importing libraries that may be missing, and the form of their environments."""

import abc
import contextlib
import dataclasses
import importlib
import warnings
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from haepo_jax.envs.base import Array, PyTree, Replaceable, TimeStep, finish_step, static_field, strongly_typed
from haepo_jax.envs.kwargs import check_type
from haepo_jax.envs.names import LIBRARIES
from haepo_jax.messages import short

_CONFIG: Any = jax.config  # whose flags are not typed


@dataclasses.dataclass(frozen=True, eq=False)
class LibraryEnvironment(Replaceable, abc.ABC):
    """The base of the adapters, which add `_reset` and `_step` in the library's own dtypes.

    Its leaves are `params`, so `env.replace(params=...)` vmaps. `horizon` is fixed when the environment is made: params with
    a smaller limit shorten episodes, a larger one does not lengthen them. The library computes in 32 bits, whatever
    `jax_enable_x64` says: none is tested in 64, and several do not run.
    """

    params: Any
    inner: Any = static_field()
    name: str = static_field()
    horizon: int = static_field()
    observation_space: Any = static_field()
    action_space: Any = static_field()

    def reset(self, key: Array) -> tuple[PyTree, PyTree]:
        """Start an episode: (state, observation)."""
        with tracing():
            return strongly_typed(self._reset(key))

    def step(self, key: Array, state: PyTree, action: Array) -> TimeStep:
        """One step without the library's automatic reset."""
        with tracing():
            if hasattr(self.action_space, "dtype"):
                action = jnp.asarray(action, self.action_space.dtype)
            return finish_step(self.name, state, *self._step(key, state, action))

    @abc.abstractmethod
    def _reset(self, key: Array) -> tuple[PyTree, PyTree]:
        """(state, observation)."""

    @abc.abstractmethod
    def _step(self, key: Array, state: Any, action: Array) -> tuple[PyTree, PyTree, Any, Any, Any]:
        """(state, observation, reward, terminated, truncated), the last of which may also hold where terminated does."""


def load(name: str, library: str, module: str) -> Any:
    """Import `module`, which the environment `name`, `<prefix>/<task>`, needs.

    Raises:
        ImportError: it, or something that it needs, is not installed; what to install is named.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        absent = (error.name or module).partition(".")[0]
        prefix = name.partition("/")[0] if "/" in name else "gymnax"
        raise ImportError(
            f"{name} needs {library}, and {absent} is not installed: pip install {LIBRARIES[prefix].extra}"
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


def x64_enabled() -> bool:
    """Whether jax makes 64-bit numbers where no dtype is given."""
    return bool(_CONFIG.jax_enable_x64)


def in_32_bits() -> contextlib.AbstractContextManager[Any]:
    """What is traced or computed inside has jax's default dtypes, whatever `jax_enable_x64` says."""
    return jax.enable_x64(False) if x64_enabled() else contextlib.nullcontext()


@contextlib.contextmanager
def usual_promotion() -> Iterator[None]:
    """No library promises to run under jax's stricter rules."""
    with contextlib.ExitStack() as stack:
        if _CONFIG.jax_numpy_dtype_promotion != "standard":
            stack.enter_context(jax.numpy_dtype_promotion("standard"))
        if _CONFIG.jax_numpy_rank_promotion != "allow":
            stack.enter_context(jax.numpy_rank_promotion("allow"))
        yield


@contextlib.contextmanager
def tracing() -> Iterator[None]:
    """The library's code runs in 32 bits, with jax's usual promotion, and without the warnings that its dtypes and names
    give, once per trace."""
    with in_32_bits(), usual_promotion(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="scatter inputs have incompatible types", category=FutureWarning)
        warnings.filterwarnings("ignore", message="Explicitly requested dtype", category=UserWarning)
        # Brax reads MuJoCo's data by names that MuJoCo warns it will drop.
        warnings.simplefilter("ignore", DeprecationWarning)
        yield
