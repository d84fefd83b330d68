"""Who may import whom, held by walking every import statement, also those inside functions."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGES = ("vq_prior", "stage1_vqvae", "stage2_prior")
FILES = sorted(path for package in PACKAGES for path in (REPOSITORY / package).rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(REPOSITORY).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in FILES}


def imports(node: ast.AST, module: str, *, module_level: bool) -> Iterator[str]:
    """Yield the dotted name of everything that `node` imports; `module_level` leaves out what runs later or never."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, f"{module} has a relative import; name the package"
        yield node.module
        yield from (f"{node.module}.{alias.name}" for alias in node.names)
    deferred = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) or (
        isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
    )
    if not (module_level and deferred):
        for child in ast.iter_child_nodes(node):
            yield from imports(child, module, module_level=module_level)


def imported_by(module: str, *, module_level: bool = False) -> set[str]:
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    return set(imports(tree, module, module_level=module_level))


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


# Of our own packages, each may import these and what lies in them.
ALLOWED = {
    "vq_prior.core": ("vq_prior.core",),
    "stage1_vqvae": ("stage1_vqvae", "vq_prior.core"),
    "stage2_prior": ("stage2_prior", "vq_prior.core"),
    "vq_prior": PACKAGES,
}


@pytest.mark.parametrize(("package", "allowed"), ALLOWED.items(), ids=ALLOWED)
def test_a_package_imports_only_what_lies_below_it(package, allowed):
    wrong = [
        f"{module} imports {name}"
        for module in MODULES
        if within(module, package)
        for name in imported_by(module)
        if any(within(name, ours) for ours in PACKAGES) and not any(within(name, prefix) for prefix in allowed)
    ]
    assert wrong == []


def test_nothing_imports_scripts_or_tests():
    wrong = [
        f"{module} imports {name}"
        for module in MODULES
        for name in imported_by(module)
        if any(within(name, outside) for outside in ("scripts", "tests", "conftest"))
    ]
    assert wrong == []


def test_no_module_names_code_that_is_not_there():
    """An import of ours that leads nowhere would only fail when its function runs."""
    wrong = []
    for module in MODULES:
        for name in imported_by(module):
            known = name in MODULES or name.rpartition(".")[0] in MODULES
            if any(within(name, ours) for ours in PACKAGES) and not known:
                wrong.append(f"{module} imports {name}")
    assert wrong == []


def home(name: str) -> str | None:
    """The module of ours in which an imported name lives."""
    while name and name not in MODULES:
        name = name.rpartition(".")[0]
    return name or None


def test_no_import_cycle_among_our_modules():
    graph = {
        module: {home(name) for name in imported_by(module, module_level=True)} - {None, module} for module in MODULES
    }
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path[path.index(module) :], module))
        if module in done:
            return
        for other in sorted(graph[module]):
            visit(other, (*path, module))
        done.add(module)

    for module in MODULES:
        visit(module, ())


LIGHT = ["vq_prior", "vq_prior.cli", "vq_prior.settings", "stage1_vqvae.settings", "stage2_prior.settings"]
HEAVY = ("torch", "transformers", "accelerate", "datasets", "sklearn", "PIL", "safetensors", "huggingface_hub")


@pytest.mark.parametrize("module", LIGHT)
def test_what_the_command_line_needs_before_it_dispatches_is_light(module, child_environment):
    code = f"import json, sys, {module}; print(json.dumps(sorted(sys.modules)))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=child_environment(), cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    loaded = {name.partition(".")[0] for name in json.loads(done.stdout)}
    assert loaded.isdisjoint(HEAVY)


def test_parsing_every_command_stays_light(child_environment):
    code = (
        "import contextlib, io, json, sys\n"
        "from vq_prior.cli import COMMANDS, parse\n"
        "for name in COMMANDS:\n"
        "    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):\n"
        "        parse([name, '--help'])\n"
        "print(json.dumps(sorted(sys.modules)))\n"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=child_environment(), cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    loaded = {name.partition(".")[0] for name in json.loads(done.stdout)}
    assert loaded.isdisjoint(("torch", "transformers"))


def test_every_public_name_can_be_imported():
    import vq_prior

    for name in vq_prior.__all__:
        assert getattr(vq_prior, name) is not None
    assert set(vq_prior.__all__) <= set(dir(vq_prior))
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        vq_prior.Nothing  # noqa: B018
