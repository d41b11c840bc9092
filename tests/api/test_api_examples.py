"""The examples of docs/python.md, run as they stand, on engines that need no weights and a tiny base."""

import json
import re
from pathlib import Path

import pytest

import mofang
import tiny_llama
from fakes import install_model
from mofang.models.store import ModelStore
from mofang.settings import Settings

DOCS = Path(__file__).parents[2] / "docs"
SOURCE = Path(mofang.__file__).parent


def blocks(name: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (DOCS / name).read_text(encoding="utf-8"), flags=re.DOTALL)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", ["python.md", "python.en.md"])
def test_asking(name: str, home: Path, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    install_model(home, "echo")
    install_model(home, "hash", kind="embedding", engine="hash")
    (place / "合同.md").write_text("# 合同\n\n违约金按合同金额的百分之五计算。\n", encoding="utf-8")
    exec(blocks(name)[0], {})
    said = capsys.readouterr().out
    assert "用一句话解释什么是量化。 12" in said and "从一数到三。" in said and "'text': '中'" in said
    assert "违约金按合同金额的百分之五计算。" in said and "合同.md" in said.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["python.md", "python.en.md"])
def test_teaching(name: str, home: Path, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ModelStore(Settings(home=home)).add(tiny_llama.make(tmp_path / "tiny"), "底座")
    rows = [json.dumps({"instruction": f"问{n}", "output": f"答{n}"}) for n in range(4)]
    (place / "问答.jsonl").write_text("\n".join(rows), encoding="utf-8")
    exec(blocks(name)[1], {})
    said = capsys.readouterr().out
    assert "【答0<|im_end|>】" in said and "小助手-hf" in said and "小助手-" in said.splitlines()[-1]


def test_there_are_about_a_dozen_names_and_none_is_a_room() -> None:
    assert 12 <= len(mofang.__all__) <= 20
    rooms = {path.stem for path in SOURCE.iterdir()}
    assert not rooms & set(mofang.__all__)
    for name in mofang.__all__:
        assert getattr(mofang, name).__doc__, name
        assert f"`{name}" in (DOCS / "python.md").read_text(encoding="utf-8") or name in ("Answer", "Model"), name
    with pytest.raises(AttributeError):
        _ = mofang.no_such_name


@pytest.mark.slow
def test_one_gateway_serves_all_objects_and_ends_with_the_last(home: Path) -> None:
    from mofang.launch import home as homes

    install_model(home, "echo")
    with mofang.load("echo") as first:
        owner = homes.find(home)
        assert owner
        with mofang.load("echo") as second:
            assert str(second.chat("二")) == "二" and homes.find(home) == owner
        assert first.chat([{"role": "user", "content": "一"}]).text == "一"
    assert homes.find(home) is None


@pytest.mark.slow
def test_what_fails_fails_in_words(home: Path, place: Path) -> None:
    from mofang.errors import Invalid, MofangError, NotFound

    with pytest.raises(Invalid):
        mofang.sft(base="x", dta="y")
    with pytest.raises(MofangError) as raised:
        mofang.sft(base="none", data="none.jsonl")
    assert raised.value.code == "model_not_found"
    install_model(home, "echo")
    with pytest.raises(MofangError):
        mofang.load("nobody")
    with pytest.raises(NotFound):
        mofang.evaluate("echo", ["no_such_set"])
    (score,) = mofang.evaluate("echo", ["common_zh"])
    assert score.n == 12 and score.answers[0]["answer"] == score.answers[0]["question"]
