"""`mofang chat`: a conversation in the terminal, one question from a script, or a pipe of questions.

The conversation itself is session.py, the keyboard prompt.py, the drawing of answers answers.py; here they meet.
"""

import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mofang.strings import say

if TYPE_CHECKING:
    from mofang.cli.session import Session
    from mofang.client import Client


def chat(
    model: Annotated[str | None, typer.Argument(help=say("cli.chat_model"), metavar="MODEL")] = None,
    prompt: Annotated[str | None, typer.Option("--prompt", "-p", metavar="TEXT", help=say("cli.chat_prompt"))] = None,
    system: Annotated[str | None, typer.Option("--system", "-s", metavar="TEXT", help=say("cli.chat_system"))] = None,
    kb: Annotated[list[str] | None, typer.Option("--kb", help=say("cli.chat_kb"), metavar="NAME")] = None,
    resume: Annotated[bool, typer.Option("--continue", "-c", help=say("cli.chat_continue"))] = False,
    temperature: Annotated[
        float | None, typer.Option(min=0, max=5, metavar="T", help=say("cli.chat_temperature"))
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option("--max-tokens", min=1, metavar="N", help=say("cli.option_max_tokens"))
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help=say("cli.chat_json"))] = False,
) -> None:
    from mofang import api
    from mofang.errors import Invalid

    if as_json and prompt is None:
        raise Invalid("cli.json_needs_prompt", param="--json")
    question = _question(prompt)
    sampling = {"temperature": temperature, "max_tokens": max_tokens}
    with api.gateway() as client:
        session = _open(client, model, system, kb, resume, {k: v for k, v in sampling.items() if v is not None})
        if question is not None:
            _once(session, question, as_json=as_json)
        elif sys.stdin.isatty() and sys.stdout.isatty():
            _talk(session)
        else:
            _pipe(session, sys.stdin)


def _question(prompt: str | None) -> str | None:
    """The text of -p, and below it what comes through a pipe, so that `cat 合同.txt | mofang chat -p 总结` works."""
    from mofang.errors import Invalid

    if prompt is None:
        return None
    piped = "" if sys.stdin.isatty() else sys.stdin.read()
    parts = ["" if prompt == "-" else prompt, piped]
    question = "\n\n".join(part.strip("\n") for part in parts if part.strip())
    if not question:
        raise Invalid("cli.empty_prompt", param="--prompt")
    return question


def _open(
    client: "Client",
    model: str | None,
    system: str | None,
    knowledge: list[str] | None,
    resume: bool,
    sampling: dict[str, Any],
) -> "Session":
    """A session with what was asked for on the command line over what the resumed conversation had."""
    from mofang.cli import render
    from mofang.cli.session import Session, check_knowledge

    session = Session(client)
    if resume:
        conversation = session.resume()
        if conversation is None:
            render.note(say("cli.nothing_to_continue"))
        else:
            render.note(say("cli.continued", title=conversation.get("title") or "–", n=len(session.turns())))
    session.model = model or session.model
    session.system = session.system if system is None else system
    session.knowledge = session.knowledge if knowledge is None else knowledge
    session.sampling |= sampling
    check_knowledge(client, session.knowledge)
    _bring_model(client, session.model)
    return session


def _bring_model(client: "Client", name: str) -> None:
    """Someone at a terminal gets the model that is missing, as every such tool does; a script gets an error."""
    from mofang.cli import models, render
    from mofang.cli.session import chat_models
    from mofang.errors import NotFound

    known = chat_models(client)
    if name in known or (name == "auto" and known):
        return
    if name != "auto" and name not in {entry["name"] for entry in client.catalogue()}:
        _model_of_run(client, name)
        return
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise NotFound("cli.model_not_here", name=name)
    render.note(say("cli.bringing_model", name=name), style="")
    models.bring(client, name)


def _model_of_run(client: "Client", name: str) -> None:
    """A run's name stands for the model that it led to; what was trained and not yet exported is exported now."""
    from mofang import settings
    from mofang.cli import render, runs
    from mofang.client import ApiError
    from mofang.recipes import METHODS
    from mofang.runs import Runs

    try:
        client.model(name)
    except ApiError as error:
        run = Runs(settings.load().home).named(name)
        if error.status != 404 or run is None or run.state().kind not in METHODS.names():
            raise  # and says what there is
        render.note(say("cli.exporting_run", id=name), style="")
        made = client.start_run("gguf", {"model": name})
        runs.watch(Runs(settings.load().home).get(made["id"]), detach=False, as_json=False)


def _once(session: "Session", question: str, *, as_json: bool) -> None:
    from mofang.cli import answers, render

    if as_json:
        session.new_screen = answers.Screen
        session.quiet = True
    answer = session.say(question)
    if as_json:
        render.show_json(answer.to_json())
    if answer.status == "stopped":
        raise typer.Exit(130)


def _talk(session: "Session") -> None:
    from mofang import settings
    from mofang.cli import render
    from mofang.cli.prompt import Prompt, unseen_keys

    session.show_stats = True
    render.note(say("cli.welcome", model=_model_words(session), kb=_kb_words(session)))
    prompt = Prompt(settings.load().home / "chat_history", lambda before: _completions(session, before))
    with unseen_keys():
        while True:
            try:
                line = prompt.ask()
            except EOFError:
                return
            if not _try(session, line):
                return
            render.show("")


def _model_words(session: "Session") -> str:
    """The model's name, also of the default one when it is known by now."""
    from mofang.client import ApiError

    if session.model != "auto":
        return session.model
    try:
        return str(session.client.ready().get("chat_model") or "auto")
    except ApiError:  # not ready: the first question says why
        return "auto"


def _kb_words(session: "Session") -> str:
    return say("cli.welcome_kb", names="、".join(session.knowledge)) if session.knowledge else ""


def _try(session: "Session", line: str) -> bool:
    """Take one line; an error is shown and the conversation goes on. False when the reader wants to leave."""
    from mofang.cli import render
    from mofang.cli.session import Leave
    from mofang.errors import MofangError

    try:
        session.take(line)
    except Leave:
        return False
    except MofangError as error:
        render.warn(error.message(), error.hint())
    except KeyboardInterrupt:
        render.note(say("cli.left_answer"), style="yellow")
    return True


def _completions(session: "Session", before: str) -> Iterable[str]:
    """Commands first; after one, the names that it takes."""
    from mofang.cli.session import SHOWN, chat_models

    if not before:
        return [f"/{name}" for name in SHOWN]
    if before == "/model":
        return ["auto", *chat_models(session.client)]
    if before.split(" ")[0] == "/kb":
        return [base["name"] for base in session.client.knowledge()]
    return []


def _pipe(session: "Session", lines: Iterable[str]) -> None:
    """A message or command a line; a "\\" at its end goes on in the next one. Exit code 1 when any failed."""
    from mofang.cli import render
    from mofang.cli.session import Leave
    from mofang.errors import MofangError

    failed = False
    for message in _joined(lines):
        try:
            session.take(message)
        except Leave:
            break
        except MofangError as error:
            failed = True
            render.warn(error.message(), error.hint())
        if session.answer is not None and session.answer.status == "stopped":
            raise typer.Exit(130)
    if failed:
        raise typer.Exit(1)


def _joined(lines: Iterable[str]) -> Iterator[str]:
    held = ""
    for line in lines:
        text = line.rstrip("\r\n")
        if text.endswith("\\"):
            held += text[:-1] + "\n"
        else:
            yield held + text
            held = ""
    if held:
        yield held
