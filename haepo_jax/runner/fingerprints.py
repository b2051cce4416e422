"""Text that tells one object from another and is the same in every process."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import os
import re
import sys
import sysconfig
import types
from collections.abc import Iterable, Iterator, Mapping, Set
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_LIBRARIES = tuple(sysconfig.get_path(name) + os.sep for name in ("stdlib", "purelib", "platlib"))
_METHODS: tuple[type, ...] = (types.FunctionType, property, classmethod, staticmethod, functools.cached_property)


def fingerprint(value: Any) -> str:
    """The name of a class or function, or that of an object's class, and a hash of the data in it, however deeply nested:
    attributes (also of the class, unless a library defines it), the bytes of arrays, and the numbers, defaults and closure of a
    function.

    The code of methods does not count, so that a fault in one can be corrected before a run is resumed.
    """
    hashed = hashlib.sha256()
    for part in _parts(value, ()):
        hashed.update(part + b"\0")
    return f"{qualified(value)} (contents {hashed.hexdigest()[:16]})"


def qualified(value: Any) -> str:
    """The module and name of a class or function, or of an object's class."""
    named = value if hasattr(value, "__qualname__") else type(value)
    return f"{named.__module__}.{named.__qualname__}"


def _parts(value: Any, outer: tuple[Any, ...]) -> Iterator[bytes]:
    """What a value consists of, in an order that does not depend on the process; `outer` are the objects that hold it."""
    if value is None or isinstance(value, bool | int | float | complex | str | bytes):
        yield f"{type(value).__name__} {value!r}".encode()
        return
    yield qualified(value).encode()
    if any(value is holder for holder in outer):  # an object that refers to itself
        return
    outer = (*outer, value)
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
            value = jax.random.key_data(value)  # type: ignore[arg-type]
        array = np.asarray(value)
        yield f"{array.dtype} {array.shape}".encode()
        if array.dtype == object:
            yield from _each(array.reshape(-1).tolist(), outer)
        else:
            yield array.tobytes()
    elif isinstance(value, Mapping):
        yield from _sorted(value.items(), outer)
    elif isinstance(value, Set):
        yield from _sorted(value, outer)
    elif isinstance(value, list | tuple):
        yield from _each(value, outer)
    elif isinstance(value, functools.partial):
        yield from _each((value.func, value.args, value.keywords), outer)
    elif isinstance(value, types.MethodType):
        yield from _each((value.__func__, value.__self__), outer)
    elif isinstance(value, types.FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or () if _is_filled(cell)]
        numbers = () if _is_of_a_library(value) else tuple(_numbers(value.__code__))
        yield from _each((numbers, value.__defaults__, value.__kwdefaults__, cells), outer)
    elif isinstance(value, types.ModuleType):
        yield value.__name__.encode()
    elif isinstance(value, type):
        yield from _parts(_class_attributes(value), outer)
    elif hasattr(value, "__wrapped__"):  # a function within jax.jit and the like
        yield from _parts(value.__wrapped__, outer)
    else:
        attributes = _attributes(value)
        if not attributes:
            yield re.sub(r" at 0x[0-9a-f]+", "", repr(value)).encode()
        yield from _each((_class_attributes(type(value)), attributes), outer)


def _each(values: Iterable[Any], outer: tuple[Any, ...]) -> Iterator[bytes]:
    for number, value in enumerate(values):
        yield f"{len(outer)} {number}".encode()
        yield from _parts(value, outer)


def _sorted(values: Iterable[Any], outer: tuple[Any, ...]) -> Iterator[bytes]:
    """A dict's items or a set's elements, whose order does not count."""
    yield from sorted(b"\0".join(_parts(value, outer)) for value in values)


def _attributes(value: Any) -> dict[str, Any]:
    """What an object itself holds, without what it caches."""
    slots = [name for kind in type(value).__mro__ for name in _as_list(vars(kind).get("__slots__", ()))]
    found = {name: getattr(value, name) for name in slots if name != "__weakref__" and hasattr(value, name)}
    found |= getattr(value, "__dict__", {})
    if dataclasses.is_dataclass(value):  # Flax numbers its modules in a private attribute
        fields = {field.name for field in dataclasses.fields(value)}
        found = {name: held for name, held in found.items() if name in fields or not name.startswith("_")}
    cached = functools.cached_property
    return {name: held for name, held in found.items() if not isinstance(getattr(type(value), name, None), cached)}


def _as_list(slots: Any) -> list[str]:
    return [slots] if isinstance(slots, str) else [*slots]


def _class_attributes(kind: type) -> dict[str, Any]:
    """The data in the body of a class and of those it inherits from; defaults of fields are the object's own."""
    fields = getattr(kind, "__dataclass_fields__", {})
    found: dict[str, Any] = {}
    for owner in reversed(kind.__mro__):
        for name, value in vars(owner).items() if not _is_of_a_library(owner) else ():
            hidden = name.startswith("_") or name in fields
            if not hidden and not isinstance(value, _METHODS) and not hasattr(value, "__set__"):
                found[name] = value
    return found


def _is_of_a_library(value: Any) -> bool:
    """Whether an installed library defines a class or function: its next version may have other numbers in it."""
    name = value.__module__ or ""
    file = getattr(sys.modules.get(name), "__file__", None)
    installed = file is not None and file.startswith(_LIBRARIES)
    return installed or name.partition(".")[0] in ("haepo_jax", *sys.builtin_module_names)


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
