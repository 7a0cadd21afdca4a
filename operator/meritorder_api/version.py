"""The version of this distribution: printed by `--version`, and told by agents and metrics."""

from importlib.metadata import PackageNotFoundError, version


def own_version() -> str:
    """The version as installed; `0+unknown` where it runs from a checkout that is not."""
    try:
        return version("meritorder")
    except PackageNotFoundError:
        return "0+unknown"
