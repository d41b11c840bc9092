"""Both languages say the same things: same files, same keys, same placeholders; and every key in the code exists."""

import asyncio
import re
import string
import tomllib
from pathlib import Path

import pytest

from mofang import strings
from mofang.strings import LANGUAGES, say

FOLDER = Path(__file__).parent.parent / "src" / "mofang" / "strings"
SOURCE = FOLDER.parent
ROOMS = sorted({path.stem for lang in LANGUAGES for path in (FOLDER / lang).glob("*.toml")})


def _load(lang: str, room: str) -> dict[str, dict[str, str]]:
    return tomllib.loads((FOLDER / lang / f"{room}.toml").read_text(encoding="utf-8"))


def _fields(sentence: str) -> set[str]:
    return {field.split(".")[0].split("[")[0] for _, field, _, _ in string.Formatter().parse(sentence) if field}


@pytest.mark.parametrize("room", ROOMS)
def test_same_keys_and_placeholders(room: str) -> None:
    zh, en = _load("zh", room), _load("en", room)
    assert zh.keys() == en.keys()
    for name in zh:
        assert zh[name].keys() == en[name].keys(), name
        parts = ({"label", "text"},) if name.startswith("field_") else ({"text"}, {"message", "hint"})
        assert set(zh[name]) in parts, name
        for part in zh[name]:
            assert _fields(zh[name][part]) == _fields(en[name][part]), f"{name}.{part}"
            assert not re.search(r"[\u4e00-\u9fff]", en[name][part]), f"{name}.{part} is not English"


KEY = re.compile(
    r"""(?:say|Error|Invalid|UnknownName|Denied|Forbidden|NotFound|Conflict|TooLarge|Unreadable|Busy|MissingExtra|EngineFailed|Unreachable|Leaving|MissingSystem|NoSpace)\(\s*["']([a-z_]+\.[a-z0-9_]+)["']"""
)


def test_every_key_in_the_code_exists() -> None:
    wrong = []
    for path in SOURCE.rglob("*.py"):
        for key in KEY.findall(path.read_text(encoding="utf-8")):
            room, name = key.split(".")
            if not (FOLDER / "zh" / f"{room}.toml").is_file() or name not in _load("zh", room):
                wrong.append(f"{path.relative_to(SOURCE)}: {key}")
    assert not wrong


def test_say_chooses_the_language(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"name": "x", "library": "y", "extra": "z"}
    assert "pip install 'mofang[z]'" in say("core.missing_extra", part="hint", lang="en", **values)
    monkeypatch.setenv("MOFANG_LANG", "en_US")
    assert say("core.missing_extra", part="message", **values).startswith("'x' needs")
    monkeypatch.setenv("MOFANG_LANG", "zh")
    assert "还没有安装" in say("core.missing_extra", part="message", **values)


async def test_one_process_speaks_to_each_in_their_language(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOFANG_LANG", "zh")

    async def said(lang: str) -> tuple[str, str]:
        with strings.speaking(lang):
            await asyncio.sleep(0)
            return strings.language(), await asyncio.to_thread(strings.language)

    assert await asyncio.gather(said("en"), said("zh"), said("en")) == [("en", "en"), ("zh", "zh"), ("en", "en")]
    assert strings.language() == "zh"
