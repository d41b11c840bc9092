"""Every example of docs/api-examples is sent as it stands, and every route that answers has one."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from served import Gateway

from fakes import FakePool, HashEmbedder, SharedLetters
from mofang.server.routes import completions, embeddings, messages, rerank, responses, tokens
from tool_caller import ToolCaller

DOCS = Path(__file__).parent.parent.parent / "docs"
PAGES = ["api-examples.md", "api-examples.en.md"]


def _examples(page: str) -> list[tuple[str, dict[str, Any]]]:
    found = []
    for block in re.findall(r"```sh\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), flags=re.DOTALL):
        for line in block.splitlines():
            words = shlex.split(line)
            assert words[:2] == ["curl", "-s"] and words[3:6] == ["-H", "Content-Type: application/json", "-d"]
            found.append((words[2].removeprefix("http://127.0.0.1:8642"), json.loads(words[6])))
    return found


@pytest.fixture
def pool() -> FakePool:
    return FakePool(ToolCaller("echo"), HashEmbedder(), SharedLetters())


@pytest.mark.parametrize("page", PAGES)
def test_examples_are_answered(gateway: Gateway, page: str) -> None:
    with gateway.http() as http:
        for path, body in _examples(page):
            answer = http.post(path, json=body)
            assert answer.status_code == 200, f"{path}: {answer.text}"


@pytest.mark.parametrize("page", PAGES)
def test_every_such_route_has_one(page: str) -> None:
    modules = (completions, responses, messages, embeddings, rerank, tokens)
    routes = {route.path for module in modules for route in module.router.routes}  # type: ignore[attr-defined]
    assert {path for path, _ in _examples(page)} == {*routes, "/v1/chat/completions"}
