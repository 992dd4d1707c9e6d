"""Another name of :mod:`phicalc.workflows.md.log`, for older scripts."""

from phicalc.workflows.md.log import read_log

__all__ = ["read_log"]
