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


def imports(node: ast.AST, module: str) -> Iterator[str]:
    """Yield the dotted name of everything that `node` imports, also late and for types alone."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, f"{module} has a relative import; name the package"
        yield node.module
        yield from (f"{node.module}.{alias.name}" for alias in node.names)
    for child in ast.iter_child_nodes(node):
        yield from imports(child, module)


def imported_by(module: str) -> set[str]:
    return set(imports(ast.parse(MODULES[module].read_text(encoding="utf-8")), module))


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


GRAPH = {module: {home(name) for name in imported_by(module)} - {None, module} for module in MODULES}


def reachable(module: str) -> set[str]:
    """Every module that `module` imports, or that these import, and so on."""
    found: set[str] = set()
    rest = [module]
    while rest:
        new = GRAPH[rest.pop()] - found
        found |= new
        rest += new
    return found


def test_no_import_circle_among_our_modules():
    """Of all imports: those that run later, inside a function, and those for types alone, are counted too."""
    below = {module: reachable(module) for module in MODULES}
    circles = {
        frozenset(other for other in below[module] if module in below[other])
        for module in MODULES
        if module in below[module]
    }
    assert circles == set()


# Which rooms each room may import, beside itself; a module belongs to the room with the longest name that fits.
ROOMS = {
    "core": ("vq_prior.core",),
    "one settings": (
        "stage1_vqvae.settings",
        "stage1_vqvae.quantizer_settings",
        "stage1_vqvae.factors",
        "stage1_vqvae.resize_settings",
    ),
    "one modalities": ("stage1_vqvae.modalities",),
    "one data": ("stage1_vqvae.data",),
    "one work": (
        "stage1_vqvae.train",
        "stage1_vqvae.run",
        "stage1_vqvae.plan",
        "stage1_vqvae.passes",
        "stage1_vqvae.held_out",
        "stage1_vqvae.timing",
        "stage1_vqvae.extract",
        "stage1_vqvae.evaluate",
        "stage1_vqvae.resize",
    ),
    "one model": ("stage1_vqvae",),  # all else of it: networks, quantisers, codecs, losses
    "two settings": ("stage2_prior.settings", "stage2_prior.sampling_settings"),
    "two": ("stage2_prior",),
    "top settings": ("vq_prior.settings",),
    "model": ("vq_prior.model",),
    "draw": ("vq_prior.draw",),
    "judge": ("vq_prior.judge",),
    "app": ("vq_prior.app",),
    "cli": ("vq_prior.cli", "vq_prior.__main__"),
    "testing": ("vq_prior.testing",),
    "names": ("vq_prior",),
}
ONE = {"one settings", "one modalities", "one data", "one model", "one work"}
BELOW_TOP = {"core", "two settings", "two", "names", "top settings", *ONE}
MAY_IMPORT = {
    "core": set(),
    "one settings": {"core", "one modalities"},
    "one modalities": {"core"},
    "one data": {"core", "one settings", "one modalities"},
    "one model": {"core", "one settings", "one modalities"},
    "one work": {"core", *ONE},
    "two settings": {"core"},
    "two": {"core", "two settings"},
    "top settings": {"core", "one settings", "one modalities", "two settings"},
    "model": BELOW_TOP,
    "draw": {*BELOW_TOP, "model"},
    "judge": {*BELOW_TOP, "model", "draw"},
    "app": {*BELOW_TOP, "model", "draw", "judge"},
    "cli": {*BELOW_TOP, "model", "draw", "judge", "app"},
    "testing": {"core", *ONE, "two"},
    "names": {"core", *ONE, "two", "model"},  # vq_prior/__init__.py: for types, all else by name and late
}


def room_of(module: str) -> str:
    fitting = [(len(prefix), room) for room, prefixes in ROOMS.items() for prefix in prefixes if within(module, prefix)]
    return max(fitting)[1]


def test_rooms_import_only_the_rooms_below_them():
    wrong = {
        (module, other)
        for module in MODULES
        for other in GRAPH[module]
        if room_of(other) != room_of(module) and room_of(other) not in MAY_IMPORT[room_of(module)]
    }
    assert wrong == set()


LIGHT = [
    "vq_prior",
    "vq_prior.cli",
    "vq_prior.settings",
    "stage1_vqvae.settings",
    "stage2_prior.settings",
    "stage2_prior.sampling_settings",
]
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
