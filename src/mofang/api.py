"""The facade behind the command line: one way to the gateway, whether or not one is running.

The one place where async becomes sync: everything goes through `mofang.client.Client`, to the gateway that owns this
home or to one that lives in this process for the length of a command. So a command line, a workbench and a
stranger's program go the same way, and nobody writes beside the owner.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from mofang import settings as _settings
from mofang.client import Client
from mofang.settings import Settings


@contextmanager
def gateway(settings: Settings | None = None) -> Iterator[Client]:
    """A client of this home's gateway; started for the length of the block when none runs.

    Raises Conflict for a home that a newer Mofang wrote.
    """
    from mofang.launch import home

    settings = settings or _settings.load()
    home.prepare(settings.home)
    owner = home.find(settings.home)
    if owner:
        with Client(owner.url, owner.key) as client:
            yield client
        return
    from mofang.launch.local import passing_gateway

    with passing_gateway(settings) as running, running.client() as client:
        yield client


def document_suffixes() -> frozenset[str]:
    """The suffixes of documents that can be read, lower case with their dot: {".md", ".pdf", …}."""
    from mofang.knowledge import LOADERS

    return frozenset(f".{name}" for name in LOADERS)
