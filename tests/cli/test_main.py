"""Interrupts and missing extras on the command line, in this process."""

import importlib.util
import os
import signal
import threading
import weakref

import pytest

from mllmsubj.cli import interrupts, main
from mllmsubj.errors import UserError


class Exited(BaseException):
    """Raised in place of `os._exit`."""


def exited(code):
    raise Exited(code)


def test_main_interrupt(monkeypatch, capsys):
    def run(argv):
        raise KeyboardInterrupt

    monkeypatch.setattr(main, "run", run)
    monkeypatch.setattr(os, "_exit", exited)
    with pytest.raises(Exited) as stopped:
        main.main(["mllmsubj"])
    assert stopped.value.args == (128 + signal.SIGINT,)
    assert capsys.readouterr().err == "mllmsubj: interrupted\n"


def test_need_train_extra_missing(monkeypatch):
    main.require_train_extra("training needs")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"^training needs the extra 'train': pip install 'mllmsubj\[train\]'$"):
        main.require_train_extra("training needs")


@pytest.fixture
def sigint(monkeypatch):
    """Installs Python's default SIGINT handler during a test."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    interrupts.end()
    signal.signal(signal.SIGINT, before)


def test_interrupts_install(sigint):
    interrupts.install()
    with pytest.raises(interrupts.Interrupted):
        signal.raise_signal(signal.SIGINT)


def test_interrupts_other_handler(sigint):
    """A handler other than Python's default one is not replaced."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    interrupts.install()
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_interrupts_lost_exception(sigint, monkeypatch):
    """SIGINT is sent again to the main thread once the exception is deleted, but not before."""
    sent = []
    monkeypatch.setattr(signal, "pthread_kill", lambda thread, number: sent.append((thread, number)))
    error = interrupts.Interrupted()
    there = weakref.ref(error)
    interrupts.install()
    watcher = threading.Thread(target=interrupts._repeat_if_lost, args=[there])
    watcher.start()
    watcher.join(3 * interrupts.CHECK_INTERVAL)
    assert watcher.is_alive()
    assert sent == []
    del error
    watcher.join(10)
    assert sent == [(threading.main_thread().ident, signal.SIGINT)]


def test_interrupts_report_ignored():
    """An ignored `Interrupted` is not reported; other ignored exceptions are."""
    reported = []

    class Ignored:
        exc_value = interrupts.Interrupted()

    interrupts._report_ignored(reported.append, Ignored)
    assert reported == []
    Ignored.exc_value = ValueError()
    interrupts._report_ignored(reported.append, Ignored)
    assert reported == [Ignored]
