"""The version of this package."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

PACKAGE = "parakeet-server"


def package_version() -> str:
    """Return the installed version; `unknown` in a tree that is not installed."""
    try:
        return version(PACKAGE)
    except PackageNotFoundError:
        return "unknown"
