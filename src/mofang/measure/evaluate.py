"""A set put to a model: one score, and every single answer behind it."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mofang.measure import choice, text
from mofang.measure.base import Asked
from mofang.measure.evalset import EvalSet
from mofang.measure.rules import holds

TEXT_TOKENS = 400
"""Of a text for bits per byte, unless asked otherwise."""
ANSWER_TOKENS = 160


@dataclass(frozen=True, slots=True)
class Score:
    """`value`: accuracy from 0 to 1, or bits per byte (less is better)."""

    set: str
    kind: str
    metric: str
    value: float
    n: int
    parts: dict[str, float]
    """By subject, for multiple choice."""
    answers: list[dict[str, Any]]

    def shape(self) -> dict[str, Any]:
        return asdict(self)


def text_score(name: str, forced: Sequence[float], n_bytes: int) -> Score:
    """From natural log-probabilities of a text's tokens and the bytes of their text, however it was read."""
    return Score(name, "text", "bits_per_byte", text.bits_per_byte(forced, n_bytes), len(forced), {}, [])


async def evaluate(
    asked: Asked,
    questions: EvalSet,
    *,
    n_shot: int = 0,
    n_tokens: int = TEXT_TOKENS,
    tell: Callable[[int, int], None] | None = None,
) -> Score:
    """Put every question of the set to the model, in order. `tell(done, total)` hears of each."""
    told = tell or (lambda done, total: None)
    if questions.kind == "text":
        reading = await text.read(asked, questions.text, n_tokens=n_tokens, tell=told)
        return text_score(questions.name, [step.forced or 0.0 for step in reading.nexts], reading.n_bytes)
    answers: list[dict[str, Any]] = []
    total = len(questions)
    told(0, total)
    for subject in questions.subjects:
        for question in subject.questions:
            label, shares = await choice.ask(asked, subject, question, n_shot)
            answers.append(
                {
                    "id": f"{subject.name}/{question.id}",
                    "subject": subject.name,
                    "question": question.text,
                    "answer": label,
                    "expected": question.answer,
                    "shares": shares,
                    "right": label == question.answer,
                }
            )
            told(len(answers), total)
    for task in questions.tasks:
        said = await asked.answer(task.messages, max_tokens=ANSWER_TOKENS)
        answers.append(
            {
                "id": task.id,
                "question": task.messages[-1].text,
                "answer": said,
                "expected": task.rule,
                "right": holds(task.rule, said),
            }
        )
        told(len(answers), total)
    parts = {
        subject.name: sum(answer["right"] for answer in answers if answer["subject"] == subject.name)
        / len(subject.questions)
        for subject in questions.subjects
    }
    right = sum(answer["right"] for answer in answers) / len(answers)
    return Score(questions.name, questions.kind, "accuracy", right, len(answers), parts, answers)
