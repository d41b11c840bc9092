"""Every error that Mofang raises on purpose.

    MofangError            500  something of ours went wrong
    ├── Invalid            400  a value cannot be used: the message names the value and what would be right
    │   └── UnknownName    404  no engine, source, loader… of that name
    ├── Denied             401  no key, or the wrong one
    │   └── Forbidden      403  not from there: another machine, another web page
    ├── NotFound           404  no model, knowledge base, conversation… of that name
    ├── Conflict           409  it exists already, or another process owns it
    ├── TooLarge           413  a file, a prompt or a model beyond a limit
    ├── Unreadable         422  a document or model file is not what it should be (empty, truncated, encrypted…)
    ├── Busy               429  the queue is full; `retry_after_s` says when to come back
    ├── MissingExtra       501  an optional library is not installed; the hint is the pip line
    ├── EngineFailed       502  a model's process died or answered nonsense
    ├── Unreachable        503  a hub, a mirror or the gateway does not answer
    ├── Leaving        503  the gateway is about to end; `retry_after_s` says when another may be there
    ├── MissingSystem      503  the machine lacks something (libgomp1, AVX2…); the hint names the cure
    └── NoSpace            507  the disk is full, or would be

An error is raised with a key of `strings/<lang>/<room>.toml` and the values of its placeholders, so that an error has
a stable `code`, and a `message` and `hint` in each language. Each edge translates once: the command line to an exit
code, the server to OpenAI's error JSON with `status`.
"""

from typing import Any

from mofang.strings import say


class MofangError(Exception):
    """Root of the tree. `key` is "<room>.<code>"; `values` fill the sentence's placeholders."""

    status = 500
    exit_code = 1
    type = "server_error"
    """OpenAI's coarse error type, as its clients expect it in `error.type`."""

    def __init__(self, key: str, /, **values: Any) -> None:
        super().__init__(key, values)
        self.key = key
        self.values = values

    def __reduce__(self) -> tuple[Any, ...]:
        """Whole on the other side of a pickle, whatever a subclass's constructor takes: errors cross machines."""
        return _anew, (type(self), self.args, self.__dict__)

    @property
    def code(self) -> str:
        """Stable English name that programs match, such as "model_not_found"."""
        return self.key.split(".", 1)[1]

    def message(self, lang: str | None = None) -> str:
        """What was wrong with which value, and what would be right."""
        return say(self.key, part="message", lang=lang, **self.values)

    def hint(self, lang: str | None = None) -> str:
        """What to do or type next; may be empty."""
        return say(self.key, part="hint", lang=lang, **self.values)

    def __str__(self) -> str:
        hint = self.hint()
        return f"{self.message()}\n{hint}" if hint else self.message()


def _anew(cls: type[MofangError], args: tuple[Any, ...], state: dict[str, Any]) -> MofangError:
    error = cls.__new__(cls, *args)
    error.__dict__.update(state)
    return error


class Invalid(MofangError):
    """A value cannot be used. `param` (optional) names the request field or option."""

    status, exit_code, type = 400, 2, "invalid_request_error"

    def __init__(self, key: str, /, *, param: str | None = None, **values: Any) -> None:
        super().__init__(key, **values)
        self.param = param


class UnknownName(Invalid):
    """A registry has no such name."""

    status = 404


class Denied(MofangError):
    status, type = 401, "authentication_error"


class Forbidden(Denied):
    status, type = 403, "permission_error"


class NotFound(MofangError):
    status, type = 404, "not_found_error"


class Conflict(MofangError):
    status, type = 409, "conflict_error"


class TooLarge(MofangError):
    status, type = 413, "invalid_request_error"


class Unreadable(MofangError):
    status, type = 422, "invalid_request_error"


class Busy(MofangError):
    status, type = 429, "rate_limit_error"

    def __init__(self, key: str, /, *, retry_after_s: float = 1.0, **values: Any) -> None:
        super().__init__(key, retry_after_s=retry_after_s, **values)
        self.retry_after_s = retry_after_s


class MissingExtra(MofangError):
    status = 501


class EngineFailed(MofangError):
    status = 502


class Unreachable(MofangError):
    status = 503


class Leaving(MofangError):
    status = 503

    def __init__(self, key: str, /, *, retry_after_s: float = 1.0, **values: Any) -> None:
        super().__init__(key, retry_after_s=retry_after_s, **values)
        self.retry_after_s = retry_after_s


class MissingSystem(MofangError):
    status = 503


class NoSpace(MofangError):
    status = 507
