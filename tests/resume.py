"""A pytest plugin for long runs: tests that passed are not run again on the same tree (`pytest -p tests.resume`).

Their names are kept in `.pytest_cache/passed/` in a file named by the commit and the uncommitted changes, so that any
change starts anew.
"""

import hashlib
import subprocess
from pathlib import Path

import pytest

from tests.environment import ROOT


def tree_id(root: Path = ROOT) -> str:
    """12 hex digits that name the commit and all that differs from it, files that git does not know yet included."""

    def git(*words: str) -> bytes:
        return subprocess.run(["git", *words], cwd=root, capture_output=True, check=True).stdout

    new = git("ls-files", "--others", "--exclude-standard").decode().splitlines()
    parts = [git("rev-parse", "HEAD"), git("diff", "HEAD"), *((root / name).read_bytes() for name in new)]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:12]


class Resume:
    """Deselects the tests that passed before and, but in a worker, adds those that pass now to `record`."""

    def __init__(self, passed: frozenset[str], record: Path | None):
        self.passed, self.record = passed, record
        self.failed: set[str] = set()

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node) -> None:
        """A worker of pytest-xdist deselects what its starter does, whatever has been written since."""
        node.workerinput["passed"] = sorted(self.passed)

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        done = [item for item in items if item.nodeid in self.passed]
        if done:
            config.hook.pytest_deselected(items=done)
            items[:] = [item for item in items if item.nodeid not in self.passed]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A test has passed, or was skipped, when none of its phases failed; the teardown is the last."""
        if report.failed:
            self.failed.add(report.nodeid)
        elif self.record is not None and report.when == "teardown" and report.nodeid not in self.failed:
            with self.record.open("a") as file:
                file.write(f"{report.nodeid}\n")


def pytest_configure(config: pytest.Config) -> None:
    record = None
    if hasattr(config, "workerinput"):
        passed = config.workerinput["passed"]
    else:
        record = ROOT / ".pytest_cache" / "passed" / tree_id()
        record.parent.mkdir(parents=True, exist_ok=True)
        passed = record.read_text().splitlines() if record.is_file() else []
    config.pluginmanager.register(Resume(frozenset(passed), record), "resume")


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Nothing left to run is a success."""
    if exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED and session.config.pluginmanager.get_plugin("resume").passed:
        session.exitstatus = pytest.ExitCode.OK
