"""llama.cpp's events become Deltas: nothing lost, one last piece with the usage of all answers."""

import pytest

from mofang.engine.llama.answer import Answer
from mofang.engine.llama.process import Refusal, _event
from mofang.messages import Delta, Progress, Usage


def _chunk(index: int = 0, finish: str | None = None, **delta: object) -> dict[str, object]:
    return {"choices": [{"index": index, "finish_reason": finish, "delta": delta}]}


def _read(*events: dict[str, object]) -> tuple[list[Delta], Delta]:
    answer = Answer()
    pieces = [delta for event in events for delta in answer.read(event)]
    return pieces, answer.last()


def test_role_and_empty_chunks_are_no_pieces() -> None:
    pieces, last = _read(_chunk(role="assistant", content=None), _chunk(content="你好"), _chunk(finish="stop"))
    assert pieces == [Delta("你好")]
    assert last == Delta(finish_reason="stop")


def test_the_rate_of_the_prompt_leaves_out_cached_tokens() -> None:
    reading = {"total": 300, "cache": 100, "processed": 200, "time_ms": 500}
    pieces, _ = _read({**_chunk(), "prompt_progress": reading}, _chunk(finish="stop"))
    assert pieces == [Delta(progress=Progress("prompt", 200, 300, "tokens", 200.0))]


def test_usage_of_two_answers_counts_the_prompt_once() -> None:
    def usage(said: int) -> dict[str, object]:
        counts = {"prompt_tokens": 30, "completion_tokens": said, "prompt_tokens_details": {"cached_tokens": 24}}
        return {"choices": [], "usage": counts, "timings": {"prompt_ms": 1.0, "predicted_ms": 2.0}}

    pieces, last = _read(
        _chunk(1, content="甲"),
        _chunk(1, finish="stop"),
        usage(3),
        _chunk(0, content="乙"),
        _chunk(0, finish="length"),
        usage(4),
    )
    assert pieces == [Delta("甲", index=1), Delta("乙"), Delta(finish_reason="stop", index=1)]
    assert (last.finish_reason, last.index, last.usage) == ("length", 0, Usage(30, 7, 24))
    assert last.timings is not None and last.timings.predicted_ms == 2.0


def test_reasoning_tools_and_logprobs_pass() -> None:
    call = [{"index": 0, "id": "1", "function": {"name": "天气", "arguments": "{"}}]
    logprobs = {"content": [{"token": "好", "logprob": -0.1}]}
    event = {"choices": [{"index": 0, "text": "好", "logprobs": logprobs, "finish_reason": None}]}
    pieces, _ = _read(_chunk(reasoning_content="想"), _chunk(tool_calls=call), event, _chunk(finish="tool_calls"))
    assert pieces == [Delta(reasoning="想"), Delta(tool_calls=call), Delta("好", logprobs=logprobs)]


def test_an_answer_that_never_ended_is_not_given_an_end() -> None:
    with pytest.raises(LookupError):
        _read(_chunk(content="半"))


@pytest.mark.parametrize(
    ("line", "status", "why"),
    [
        (b'data: {"error": {"code": 400, "message": "bad", "type": "invalid_request_error"}}', 400, "bad"),
        (b'data: {"code": 500, "message": "lost", "type": "server_error"}', 500, "lost"),
        (b'error: {"code": 503, "message": "loading"}', 503, "loading"),
        (b"error: plain words", 500, "plain words"),
    ],
)
def test_every_shape_of_error_in_a_stream_is_raised(line: bytes, status: int, why: str) -> None:
    with pytest.raises(Refusal) as caught:
        _event(line)
    assert (caught.value.status, caught.value.why) == (status, why)


def test_comments_and_blanks_are_no_events() -> None:
    assert _event(b": ping") is None
    assert _event(b"") is None
    assert _event('data: {"choices": [], "x": "你"}'.encode()) == {"choices": [], "x": "你"}
