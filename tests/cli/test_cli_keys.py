"""`mofang keys`, through a real gateway of its own for each command."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from mofang.cli.keys import seconds
from mofang.errors import Invalid


@pytest.fixture
def run(home: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    from mofang.cli.main import build

    monkeypatch.setenv("COLUMNS", "140")
    return lambda *words: CliRunner().invoke(build(), ["keys", *words], catch_exceptions=False)


def test_create_list_revoke(run: Callable[..., Result]) -> None:
    assert "mofang keys create" in run("list").stderr
    options = ("--rpm", "60", "--tpm", "20000", "--concurrent", "2", "--model", "qwen*", "--expires", "30d")
    made = run("create", "小王", *options)
    assert made.stdout.startswith("mf-") and len(made.stdout.split()) == 1, "a script can take it"
    assert "小王" in made.stderr and "只显示这一次" in made.stderr
    shown = run("list").stdout
    for part in ("小王", "有效", "60 · 20,000 · 2", "qwen*"):
        assert part in shown
    [key] = json.loads(run("list", "--json").stdout)
    assert key["expires_at"][:10] == time.strftime("%Y-%m-%d", time.gmtime(time.time() + 30 * 86400))
    assert made.stdout.strip() not in json.dumps(key)
    assert "小王" in run("revoke", key["id"]).stdout
    assert json.loads(run("list", "--json").stdout)[0]["state"] == "revoked"
    missing = run("revoke", "key-none")
    assert missing.exit_code == 1 and "mofang keys list" in missing.stderr


@pytest.mark.parametrize(("text", "value"), [("90m", 5400), ("12h", 43200), ("30d", 2592000)])
def test_lengths_of_time(text: str, value: int) -> None:
    assert seconds(text) == value


@pytest.mark.parametrize("text", ["", "30", "0d", "d", "1w", "-1h"])
def test_what_is_no_length_of_time(text: str) -> None:
    with pytest.raises(Invalid):
        seconds(text)
