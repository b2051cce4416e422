"""Argument checks of the losses; each error names the function, the argument, the value and what is expected."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from haepo_jax.losses.numerics import accumulate, select
from haepo_jax.messages import did_you_mean


@dataclasses.dataclass(frozen=True)
class Checks:
    """Argument checks of one public function; error messages start with its name, ``function``.

    Only shapes, dtypes and Python numbers are inspected, so every check also works on tracers under ``jit`` and
    ``vmap``. An unsupported dtype raises TypeError, anything else ValueError.
    """

    function: str

    def floats(
        self,
        name: str,
        value: ArrayLike,
        shape: tuple[int, ...] | None = None,
        *,
        like: str = "",
        min_ndim: int = 0,
        integers: Any = None,
    ) -> jax.Array:
        """Returns ``value`` in at least float32; rejects empty axes and, if ``shape`` is given, any other shape.

        ``like`` describes ``shape`` in the error message. ``integers`` is the dtype that integers and booleans are cast
        to (returns, rewards); with None they are rejected (log-probabilities).
        """
        array = self._array(name, value)
        kinds = (jnp.floating, jnp.integer, jnp.bool_) if integers is not None else (jnp.floating,)
        if not any(jnp.issubdtype(array.dtype, kind) for kind in kinds):
            wanted = "floating point" if integers is None else "real numbers"
            raise TypeError(f"{self.function}: {name} must be {wanted}, got dtype {array.dtype}")
        self._shape(name, array, shape, like)
        if array.ndim < min_ndim:
            axes = "axis" if min_ndim == 1 else "axes"
            raise ValueError(f"{self.function}: {name} must have at least {min_ndim} {axes}, got shape {array.shape}")
        if 0 in array.shape:
            raise ValueError(f"{self.function}: {name} must not have an empty axis, got shape {array.shape}")
        return array.astype(integers) if not jnp.issubdtype(array.dtype, jnp.floating) else accumulate(array)

    def constant(self, name: str, value: ArrayLike, valid: jax.Array, *, like: str, integers: Any = None) -> jax.Array:
        """Like ``floats``, of the shape of ``valid``; 0 where that is false, and with its gradient stopped."""
        array = self.floats(name, value, valid.shape, like=like, integers=integers)
        return jax.lax.stop_gradient(select(valid, array))

    def mask(self, name: str, value: ArrayLike | None, shape: tuple[int, ...], *, like: str) -> jax.Array:
        """Returns a bool array of ``shape``: ``value != 0``, or all True for ``None``."""
        if value is None:
            return jnp.ones(shape, bool)
        array = self._array(name, value)
        if not any(jnp.issubdtype(array.dtype, kind) for kind in (jnp.bool_, jnp.integer, jnp.floating)):
            raise TypeError(f"{self.function}: {name} must be bool, or 0 and 1, got dtype {array.dtype}")
        self._shape(name, array, shape, like)
        # Strict promotion does not compare a bool with 0.
        return (array.astype(jnp.int32) if array.dtype == jnp.bool_ else array) != 0

    def option(self, name: str, value: object, options: tuple[str, ...]) -> None:
        """Rejects an unknown string option and suggests the closest known one."""
        if isinstance(value, str) and value in options:
            return
        known = ", ".join(map(repr, options))
        raise ValueError(f"{self.function}: {name} must be one of {known}, got {value!r}{did_you_mean(value, options)}")

    def number(
        self,
        name: str,
        value: ArrayLike,
        *,
        low: float = -np.inf,
        high: float = np.inf,
        open_low: bool = False,
        shape: tuple[int, ...] = (),
    ) -> jax.Array:
        """Returns a hyperparameter with its gradient stopped, after checking the range of a Python number.

        Arrays and tracers must broadcast to ``shape``; their values are not checked, since that would break ``jit``.
        """
        array = self.broadcastable(name, value, shape)
        if isinstance(value, (int, float, np.number)):
            number = float(value)
            if not low <= number <= high or np.isinf(number) or (open_low and number == low):
                least = f"above {low:g}" if open_low else f"at least {low:g}"
                bounds = [least] if low > -np.inf else []
                bounds += [f"at most {high:g}"] if high < np.inf else []
                raise ValueError(f"{self.function}: {name} must be {' and '.join(bounds) or 'finite'}, got {value!r}")
        return jax.lax.stop_gradient(array)

    def broadcastable(self, name: str, value: ArrayLike, shape: tuple[int, ...]) -> jax.Array:
        """Returns real numbers as floating point; rejects arrays that do not broadcast to ``shape``."""
        array = self._array(name, value)
        if jnp.issubdtype(array.dtype, jnp.integer):
            # A Python int stays weakly typed as a float, so that it does not set the dtype of the loss.
            array = jnp.asarray(float(value)) if isinstance(value, int) else array.astype(jnp.result_type(float))
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise TypeError(f"{self.function}: {name} must be real numbers, got dtype {array.dtype}")
        try:
            fits = jnp.broadcast_shapes(array.shape, shape) == shape
        except ValueError:
            fits = False
        if not fits:
            wanted = f"broadcast to shape {shape}" if shape else "be a scalar"
            raise ValueError(f"{self.function}: {name} must {wanted}, got shape {array.shape}")
        return array

    def average(
        self,
        name: str,
        value: ArrayLike,
        shape: tuple[int, ...],
        dtype: jnp.dtype,
        *,
        whole: bool = False,
        like: str = "",
    ) -> jax.Array:
        """Returns an entropy or a divergence, to be averaged by the loss, as an array of ``shape``.

        A Python number is cast to ``dtype``. With ``whole`` an array must have exactly ``shape`` (described by
        ``like``): broadcasting a smaller one would hide a mistake.
        """
        array = self.broadcastable(name, value, shape)
        if whole and array.ndim > 0:
            self._shape(name, array, shape, like)
        array = array.astype(dtype) if isinstance(value, (int, float)) else accumulate(array)
        return jnp.broadcast_to(array, shape)

    def _array(self, name: str, value: Any) -> jax.Array:
        if value is None or isinstance(value, (str, bytes)):
            raise TypeError(f"{self.function}: {name} must be an array or a number, got {value!r}")
        try:
            return jnp.asarray(value)
        except TypeError as error:
            dtype = getattr(value, "dtype", type(value).__name__)
            raise TypeError(f"{self.function}: {name} must be an array or a number, got dtype {dtype}") from error
        except ValueError as error:
            raise ValueError(f"{self.function}: {name} must be an array with one shape: {error}") from error

    def _shape(self, name: str, array: jax.Array, shape: tuple[int, ...] | None, like: str) -> None:
        if shape is not None and array.shape != shape:
            raise ValueError(f"{self.function}: {name} must have shape {shape}, {like}, got {array.shape}")
