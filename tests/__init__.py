"""Tests; they mirror the package, and import what they share as `tests.<module>`."""
