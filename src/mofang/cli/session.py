"""A conversation from the command line: what is sent to the gateway, and the /commands that change or show it.

The gateway keeps the conversation, so the workbench shows it as well. Nothing here reads a keyboard: prompt.py and a
pipe both call `Session.take` with one message or command at a time.
"""

import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mofang.cli import answers, render
from mofang.cli.answers import Answer
from mofang.client import Client
from mofang.errors import Conflict, Invalid, NotFound
from mofang.strings import say

_COMMAND = re.compile(r"[/／、]([a-zA-Z?]+)(?:\s+(.*))?", re.DOTALL)
"""Chinese input methods type "／" or "、" for the key "/"."""
_ROOT = "root"
"""As `parent_id`: a first turn of the conversation, whatever else is in it."""
CLEAR = "-"
"""As a command's argument: none."""


class Leave(Exception):
    """The reader wants to go."""


@dataclass
class Session:
    """One conversation and how its next turn is asked. `leaf` is the message that the next turn follows."""

    client: Client
    model: str = "auto"
    system: str = ""
    knowledge: list[str] = field(default_factory=list)
    sampling: dict[str, Any] = field(default_factory=dict)
    show_stats: bool = False
    quiet: bool = False
    """Show nothing below an answer: its caller does."""
    conversation_id: str | None = None
    leaf: str | None = None
    asked: str | None = None
    """Id of the last turn that was answered, for /regen."""
    answer: Answer | None = None
    new_screen: Callable[[], answers.Screen] = answers.screen

    # ---- turns ----

    def take(self, line: str) -> None:
        """One message or /command. "//…" is a message that begins with a stroke. Raises Leave for /exit."""
        line = line.strip()
        if not line:
            return
        match = _COMMAND.fullmatch(line)
        if match is None:
            self.say(line.removeprefix("/") if line.startswith("//") else line)
            return
        name, argument = match[1].lower(), (match[2] or "").strip()
        if name not in COMMANDS:
            near = render.nearest(name, COMMANDS) or "help"
            raise Invalid("cli.unknown_command", name=name, near=near)
        COMMANDS[name](self, argument)

    def say(self, content: str) -> Answer:
        """Ask, show the answer, keep both."""
        return self._ask([{"role": "user", "content": content}], self.leaf or _ROOT)

    def _ask(self, turns: list[dict[str, Any]], parent_id: str) -> Answer:
        body: dict[str, Any] = {
            "model": self.model,
            "messages": turns,
            "conversation_id": self._begin(),
            "parent_id": parent_id,
            **self.sampling,
        }
        if self.system:
            body["system"] = self.system
        if self.knowledge:
            body["knowledge"] = self.knowledge
        self.answer = answer = Answer()
        try:
            answers.ask(self.client, body, self.new_screen(), answer)
        finally:
            if answer.user_message_ids:  # also after an error: /regen asks again
                self.asked = answer.user_message_ids[-1]
        # A turn that was stopped before anything was said does not count as answered.
        if answer.content or answer.status == "done":
            self.leaf = answer.message_id
        if not self.quiet:
            self._show_below(answer)
        return answer

    def _show_below(self, answer: Answer) -> None:
        answers.show_end(answer)
        if self.knowledge:
            answers.show_sources(answer)
        if self.show_stats and answers.summary(answer):
            render.note(answers.summary(answer))

    def _begin(self) -> str:
        if self.conversation_id is None:
            created = self.client.create_conversation(**self._fields())
            self.conversation_id = created["id"]
        return self.conversation_id

    def _fields(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "system": self.system,
            "knowledge": self.knowledge,
            "sampling": self.sampling,
        }

    def _keep(self) -> None:
        """Let the workbench see a change of model, prompt or knowledge."""
        if self.conversation_id is not None:
            self.client.change_conversation(self.conversation_id, **self._fields())

    # ---- the conversation as it stands ----

    def resume(self) -> dict[str, Any] | None:
        """Take up the conversation that was touched last, with its settings; None when there is none."""
        known = self.client.conversations()
        if not known:
            return None
        newest = max(known, key=lambda conversation: str(conversation.get("updated_at") or ""))
        conversation = self.client.conversation(newest["id"])
        self.conversation_id = conversation["id"]
        self.model = conversation.get("model") or self.model
        self.system = conversation.get("system") or ""
        self.knowledge = list(conversation.get("knowledge") or ())
        self.sampling = dict(conversation.get("sampling") or {})
        answered = [
            message
            for message in conversation["messages"]
            if message["role"] == "assistant" and message.get("status") in ("done", "stopped")
        ]
        if answered:
            self.leaf, self.asked = answered[-1]["id"], answered[-1]["parent_id"]
        return conversation

    def turns(self) -> list[dict[str, Any]]:
        """The messages from the first one to the leaf."""
        if self.conversation_id is None or self.leaf is None:
            return []
        messages = {message["id"]: message for message in self.client.conversation(self.conversation_id)["messages"]}
        path: list[dict[str, Any]] = []
        at: str | None = self.leaf
        while at is not None:
            path.append(messages[at])
            at = messages[at]["parent_id"]
        return path[::-1]


# ---- commands: each takes the session and what stands after the name ----


def _help(session: Session, argument: str) -> None:
    render.show(render.facts((say(f"cli.usage_{name}"), say(f"cli.help_{name}")) for name in SHOWN))
    render.note(say("cli.help_keys"))


def _new(session: Session, argument: str) -> None:
    session.conversation_id = session.leaf = session.asked = session.answer = None
    render.note(say("cli.new_conversation"))


def _system(session: Session, argument: str) -> None:
    if argument:
        session.system = "" if argument == CLEAR else argument
        session._keep()
    render.note(say("cli.system_is", system=session.system) if session.system else say("cli.system_none"))


def _model(session: Session, argument: str) -> None:
    if argument:
        known = chat_models(session.client)
        if argument != "auto" and argument not in known:
            raise NotFound("cli.no_such_model", name=argument, near=render.nearest(argument, known) or "–")
        session.model = argument
        session._keep()
    render.note(say("cli.model_is", model=session.model))


def _models(session: Session, argument: str) -> None:
    known = chat_models(session.client)
    if not known:
        render.note(say("cli.no_models"))
    for name in known:
        render.show(f"{'●' if name == session.model else ' '} {name}")


def _kb(session: Session, argument: str) -> None:
    if argument:
        names = [] if argument == CLEAR else argument.split()
        check_knowledge(session.client, names)
        session.knowledge = names
        session._keep()
    else:
        for base in session.client.knowledge():
            render.show(f"{'●' if base['name'] in session.knowledge else ' '} {base['name']}")
    chosen = "、".join(session.knowledge)
    render.note(say("cli.kb_is", names=chosen) if chosen else say("cli.kb_none"))


def _sources(session: Session, argument: str) -> None:
    from rich.padding import Padding
    from rich.text import Text

    from mofang.cli.wrap import ChineseText

    if session.answer is None or not session.answer.sources:
        raise Invalid("cli.no_sources")
    for source in session.answer.sources:
        mark = "●" if source.get("cited") else "○"
        render.show(Text(f"{mark} [{source['number']}] {answers.place(source)}", style="bold"))
        render.show(Padding(ChineseText(source["text"].strip()), (0, 0, 1, 4)))


def _regen(session: Session, argument: str) -> None:
    if session.asked is None:
        raise Invalid("cli.nothing_to_repeat")
    session._ask([], session.asked)


def _save(session: Session, argument: str) -> None:
    if not argument:
        raise Invalid("cli.save_where")
    path = Path(argument).expanduser()
    turns = session.turns()
    if not turns:
        raise Invalid("cli.nothing_said")
    if path.exists():
        raise Conflict("cli.file_exists", path=path)
    if not path.absolute().parent.is_dir():
        raise NotFound("cli.no_such_folder", path=path.absolute().parent)
    text = json.dumps(turns, ensure_ascii=False, indent=2) if path.suffix == ".json" else _markdown(session, turns)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_text(text, encoding="utf-8")
    aside.replace(path)
    render.note(say("cli.saved", path=path))


def _markdown(session: Session, turns: list[dict[str, Any]]) -> str:
    parts = [f"> {line}\n" for line in session.system.splitlines()]
    for turn in turns:
        parts.append(f"## {_speaker(turn)}\n\n{str(turn['content']).strip()}\n")
        sources = turn.get("sources") or ()
        if sources:
            parts.append("\n".join(f"- [{source['number']}] {answers.place(source)}" for source in sources) + "\n")
    return "\n".join(parts)


def _speaker(turn: Mapping[str, Any]) -> str:
    return str(turn.get("model") or "auto") if turn["role"] == "assistant" else say("cli.you")


def _history(session: Session, argument: str) -> None:
    from rich.text import Text

    from mofang.cli.markdown import Markdown

    turns = session.turns()
    if not turns:
        raise Invalid("cli.nothing_said")
    for turn in turns:
        render.show(Text(_speaker(turn), style="bold"), Markdown(str(turn["content"])), "")


def _stats(session: Session, argument: str) -> None:
    answer = session.answer
    if answer is None:
        raise Invalid("cli.nothing_said")
    usage, timings = answer.usage, answer.timings
    pairs = [
        ("model", answer.model),
        ("prompt", say("cli.stat_prompt", n=usage.get("prompt_tokens", "–"), cached=answers.cached_tokens(usage))),
        ("answer", say("cli.stat_tokens", n=usage.get("completion_tokens", "–"))),
        ("prompt_speed", _speed(timings.get("prompt_per_second"))),
        ("answer_speed", _speed(timings.get("predicted_per_second"))),
        ("first", f"{answer.first_token_s:.2f} s" if answer.first_token_s is not None else "–"),
        ("whole", f"{answer.seconds:.2f} s"),
        ("ended", answer.finish_reason or answer.status),
    ]
    render.show(render.facts((say(f"cli.stats_{name}"), value) for name, value in pairs))


def _speed(rate: float | None) -> str:
    return say("cli.stat_speed", rate=f"{rate:.1f}") if rate else "–"


def _exit(session: Session, argument: str) -> None:
    raise Leave


SHOWN: tuple[str, ...] = (
    "help", "new", "system", "model", "models", "kb", "sources", "regen", "save", "history", "stats", "exit",
)  # fmt: skip
COMMANDS: Mapping[str, Callable[[Session, str], None]] = {
    "help": _help,
    "?": _help,
    "new": _new,
    "system": _system,
    "model": _model,
    "models": _models,
    "kb": _kb,
    "sources": _sources,
    "regen": _regen,
    "save": _save,
    "history": _history,
    "stats": _stats,
    "exit": _exit,
    "quit": _exit,
}


def chat_models(client: Client) -> list[str]:
    """Names of the installed models that one can talk to."""
    return [
        model["id"] for model in client.models() if model.get("kind", "chat") == "chat" and model.get("runnable", True)
    ]


def check_knowledge(client: Client, names: list[str]) -> None:
    """Raises NotFound for a base that is not there, before a question is asked."""
    known = [base["name"] for base in client.knowledge()] if names else []
    for name in names:
        if name not in known:
            raise NotFound("cli.no_such_kb", name=name, near=render.nearest(name, known) or "–")
