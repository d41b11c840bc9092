"""Our own client: how it reads streams, errors and names. Its routes are exercised by every other test here."""

import inspect
import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from served import Gateway

from mofang.client import ApiError, Client, _events
from mofang.errors import MofangError, Unreachable


def events_of(text: str) -> list[tuple[int | None, Any]]:
    return list(_events(httpx.Response(200, text=text)))


def test_events_with_ids_comments_and_several_data_lines() -> None:
    text = ': ping\n\nid: 3\ndata: {"a":"你好🙂"}\n\ndata:{"b":\ndata: 1}\n\ndata: [DONE]\n\ndata: {"late": 1}\n\n'
    assert events_of(text) == [(3, {"a": "你好🙂"}), (3, {"b": 1})]


def test_an_error_event_of_the_openai_routes_is_raised() -> None:
    events = _events(httpx.Response(200, text='data: {"x": 1}\n\ndata: {"error": {"code": "c", "message": "m"}}\n\n'))
    assert next(events)[1] == {"x": 1}
    with pytest.raises(ApiError) as caught:
        next(events)
    assert (caught.value.code, caught.value.message()) == ("c", "m")


def test_an_error_event_of_a_log_is_an_event() -> None:
    assert events_of('data: {"type": "error", "error": {"code": "c"}}\n\n')[0][1]["error"] == {"code": "c"}


@given(st.lists(st.dictionaries(st.text(), st.text()).filter(lambda event: "error" not in event)))
def test_any_event_survives_the_wire(events: list[dict[str, str]]) -> None:
    from mofang.server.sse import event

    wire = b"".join(event(one, seq) for seq, one in enumerate(events))
    answer = httpx.Response(200, content=wire, headers={"content-type": "text/event-stream; charset=utf-8"})
    assert list(_events(answer)) == list(enumerate(events))
    assert wire.decode().splitlines() == wire.decode().split("\n")[:-1], "simple line readers see the same lines"


def test_pieces_of_any_size() -> None:
    wire = 'id: 1\r\ndata: {"a":"你\u2028好🙂"}\r\n\r\ndata: {"b":2}\n\n'.encode()
    for size in range(1, 20):
        pieces = (wire[at : at + size] for at in range(0, len(wire), size))
        assert list(_events(httpx.Response(200, content=pieces))) == [(1, {"a": "你\u2028好🙂"}), (1, {"b": 2})]


def test_errors_carry_what_the_gateway_said(gateway: Gateway) -> None:
    with gateway.client(lang="en") as client, pytest.raises(ApiError) as caught:
        client.model("没有")
    error = caught.value
    assert (error.status, error.code, error.exit_code) == (404, "model_not_found", 1)
    assert error.message() in str(error) and error.hint() in str(error) and isinstance(error, MofangError)


def test_nobody_there() -> None:
    with Client("http://127.0.0.1:9") as client:
        with pytest.raises(Unreachable) as caught:
            client.models()
        assert caught.value.code == "gateway_unreachable" and "127.0.0.1:9" in caught.value.message()
        with pytest.raises(Unreachable), client.stream("GET", "/v1/jobs/x/events"):
            pass


def test_an_answer_that_is_no_json_of_ours() -> None:
    def proxy(_: httpx.Request) -> httpx.Response:
        return httpx.Response(502, text="<html>Bad Gateway</html>")

    client = Client("http://127.0.0.1:9")
    client._http.close()
    client._http = httpx.Client(base_url="http://x", transport=httpx.MockTransport(proxy))
    with client, pytest.raises(ApiError) as caught:
        client.models()
    assert caught.value.status == 502 and "Bad Gateway" in caught.value.message()


@pytest.mark.parametrize("name", ["a?b=c", "a#b", "a%2Fb", "../system", "a/b", "名 字"])
def test_a_name_never_becomes_another_route(gateway: Gateway, name: str) -> None:
    with gateway.client() as client:
        for call in (client.model, client.documents, client.generation, client.job, client.conversation):
            with pytest.raises(ApiError) as caught:
                call(name)
            assert caught.value.status == 404, call


def test_chat_stream_gives_chunks_and_stops_at_done(gateway: Gateway) -> None:
    ask = {"model": "echo", "messages": [{"role": "user", "content": "你好"}]}
    with gateway.client() as client, client.chat_stream(ask) as chunks:
        received = list(chunks)
    assert "".join(c["choices"][0]["delta"].get("content", "") for c in received if c["choices"]) == "你好"
    assert received[-1]["usage"]["completion_tokens"] == 2


def paths_of_the_client() -> Iterator[tuple[str, str]]:
    source = inspect.getsource(Client)
    for method, path in re.findall(r'"(GET|POST|PATCH|DELETE)",\s*f?"(/[^"]*)"', source):
        yield method.lower(), re.sub(r"\{[^}]*\}", "{}", path).split("?")[0]


def test_every_path_of_the_client_is_a_route(gateway: Gateway) -> None:
    with gateway.http() as http:
        schema = json.loads(http.get("/openapi.json").text)
    known = {(verb, re.sub(r"\{[^}]*\}", "{}", path)) for path, verbs in schema["paths"].items() for verb in verbs}
    used = set(paths_of_the_client())
    assert len(used) > 20 and used - {("get", "{}/events")} <= known
