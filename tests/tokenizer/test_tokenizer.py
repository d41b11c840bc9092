"""Ids are the engine's ids: tokenizers read from GGUF files cut text as llama.cpp does, and survive saving."""

import asyncio
from pathlib import Path

import pytest

import tiny_llama
from mofang.engine import ENGINES
from mofang.errors import Unreadable
from mofang.messages import Message
from mofang.models.base import ModelRef
from mofang.settings import Settings
from mofang.tokenizer import load

TEXTS = [
    "你好，世界！",
    "Hello  world\n\n\n  indented\ttabs 12345 3.14",
    "人工智能是计算机科学、心理学、哲学等学科融合的交叉学科。",
    "混排 mixed 文本，don't I'LL 'VE；emoji 👩‍👩‍👧 é é ﷺ",
    "<|im_start|>user\n问<|im_end|>\n<|im_start|>assistant\n",
    "𠮷野家　全角　空格…………——“引号”",
    "   leading", "trailing   ", "\r\n\r\n", "a\u0000b",
]  # fmt: skip
MODELS = ["smollm2", "qwen"]


@pytest.mark.model
@pytest.mark.parametrize("name", MODELS)
def test_ids_are_llama_cpps(name: str, request: pytest.FixtureRequest, home: Path) -> None:
    path = request.getfixturevalue(name)
    ours = load(path)

    async def theirs() -> tuple[list[list[int]], str]:
        ref = ModelRef(name, path, "gguf", "chat", path.stat().st_size)
        engine = await ENGINES.get("llama")(ref, Settings(home=home, n_ctx=512, n_slots=1), progress=lambda _: None)
        try:
            found = [await engine._post("/tokenize", {"content": text, "parse_special": True}) for text in TEXTS]
            return [one["tokens"] for one in found], await engine.render([Message("user", "你好")])
        finally:
            await engine.close()

    ids, rendered = asyncio.run(theirs())
    assert [ours.encode(text) for text in TEXTS] == ids
    assert ours.render([Message("user", "你好")], add_generation_prompt=True) == rendered
    assert all(ours.decode(ours.encode(text)) == text for text in TEXTS)
    assert ours.token(ours.eos_id) == "<|im_end|>" and ours.eos_id in ours.end_ids


@pytest.mark.model
@pytest.mark.parametrize("name", MODELS)
def test_saved_and_loaded_it_is_the_same_also_for_transformers(
    name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    ours = load(request.getfixturevalue(name))
    ours.save(tmp_path)
    again = load(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    for text in TEXTS:
        assert again.encode(text) == ours.encode(text) == theirs.encode(text, add_special_tokens=False)
    assert (again.eos_id, again.bos_id, again.pad_id, again.add_bos) == (
        ours.eos_id,
        ours.bos_id,
        ours.pad_id,
        ours.add_bos,
    )
    assert again.chat_template == ours.chat_template and again.sha256() == ours.sha256()
    assert theirs.eos_token_id == ours.eos_id and theirs.chat_template == ours.chat_template


def test_a_tiny_one_goes_round(tmp_path: Path) -> None:
    made = tiny_llama.tokenizer()
    made.save(tmp_path, n_ctx=99)
    back = load(tmp_path)
    assert back.decode(back.encode("你好<|im_end|>")) == "你好<|im_end|>"
    assert back.decode(back.encode("你好<|im_end|>"), special=False) == "你好"
    assert back.begin() == [] and back.token(None) == ""


def test_what_holds_no_tokenizer_is_said(tmp_path: Path) -> None:
    with pytest.raises(Unreadable) as raised:
        load(tmp_path)
    assert raised.value.code == "none"
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(Unreadable) as raised:
        load(tmp_path)
    assert raised.value.code == "broken"


def test_a_kind_that_is_not_known_is_named(tmp_path: Path) -> None:
    import gguf

    out = gguf.GGUFWriter(tmp_path / "bert.gguf", "bert")
    out.add_tokenizer_model("bert")
    out.add_token_list(["[UNK]"])
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.close()
    with pytest.raises(Unreadable) as raised:
        load(tmp_path / "bert.gguf")
    assert raised.value.code == "unknown_kind" and "qwen2" in raised.value.hint() and "bert" in raised.value.message()
