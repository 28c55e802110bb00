"""Ctrl-C as a KeyboardInterrupt that is not lost.

Python runs a signal's handler at whatever line the main thread has reached. If that line belongs to a finalizer, to a
callback of the garbage collector or to one that C++ calls, what the handler raises is ignored, and the command would go
on. The exception is then gone, which a weak reference shows, and the signal is sent again.
"""

import signal
import sys
import threading
import weakref
from types import FrameType
from typing import Any

SECONDS = 0.1
"""After which a KeyboardInterrupt that nobody holds is taken to be lost."""


class Interrupted(KeyboardInterrupt):
    """Python's own class cannot be referred to weakly."""


_timers: list[threading.Timer] = []


def install() -> None:
    """Handles SIGINT, if that is not ignored or handled otherwise. To be called in the main thread."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _handle)
        sys.unraisablehook = _report_ignored


def caught() -> None:
    """Tells that the KeyboardInterrupt has come where it ends the command: it is not repeated."""
    for timer in _timers:
        timer.cancel()
        timer.join()


def _handle(number: int, frame: FrameType | None) -> None:
    error = Interrupted()
    timer = threading.Timer(SECONDS, _repeat_if_lost, [weakref.ref(error)])
    timer.daemon = True
    _timers.append(timer)
    timer.start()
    try:
        raise error
    finally:
        del error  # else this frame, which the traceback holds, would keep it


def _repeat_if_lost(error: weakref.ref) -> None:
    main = threading.main_thread().ident
    if error() is None and main is not None:
        signal.pthread_kill(main, signal.SIGINT)


def _report_ignored(ignored: Any) -> None:
    """As Python does, but for what is raised again anyhow."""
    if not isinstance(ignored.exc_value, Interrupted):
        sys.__unraisablehook__(ignored)
