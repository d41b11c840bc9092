"""A registry imports on request and fails in three distinct ways."""

import sys

import pytest

from mofang.errors import MissingExtra, UnknownName
from mofang.registry import Entry, Registry

TABLE = Registry(
    "shape",
    {
        "path": Entry("pathlib:Path", "there"),
        "colours": Entry("colorsys:rgb_to_hsv", "there, not imported yet"),
        "heavy": Entry("no.such:thing", "needs an extra", extra="train", library="no_such_library_at_all"),
        "broken": Entry("mofang.no_such_module:thing", "our own fault"),
    },
)


def test_get_imports_only_when_asked() -> None:
    sys.modules.pop("colorsys", None)
    assert "colours" in TABLE.names()
    assert "colorsys" not in sys.modules
    assert TABLE.get("colours")(0, 0, 0) == (0.0, 0.0, 0)


def test_unknown_name_lists_the_known_and_the_nearest() -> None:
    with pytest.raises(UnknownName) as caught:
        TABLE.get("paht")
    assert "path, colours, heavy, broken" in caught.value.message()
    assert "path" in caught.value.hint()
    assert caught.value.status == 404


def test_missing_extra_names_the_pip_line() -> None:
    with pytest.raises(MissingExtra) as caught:
        TABLE.get("heavy")
    assert "pip install 'mofang[train]'" in caught.value.hint()


def test_our_own_import_error_is_not_dressed_up() -> None:
    with pytest.raises(ModuleNotFoundError):
        TABLE.get("broken")
