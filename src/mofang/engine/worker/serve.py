"""The child's side: takes calls on loopback, one connection a call, and answers them. What it can answer is calls.py's.

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
from typing import Any, Protocol

from mofang.engine.worker.generate import Left
from mofang.errors import MofangError
from mofang.platform import end_with_parent

MOST_BYTES = 1 << 28
"""Of one call: a prompt of a million tokens has some megabytes."""


def main(load: Callable[[dict[str, Any]], "Calls"]) -> None:
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
        calls = load(configuration)
        server = Server(calls, configuration["key"])
    except Exception as error:  # whatever a library says of a model it cannot load
        traceback.print_exc()
        print(json.dumps({"error": _told(error)}), file=say, flush=True)
        sys.exit(1)
    print(json.dumps({"port": server.port, **calls.facts}), file=say, flush=True)
    server.serve()


class Calls(Protocol):
    """What a child answers."""

    facts: dict[str, Any]
    """What it says of itself once the model is loaded, in its first line."""

    def answer(self, call: dict[str, Any], gone: Callable[[], bool]) -> Any:
        """The result of a call, or a generator of its pieces. Called from a thread of its own. `gone`: whether whoever
        asked has left."""
        ...


class Server:
    """See the module."""

    def __init__(self, calls: Calls, key: str) -> None:
        self._calls, self._key = calls, key
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port: int = self._socket.getsockname()[1]

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

        result = self._calls.answer(call, gone)
        if not isinstance(result, Generator):
            return result
        with closing(result) as pieces:
            for piece in pieces:
                _send(connection, {"piece": piece})
        return None


def _told(error: Exception) -> dict[str, Any]:
    """An error for the other side: one of ours by its key, another in its own words."""
    if isinstance(error, MofangError):
        values = {name: value if isinstance(value, int | float) else str(value) for name, value in error.values.items()}
        param = getattr(error, "param", None)
        return {"class": type(error).__name__, "key": error.key, "values": values, "param": param}
    return {"why": f"{type(error).__name__}: {error}"}


def _send(connection: socket.socket, line: dict[str, Any]) -> None:
    connection.sendall(json.dumps(line).encode() + b"\n")
