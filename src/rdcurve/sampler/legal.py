"""Checks of single settings: an error names the setting, the value found and what is legal."""

from __future__ import annotations

from typing import Any

__all__ = ["check_count", "check_number"]


def check_count(name: str, value: Any, least: int = 1) -> None:
    """Raises: TypeError: not an integer. ValueError: less than `least`."""
    if not hasattr(value, "__index__") or getattr(value, "ndim", 0):
        raise TypeError(f"{name} must be an integer, {least} or more, not {value!r}")
    if value < least:
        raise ValueError(f"{name} must be {least} or more, not {value}")


def check_number(name: str, value: Any) -> None:
    """Raises: TypeError: not a real number."""
    if not hasattr(value, "__float__") or getattr(value, "ndim", 0):
        raise TypeError(f"{name} must be a number, not {value!r}")
