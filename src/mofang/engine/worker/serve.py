"""The child's side: takes calls on loopback, one connection a call, and answers them from a Core.

A call is one JSON line {"key", "call", …}; the answer is JSON lines: {"piece": …} as they come, at last
{"result": …} or {"error": …}. Whoever closes the connection has left: an answer stops within a token.
"""

import hmac
import json
import os
import select
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Generator
from contextlib import closing, suppress
from dataclasses import asdict
from typing import Any

import numpy as np

from mofang.engine.worker.core import Core
from mofang.engine.worker.generate import Left, Piece, Slots, answer, check_fits, likeliest, read
from mofang.engine.worker.sample import Choices, choices, log_softmax
from mofang.errors import Invalid, MofangError
from mofang.messages import Message
from mofang.models import templates
from mofang.platform import end_with_parent

MOST_BYTES = 1 << 28
"""Of one call: a prompt of a million tokens has some megabytes."""


def main(load: Callable[[dict[str, Any]], Core]) -> None:
    """What a child's `__main__` calls. Its first line on standard input is its configuration (the key travels here and
    not on the command line); it answers with one line on standard output once the model is loaded, and ends when
    standard input closes. Everything else that is printed goes to standard error, which is the log."""
    raw: Any = sys.stdin.buffer  # unbuffered: what follows the line belongs to end_with_parent
    line = raw.raw.readline()
    if not line:  # the parent was gone before it said anything
        return
    end_with_parent()
    say = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # a stray print in C must not come between us and our parent
    configuration = json.loads(line)
    try:
        worker = Worker(load(configuration), configuration["key"], configuration["engine"])
    except Exception as error:  # whatever a library says of a model it cannot load
        traceback.print_exc()
        print(json.dumps({"error": _told(error)}), file=say, flush=True)
        sys.exit(1)
    facts = {name: value for name, value in asdict(worker.core.facts).items() if name in ("n_ctx", "provider")}
    print(json.dumps({"port": worker.port, **facts}), file=say, flush=True)
    worker.serve()


class Worker:
    """See the module."""

    def __init__(self, core: Core, key: str, engine: str) -> None:
        self.core = core
        self._key, self._engine = key, engine
        self._slots = Slots(core)
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port: int = self._socket.getsockname()[1]
        self._calls: dict[str, Callable[[dict[str, Any]], Any]] = {
            "tokenize": self._tokenize,
            "detokenize": self._detokenize,
            "render": self._render,
            "count_tokens": lambda call: len(self._prompt(call)),
            "busy": lambda call: self._slots.n_busy,
        }

    def serve(self) -> None:
        while True:
            connection, _ = self._socket.accept()
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with suppress(OSError, Left), connection:  # whoever asked has left: nobody to tell
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with connection.makefile("rb") as lines:
                call = json.loads(lines.readline(MOST_BYTES))
            if not hmac.compare_digest(str(call.get("key", "")).encode(), self._key.encode()):
                return
            try:
                _send(connection, {"result": self._answer(call, connection)})
            except (Left, OSError):
                raise
            except Exception as error:
                if not isinstance(error, MofangError):
                    traceback.print_exc()
                _send(connection, {"error": _told(error)})

    def _answer(self, call: dict[str, Any], connection: socket.socket) -> Any:
        def gone() -> bool:
            if not select.select([connection], [], [], 0)[0]:
                return False
            return connection.recv(1, socket.MSG_PEEK) == b""

        if call["call"] == "next_token":
            return self._next_token(call, gone)
        if call["call"] != "generate":
            return self._calls[call["call"]](call)
        with closing(self._generate(call, gone)) as pieces:
            for piece in pieces:
                _send(connection, {"piece": piece})
        return None

    def _generate(self, call: dict[str, Any], gone: Callable[[], bool]) -> Generator[Piece, None, None]:
        request = dict(call["sampling"])
        call["template_kwargs"] = request.pop("chat_template_kwargs", None)
        wanted = choices(
            request, self.core.facts.defaults, lambda text: self.core.encode(text, special=False), self._engine
        )
        return answer(self.core, self._slots, self._prompt(call), wanted, gone)

    def _prompt(self, call: dict[str, Any]) -> list[int]:
        """Ids of the conversation or the raw prompt of a call."""
        if "messages" in call:
            return self.core.encode(self._render(call), special=True)
        prompt = call["prompt"]
        return list(prompt) if isinstance(prompt, list) else self.core.encode(prompt, special=True)

    def _tokenize(self, call: dict[str, Any]) -> list[tuple[int, list[int]]]:
        """Each token with its bytes."""
        ids = self.core.encode(call["text"], special=call["special"])
        return [(token, list(self.core.piece(token))) for token in ids]

    def _detokenize(self, call: dict[str, Any]) -> str:
        n_vocab = self.core.facts.n_vocab
        for token in call["tokens"]:
            if not 0 <= token < n_vocab:
                raise Invalid("engine.no_such_token", param="tokens", token=token, n_vocab=n_vocab)
        return b"".join(map(self.core.piece, call["tokens"])).decode("utf-8", errors="replace")

    def _render(self, call: dict[str, Any]) -> str:
        facts = self.core.facts
        if not facts.template:
            raise Invalid("engine.no_chat_template", param="messages")
        messages = [Message(**message) for message in call["messages"]]
        kwargs = call.get("template_kwargs") or {}
        text = templates.render(facts.template, messages, bos=facts.bos, eos=facts.eos, **kwargs)
        # `encode` puts BOS before every prompt of a model that wants one.
        return text.removeprefix(facts.bos) if facts.bos and self._adds_bos() else text

    def _adds_bos(self) -> bool:
        return self.core.encode("a", special=True) != self.core.encode("a", special=False)

    def _next_token(self, call: dict[str, Any], gone: Callable[[], bool]) -> dict[str, Any]:
        prompt, logits = self._prompt(call), np.empty(0, np.float32)
        check_fits(self.core, prompt)
        with self._slots.use(prompt, gone) as slot:
            for _, found in read(self.core, slot, prompt, Choices(), gone):
                logits = logits if found is None else found
        logprobs, forced = log_softmax(logits), call["forced"]
        if forced is not None and not 0 <= forced < logprobs.size:
            raise Invalid("engine.no_such_token", param="forced", token=forced, n_vocab=logprobs.size)
        top = [
            (token, self.core.piece(token).decode("utf-8", errors="replace"), float(logprobs[token]))
            for token in likeliest(logits, call["n_top"])
        ]
        return {"forced": None if forced is None else float(logprobs[forced]), "top": top}


def _told(error: Exception) -> dict[str, Any]:
    """An error for the other side: one of ours by its key, another in its own words."""
    if isinstance(error, MofangError):
        values = {name: value if isinstance(value, int | float) else str(value) for name, value in error.values.items()}
        param = getattr(error, "param", None)
        return {"class": type(error).__name__, "key": error.key, "values": values, "param": param}
    return {"why": f"{type(error).__name__}: {error}"}


def _send(connection: socket.socket, line: dict[str, Any]) -> None:
    connection.sendall(json.dumps(line).encode() + b"\n")
