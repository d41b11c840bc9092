"""Questions that are answered already: the stored answer is given, and only to the very question."""

from dataclasses import replace

import numpy as np
import pytest
from knowledge_bench import Bench

from mofang.knowledge import stored
from mofang.knowledge.answer import Grounding, marks
from mofang.messages import Message

TABLE = """问题,答案,负责人
怎样开启自动保存？,在“选项”里勾选“自动保存”。,小王
怎样关闭自动保存？,在“选项”里取消“自动保存”。,小李
工作满一年有几天年假？,五天。,
如何备份？,"先停服务。

```sh
mofang backup
```",
"""


@pytest.fixture
async def filled(bench: Bench) -> Bench:
    await bench.put("问答.csv", TABLE)
    await bench.put("手册.txt", "保存的文件在本机，每五分钟写一次，断电也不会丢。")
    return bench


async def _stored(bench: Bench, *turns: Message | str, names: tuple[str, ...] = ("库",)) -> Grounding | None:
    return await bench.library.stored(
        names, [Message("user", turn) if isinstance(turn, str) else turn for turn in turns]
    )


@pytest.mark.parametrize(
    "asked", ["怎样开启自动保存？", " 您好，请问怎样开启自动保存", "怎样开启自动保存？谢谢！", "如何开启自动保存？"]
)
async def test_the_very_question_has_its_answer(filled: Bench, asked: str) -> None:
    found = await _stored(filled, asked)
    assert found is not None
    assert found.answer == "在“选项”里勾选“自动保存”。\n负责人：小王\n\n[1]"
    (source,) = found.sources
    assert (source.number, source.title) == (1, "问答.csv") and source.place and source.place.row == 2
    ((start, end),) = source.spans
    text = filled.library.text("库", source.document_id)["text"]
    assert text[start:end] == "在“选项”里勾选“自动保存”。\n负责人：小王" and source.start <= start < end <= source.end
    assert text[source.start : source.end] == source.text
    assert found.messages[-1].text == asked and "问答.csv" in found.notices[0]


@pytest.mark.parametrize(
    "asked",
    ["怎样开启自动更新？", "为什么开启自动保存？", "怎样不开启自动保存？", "工作满二年有几天年假？", "自动保存"],
)
async def test_another_question_has_none(filled: Bench, asked: str) -> None:
    assert await _stored(filled, asked) is None


async def test_a_mark_never_stands_in_code(filled: Bench) -> None:
    found = await _stored(filled, "如何备份？")
    assert found is not None and marks(found.answer) == {1} and found.answer.endswith("```\n\n[1]")


async def test_a_question_that_leans_on_something_has_none(filled: Bench) -> None:
    asked, before = "怎样开启自动保存？", (Message("user", "文档有什么功能？"), Message("assistant", "自动保存。"))
    assert await _stored(filled, *before, "请问一般情况下怎样开启自动保存？") is None  # words that no rule knows
    assert await _stored(filled, *before, "请问一下，怎样开启自动保存？") is not None, "it stands by itself"
    assert await _stored(filled, *before, "这个怎样开启？") is None
    assert await _stored(filled, Message("system", "只用英文回答。"), asked) is None, "it could not obey"
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
    assert await _stored(filled, Message("user", [{"type": "text", "text": asked}, picture])) is None


async def test_answers_that_disagree_are_left_to_the_model(filled: Bench) -> None:
    await filled.put("别的.jsonl", '{"question": "工作满一年有几天年假", "answer": "七天。"}\n')
    assert await _stored(filled, "工作满一年有几天年假？") is None
    await filled.put("别的.jsonl", '{"question": "工作满一年有几天年假", "answer": "五天。"}\n')
    found = await _stored(filled, "工作满一年有几天年假？")
    assert found is not None and found.answer == "五天。 [1]"


async def test_several_bases_and_what_is_gone(filled: Bench) -> None:
    filled.library.create("另一个", embedding_model="hash")
    await filled.put("电话.csv", "问题,答案\n客服电话是多少？,10086\n", base="另一个")
    found = await _stored(filled, "请问客服电话是多少", names=("库", "另一个"))
    assert found is not None and found.sources[0].knowledge == "另一个"
    assert await _stored(filled, "请问客服电话是多少") is None
    (document,) = filled.library.documents("另一个")
    filled.library.remove_document("另一个", document.id)
    assert await _stored(filled, "请问客服电话是多少", names=("库", "另一个")) is None


async def test_a_base_without_pairs_is_not_searched(bench: Bench) -> None:
    await bench.put("手册.txt", "怎样开启自动保存？在选项里。")
    assert await _stored(bench, "怎样开启自动保存？") is None
    assert not bench.embedder.queries


async def test_a_long_pair_answers_whole(bench: Bench) -> None:
    """Its block is cut into several passages; any of them leads to all of the answer."""
    answer = "".join(f"第{n}步，打开第{n}个开关，等它亮起。" for n in range(200))
    await bench.put("长.csv", f"问题,答案\n怎样启动机器？,{answer}\n")
    found = await _stored(bench, "怎样启动机器？")
    assert found is not None and found.answer == f"{answer} [1]"


async def test_other_words_need_the_embedders_word(filled: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "LEAST_NEARNESS", 1.01)
    assert await _stored(filled, "如何开启自动保存？") is None
    assert await _stored(filled, "请问怎样开启自动保存？") is not None, "the same words need none"


def test_nearness_is_on_the_embedders_own_scale() -> None:
    usual = np.array([0.8, 0.0, 0.0], np.float32)  # every query's cosine to every other is 0.8 or so
    one = np.array([1.0, 0.0, 0.0], np.float32)
    other = np.array([0.9, np.sqrt(1 - 0.81), 0.0], np.float32)
    assert stored.nearness(np.stack([one, one]), usual) == pytest.approx(1)
    assert stored.nearness(np.stack([one, other]), usual) == pytest.approx(0.5, abs=1e-6)


async def test_a_document_that_changed_since_the_search_answers_nothing(filled: Bench) -> None:
    hits = await filled.library.search(["库"], "怎样开启自动保存？")
    stores = {"库": filled.library._store("库")}
    assert stored.pairs_of(stores, hits)[0] is not None
    assert stored.pairs_of(stores, [replace(hits[0], text="别的话")]) == [None]
