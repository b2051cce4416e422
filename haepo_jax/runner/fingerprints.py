"""Text that tells one object from another, and is the same in every process and after use."""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import functools
import hashlib
import os
import sys
import sysconfig
import types
from collections.abc import Iterator, Mapping, Set
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_LIBRARIES = tuple(sysconfig.get_path(name) + os.sep for name in ("stdlib", "purelib", "platlib"))

_DATA = (
    bool, int, float, complex, str, bytes, tuple, np.ndarray, np.generic, jax.Array, types.FunctionType, functools.partial
)  # fmt: skip


def fingerprint(value: Any) -> str:
    """The name of a class or function, or that of an object's class, and a hash of its contents.

    The contents are what would make another environment, network or schedule of it: attributes, fields and elements, however
    deeply nested; attributes of classes; arrays; and the numbers, defaults and closure of a function. They are not

    - the code of methods, so that a fault can be corrected before a run is resumed;
    - objects of libraries that are no dataclasses, containers or arrays: generators, loggers, viewers and models change with use;
    - private attributes that are None, a list, dict or set, or such an object, as caches are;
    - the last digits of JAX's floating-point arrays, which another processor computes differently.
    """
    with contextlib.suppress(Exception):  # an object may raise anything when it is read, a deep one RecursionError
        return f"{qualified(value)} (contents {_Digests().of(value).hex()[:16]})"
    return qualified(value)


def qualified(value: Any) -> str:
    """The module and name of a class or function, or of an object's class."""
    named = value if hasattr(value, "__qualname__") else type(value)
    return f"{getattr(named, '__module__', None)}.{named.__qualname__}"


class _Digests:
    """The digests of objects that refer to each other: each is read once."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[Any, bytes]] = {}  # by id, with the object, so that no other gets its id

    def of(self, value: Any) -> bytes:
        if value is None or isinstance(value, bool | int | float | complex | str | bytes):
            return hashlib.sha256(f"{type(value).__name__} {value!r}".encode()).digest()
        if id(value) not in self._known:
            self._known[id(value)] = value, b"an object that refers to itself"
            hashed = hashlib.sha256(qualified(value).encode())
            for part in self._parts(value):
                hashed.update(b"\0" + part)
            self._known[id(value)] = value, hashed.digest()
        return self._known[id(value)][1]

    def _parts(self, value: Any) -> Iterator[bytes]:
        kind = type(value)
        if isinstance(value, enum.Enum):
            yield value.name.encode()
        elif isinstance(value, os.PathLike):
            yield os.fsencode(value)
        elif isinstance(value, types.ModuleType):
            yield value.__name__.encode()
        elif isinstance(value, type):
            yield from self._each(_class_attributes(value))
        elif isinstance(value, np.ndarray | np.generic | jax.Array):
            yield from self._array(value)
        elif isinstance(value, functools.partial):
            yield from map(self.of, (value.func, value.args, value.keywords))
        elif isinstance(value, types.MethodType):
            yield from map(self.of, (value.__func__, value.__self__))
        elif isinstance(value, types.FunctionType):
            cells = [cell.cell_contents for cell in value.__closure__ or () if _is_filled(cell)]
            numbers = () if _is_of_a_library(value) else tuple(_numbers(value.__code__))
            yield from map(self.of, (numbers, value.__defaults__, value.__kwdefaults__, cells))
        elif hasattr(value, "__wrapped__"):  # a function within jax.jit and the like
            yield self.of(value.__wrapped__)
        elif isinstance(value, Mapping):
            yield from sorted(self.of(item) for item in value.items())
            yield self.of(kind)
        elif isinstance(value, Set):
            yield from sorted(map(self.of, value))
        elif isinstance(value, list | tuple):
            yield from map(self.of, value)
            yield self.of(kind)
        elif dataclasses.is_dataclass(value) or not _is_of_a_library(kind):
            yield from self._each(_attributes(value))
            yield self.of(kind)
        elif hasattr(value, "__array__"):  # a table of pandas
            yield from self._array(np.asarray(value))

    def _each(self, attributes: Mapping[str, Any]) -> Iterator[bytes]:
        for name in sorted(attributes):
            yield name.encode()
            yield self.of(attributes[name])

    def _array(self, value: Any) -> Iterator[bytes]:
        is_computed = isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jnp.floating)
        if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
            value = jax.random.key_data(value)
        array = np.asarray(value)
        yield f"{array.dtype} {array.shape}".encode()
        if array.dtype == object:
            yield from map(self.of, array.reshape(-1).tolist())
        elif is_computed:
            flat = array.reshape(-1).astype(np.float64)
            if not (finite := np.isfinite(flat)).all():
                yield np.where(finite, 0, flat).tobytes()
                flat = np.where(finite, flat, 0)
            size = np.linalg.norm(flat)
            # Any other array of this size has another projection onto a random direction, by more than rounding.
            projection = flat @ np.random.default_rng(0).standard_normal(flat.size) / (size or 1)
            yield f"{size:.3g} {projection:.3f}".encode()
        else:
            yield array.tobytes()


def _attributes(value: Any) -> dict[str, Any]:
    """What an object itself holds, without what it caches. Of a dataclass, private attributes that are no fields are not part:
    Flax numbers its modules in one."""
    fields = getattr(value, "__dataclass_fields__", {})
    names = [*fields]
    for owner in type(value).__mro__:
        slots = vars(owner).get("__slots__", ())
        names += [slots] if isinstance(slots, str) else slots
    found = {name: getattr(value, name) for name in names if name != "__weakref__" and hasattr(value, name)}
    for name, held in getattr(value, "__dict__", {}).items():
        is_cache = isinstance(getattr(type(value), name, None), functools.cached_property)
        is_data = isinstance(held, _DATA) or dataclasses.is_dataclass(held) or not _is_of_a_library(type(held))
        is_private = name.startswith("_") and (bool(fields) or not is_data)
        if name in fields or not (is_cache or is_private):
            found[name] = held
    return found


def _class_attributes(kind: type) -> dict[str, Any]:
    """The data in the body of a class and of those it inherits from; defaults of fields are the object's own."""
    fields = getattr(kind, "__dataclass_fields__", {})
    found: dict[str, Any] = {}
    for owner in reversed(kind.__mro__):
        for name, value in vars(owner).items() if not _is_of_a_library(owner) else ():
            is_method = callable(value) or hasattr(value, "__get__") or isinstance(value, functools.partialmethod)
            if not name.startswith("_") and name not in fields and not is_method:
                found[name] = value
    return found


def _is_of_a_library(value: Any) -> bool:
    """Whether an installed library defines a class or function: its next version may have other numbers in it."""
    name = getattr(value, "__module__", None) or ""
    file = getattr(sys.modules.get(name), "__file__", None)
    installed = file is not None and file.startswith(_LIBRARIES)
    return installed or name.partition(".")[0] in ("", "haepo_jax", *sys.builtin_module_names)


def _numbers(code: types.CodeType) -> Iterator[Any]:
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _numbers(constant)
        elif isinstance(constant, int | float | complex | tuple):
            yield constant


def _is_filled(cell: types.CellType) -> bool:
    with contextlib.suppress(ValueError):
        return cell.cell_contents is not cell
    return False
