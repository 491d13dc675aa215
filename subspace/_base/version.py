"""The version of this package."""

from importlib.metadata import PackageNotFoundError, version

try:
    VERSION = version("torch-subspace")
except PackageNotFoundError:  # a checkout on the path, not installed
    VERSION = "unknown"
