"""Figures against their definitions, the layouts of sets, and the sets that come with Mofang."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from mofang.errors import NotFound, Unreadable
from mofang.measure import NAMES, load_set, text
from mofang.measure.base import Asked
from mofang.measure.choice import LABELS, decide, prompt
from mofang.measure.evaluate import evaluate
from mofang.measure.rules import holds
from mofang.messages import Candidate, Message, NextToken

JOURNEY = Path(__file__).parents[2] / "journeys" / "data"


class Uniform:
    """Knows 8 characters-as-tokens equally well, answers with the last question, and prefers label C."""

    name = "uniform"

    async def tokenize(self, text: str) -> list[int]:
        return [ord(char) for char in text]

    async def next_token(self, prompt: str | list[int], *, forced: int | None = None, n_top: int = 20) -> NextToken:
        top = (Candidate(1, " C", math.log(0.3)), Candidate(2, "B", math.log(0.35)), Candidate(3, "C", math.log(0.1)))
        return NextToken(math.log(1 / 8) if forced is not None else None, top)

    async def answer(self, messages: Sequence[Message], *, max_tokens: int) -> str:
        return f"{messages[-1].text} 北京"


async def test_bits_per_byte_of_a_model_that_knows_three_bits_of_each_token() -> None:
    asked: Asked = Uniform()
    reading = await text.read(asked, "abcdefgh", n_tokens=100)
    assert reading.n_bytes == 7 and reading.bits_per_byte == pytest.approx(3.0)
    chinese = await text.read(asked, "春眠不觉晓", n_tokens=3)
    assert len(chinese.ids) == 3 and chinese.n_bytes == 6 and chinese.bits_per_byte == pytest.approx(1.0)
    score = await evaluate(asked, load_set("text_zh"), n_tokens=20)
    assert (score.metric, score.n) == ("bits_per_byte", 19) and score.value == pytest.approx(1.0, rel=0.2)


def test_figures_are_their_definitions() -> None:
    logprobs = np.log(np.array([0.5, 0.25], np.float32))
    assert text.bits_per_byte(logprobs, 3) == pytest.approx(1.0)
    assert text.perplexity(logprobs) == pytest.approx(math.sqrt(8))
    assert text.top_agreement([1, 2, 3, 4], [1, 2, 0, 4]) == 0.75


def test_divergence_of_equals_is_nothing_and_of_others_what_it_is() -> None:
    reference = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))

    def step(*listed: float) -> NextToken:
        return NextToken(None, tuple(Candidate(number, "", math.log(p)) for number, p in enumerate(listed)))

    assert text.divergence(reference, step(0.5, 0.3, 0.15, 0.05)) == pytest.approx(0, abs=1e-6)
    assert text.divergence(reference, step(0.5, 0.3)) == pytest.approx(0, abs=1e-6)  # the rest is one lump
    whole = sum(p * math.log(p / q) for p, q in zip((0.5, 0.3, 0.15, 0.05), (0.4, 0.4, 0.1, 0.1), strict=True))
    assert text.divergence(reference, step(0.4, 0.4, 0.1, 0.1)) == pytest.approx(whole, rel=1e-5)
    assert text.divergence(reference, step(0.4, 0.4)) <= whole + 1e-9


async def test_a_label_is_the_sum_of_its_spellings() -> None:
    label, shares = decide(await Uniform().next_token("x"))
    assert label == "C" and shares == pytest.approx({"A": 0, "B": 0.35, "C": 0.4, "D": 0})
    assert decide(NextToken(None, (Candidate(1, "好", -0.1),)))[0] is None
    score = await evaluate(Uniform(), load_set("general_zh"))
    assert (
        score.n == 60
        and score.value == pytest.approx(0.25)
        and set(score.parts) == {"geography", "history", "science", "chinese", "computing"}
    )


def test_the_prompt_is_c_evals() -> None:
    (subject,) = [subject for subject in load_set("general_zh").subjects if subject.name == "history"]
    asked = prompt(subject, subject.questions[0], 2)
    assert asked.startswith("以下是中国关于历史考试的单项选择题，请选出其中的正确答案。\n\n")
    assert asked.endswith("答案：") and asked.count("答案：") == 3
    solved = asked.split("\n\n")[1]
    example = subject.examples[0]
    assert solved == "\n".join(
        [
            example.text,
            *(f"{label}. {text}" for label, text in zip(LABELS, example.choices, strict=True)),
            f"答案：{example.answer}",
        ]
    )


@pytest.mark.parametrize(
    "rule, answer, right",
    [
        ({"contains_any": ["模坊", "Mofang"]}, "我是 MOFANG。", True),
        ({"contains_any": ["模坊"], "excludes": ["Qwen"]}, "模坊，不是 qwen", False),
        ({"contains_all": ["春", "夏"]}, "春和夏", True),
        ({"contains_all": ["春", "夏"]}, "春", False),
        ({"equals": "黄河"}, " 黄河。\n", True),
        ({"equals": "黄河"}, "是黄河", False),
        ({"regex": r"\b7\b|七"}, "有七天", True),
    ],
)
def test_rules(rule: dict, answer: str, right: bool) -> None:
    assert holds(rule, answer) is right


def test_a_rule_that_is_none_is_refused() -> None:
    for rule in ({}, {"contians": "x"}):
        with pytest.raises(Unreadable):
            holds(rule, "x")


def test_sets_that_cannot_be_used_name_file_row_and_field(tmp_path: Path) -> None:
    with pytest.raises(NotFound) as missing:
        load_set("identity")
    assert "identity_zh" in missing.value.hint()
    path = tmp_path / "set.jsonl"
    path.write_text('{"messages": [{"role": "user", "content": "x"}], "rule": {"equals": "y"}}\n{"messages": []}\n')
    with pytest.raises(Unreadable) as broken:
        load_set(str(path))
    assert broken.value.values["row"] == 2
    (tmp_path / "val").mkdir()
    csv = tmp_path / "val" / "a_val.csv"
    csv.write_text("id,question,A,B,C,D,answer\n0,问,1,2,3,4,A\n1,问,1,2,3,4,E\n", encoding="utf-8-sig")
    with pytest.raises(Unreadable) as bad:
        load_set(str(tmp_path))
    assert (bad.value.values["row"], bad.value.values["field"]) == (3, "answer")
    csv.write_text(csv.read_text(encoding="utf-8-sig").replace("E", "D"), encoding="utf-8-sig")
    assert [question.answer for question in load_set(str(tmp_path)).subjects[0].questions] == ["A", "D"]


async def test_generated_answers_are_judged_one_by_one() -> None:
    score = await evaluate(Uniform(), load_set("common_zh"))
    (capital,) = [answer for answer in score.answers if "首都" in answer["question"]]
    assert capital["right"] and 0 < score.value < 1 and score.n == len(score.answers) == 12


@pytest.mark.parametrize("name", NAMES)
def test_our_sets_are_whole(name: str) -> None:
    found = load_set(name)
    assert len(found) >= 10
    for subject in found.subjects:
        assert len(subject.examples) == 5 and {question.answer for question in subject.questions} == set(LABELS)


def test_the_identity_questions_are_not_in_the_data_that_teaches_it() -> None:
    bare = str.maketrans("", "", "？?！!。，,、 的呀啊呢吗")
    asked = {task.messages[-1].text.translate(bare) for task in load_set("identity_zh").tasks}
    files = ("mofang_zh.jsonl", "mofang_heldout_zh.jsonl")
    taught, held_out = (
        {
            json.loads(line)["instruction"].translate(bare)
            for line in (JOURNEY / file).read_text(encoding="utf-8").splitlines()
        }
        for file in files
    )
    assert len(asked) == 10 and len(taught) == 150 and len(held_out) == 20
    assert not asked & taught and not held_out & taught
