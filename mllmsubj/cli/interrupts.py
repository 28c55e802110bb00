"""Ctrl-C as a KeyboardInterrupt that is not lost.

Python runs a signal's handler at whatever line the main thread has reached. If that line belongs to a finalizer, to a
callback of the garbage collector or to one that C++ calls, what the handler raises is ignored, and the command would go
on. The exception is then gone, which a weak reference shows, and the signal is sent again.
"""

import signal
import sys
import threading
import weakref
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any

SECONDS = 0.1
"""Between two looks whether a KeyboardInterrupt still exists."""


class Interrupted(KeyboardInterrupt):
    """Python's own class cannot be referred to weakly."""


_ended = threading.Event()
_watchers: list[threading.Thread] = []


def install() -> None:
    """Handles SIGINT, if that is not ignored or handled otherwise. To be called in the main thread."""
    _ended.clear()
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _handle)
        sys.unraisablehook = partial(_report_ignored, sys.unraisablehook)


def end() -> None:
    """Nothing is repeated from now on: the command has ended."""
    _ended.set()
    while _watchers:
        _watchers.pop().join()


def _handle(number: int, frame: FrameType | None) -> None:
    error = Interrupted()
    watcher = threading.Thread(target=_repeat_if_lost, args=[weakref.ref(error)], daemon=True)
    _watchers.append(watcher)
    watcher.start()
    try:
        raise error
    finally:
        del error  # else this frame, which the traceback holds, would keep it


def _repeat_if_lost(error: weakref.ref[Any]) -> None:
    main = threading.main_thread().ident
    while not _ended.wait(SECONDS):
        if error() is None and main is not None:
            signal.pthread_kill(main, signal.SIGINT)
            return


def _report_ignored(report: Callable[[Any], object], ignored: Any) -> None:
    """Reports as before, but for what is raised again anyhow."""
    if not isinstance(ignored.exc_value, Interrupted):
        report(ignored)
