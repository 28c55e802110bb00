"""A pytest plugin that keeps the id of the test that runs, or of the file that cannot be collected, in a file.

When pytest stops at its first failure, crashes or is killed, that is the test to blame.
"""

import os
from pathlib import Path

VARIABLE = "BREAKS_CURRENT_TEST"
"""Environment variable with the path of the file."""


def pytest_runtest_logstart(nodeid):
    _note(nodeid)


def pytest_collectreport(report):
    if report.failed:
        _note(report.nodeid)


def _note(nodeid):
    Path(os.environ[VARIABLE]).write_text(nodeid, encoding="utf-8")
