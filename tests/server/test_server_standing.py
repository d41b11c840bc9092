"""How the gateway stands: its last hour, its logs, and what this machine has and lacks."""

from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from served import Gateway, serving, wait_until

from fakes import FakeLibrary, FakePool
from mofang.server.backend import LocalBackend
from mofang.server.history import COUNTED, KEPT, History
from mofang.settings import Settings
from mofang.strings import language


@given(st.lists(st.tuples(st.floats(0.1, 60), st.integers(0, 1000)), min_size=1, max_size=30))
def test_rows_add_up_to_the_totals(steps: list[tuple[float, int]]) -> None:
    total = {"n": 0.0}
    history = History(lambda: {**dict.fromkeys(COUNTED, total["n"]), "running": 3})
    at = 1000.0
    history.note(at)
    assert history.rows() == []
    for seconds, grown in steps:
        at, total["n"] = at + seconds, total["n"] + grown
        history.note(at)
    rows = history.rows()
    times = [1000.0, *(row["at"] for row in rows)]
    for name in COUNTED:
        summed = sum(row[f"{name}_per_s"] * (row["at"] - before) for row, before in zip(rows, times, strict=False))
        assert summed == pytest.approx(total["n"], abs=1e-6)
    assert all(row["running"] == 3 for row in rows)
    assert history.rows(rows[-1]["at"]) == [] and history.rows(rows[0]["at"]) == rows[1:]


def test_an_hour_is_kept_and_no_more() -> None:
    history = History(lambda: dict.fromkeys(COUNTED, 0.0))
    for at in range(KEPT + 50):
        history.note(float(at))
    assert len(history.rows()) == KEPT and history.rows()[-1]["at"] == KEPT + 49


def test_what_was_said_is_in_the_history(gateway: Gateway) -> None:
    history = gateway.backend.history
    with gateway.http() as http, gateway.client() as client:
        history.note(1e12)
        http.post("/v1/chat/completions", json={"model": "auto", "messages": [{"role": "user", "content": "一二三四"}]})
        wait_until(lambda: gateway.backend.metrics.totals()["requests"] == 1)
        history.note(1e12 + 2)
        *_, row = client.history()
        assert row["prompt_tokens_per_s"] == row["completion_tokens_per_s"] == 2.0, "four tokens in two seconds"
        assert row["requests_per_s"] == 0.5 and row["running"] == row["waiting"] == 0
        assert row["memory_available_bytes"] > 1e6
        assert client.history(after=1e12 + 1) == [row]


def test_logs_are_listed_and_their_last_lines_read(gateway: Gateway, settings: Settings, tmp_path: Path) -> None:
    folder = settings.home / "logs"
    folder.mkdir(exist_ok=True)
    (folder / "gateway.log").write_text("".join(f"第 {n} 行\n" for n in range(500)), encoding="utf-8")
    (folder / "key.txt").write_text("geheim")
    (tmp_path / "elsewhere.log").write_text("geheim")
    (folder / "link.log").symlink_to(tmp_path / "elsewhere.log")
    with gateway.http() as http, gateway.client() as client:
        assert [one["name"] for one in client.logs()] == ["gateway.log"]
        assert client.log("gateway.log", 2) == "第 498 行\n第 499 行"
        assert len(client.log("gateway.log").splitlines()) == 200
        for name in ("key.txt", "link.log", "..%2Fserver.db", "%2e%2e%2fserver.db", "nothing.log"):
            answer = http.get(f"/v1/logs/{name}")
            assert answer.status_code == 404 and "geheim" not in answer.text
        assert "gateway.log" in http.get("/v1/logs/nothing.log").json()["error"]["hint"]


@dataclass(frozen=True)
class Finding:
    name: str
    status: str
    found: str
    cure: str = ""


def test_the_doctor_speaks_the_askers_language(settings: Settings, pool: FakePool, library: FakeLibrary) -> None:
    def examine(asked: Settings) -> list[Finding]:
        assert asked is settings
        return [Finding("disk", "note", f"said in {language()}", "rm")]

    with (
        serving(LocalBackend(settings, engines=pool, library=library, doctor=examine)) as gateway,
        gateway.http(headers={"Accept-Language": "en"}) as english,
        gateway.http() as http,
    ):
        assert http.get("/v1/doctor").json()["data"][0]["found"] == "said in zh"
        expected = {"name": "disk", "status": "note", "found": "said in en", "cure": "rm"}
        assert english.get("/v1/doctor").json()["data"] == [expected]


def test_only_the_owner_reads_logs_and_findings(settings: Settings, pool: FakePool, library: FakeLibrary) -> None:
    locked = Settings(**{**settings.model_dump(), "api_key": "sk-geheim"})
    with serving(LocalBackend(locked, engines=pool, library=library), "sk-geheim") as gateway:
        with gateway.client() as owner:
            key = owner.create_key("小王")["key"]
            assert owner.doctor() == []
        with httpx.Client(base_url=gateway.url, trust_env=False, headers={"Authorization": f"Bearer {key}"}) as other:
            for path in ("/v1/doctor", "/v1/logs", "/v1/logs/gateway.log"):
                assert other.get(path).status_code == 403
            assert other.get("/v1/system/history").status_code == 200
