"""An answer in a dialect, whole or as server-sent events with names. The one way from `answering` to such a client."""

from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing

from fastapi import Request
from fastapi.responses import JSONResponse
from starlette.responses import Response

from mofang.errors import EngineFailed
from mofang.messages import Delta
from mofang.server import sse
from mofang.server.answer import Answer, Question, answering
from mofang.server.backend import Backend
from mofang.server.dialects import Event, Teller
from mofang.server.faults import fault, internal, interrupted


async def deliver(
    question: Question, teller: Teller, *, stream: bool, request: Request, backend: Backend, lang: str
) -> Response:
    """Errors before the first event are raised and have their HTTP status; later ones are the stream's last event."""
    answer = Answer()
    deltas = answering(backend, question, answer)
    if stream:

        def farewell() -> bytes:
            return _bytes(teller.failed(interrupted(lang), EngineFailed.status))

        events = _events(deltas, answer, teller, backend, lang)
        return await sse.opened(events, request.receive, farewell=farewell)
    async with sse.until_client_leaves(request.receive), aclosing(deltas):
        async for delta in deltas:
            for _ in teller.piece(delta, answer):
                pass
    for _ in teller.end(answer):
        pass
    return JSONResponse(teller.whole(answer))


async def _events(
    deltas: AsyncGenerator[Delta, None], answer: Answer, teller: Teller, backend: Backend, lang: str
) -> AsyncGenerator[bytes, None]:
    begun = False
    async with aclosing(deltas):
        try:
            async for delta in deltas:
                for event in teller.piece(delta, answer):
                    begun = True
                    yield sse.named(event)
        except Exception as error:
            if not begun:
                raise
            known = internal(error, backend.settings)
            yield _bytes(teller.failed(fault(known, lang), known.status))
            return
    for event in teller.end(answer):
        yield sse.named(event)


def _bytes(events: Iterable[Event]) -> bytes:
    return b"".join(sse.named(event) for event in events)
