"""A gateway's own log and its log of requests, in files that cannot grow without end."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from logging.handlers import RotatingFileHandler
from pathlib import Path

MAX_BYTES = 5_000_000


@contextmanager
def kept_in(folder: Path) -> Iterator[None]:
    """gateway.log takes uvicorn's words and our own, requests.jsonl a line of JSON a request, for the length of the block.

    A handler is taken from its logger before it is closed: a line that a thread writes later would open the file anew,
    and nobody would close it.
    """
    from mofang.server.journal import LOGGER

    folder.mkdir(exist_ok=True)
    words = _rotating(folder / "gateway.log", "%(asctime)s %(levelname)s %(name)s %(message)s", backups=2)
    requests = _rotating(folder / "requests.jsonl", "%(message)s", backups=5)
    handlers = {"uvicorn": words, "mofang": words, LOGGER: requests}
    before = [(logging.getLogger(name), logging.getLogger(name).level) for name in handlers]
    for (logger, _), handler in zip(before, handlers.values(), strict=True):
        logger.setLevel(logging.INFO)
        logger.propagate = False
        logger.addHandler(handler)
    try:
        yield
    finally:
        for (logger, level), handler in zip(before, handlers.values(), strict=True):
            logger.removeHandler(handler)
            logger.propagate = True
            logger.setLevel(level)
        for handler in (words, requests):
            handler.close()


def _rotating(path: Path, line: str, *, backups: int) -> RotatingFileHandler:
    handler = RotatingFileHandler(path, maxBytes=MAX_BYTES, backupCount=backups, encoding="utf-8", delay=True)
    handler.setFormatter(logging.Formatter(line))
    return handler
