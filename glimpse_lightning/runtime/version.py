"""The installed version of the package."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("glimpse-lightning")
except PackageNotFoundError:  # a checkout that was not installed
    __version__ = "0+unknown"
