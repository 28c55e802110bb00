"""Which test files a change touches: those that import what changed, directly or through other modules.

    python -m tests.imports [--base=REV]

prints the test files that uncommitted changes touch and, with --base, those of the commits since the branch left REV,
one a line. Imports inside functions count, and so do modules that are named in text, which is how commands are found
and how subprocesses are started.
"""

import argparse
import ast
import re
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = ("mllmsubj", "launch", "tests")
"""Whose files are nodes of the graph."""
UNSEEN = {"tests.test_notebooks": ("mllmsubj.__main__", "mllmsubj")}
"""Module -> modules that it uses and no line of it names: notebooks are run, not imported."""

_IMPORTED = re.compile(r"\b(?:from|import)\s+((?:mllmsubj|tests)(?:\.\w+)*)")
"""An import in a program that a test holds as text."""


def module_name(path: Path) -> str:
    """Dotted name of a file, relative to the root: a package is called by its folder."""
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def modules(root: Path = ROOT) -> dict[str, Path]:
    """Dotted name -> file, relative to the root, of every module."""
    files = (file.relative_to(root) for folder in FOLDERS for file in sorted((root / folder).rglob("*.py")))
    return {module_name(file): file for file in files}


def imports(root: Path = ROOT, changed: Iterable[str] = ()) -> dict[str, set[str]]:
    """Module -> what it imports; `changed` names modules that may be gone and that others may import still."""
    known = modules(root)
    names = known.keys() | set(changed)
    graph = {}
    for name, file in known.items():
        tree = ast.parse((root / file).read_text(encoding="utf-8"))
        found = {target for node in ast.walk(tree) for target in _targets(node, file, names)}
        folders = [file.parent, *file.parent.parents] if file.parts[0] == "tests" else []
        conftests = {module_name(folder / "conftest.py") for folder in folders}
        graph[name] = (found | set(UNSEEN.get(name, ())) | conftests) & names - {name}
    return graph


def distances(changed: set[str], root: Path = ROOT) -> dict[str, int]:
    """Module -> how many imports lie between it and the nearest of the changed modules, which have 0."""
    importers: dict[str, set[str]] = {}
    for name, targets in imports(root, changed).items():
        for target in targets:
            importers.setdefault(target, set()).add(name)
    found = dict.fromkeys(changed, 0)
    ring, distance = changed, 0
    while ring:
        distance += 1
        ring = {name for each in ring for name in importers.get(each, ())} - found.keys()
        found |= dict.fromkeys(ring, distance)
    return found


def files_by_distance(changed: set[str], root: Path = ROOT) -> list[tuple[int, Path]]:
    """(distance, test file) of all that import the changed modules, nearest first, files relative to the root.

    The test file that mirrors a changed module comes first, at distance 0. A package stands for all modules in it.
    """
    known = modules(root)
    changed = changed | {name for name in known for each in changed if name.startswith(f"{each}.")}
    found = {known[name]: distance for name, distance in distances(changed, root).items() if name in known}
    found |= {mirror: 0 for each in changed if (mirror := _mirror(each, root)) is not None}
    return sorted((distance, file) for file, distance in found.items() if is_test(file))


def all_test_files(root: Path = ROOT) -> list[Path]:
    """All test files, relative to the root."""
    return [file for file in modules(root).values() if is_test(file)]


def is_test(file: Path) -> bool:
    """Whether pytest collects a file of this name."""
    return file.parts[0] == "tests" and file.name.startswith("test_")


def touched(paths: Iterable[str], root: Path = ROOT) -> list[Path]:
    """The test files that changes of these files touch, nearest first.

    A change of data below tests/ touches the test files of its folder. Any other change whose reach is not known
    touches all test files: of what lies outside mllmsubj/, launch/ and tests/, and of helpers that no test imports.
    """
    tests, changed, data = all_test_files(root), set(), set()
    for path in map(Path, paths):
        if path.parts[0] in FOLDERS and path.suffix == ".py":
            changed.add(module_name(path))
        elif path.parts[0] == "tests":
            data |= {file for file in tests if file.is_relative_to(path.parent)}
        else:
            return tests
    near = [file for _, file in files_by_distance(changed, root)]
    for helper in (name for name in changed if name.startswith("tests.") and name in modules(root)):
        if not is_test(modules(root)[helper]) and not files_by_distance({helper}, root):
            return tests
    return near + sorted(data - set(near))


def changed_files(base: str, root: Path = ROOT) -> list[str]:
    """Files that differ from where the branch left `base`, and files that git does not know yet."""

    def git(*words: str) -> list[str]:
        done = subprocess.run(["git", "-C", root, *words], capture_output=True, text=True, check=True)
        return done.stdout.split("\0")

    start = git("merge-base", "HEAD", base)[0].strip()
    found = git("diff", "--name-only", "--no-renames", "-z", start) + git("ls-files", "-oz", "--exclude-standard")
    return sorted({name for name in found if name})


def _mirror(module: str, root: Path) -> Path | None:
    """The test file that is called as a module, in the folder that mirrors the module's or in one above it."""
    folder, *inside = module.split(".")
    if folder == "tests" or not inside:
        return None
    inside = inside if folder == "mllmsubj" else [folder, *inside]
    folders = [Path("tests", *inside[:depth]) for depth in reversed(range(len(inside)))]
    files = (folder / f"test_{inside[-1]}.py" for folder in folders)
    return next((file for file in files if (root / file).is_file()), None)


def _targets(node: ast.AST, file: Path, names: Iterable[str]) -> Iterator[str]:
    """Modules, and some names that are none, that one node of a file's syntax tree refers to."""
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield from (alias.name, _beside(file, alias.name))
    elif isinstance(node, ast.ImportFrom):
        module = _absolute(node, file)
        members = [f"{module}.{alias.name}" for alias in node.names]
        yield from (member if member in names else module for member in members)
        yield _beside(file, module)
    elif isinstance(node, ast.List | ast.Tuple) and file.parts[0] == "tests":
        if any(isinstance(word, ast.Constant) and word.value == "mllmsubj" for word in node.elts):
            yield "mllmsubj.__main__"  # the words of a command line
    elif isinstance(node, ast.JoinedStr) and node.values and isinstance(node.values[0], ast.Constant):
        start = str(node.values[0].value).replace("/", ".")
        if start.endswith("."):  # such as f"mllmsubj.cli.{name}" and f"launch/{script}.py"
            yield from (name for name in names if name.rpartition(".")[0] == start.removesuffix("."))
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
        path = "/".join(_joined(node))  # ROOT / "launch" / "local.py"
        if path.endswith(".py"):
            yield module_name(Path(path))
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield from _IMPORTED.findall(node.value)
        if node.value.endswith(".py") and "\n" not in node.value:
            yield module_name(Path(node.value))


def _joined(node: ast.AST) -> list[str]:
    """The names that `/` joins to a path, without what they are joined to."""
    if isinstance(node, ast.BinOp):
        return _joined(node.left) + _joined(node.right)
    return [node.value] if isinstance(node, ast.Constant) and isinstance(node.value, str) else []


def _absolute(node: ast.ImportFrom, file: Path) -> str:
    """The module that a `from … import` names; relative ones count from the file's folder."""
    if not node.level:
        return node.module or ""
    folder = file.parents[node.level - 1]
    return ".".join([*folder.parts, *([node.module] if node.module else [])])


def _beside(file: Path, module: str) -> str:
    """What a script's plain import names: the file of that name beside it."""
    return ".".join([*file.parent.parts, module])


def main() -> None:
    """Prints what the working tree touches."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="HEAD", metavar="REV", help="where to count from (default: the last commit)")
    for file in touched(changed_files(parser.parse_args().base)):
        print(file)


if __name__ == "__main__":
    main()
