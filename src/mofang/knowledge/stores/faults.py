"""Errors of other people's stores in our words."""

from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import unquote, urlsplit

from mofang.errors import MofangError, Unreachable


@contextmanager
def asking(store: str, *, secrets: tuple[str, ...] = ()) -> Iterator[None]:
    """Whatever a store's library raises is that the store did not do what it was asked. What is secret is blotted out.

    Raises Unreachable (knowledge.store_unreachable).
    """
    try:
        yield
    except MofangError:
        raise
    except Exception as error:  # each library has its own tree, and lets those of its transports through
        why = " ".join(f"{type(error).__name__}: {error}".split())
        for secret in secrets:
            why = why.replace(secret, "***") if secret else why
        # `from None`: the cause may hold the address with its password, and a log prints causes.
        raise Unreachable("knowledge.store_unreachable", store=store, why=why[:300]) from None


def secrets_of(url: str) -> tuple[str, ...]:
    """The URL itself and the password in it, longest first."""
    password = urlsplit(url).password if "://" in url else None
    return (url, *({password, unquote(password)} if password else ()))
