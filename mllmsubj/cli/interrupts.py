"""Handling of Ctrl-C that does not lose the KeyboardInterrupt.

Python runs a signal's handler at whatever line the main thread has reached. If that line belongs to a finalizer, to a
callback of the garbage collector or to one that C++ calls, the handler's exception is ignored, and the command would
continue. A weak reference to the exception is then dead, and the signal is sent again.
"""

import signal
import sys
import threading
import weakref
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any

CHECK_INTERVAL = 0.1
"""Interval between checks whether a KeyboardInterrupt still exists."""


class Interrupted(KeyboardInterrupt):
    """A KeyboardInterrupt that, unlike Python's own class, supports weak references."""


_ended = threading.Event()
_watchers: list[threading.Thread] = []


def install() -> None:
    """Handles SIGINT, unless it is ignored or has another handler. Must be called in the main thread."""
    _ended.clear()
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _handle)
        sys.unraisablehook = partial(_report_ignored, sys.unraisablehook)


def end() -> None:
    """Stops repeating signals, since the command has ended."""
    _ended.set()
    while _watchers:
        _watchers.pop().join()


def _handle(_number: int, _frame: FrameType | None) -> None:
    error = Interrupted()
    watcher = threading.Thread(target=_repeat_if_lost, args=[weakref.ref(error)], daemon=True)
    _watchers.append(watcher)
    watcher.start()
    try:
        raise error
    finally:
        del error  # the traceback refers to this frame, which would keep the exception alive


def _repeat_if_lost(error: weakref.ref[Any]) -> None:
    main = threading.main_thread().ident
    while not _ended.wait(CHECK_INTERVAL):
        if error() is None and main is not None:
            signal.pthread_kill(main, signal.SIGINT)
            return


def _report_ignored(report: Callable[[Any], object], ignored: Any) -> None:
    """Reports ignored exceptions as before, except for those that are raised again."""
    if not isinstance(ignored.exc_value, Interrupted):
        report(ignored)
