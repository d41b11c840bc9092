"""What is refused before a model is asked: questions that neither words nor vectors bring near to the base."""

from collections.abc import Sequence

import pytest
from knowledge_bench import Bench, TokenCounter

from mofang.knowledge.centre import everyday_queries
from mofang.messages import Message

MANUAL = "# 清洁\n\n清洁外壳之前要先拔掉电源插头，再用拧干的软布轻轻擦拭，不可以使用酒精。\n\n# 报警\n\n出现报警 E-2043 时请检查滤网。\n"


async def _ground(bench: Bench, counter: TokenCounter, *messages: Message):  # type: ignore[no-untyped-def]
    return await bench.library.ground(["库"], messages, engine=counter, max_prompt_tokens=4000)  # type: ignore[arg-type]


async def test_a_question_about_other_things_is_refused_and_told_where_was_looked(
    bench: Bench, counter: TokenCounter
) -> None:
    await bench.put("手册.md", MANUAL)
    found = await _ground(bench, counter, Message("user", "唐朝皇帝有几位"))
    assert found.refused and "库" in found.answer and "唐朝皇帝有几位" in found.answer
    assert found.sources, "the nearest passages, for a person to judge"
    english = await _ground(bench, counter, Message("user", "zyxwv qponm"))
    assert english.refused and english.answer.startswith("Not found")


@pytest.mark.parametrize("question", ["清洁外壳之前要做什么", "E-2043", "报警 E-2043 是什么意思"])
async def test_a_question_of_the_bases_own_is_for_the_model(bench: Bench, counter: TokenCounter, question: str) -> None:
    await bench.put("手册.md", MANUAL)
    found = await _ground(bench, counter, Message("user", question))
    assert not found.refused and not found.answer and found.sources


async def test_a_base_of_everyday_questions_refuses_none_of_them(bench: Bench, counter: TokenCounter) -> None:
    """What is near is told by the base: the usual nearness of everyday questions is 1 here."""
    await bench.put("日常.md", "\n\n".join(f"# {query}\n\n{query}。" for query in everyday_queries()["zh"]))
    refused = [
        query for query in everyday_queries()["zh"] if (await _ground(bench, counter, Message("user", query))).refused
    ]
    assert refused == []


async def test_only_the_first_question_of_a_conversation_is_refused(bench: Bench, counter: TokenCounter) -> None:
    await bench.put("手册.md", MANUAL)
    before = (Message("user", "清洁外壳之前要做什么"), Message("assistant", "先拔掉电源插头[1]。"))
    assert not (await _ground(bench, counter, *before, Message("user", "请翻译成法语并写成一首短诗"))).answer


async def test_what_was_added_since_counts(bench: Bench, counter: TokenCounter) -> None:
    await bench.put("手册.md", MANUAL)
    asked = Message("user", "唐朝皇帝有几位")
    assert (await _ground(bench, counter, asked)).refused
    await bench.put("唐朝.md", "# 唐朝皇帝有几位\n\n唐朝皇帝有二十一位。")
    assert not (await _ground(bench, counter, asked)).refused


async def test_a_greeting_is_answered_without_documents(bench: Bench, counter: TokenCounter) -> None:
    await bench.put("手册.md", MANUAL)
    messages: Sequence[Message] = [Message("user", "你好！")]
    found = await _ground(bench, counter, *messages)
    assert found.sources == [] and found.messages == list(messages) and not found.answer
    asked = await _ground(bench, counter, Message("user", "你好，清洁外壳之前要做什么？"))
    assert asked.sources and not asked.answer
