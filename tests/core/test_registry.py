import sys

import pytest

from vq_prior.core.errors import EnvironmentFault, UsageError
from vq_prior.core.registry import Registry, plugins


@pytest.fixture
def quantizers():
    registry = Registry[type]("quantizer")
    registry.add("nearest", int)
    registry.add("ema", float)
    return registry


def test_entries_come_back_by_name_in_the_order_added(quantizers):
    assert quantizers["ema"] is float
    assert quantizers.names() == ("nearest", "ema")


def test_an_unknown_name_is_refused_with_what_exists_and_the_closest(quantizers):
    with pytest.raises(UsageError, match="unknown quantizer 'nerest', available: nearest, ema; did you mean nearest"):
        quantizers["nerest"]


def test_a_name_can_be_taken_once(quantizers):
    with pytest.raises(AssertionError, match="registered twice"):
        quantizers.add("ema", str)


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Put a package with entry points where installed packages lie."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def put(package, points, *, group="vq_prior.quantizers", **modules):
        folder = tmp_path / f"{package}-1.5.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.5\n")
        lines = [f"{name} = {home}" for name, home in points.items()]
        (folder / "entry_points.txt").write_text("\n".join([f"[{group}]", *lines, ""]))
        for name, code in modules.items():
            (tmp_path / f"{name}.py").write_text(code)
            monkeypatch.delitem(sys.modules, name, raising=False)

    return put


@pytest.fixture
def open_to_packages():
    registry = Registry[type]("quantizer", group="vq_prior.quantizers")
    registry.add("nearest", int)
    return registry


def test_an_installed_package_offers_an_entry_that_is_imported_when_it_is_used(install, open_to_packages):
    install("shapes", {"hexagon": "shapes_code:Hexagon"}, shapes_code="class Hexagon: sides = 6\n")
    assert open_to_packages.names() == ("nearest", "hexagon")
    assert "hexagon" in open_to_packages
    assert "shapes_code" not in sys.modules
    assert open_to_packages["hexagon"].sides == 6


def test_a_table_without_a_group_knows_its_own_entries_alone(install, quantizers):
    install("shapes", {"hexagon": "shapes_code:Hexagon"}, shapes_code="class Hexagon: sides = 6\n")
    assert "hexagon" not in quantizers


@pytest.mark.parametrize(
    ("home", "code", "why"),
    [
        ("shapes_code:Hexagon", "import no_such_module\n", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("shapes_code:Hexagon", "1 / 0\n", "ZeroDivisionError: division by zero"),
        ("shapes_code:Other", "class Hexagon: pass\n", "AttributeError"),
    ],
)
def test_a_broken_entry_is_told_in_one_line_when_it_is_used_and_not_before(install, open_to_packages, home, code, why):
    install("shapes", {"hexagon": home}, shapes_code=code)
    assert open_to_packages["nearest"] is int
    assert open_to_packages.names() == ("nearest", "hexagon")
    with pytest.raises(EnvironmentFault, match=rf"'hexagon' of the installed package shapes 1.5 .*{why}"):
        open_to_packages["hexagon"]
    with pytest.raises(UsageError, match="available: nearest, hexagon"):
        open_to_packages["square"]


def test_no_package_takes_a_name_of_ours_and_two_cannot_share_one(install, open_to_packages):
    install("shapes", {"nearest": "shapes_code:Hexagon", "hexagon": "shapes_code:Hexagon"}, shapes_code="Hexagon = 6\n")
    install("forms", {"hexagon": "forms_code:Hexagon"}, forms_code="Hexagon = 7\n")
    assert open_to_packages["nearest"] is int
    with pytest.raises(EnvironmentFault, match=r"offered by forms 1\.5 and by shapes 1\.5; uninstall one"):
        open_to_packages["hexagon"]


def test_what_packages_offer_is_listed_with_what_is_wrong_with_it(install, open_to_packages):
    install("forms", {"round": "forms_code:Round"}, group="vq_prior.forms", forms_code="Round = 1\n")
    install(
        "shapes",
        {"hexagon": "shapes_code:Hexagon", "broken": "shapes_code:Broken", "nearest": "shapes_code:Hexagon"},
        shapes_code="class Hexagon: pass\n",
    )
    listed = {(each.group, each.name): each for each in plugins(open_to_packages) if each.package.endswith(" 1.5")}
    group = "vq_prior.quantizers"
    assert set(listed) == {("vq_prior.forms", "round"), (group, "hexagon"), (group, "broken"), (group, "nearest")}
    assert listed[group, "hexagon"].trouble is None
    assert "AttributeError" in listed[group, "broken"].trouble
    assert "vq-prior has its own" in listed[group, "nearest"].trouble
    assert "vq_prior.quantizers" in listed["vq_prior.forms", "round"].trouble
