"""The devices and package versions that a run computes with, and what to say where a device gives up."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from importlib import metadata
from typing import Any

import jax

from haepo_jax.messages import one_line
from haepo_jax.runner.config import ConfigError
from haepo_jax.runner.errors import RunError

PACKAGES = (
    "jax", "jaxlib", "haepo_jax", "flax", "optax", "gymnax", "brax", "playground", "jumanji", "craftax", "pgx", "xminigrid",
)  # fmt: skip


def describe_device() -> str:
    """The devices of this process, such as `cpu` or `8 x gpu (NVIDIA H200)`. Where jax falls back to the CPU although there
    is an accelerator, it says so itself. Raises ConfigError where jax finds no device."""
    try:
        devices = jax.local_devices()
    except (RuntimeError, AssertionError) as error:  # the latter where JAX_PLATFORMS names what jax has no plugin for
        asked = os.environ.get("JAX_PLATFORMS")
        wish = f"JAX_PLATFORMS={one_line(asked, 40)}: " if asked else ""
        reason = one_line(str(error), 200) or "this platform is missing here, or jax is installed without its plugin"
        raise ConfigError(f"{wish}jax finds no device to run on: {reason}") from None
    platform, kind = devices[0].platform, devices[0].device_kind
    text = platform if kind == platform else f"{platform} ({kind})"
    return f"{len(devices)} x {text}" if len(devices) > 1 else text


@contextlib.contextmanager
def device_errors(advice: str) -> Iterator[None]:
    """A device that is out of memory ends a run in one line, with advice; raises RunError."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        detail = one_line(str(error), 160)
        raise RunError(f"the device is out of memory: {advice} ({detail})") from None


def versions() -> dict[str, str | None]:
    """Of this library and of those that a run may rest on, None where one is not installed; and jax's generator of random
    numbers."""
    settings: Any = jax.config
    return {name: _version(name) for name in PACKAGES} | {"prng": settings.jax_default_prng_impl}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "source" if package == "haepo_jax" else None
