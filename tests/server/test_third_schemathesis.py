"""Schemathesis on our OpenAPI: whatever it sends, no 500, no status and no content type that the schema does not name,
no body that is not of the schema. A scripted engine answers behind the real application; few examples, always the same.
"""

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import FailureGroup
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from served import Gateway, serving

from fakes import FakeLibrary, FakePool, HashEmbedder, SharedLetters, install_model
from mofang.server.backend import LocalBackend
from mofang.settings import Settings
from tool_caller import ToolCaller

CHECKS: Any = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
EXAMPLES = 15
"""For each route."""
ELSEWHERE = r"/(pull|add|datasets|runs|documents|events)"
"""Routes that bring files or start processes, and event logs that wait: their own tests know what to send."""


@pytest.fixture
def served(tmp_path: Any) -> Iterator[Gateway]:
    for name, kind in (("echo", "chat"), ("hash", "embedding"), ("letters", "reranker")):
        install_model(tmp_path, name, kind=kind)
    pool = FakePool(ToolCaller("echo"), HashEmbedder(), SharedLetters())
    with serving(LocalBackend(Settings(home=tmp_path, port=0), engines=pool, library=FakeLibrary())) as gateway:
        yield gateway


def test_whatever_is_sent_is_answered_as_documented(served: Gateway) -> None:
    schema = schemathesis.openapi.from_url(f"{served.url}/openapi.json").exclude(path_regex=ELSEWHERE)
    operations = [found.ok() for found in schema.get_all_operations()]
    labels = {operation.label for operation in operations}
    assert {"POST /v1/chat/completions", "POST /v1/responses", "POST /v1/messages", "POST /v1/detokenize"} <= labels
    failures = {}
    for operation in operations:
        try:
            _try(operation)
        except (Exception, FailureGroup) as failure:
            failures[operation.label] = failure
    assert not failures, "\n\n".join(f"{label}: {failure}" for label, failure in failures.items())


def _try(operation: Any) -> None:
    @given(case=operation.as_strategy())
    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def send(case: Any) -> None:
        case.validate_response(case.call(timeout=20), checks=CHECKS)

    send()
