"""The whole command tree, run in process against a gateway in memory."""

from typing import Any

import pytest
from cli_fakes import FakeClient, Run
from typer.testing import CliRunner, Result


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> FakeClient:
    fake = FakeClient()
    monkeypatch.setattr("mofang.api.gateway", fake.gateway)
    monkeypatch.setenv("COLUMNS", "80")
    return fake


@pytest.fixture
def run(client: FakeClient) -> Run:
    from mofang.cli.main import build

    def invoke(*arguments: str, **options: Any) -> Result:
        return CliRunner().invoke(build(), list(arguments), catch_exceptions=False, **options)

    return invoke
