"""House rules that matter enough to be tests."""

import ast
import doctest
import importlib
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGES = ("vq_prior", "stage1_vqvae", "stage2_prior")

TOP_LEVEL = {
    *PACKAGES,
    *("scripts", "tests", "docs", "findings", ".ci"),
    *("pyproject.toml", "constraints.txt", ".gitignore", ".gitattributes"),
    *("README.md", "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md", "CITATION.cff", "SECURITY.md"),
}
MAX_LINES = 450
MAX_FUNCTION_LINES = 60
MAX_LOOP_LINES = 150
MEANINGLESS_NAMES = {"utils", "util", "helpers", "helper", "common", "misc"}
BANNED = ("import pickle", "torch.load(", ".save_state(", "register_for_checkpointing", "trust_remote_code=True")
MACHINE_PATH = re.compile(r"(?<![\w.~-])/(?:work|home|root|Users|mnt|workspace|opt)/")


def tracked_files() -> list[Path]:
    """Every file that git tracks or would add."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=REPOSITORY,
        capture_output=True,
        check=False,
    )
    if listed.returncode == 0:
        paths = [REPOSITORY / name.decode() for name in listed.stdout.split(b"\0") if name]
    else:  # an unpacked archive has no git
        paths = [path for entry in TOP_LEVEL for path in [REPOSITORY / entry, *(REPOSITORY / entry).rglob("*")]]
    return sorted(path for path in paths if path.is_file() and "__pycache__" not in path.parts)


FILES = tracked_files()
TEXT = {
    path.relative_to(REPOSITORY).as_posix(): path.read_text(encoding="utf-8")
    for path in FILES
    if path.suffix not in (".png", ".jpg", ".gif", ".webp", ".safetensors")
}
OUTSIDE_TESTS = {name: text for name, text in TEXT.items() if not name.startswith("tests/")}
SOURCES = {name: text for name, text in OUTSIDE_TESTS.items() if name.endswith(".py")}


def test_the_top_level_holds_nothing_but_what_the_design_lists():
    present = {path.relative_to(REPOSITORY).parts[0] for path in FILES}
    assert present - TOP_LEVEL == set()


def test_no_file_outside_tests_is_too_long():
    # The licence is not ours to shorten.
    long = {name: text.count("\n") for name, text in OUTSIDE_TESTS.items() if text.count("\n") > MAX_LINES}
    assert set(long) - {"LICENSE"} == set()


def test_no_file_has_a_name_that_says_nothing():
    assert [str(path) for path in FILES if path.stem.strip("_").lower() in MEANINGLESS_NAMES] == []


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def test_no_function_is_too_long():
    wrong = []
    for name, text in SOURCES.items():
        for function in functions(ast.parse(text)):
            lines = function.end_lineno - function.lineno + 1
            if lines > (MAX_LOOP_LINES if name.endswith("/train.py") else MAX_FUNCTION_LINES):
                wrong.append(f"{name}: {function.name} has {lines} lines")
    assert wrong == []


@pytest.mark.parametrize("words", BANNED)
def test_what_could_run_code_from_data_does_not_occur(words):
    assert [name for name, text in OUTSIDE_TESTS.items() if words in text] == []


def test_no_source_evaluates_text_or_imports_pickle_in_another_way():
    wrong = []
    for name, text in SOURCES.items():
        for node in ast.walk(ast.parse(text)):
            called = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("eval", "exec")
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module] if isinstance(node, ast.ImportFrom) else []
            if called or {"pickle", "dill", "cloudpickle", "shelve", "marshal"} & set(modules):
                wrong.append(f"{name}:{node.lineno}")
    assert wrong == []


def count_below(folder: str) -> int:
    """Files that lie in a folder itself."""
    return sum((REPOSITORY / folder) == path.parent for path in FILES)


@pytest.mark.parametrize(("folder", "most"), [("vq_prior", 6), ("vq_prior/core", 10)])
def test_what_belongs_to_a_room_does_not_lie_beside_the_rooms(folder, most):
    assert count_below(folder) <= most


# The words by which code shows that it knows pictures. All else asks the modality.
NAMES_PIXELS = re.compile(
    r"PixelRows|load_pixels|to_unit_range|to_pixels|picture_grid|Transform|PIL|ImageRows|image_size"
)
MAY_NAME_PIXELS = 10  # this number may only fall


def test_pictures_are_known_to_few_files_outside_their_room():
    naming = [
        name
        for name, text in SOURCES.items()
        if name.split("/")[0] in PACKAGES
        and not name.startswith("stage1_vqvae/modalities/")
        and NAMES_PIXELS.search(text)
    ]
    assert len(naming) <= MAY_NAME_PIXELS, naming


FAST = sorted(name for name in SOURCES if name.split("/")[-2] == "fast" and not name.endswith("__init__.py"))
TESTS_OF = {"stage1_vqvae": "tests/stage1", "stage2_prior": "tests/stage2", "vq_prior": "tests"}


@pytest.mark.parametrize("name", FAST)
def test_clever_code_names_its_plain_twin_and_is_compared_with_it(name):
    assert re.search(r"^Plain twin: \S", ast.get_docstring(ast.parse(SOURCES[name])), re.MULTILINE)
    package, *rooms, file = name.split("/")
    assert "/".join([TESTS_OF[package], *rooms, f"test_{file}"]) in TEXT
    assert f"`{name}`" in TEXT["docs/internals.md"]


CODECS = {"VQVAE", "ForeignCodec"}


def test_codecs_are_used_through_their_protocol():
    asking = set()
    for name, text in SOURCES.items():
        for call in ast.walk(ast.parse(text)):
            if isinstance(call, ast.Call) and ast.unparse(call.func) in ("isinstance", "issubclass", "type"):
                kinds = {node.id for argument in call.args for node in ast.walk(argument) if isinstance(node, ast.Name)}
                asking |= {name} if kinds & CODECS else set()
    assert asking <= {"stage1_vqvae/codecs.py"}


def undocumented(node: ast.Module | ast.ClassDef, where: str) -> Iterator[str]:
    for child in node.body:
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) or child.name.startswith("_"):
            continue
        if not ast.get_docstring(child):
            yield f"{where}: {child.name}"
        if isinstance(child, ast.ClassDef):
            yield from undocumented(child, f"{where}: {child.name}")


def test_everything_public_says_what_it_gives():
    wrong = []
    for name, text in SOURCES.items():
        tree = ast.parse(text)
        if text.strip() and not ast.get_docstring(tree):
            wrong.append(f"{name}: the module")
        wrong += undocumented(tree, name)
    assert wrong == []


def test_no_path_of_one_machine_is_written_down():
    wrong = [name for name, text in OUTSIDE_TESTS.items() if MACHINE_PATH.search(text)]
    assert wrong == []


def test_the_repository_does_not_refer_to_what_lies_beside_it():
    assert [name for name, text in OUTSIDE_TESTS.items() if "../shared" in text] == []


def test_scripts_are_executable_and_stop_at_the_first_error():
    for name, text in OUTSIDE_TESTS.items():
        if text.startswith("#!") and "bash" in text.partition("\n")[0]:
            assert (REPOSITORY / name).stat().st_mode & 0o111, f"{name} is not executable"
            assert "set -euo pipefail" in text, f"{name} goes on after an error"


WITH_EXAMPLES = sorted(name for name, text in SOURCES.items() if ">>> " in text and name.split("/")[0] in PACKAGES)


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples_in_docstrings_are_true(name):
    module = importlib.import_module(name.removesuffix(".py").removesuffix("/__init__").replace("/", "."))
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0


def test_every_fault_has_a_test():
    named = set()
    for path in (REPOSITORY / "tests").rglob("test_*.py"):
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(call, ast.Call) and ast.unparse(call.func) == "pytest.mark.fault":
                named |= {ast.literal_eval(argument) for argument in call.args}
    expected = {*(f"F{number}" for number in range(1, 45)), *(f"R{number}" for number in range(1, 17))}
    assert named == expected
