"""The layout of the package: what import-linter cannot express."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import grimp

import pupsourcing_sa

ROOT = Path(pupsourcing_sa.__file__).parent
MAX_LINES = 400


def _modules() -> Iterator[tuple[str, Path]]:
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT.parent).with_suffix("").parts
        yield ".".join(part for part in parts if part != "__init__"), path


def test_no_package_imports_a_private_module_of_another_one() -> None:
    """``a.b._c`` may be imported by the modules of ``a.b`` and below it, and by no others."""
    violations = []
    for module, path in _modules():
        package = module if path.name == "__init__.py" else module.rpartition(".")[0]
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("pupsourcing_sa"):
                continue
            for alias in node.names:
                parts = f"{node.module}.{alias.name}".split(".")
                for number, part in enumerate(parts):
                    owner = ".".join(parts[:number])
                    is_module = (ROOT.parent / owner.replace(".", "/") / f"{part}.py").exists()
                    if part.startswith("_") and is_module and not f"{package}.".startswith(f"{owner}."):
                        violations.append(f"{module} imports {'.'.join(parts[: number + 1])}")
    assert violations == []


#: Attributes of Python and SQLAlchemy that begin with an underscore.
FOREIGN = {"_exit", "_fields", "_get_running_loop", "_max_overflow", "_on_connect_isolation_level", "_replace"}


def test_no_package_uses_a_private_attribute_of_another_one() -> None:
    """An attribute ``_name`` of another object is one that a module of the same package defines."""
    defined: dict[Path, set[str]] = {}
    used: list[tuple[str, Path, str]] = []
    for module, path in _modules():
        names = defined.setdefault(path.parent, set())
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                names.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                names.add(node.id)
            elif isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.endswith("__"):
                if isinstance(node.ctx, ast.Store):
                    names.add(node.attr)
                elif not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")):
                    used.append((module, path.parent, node.attr))
    violations = [(module, name) for module, package, name in used if name not in defined[package] | FOREIGN]
    assert violations == []


def test_no_file_outgrows_its_idea() -> None:
    files = [*ROOT.rglob("*.py"), *Path(__file__).parent.rglob("*.py")]
    assert [path.name for path in files if len(path.read_text().splitlines()) > MAX_LINES] == []


def test_there_is_no_import_circle() -> None:
    graph = grimp.build_graph("pupsourcing_sa", exclude_type_checking_imports=True)
    circles = [
        (module, imported)
        for module in sorted(graph.modules)
        for imported in sorted(graph.find_modules_directly_imported_by(module))
        if graph.find_shortest_chain(imported, module) is not None
    ]
    assert circles == []
