"""Signals that are to be left alone for a moment."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def ignored(number: signal.Signals) -> Iterator[None]:
    """Ignore a signal; processes started meanwhile ignore it for good (as exec keeps ignored signals)."""
    if threading.current_thread() is not threading.main_thread():  # Python sets handlers in the main thread only
        yield
        return
    before = signal.signal(number, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(number, before)
