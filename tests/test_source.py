"""Rules for the source code; import-linter checks imports between packages in `make lint`."""

import ast
from pathlib import Path

import mllmsubj

PACKAGE = Path(mllmsubj.__file__).parent


def test_source_lengths():
    """Files have at most 400 lines, functions at most 60."""
    wrong = []
    for path in PACKAGE.rglob("*.py"):
        source = path.read_text()
        if source.count("\n") > 400:
            wrong.append(f"{path.name}: {source.count(chr(10))} lines")
        functions = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)]
        wrong += [
            f"{path.name}:{f.name}: {f.end_lineno - f.lineno} lines" for f in functions if f.end_lineno - f.lineno > 60
        ]
    assert wrong == []


def test_source_no_pickle_no_eval():
    for path in PACKAGE.rglob("*.py"):
        tree = ast.parse(path.read_text())
        called = {
            node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        }
        modules = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        assert not called & {"eval", "exec"}, path
        assert not modules & {"pickle", "dill", "torch"} or path.parent.name == "bench", path
