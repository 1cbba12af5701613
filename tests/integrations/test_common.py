"""What the integrations share. The packages themselves are tested in environments of their own, see pytest.ini."""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys
from types import SimpleNamespace

import pytest

import gflv2.integrations
from gflv2.integrations.common import Patch, require


class Base:
    inherited = "inherited"


class Owner(Base):
    own = "own"


def test_attributes_come_back():
    patch, module = Patch(), SimpleNamespace(a=1, b=2)
    assert not patch
    for value in (10, 11):  # a second time, with another value
        patch.attribute(module, "a", value)
        assert module.a == value and patch
    patch.attribute(Owner, "own", "ours")
    patch.attribute(Owner, "inherited", "ours")
    assert (Owner.own, Owner.inherited, Base.inherited) == ("ours", "ours", "inherited")
    patch.restore()
    assert module == SimpleNamespace(a=1, b=2)
    assert (Owner.own, Owner.inherited) == ("own", "inherited") and "inherited" not in vars(Owner)
    assert not patch
    patch.restore()
    assert module.a == 1


def test_entries_come_back():
    patch, registry = Patch(), {"old": 1}
    patch.item(registry, "old", 2)
    patch.item(registry, "new", 3)
    assert registry == {"old": 2, "new": 3}
    patch.restore()
    assert registry == {"old": 1}


def test_what_others_replaced_since_is_left_alone():
    patch, module, registry = Patch(), SimpleNamespace(a=1), {"a": 1}
    patch.attribute(module, "a", 2)
    patch.item(registry, "a", 2)
    module.a = registry["a"] = 3
    patch.restore()
    assert module.a == registry["a"] == 3


def test_ours_over_what_others_replaced_since():
    """Their value comes back, not the first."""
    patch, module = Patch(), SimpleNamespace(a=1)
    patch.attribute(module, "a", 2)
    assert patch.holds(module, "a") and patch.attributes() == [(module, "a", 2)]
    module.a = 3
    assert not patch.holds(module, "a") and not patch.attributes()
    patch.attribute(module, "a", 4)
    patch.restore()
    assert module.a == 3


def test_an_attribute_that_does_not_exist():
    with pytest.raises(AttributeError, match="Owner has no 'other' to replace"):
        Patch().attribute(Owner, "other", 1)


def test_a_missing_package():
    with pytest.raises(ModuleNotFoundError, match="gflv2.integrations.no_such needs .*: pip install no-such==1.0") as e:
        require("no_such", "no-such==1.0")
    assert e.value.name == "no_such"
    require("torch", "torch")


# These take tensors and modules, and need no package.
WITHOUT_PACKAGE = {"common", "methods", "report", "gfocal", "nanodet", "damoyolo", "dynamic"}
WITHOUT_PACKAGE |= {"dfine", "dfine_losses", "dfine_class_losses"}
OF_PACKAGES = [name for _, name, _ in pkgutil.iter_modules(gflv2.integrations.__path__) if name not in WITHOUT_PACKAGE]


@pytest.mark.parametrize("name", OF_PACKAGES)
def test_importing_an_integration_says_what_to_install(name):
    if importlib.util.find_spec(name) is not None:
        pytest.skip(f"{name} is installed")
    with pytest.raises(ModuleNotFoundError, match=f"{name}.* not installed: pip install {name}"):
        importlib.import_module(f"gflv2.integrations.{name}")


def test_import_gflv2_imports_no_integration():
    code = "import sys, gflv2, gflv2.ops; print([m for m in sys.modules if 'integrations' in m or m == 'gflv2.nn'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
