"""The promises that the sources as a whole keep: sizes, docstrings, honesty, no trace of a machine."""

import ast
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
SHORT_FUNCTION_LINES = 6
MAX_TOLERANCE = 1e-2
MAX_FILE_BYTES = 13 * 2**20
TOLERANCES = {"rtol", "atol", "rel", "abs", "rel_tol", "abs_tol", "delta"}
COMPARERS = {"approx", "allclose", "isclose", "assert_close", "assert_allclose", "allclose_units"}
TEXT_FILES = {
    ".md",
    ".toml",
    ".txt",
    ".yml",
    ".yaml",
    ".cfg",
    ".sh",
    ".json",
    ".jsonl",
    ".html",
    ".cff",
    ".py",
}
# Spelled in pieces, so that this file does not name what it looks for.
MACHINE = re.compile(
    r"(/tm" r"p/[a-z]|/wo" r"rk/|/ro" r"ot/|/ho" r"me/[a-z]|files\.pytho" r"nhosted|registry\.npm" r"js"
    r"|pypi\.or" r"g/simple|deb\.deb" r"ian)"
)  # fmt: skip
UNFINISHED = re.compile(r"NotImplemented" r"Error|\bTO" r"DO\b|\bFIX" r"ME\b|\bXX" r"X\b|\bst" r"ub\b")
FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef


@cache
def project_files() -> tuple[Path, ...]:
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    paths = (ROOT / line for line in listing.stdout.splitlines())
    return tuple(path for path in paths if path.is_file())


def python_files(top: str) -> list[Path]:
    return [p for p in project_files() if p.suffix == ".py" and p.relative_to(ROOT).parts[0] == top]


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def where(path: Path, node: ast.AST) -> str:
    return f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 1)}"


def functions(path: Path) -> Iterator[FunctionNode]:
    return (node for node in ast.walk(tree_of(path)) if isinstance(node, FunctionNode))


def num_lines(node: FunctionNode) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def called_name(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def decorator_names(node: ast.ClassDef | FunctionNode) -> set[str]:
    targets = [d.func if isinstance(d, ast.Call) else d for d in node.decorator_list]
    return {t.attr if isinstance(t, ast.Attribute) else getattr(t, "id", "") for t in targets}


def test_there_is_something_to_check():
    assert len(python_files("src")) > 5
    assert len(python_files("tests")) > 3


def test_no_source_file_is_long():
    long = {str(p.relative_to(ROOT)): len(p.read_text().splitlines()) for p in python_files("src")}
    assert {name: lines for name, lines in long.items() if lines > MAX_FILE_LINES} == {}


def test_no_function_is_long():
    found = [
        f"{where(path, node)} {node.name}: {num_lines(node)} lines"
        for path in python_files("src")
        for node in functions(path)
        if num_lines(node) > MAX_FUNCTION_LINES
    ]
    assert found == []


def test_every_public_function_that_is_not_short_has_a_docstring():
    found = [
        f"{where(path, node)} {node.name}"
        for path in python_files("src")
        for node in functions(path)
        if not node.name.startswith("_")
        and num_lines(node) > SHORT_FUNCTION_LINES
        and not ast.get_docstring(node)
    ]
    assert found == []


def test_every_public_dataclass_shows_an_example():
    found = [
        f"{where(path, node)} {node.name}"
        for path in python_files("src")
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.ClassDef)
        and not node.name.startswith("_")
        and "dataclass" in decorator_names(node)
        and "Example:" not in (ast.get_docstring(node) or "")
    ]
    assert found == []


def test_no_exception_is_swallowed():
    found = [
        where(path, node)
        for path in python_files("src")
        for node in ast.walk(tree_of(path))
        if (
            isinstance(node, ast.ExceptHandler)
            and all(isinstance(b, ast.Pass | ast.Continue) for b in node.body)
        )
        or (isinstance(node, ast.Call) and called_name(node) == "suppress" and "Exception" in ast.dump(node))
    ]
    assert found == []


def test_nothing_is_left_unfinished():
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:80]}"
        for path in python_files("src")
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if UNFINISHED.search(line)
    ]
    assert found == []


def test_sources_are_ascii():
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in python_files("src")
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if not line.isascii()
    ]
    assert found == []


def test_no_text_names_this_machine_or_a_registry():
    found = []
    for path in project_files():
        if path.suffix in TEXT_FILES or path.name in {"Makefile", "run"}:
            match = MACHINE.search(path.read_text(encoding="utf-8", errors="replace"))
            found += [f"{path.relative_to(ROOT)}: {match.group()}"] if match else []
    assert found == []


def test_no_file_is_huge():
    big = {str(p.relative_to(ROOT)): p.stat().st_size for p in project_files()}
    assert {name: size for name, size in big.items() if size > MAX_FILE_BYTES} == {}


def loose_tolerances(tree: ast.Module) -> list[tuple[int, str]]:
    """Line and text of each comparison whose tolerance is a number above the limit."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and called_name(node) in COMPARERS:
            for keyword in node.keywords:
                value = constant(keyword.value)
                if keyword.arg in TOLERANCES and value is not None and value > MAX_TOLERANCE:
                    found.append((node.lineno, f"{keyword.arg}={value}"))
    return found


def constant(node: ast.expr) -> float | None:
    """The number that an expression of literals is, or None."""
    if not all(
        isinstance(n, ast.Constant | ast.BinOp | ast.UnaryOp | ast.operator | ast.unaryop)
        for n in ast.walk(node)
    ):
        return None
    value = eval(compile(ast.Expression(node), "<tolerance>", "eval"), {"__builtins__": {}})
    return float(value) if isinstance(value, int | float) else None


def test_no_test_has_a_loose_tolerance():
    found = [
        f"{path.relative_to(ROOT)}:{line}: {text}"
        for path in python_files("tests")
        for line, text in loose_tolerances(tree_of(path))
    ]
    assert found == []


@pytest.mark.parametrize(
    "code", ["approx(1, abs=0.02)", "torch.allclose(a, b, rtol=1e6)", "isclose(a, b, rel_tol=2e-2)"]
)
def test_a_loose_tolerance_would_be_found(code):
    assert len(loose_tolerances(ast.parse(code))) == 1


@pytest.mark.parametrize("code", ["approx(1, abs=1e-6)", "torch.allclose(a, b, rtol=1e-2)", "f(abs=5)"])
def test_a_tight_tolerance_is_not_found(code):
    assert loose_tolerances(ast.parse(code)) == []


def asserts(node: FunctionNode) -> bool:
    """True if a test can fail by what it checks: an assert, raises, warns, or a helper that checks."""
    for inner in ast.walk(node):
        if isinstance(inner, ast.Assert):
            return True
        if isinstance(inner, ast.Call):
            name = called_name(inner)
            if name in {"raises", "warns"} or name.lstrip("_").startswith(("check_", "assert_")):
                return True
    return False


def test_every_test_asserts_something():
    found = [
        f"{where(path, node)} {node.name}"
        for path in python_files("tests")
        for node in functions(path)
        if node.name.startswith("test_") and not asserts(node)
    ]
    assert found == []


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("x = 1", False),
        ("assert x", True),
        ("with pytest.raises(E): f()", True),
        ("check_same(a, b)", True),
        ("f()", False),
    ],
)
def test_the_scan_knows_an_assertion(body, expected):
    (node,) = ast.parse(f"def test_x():\n    {body}").body
    assert isinstance(node, FunctionNode)
    assert asserts(node) is expected
