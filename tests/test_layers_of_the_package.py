"""Arrows point one way: who may import whom, read from the source."""

import ast
from pathlib import Path

import mllmsubj

PACKAGE = Path(mllmsubj.__file__).parent
MAY_IMPORT = {
    "errors": set(),
    "typing": set(),
    "ops": {"typing", "sharding"},
    "sharding": {"errors", "typing"},
    "models": {"typing", "ops", "sharding", "errors"},
    "diffusion": {"typing", "ops", "errors"},
    "data": {"typing", "ops", "errors", "files"},
    "convert": {"typing", "models", "sharding", "errors"},
    "checkpoint": {"typing", "sharding", "errors"},
    "turns": {"typing", "sharding", "errors"},
    "generate": {"typing", "ops", "models", "diffusion", "turns"},
    "devices": set(),
    "files": set(),
    "distributed": {"typing", "errors"},
    "shipped": {"typing", "sharding", "errors", "files"},
    "weights": {"typing", "models", "sharding", "checkpoint", "shipped", "errors"},
    "pretrain": {
        *("typing", "errors", "ops", "sharding", "distributed", "models", "diffusion", "data", "checkpoint", "shipped"),
        *("experiment", "train", "evals"),
    },
    "train": {
        *("typing", "errors", "ops", "sharding", "devices", "distributed", "models", "diffusion", "data", "checkpoint"),
        *("weights", "experiment", "evals", "files"),
    },
    "evals": {
        *("typing", "errors", "ops", "sharding", "distributed", "models", "diffusion", "data", "generate"),
        *("experiment", "train", "files", "checkpoint", "shipped", "weights"),
    },
    "loading": {"typing", "models", "sharding", "convert", "turns", "weights", "experiment"},
    "aot": {
        *(
            "typing",
            "errors",
            "ops",
            "sharding",
            "devices",
            "models",
            "diffusion",
            "data",
            "turns",
            "generate",
            "loading",
        ),
        *("experiment", "train"),
    },
    "reproduce": {"typing", "diffusion", "evals", "sweeps"},
    "sweeps": {"errors", "files", "checkpoint", "experiment", "train"},
    "experiment": {"models", "diffusion", "data", "train", "pretrain", "ops", "errors"},
}
"""Part of the package -> parts that it may import besides itself. `app` and `bench` may import all."""


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else names
        if names == ["mllmsubj"]:
            names = [f"mllmsubj.{alias.name}" for alias in node.names]
        found |= {name.split(".")[1] for name in names if name.startswith("mllmsubj.")}
    return found


def test_dependencies_point_one_way():
    wrong = []
    for path in PACKAGE.rglob("*.py"):
        part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if part in MAY_IMPORT:
            extra = imports(path) - MAY_IMPORT[part] - {part}
            wrong += [f"{path.relative_to(PACKAGE)} imports {name}" for name in sorted(extra)]
    assert wrong == []


def test_no_file_and_no_function_is_long():
    """Files ≤ 300 lines, functions ≤ 60."""
    wrong = []
    for path in PACKAGE.rglob("*.py"):
        source = path.read_text()
        if source.count("\n") > 300:
            wrong.append(f"{path.name}: {source.count(chr(10))} lines")
        functions = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)]
        wrong += [
            f"{path.name}:{f.name}: {f.end_lineno - f.lineno} lines" for f in functions if f.end_lineno - f.lineno > 60
        ]
    assert wrong == []


def test_nothing_pickles_or_evaluates():
    for path in PACKAGE.rglob("*.py"):
        tree = ast.parse(path.read_text())
        called = {
            node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        }
        modules = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        assert not called & {"eval", "exec"}, path
        assert not modules & {"pickle", "dill", "torch"} or path.parent.name == "bench", path
