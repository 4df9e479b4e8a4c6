"""Metrics about Gunicorn itself.

Counted by the process in which the thing happens, never in signal context.
"""

from __future__ import annotations

import functools

from prometheus_client import Counter

__all__ = ["count_hook_failure"]


@functools.cache
def _hook_failures() -> Counter:
    # Made when it is first needed, so that it never exists before the value class is installed.
    return Counter(
        "gunicorn_hook_failures",
        "Exceptions in overridden server hooks that were contained.",
        ["hook"],
        registry=None,  # shared by file; an application may have a metric of this name
    )


def count_hook_failure(hook: str) -> None:
    """Count an exception that was contained; not for signal context.

    Args:
        hook: The name of the server hook.
    """
    _hook_failures().labels(hook).inc()
