"""Sets of questions: those that come with Mofang, and the user's own in the same layouts.

a folder with dev/ and val/ or test/    multiple choice as C-Eval and CMMLU lay it out: <subject>_val.csv
a .jsonl file                           generation: {"id", "messages", "rule"}
a .txt file                             a text, for bits per byte
"""

import csv
import difflib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mofang.errors import NotFound, Unreadable
from mofang.measure.choice import LABELS, Question, Subject
from mofang.measure.rules import holds
from mofang.messages import Message

FOLDER = Path(__file__).parent / "sets"
NAMES: dict[str, str] = {
    "identity_zh": "identity_zh.jsonl",
    "common_zh": "common_zh.jsonl",
    "general_zh": "general_zh",
    "text_zh": "text_zh.txt",
    "text_en": "text_en.txt",
}
"""Our own: name → file beside sets/README.md."""


@dataclass(frozen=True, slots=True)
class Task:
    """A question whose generated answer is judged by a rule."""

    id: str
    messages: list[Message]
    rule: dict[str, Any]


@dataclass(frozen=True, slots=True)
class EvalSet:
    """One of `subjects`, `tasks`, `text` is filled, as `kind` says."""

    name: str
    kind: Literal["choice", "generation", "text"]
    subjects: list[Subject]
    tasks: list[Task]
    text: str

    def __len__(self) -> int:
        return sum(len(subject.questions) for subject in self.subjects) or len(self.tasks) or len(self.text)


def load_set(name: str) -> EvalSet:
    """One of ours by name, or a path. Raises NotFound with the nearest name; Unreadable with file, row and field."""
    path = FOLDER / NAMES[name] if name in NAMES else Path(name).expanduser()
    if not path.exists():
        near = difflib.get_close_matches(name, NAMES, n=1, cutoff=0.3)
        raise NotFound("measure.no_such_set", name=name, known=", ".join(NAMES), near=near[0] if near else "-")
    title = name if name in NAMES else path.stem
    if path.is_dir():
        return EvalSet(title, "choice", _subjects(path), [], "")
    if path.suffix == ".txt":
        text = path.read_text(encoding="utf-8")
        if not text.strip():
            raise Unreadable("measure.empty_set", path=path)
        return EvalSet(title, "text", [], [], text)
    return EvalSet(title, "generation", [], _tasks(path), "")


def load_text(name: str) -> EvalSet:
    """A text of our own by name, or any file in UTF-8. Raises NotFound with the nearest name; Unreadable."""
    if name in NAMES and NAMES[name].endswith(".txt"):
        return load_set(name)
    path = Path(name).expanduser()
    if not path.is_file():
        known = [each for each, file in NAMES.items() if file.endswith(".txt")]
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.3)
        raise NotFound("measure.no_such_text", name=name, known=", ".join(known), near=near[0] if near else "-")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise Unreadable("measure.not_utf8", path=path, at=error.start) from error
    if not text.strip():
        raise Unreadable("measure.empty_set", path=path)
    return EvalSet(path.stem, "text", [], [], text)


def prompts() -> list[Task]:
    """Ten questions of our own in Chinese and English, without rules: to see two models answer side by side."""
    lines = (FOLDER / "prompts.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    return [
        Task(one["id"], [Message(item["role"], item["content"]) for item in one["messages"]], {}) for one in records
    ]


def _subjects(folder: Path) -> list[Subject]:
    part = next((name for name in ("val", "test") if (folder / name).is_dir()), None)
    if part is None:
        raise Unreadable("measure.not_a_set", path=folder)
    listed = folder / "subjects.json"
    titles = json.loads(listed.read_text(encoding="utf-8")) if listed.is_file() else {}
    found = []
    for file in sorted((folder / part).glob("*.csv")):
        name = file.stem.removesuffix(f"_{part}")
        title = titles.get(name, name)
        solved = next(
            (path for path in (folder / "dev" / f"{name}_dev.csv", folder / "dev" / f"{name}.csv") if path.is_file()),
            None,
        )
        found.append(
            Subject(
                name,
                title.get("zh", name) if isinstance(title, dict) else str(title),
                _questions(solved) if solved else [],
                _questions(file),
            )
        )
    if not found:
        raise Unreadable("measure.empty_set", path=folder / part)
    return found


def _questions(path: Path) -> list[Question]:
    found = []
    with path.open(encoding="utf-8-sig", newline="") as file:
        for row, record in enumerate(csv.DictReader(file), 2):
            fields = {str(key).strip().lower(): str(value or "").strip() for key, value in record.items() if key}
            answer = fields.get("answer", "")
            for field in ("question", *(label.lower() for label in LABELS)):
                if not fields.get(field):
                    raise Unreadable("measure.bad_row", path=path, row=row, field=field)
            if answer not in LABELS or len(answer) != 1:
                raise Unreadable("measure.bad_row", path=path, row=row, field="answer")
            choices = (fields["a"], fields["b"], fields["c"], fields["d"])
            found.append(
                Question(fields.get("id") or fields.get("") or str(row - 2), fields["question"], choices, answer)
            )
    return found


def _tasks(path: Path) -> list[Task]:
    found = []
    for row, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            messages = [Message(item["role"], item["content"]) for item in record["messages"]]
            rule = dict(record["rule"])
        except (ValueError, KeyError, TypeError) as error:
            raise Unreadable("measure.bad_row", path=path, row=row, field=error) from error
        holds(rule, "")  # an unknown rule is found before the model is asked
        found.append(Task(str(record.get("id", row)), messages, rule))
    if not found:
        raise Unreadable("measure.empty_set", path=path)
    return found
