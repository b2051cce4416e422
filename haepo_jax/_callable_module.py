"""Modules that are commands and functions by one name: `python -m haepo_jax.train` and `haepo_jax.train(...)`.

Importing a submodule puts it in the package under its name, where the function of that name would otherwise be, depending
on who imports what first. So the module is what that name always means, and it can be called.
"""

from __future__ import annotations

import importlib
import inspect
import sys
import types
from typing import Any


def make_callable(module: str, home: str, name: str) -> None:
    """Lets a module be called as the function `name` of the module `home`, which is imported then."""

    def function() -> Any:
        return getattr(importlib.import_module(home), name)

    class Callable(types.ModuleType):
        def __call__(self, *arguments: Any, **keywords: Any) -> Any:
            return function()(*arguments, **keywords)

        @property
        def __signature__(self) -> inspect.Signature:
            return inspect.signature(function())

    sys.modules[module].__class__ = Callable
