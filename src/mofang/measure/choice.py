"""Multiple choice as C-Eval and CMMLU ask it, decided by the probability of the labels.

Prompt (C-Eval's own words): 「以下是中国关于{subject}考试的单项选择题，请选出其中的正确答案。」, then `n_shot` solved
examples of the subject's dev file, then the question with its four choices and 「答案：」. The answer is the label whose
probability as the next token is largest, p("A") and p(" A") added, as Chinese-LLaMA-Alpaca does; no text is generated,
so no rule has to read an answer out of one. Raw continuation, no chat template.
Source: github.com/hkust-nlp/ceval; ymcui/Chinese-LLaMA-Alpaca scripts/ceval/llama_evaluator.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp

from mofang.measure.base import Asked
from mofang.messages import NextToken

LABELS = "ABCD"


@dataclass(frozen=True, slots=True)
class Question:
    id: str
    text: str
    choices: tuple[str, str, str, str]
    answer: str
    """One of LABELS."""


@dataclass(frozen=True, slots=True)
class Subject:
    name: str
    title: str
    """In Chinese, for the prompt."""
    examples: Sequence[Question]
    questions: Sequence[Question]


def prompt(subject: Subject, question: Question, n_shot: int) -> str:
    """What the model continues."""
    head = f"以下是中国关于{subject.title}考试的单项选择题，请选出其中的正确答案。\n\n"
    solved = [f"{_asked(example)}{example.answer}\n\n" for example in subject.examples[:n_shot]]
    return head + "".join(solved) + _asked(question)


def _asked(question: Question) -> str:
    choices = [f"{label}. {text}" for label, text in zip(LABELS, question.choices, strict=True)]
    return "\n".join([question.text, *choices, "答案："])


def decide(step: NextToken) -> tuple[str | None, dict[str, float]]:
    """The likeliest label and the probability of each; None when not one label is among the likeliest tokens."""
    found = dict.fromkeys(LABELS, 0.0)
    for candidate in step.top:
        label = candidate.text.strip()
        if label in found:
            found[label] += exp(candidate.logprob)
    best = max(found, key=lambda label: found[label])
    return (best if found[best] > 0 else None), found


async def ask(asked: Asked, subject: Subject, question: Question, n_shot: int) -> tuple[str | None, dict[str, float]]:
    """The model's label for one question."""
    return decide(await asked.next_token(prompt(subject, question, n_shot), n_top=100))
