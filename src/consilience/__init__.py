"""consilience: one transformer core, many sciences."""

__version__ = "0.1.0"
