"""The files a gateway writes its words into."""

import json
import logging
import warnings
from pathlib import Path

from mofang.launch.logs import kept_in
from mofang.server.journal import LOGGER


def test_words_and_requests_lie_apart(tmp_path: Path) -> None:
    with kept_in(tmp_path / "logs"):
        logging.getLogger("uvicorn").info("started")
        logging.getLogger("mofang.server").warning("careful")
        logging.getLogger(LOGGER).info(json.dumps({"event": "request"}))
    words = (tmp_path / "logs" / "gateway.log").read_text(encoding="utf-8")
    assert "INFO uvicorn started" in words and "WARNING mofang.server careful" in words
    assert (tmp_path / "logs" / "requests.jsonl").read_text(encoding="utf-8") == '{"event": "request"}\n'


def test_a_late_line_opens_nothing(tmp_path: Path) -> None:
    """A thread that outlives its gateway may still write; the file must stay closed, or it is left open for good."""
    before = {name: logging.getLogger(name).handlers[:] for name in ("uvicorn", "mofang", LOGGER)}
    with kept_in(tmp_path / "logs"):
        logging.getLogger(LOGGER).info("in time")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        logging.getLogger(LOGGER).warning("too late")
    assert (tmp_path / "logs" / "requests.jsonl").read_text(encoding="utf-8") == "in time\n"
    assert {name: logging.getLogger(name).handlers for name in before} == before


def test_the_next_gateway_writes_into_its_own_home(tmp_path: Path) -> None:
    for name in ("one", "two"):
        with kept_in(tmp_path / name):
            logging.getLogger("mofang").info(name)
    assert "two" not in (tmp_path / "one" / "gateway.log").read_text(encoding="utf-8")
    assert "one" not in (tmp_path / "two" / "gateway.log").read_text(encoding="utf-8")
