"""The error tree: every class has a status, every message renders in both languages, the drawing is true."""

import re

import pytest

from mofang import errors
from mofang.errors import MofangError

CLASSES = [each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, MofangError)]


def test_the_drawing_names_every_class_with_its_status() -> None:
    drawn = dict(re.findall(r"(?:├── |└── |^    )(\w+)\s+(\d{3})  ", errors.__doc__ or "", flags=re.MULTILINE))
    assert drawn == {each.__name__: str(each.status) for each in CLASSES}


@pytest.mark.parametrize("each", CLASSES, ids=lambda each: each.__name__)
def test_code_message_and_hint(each: type[MofangError]) -> None:
    error = each("core.missing_extra", name="甲", library="乙", extra="丙")
    assert error.code == "missing_extra"
    assert "乙" in error.message("zh") and "乙" in error.message("en")
    assert error.message("zh") != error.message("en")
    assert "mofang[丙]" in str(error)


def test_bad_usage_exits_with_2_and_our_errors_with_1() -> None:
    assert errors.Invalid.exit_code == 2
    assert errors.NotFound.exit_code == 1
