"""How long a model stays in memory after an answer, as Ollama's clients say it: a number of seconds, "5m", "1h30m"."""

import math
import re
from typing import Any

UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_WORD = re.compile(r"([+-]?)((?:\d+(?:\.\d+)?(?:ms|s|m|h))+|\d+(?:\.\d+)?)")
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)")


def seconds(value: Any) -> float:
    """Seconds; infinity for a negative time, which means for ever. Raises ValueError for anything else.

    Source: Ollama docs/api.md, keep_alive; Go's time.ParseDuration.
    """
    if isinstance(value, (int, float)) and not isinstance(value, bool) and not math.isnan(value):
        return float(value) if value >= 0 else math.inf
    found = _WORD.fullmatch(value.strip()) if isinstance(value, str) else None
    if found is None:
        raise ValueError(value)
    if found[1] == "-":
        return math.inf
    parts = _PART.findall(found[2])
    return sum(float(number) * UNITS[unit] for number, unit in parts) if parts else float(found[2])
