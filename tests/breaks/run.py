"""Runs the quick tests on every deliberate break, the nearest tests first, and says which breaks no test notices.

    python -m tests.breaks.run [--only=NAME …] [--jobs=2] [--no-baseline]
    python -m tests.breaks.run --list

Each break is made in a copy of the working tree, in the temporary folder. A test that fails there catches the break if
it passes in a copy without it; otherwise the tests go on without that test. Exit code 1 unless every break is caught.
"""

import argparse
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from pathlib import Path

from tests.breaks.locate import Break, DoesNotApply, broken, definitions, load, locate
from tests.breaks.plugin import VARIABLE
from tests.imports import ROOT, all_test_files, files_by_distance, module_name

FAR = 3
"""Test files at this distance and beyond, and those that do not import a module at all, are run together."""
NOTHING_FAILED = (0, 5)
"""Exit codes of pytest: all passed, and no test was left to run."""
LIMIT = 3600
"""Seconds of one call of pytest, after which its current test counts as failed."""


class Clean:
    """A copy of the tree without any break, and the tests that fail even there."""

    def __init__(self, folder: Path, needed: bool):
        """`needed`: whether failing tests are run again here; without that each of them counts."""
        self._folder, self._needed = folder, needed
        self._passes: dict[str, bool] = {}
        self._lock = threading.Lock()

    def passes(self, test: str) -> bool:
        """Whether a test passes here; run once."""
        with self._lock:
            if self._needed and test not in self._passes:
                self._passes[test] = failing_test(self._folder, [test], set()) is None
            return self._passes.get(test, True)

    @property
    def failures(self) -> set[str]:
        """Tests that are known to fail here."""
        return {test for test, passes in list(self._passes.items()) if not passes}


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code."""
    flags = _parse(argv)
    if flags.list:
        print("\n".join(f"{one.name:<45} {one.why}" for one in flags.breaks))
        return 0
    caught = 0
    with tempfile.TemporaryDirectory(prefix="breaks-") as folder, ThreadPoolExecutor(flags.jobs) as pool:
        tree, clean = Path(folder, "tree"), Path(folder, "clean")
        copy_tree(tree)
        shutil.copytree(tree, clean)
        judged = Clean(clean, needed=not flags.no_baseline)
        try:
            running = [pool.submit(judge, one, tree, judged) for one in flags.breaks]
            for done in as_completed(running):
                is_caught, line = done.result()
                caught += is_caught
                print(line, flush=True)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            _stop()
            raise
    print(f"{caught} of {len(flags.breaks)} caught")
    return int(caught < len(flags.breaks))


def judge(one: Break, tree: Path, clean: Clean) -> tuple[bool, str]:
    """Whether a test catches the break in a copy of `tree`, and the line that says so."""
    start, folder = time.monotonic(), tree.with_name(one.name)
    shutil.copytree(tree, folder)
    try:
        place = locate(one, definitions(folder))
        place.file.write_text(broken(one, place), encoding="utf-8")
        file = place.file.relative_to(folder)
        test = caught_by(module_name(file), folder, clean)
    except DoesNotApply as error:
        return False, f"no longer applies: {one.name}  ({error})"
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    seconds = f"{time.monotonic() - start:.0f} s"
    if test is None:
        return False, f"NOT CAUGHT  {one.name}  ({file}, {seconds}): {one.why}"
    return True, f"caught      {one.name}  ({test}, {seconds})"


def caught_by(module: str, folder: Path, clean: Clean) -> str | None:
    """The first test that fails in `folder`, where `module` is broken, and passes in the clean tree."""
    for files in waves(module, folder):
        excused = clean.failures
        while (test := failing_test(folder, files, excused)) is not None:
            if clean.passes(test):
                return test
            if test in excused:
                raise RuntimeError(f"{test} is left out and fails all the same")
            excused = excused | {test}
    return None


def waves(module: str, root: Path) -> list[list[str]]:
    """All test files but those of this folder, in groups by their distance from a module, the nearest first.

    One call of pytest imports all of its files before it runs the first test; hence the groups.
    """
    groups: defaultdict[int, list[str]] = defaultdict(list)
    near = {file: distance for distance, file in files_by_distance({module}, root)}
    for file in (*near, *(file for file in all_test_files(root) if file not in near)):
        if file.parts[:2] != ("tests", "breaks"):
            groups[min(near.get(file, FAR + 1), FAR)].append(str(file))
    return [groups[number] for number in sorted(groups)]


def failing_test(folder: Path, tests: list[str], excused: set[str]) -> str | None:
    """Runs tests in a copy of the tree up to the first that fails, and gives its id; None if none does."""
    words = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-p", "no:randomly"]
    words += ["-p", "tests.breaks.plugin", *(["-n0"] if _installed("xdist") else [])]
    words += ["--timeout=120"] if _installed("pytest_timeout") else []
    words += [f"--deselect={test}" if "::" in test else f"--ignore={test}" for test in sorted(excused)]
    with tempfile.NamedTemporaryFile("r", encoding="utf-8") as current:
        cache = str(ROOT / ".pytest_cache" / "jax")
        own = {"PYTHONPATH": str(folder), "JAX_COMPILATION_CACHE_DIR": cache, VARIABLE: current.name}
        code = _call([*words, *tests], folder, os.environ | own)
        return None if code in NOTHING_FAILED else current.read() or "pytest itself"


def copy_tree(target: Path) -> None:
    """Copies what git tracks and what it does not ignore, as it is in the working tree."""
    words = ["git", "-C", ROOT, "ls-files", "-coz", "--exclude-standard"]
    names = subprocess.run(words, capture_output=True, text=True, check=True).stdout.split("\0")
    for name in {name for name in names if name and (ROOT / name).is_file()}:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, target / name)


_running: set[subprocess.Popen] = set()
_stopped = threading.Event()


def _call(words: list[str], folder: Path, env: dict[str, str]) -> int | None:
    """Exit code of a command, None after the limit; whatever it leaves in its process group is killed."""
    if _stopped.is_set():
        raise KeyboardInterrupt
    quiet = dict(stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    process = subprocess.Popen(words, cwd=folder, env=env, start_new_session=True, **quiet)
    _running.add(process)
    try:
        return process.wait(LIMIT)
    except subprocess.TimeoutExpired:
        return None
    finally:
        _kill(process)
        _running.discard(process)


def _stop() -> None:
    """Ends what runs and lets nothing else start."""
    _stopped.set()
    for process in list(_running):
        _kill(process)


def _kill(process: subprocess.Popen) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _parse(argv: list[str] | None) -> argparse.Namespace:
    """The flags, `breaks` being those that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="this break; may be repeated")
    parser.add_argument("--list", action="store_true", help="print the breaks, run nothing")
    parser.add_argument("--jobs", type=int, default=2, help="breaks at once (default: 2)")
    parser.add_argument("--no-baseline", action="store_true", help="do not run a failing test again without the break")
    flags = parser.parse_args(argv)
    breaks = {one.name: one for one in load()}
    if unknown := sorted(set(flags.only) - breaks.keys()):
        parser.error(f"no break {unknown[0]!r}; --list shows all")
    flags.breaks = [one for name, one in breaks.items() if not flags.only or name in flags.only]
    return flags


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # as Ctrl-C: ends what runs, clears away
    sys.exit(main())
