"""The upload box offers what the gateway reads."""

from mofang import api
from mofang.ui.pages.knowledge import TYPES


def test_every_format_can_be_chosen() -> None:
    assert {f".{name}" for name in TYPES} == api.document_suffixes()
