"""The version of the distribution, its only copy (pyproject.toml reads it)."""

__version__ = "0.1.0"
