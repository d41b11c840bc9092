"""The log of requests: one JSON object a line, to the logger `mofang.requests`.

launch/local.py writes that logger to logs/requests.jsonl. Numbers and names of models only; what was asked and said
stands in it only with the setting `log_contents`.
"""

import logging
import time
from datetime import UTC, datetime
from typing import Any

from mofang.server.sse import dumps
from mofang.server.visit import Visit

LOGGER = "mofang.requests"

log = logging.getLogger(LOGGER)


class Journal:
    """Writes one line a request, and one for an answer that ended after its request."""

    def request(self, visit: Visit, status: int, *, client_gone: bool) -> None:
        self._write("request", visit, {"status": status, "client_gone": client_gone})

    def answer(self, visit: Visit) -> None:
        self._write("answer", visit, {})

    def _write(self, event: str, visit: Visit, outcome: dict[str, Any]) -> None:
        if not log.isEnabledFor(logging.INFO):
            return
        tallies = visit.tallies
        first_at = next((tally.first_at for tally in tallies if tally.first_at is not None), None)
        line = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "event": event,
            "request_id": visit.id,
            "method": visit.method,
            "route": visit.route,
            **outcome,
            "ms": round((time.perf_counter() - visit.began) * 1000, 1),
            "key": visit.key.id if visit.key else None,
            "model": visit.model,
            "prompt_tokens": sum(tally.usage.prompt_tokens for tally in tallies),
            "completion_tokens": sum(tally.usage.completion_tokens for tally in tallies),
            "cached_tokens": sum(tally.usage.cached_tokens for tally in tallies),
            "ttft_ms": None if first_at is None else round((first_at - visit.began) * 1000, 1),
            "finish_reason": next((tally.finish_reason for tally in reversed(tallies) if tally.finish_reason), None),
        }
        contents = [tally for tally in tallies if tally.content is not None]
        if contents:
            line |= {
                "messages": [tally.messages for tally in contents],
                "answers": ["".join(tally.content or ()) for tally in contents],
            }
        log.info("%s", dumps(line))
