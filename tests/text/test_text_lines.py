"""Joining the lines of a paragraph that a layout has broken."""

import pytest

from mofang.text.lines import join_lines


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["核心工作时", "间为上午"], "核心工作时间为上午"),
        (["由总经理", "“书面”批准"], "由总经理“书面”批准"),
        (["and a signed", "statement"], "and a signed statement"),
        (["the Erfah-", "rung of"], "the Erfahrung of"),
        (["soft\u00ad", "ware"], "software"),
        (["GPL-", "3 licence"], "GPL- 3 licence"),
        (["使用 Debian", "系统"], "使用 Debian系统"),
        (["  甲 ", "", " 乙"], "甲乙"),
        ([], ""),
    ],
)
def test_join(lines: list[str], expected: str) -> None:
    assert join_lines(lines) == expected
