"""Encodings: declared, guessed, or refused; what was guessed is said."""

import random
import sysconfig
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mofang.errors import Unreadable
from mofang.text.encodings import decode, normalize_newlines

SIMPLIFIED = "第一条　为了保护劳动者的合法权益，调整劳动关系，根据宪法，制定本法。"
TRADITIONAL = "請按一下「檔案」功能表，選取「另存新檔」，即可將文件儲存於電腦。"


@pytest.mark.parametrize(
    ("text", "written", "read", "guessed"),
    [
        (SIMPLIFIED, "utf-8", "utf-8", False),
        (SIMPLIFIED, "utf-8-sig", "utf-8", False),
        (SIMPLIFIED, "gbk", "gb18030", True),
        (SIMPLIFIED, "gb2312", "gb18030", True),
        (SIMPLIFIED + "😀", "gb18030", "gb18030", True),
        (SIMPLIFIED, "utf-16", "utf-16-le", False),
        (SIMPLIFIED + "\n", "utf-16-le", "utf-16-le", True),
        (SIMPLIFIED, "utf-16-be", "utf-16-be", True),
        (SIMPLIFIED, "utf-32", "utf-32-le", False),
        (TRADITIONAL, "big5", "big5hkscs", True),
        (TRADITIONAL, "gb18030", "gb18030", True),
        ("姓名,年龄\n张伟,3\n", "gbk", "gb18030", True),
        ("重庆火锅麻辣鲜香", "gbk", "gb18030", True),
        ("電腦", "big5", "big5hkscs", True),
        ("电脑", "gbk", "gb18030", True),
        ("plain ascii\n", "ascii", "utf-8", False),
        ("emoji 😀 与中文", "utf-8", "utf-8", False),
    ],
)
def test_reads_it_right(text: str, written: str, read: str, guessed: bool) -> None:
    decoded = decode(text.encode(written))
    assert (decoded.text, decoded.encoding, decoded.guessed) == (text, read, guessed)


def test_long_gbk_text_is_judged_by_its_beginning_and_read_whole() -> None:
    text = SIMPLIFIED * 10_000
    decoded = decode(text.encode("gbk"))
    assert decoded.text == text
    assert decoded.replaced == 0


def test_newlines_become_line_feeds() -> None:
    assert decode("甲\r\n乙\r丙\n".encode()).text == "甲\n乙\n丙\n"


def test_a_declared_encoding_is_believed_only_when_it_is_valid() -> None:
    assert decode("中文".encode("gbk"), "gb2312").guessed is False
    assert decode("中文内容".encode(), "gbk").encoding == "utf-8"
    assert decode("中文内容在这里".encode("gbk"), "no-such-encoding").encoding == "gb18030"


def test_one_bad_byte_is_counted_not_fatal() -> None:
    data = (SIMPLIFIED * 20).encode("gbk") + b"\xff" + SIMPLIFIED.encode("gbk")
    decoded = decode(data)
    assert decoded.replaced >= 1
    assert decoded.text.count("合法权益") >= 20


@pytest.mark.parametrize(
    "data",
    [b"\x7fELF\x02\x01\x01\0\0\0", b"PK\x03\x04\x14\0\0\0", b"abc\0def" * 100, bytes(range(256)) * 40],
    ids=["elf", "zip", "nul", "all bytes"],
)
def test_binary_is_refused(data: bytes) -> None:
    with pytest.raises(Unreadable) as fault:
        decode(data)
    assert fault.value.code in ("binary", "unknown_encoding")


def test_random_bytes_are_never_text() -> None:
    rng = random.Random(7)
    for n in (64, 1000, 1001, 50_000):
        with pytest.raises(Unreadable):
            decode(rng.randbytes(n))


@given(st.text(alphabet=st.characters(exclude_categories=["Cs", "Cc", "Cn", "Co"]), max_size=200))
def test_utf8_always_comes_back(text: str) -> None:
    assert decode(text.encode()).text == text.removeprefix("\ufeff")


REAL = Path(sysconfig.get_paths()["stdlib"]) / "test" / "cjkencodings"
"""Texts that CPython's own tests bring, each also in UTF-8; some distributions leave them out."""


@pytest.mark.skipif(not REAL.is_dir(), reason="this Python comes without its tests")
@pytest.mark.parametrize("name", ["big5", "gb2312", "gbk", "gb18030"])
def test_real_texts(name: str) -> None:
    expected = (REAL / f"{name}-utf8.txt").read_text(encoding="utf-8")
    assert decode((REAL / f"{name}.txt").read_bytes()).text == normalize_newlines(expected)
    for encoding in ("utf-16", "utf-16-le", "utf-16-be"):
        assert decode(expected.encode(encoding)).text == normalize_newlines(expected)
