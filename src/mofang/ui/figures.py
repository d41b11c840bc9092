"""Numbers as people read them: sizes, rates, durations, counts. Decimal units, as disks and hubs count.

Knows nothing of Streamlit.
"""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

from mofang.ui.words import word, word_or


def size(n_bytes: float) -> str:
    """Bytes as "468 MB"; three significant digits are enough to choose by."""
    value, unit = float(n_bytes), "B"
    for unit in ("B", "KB", "MB", "GB", "TB"):
        if abs(value) < 999.5 or unit == "TB":
            break
        value /= 1000
    digits = 0 if value >= 99.5 or unit == "B" else 1
    return f"{value:.{digits}f} {unit}"


def count(lang: str, n: float) -> str:
    """A large count: "4.94 亿" in Chinese, "494 M" in English."""
    steps = ((1e8, "亿"), (1e4, "万")) if lang == "zh" else ((1e9, "B"), (1e6, "M"), (1e3, "K"))
    for step, unit in steps:
        if abs(n) >= step:
            return f"{float(f'{n / step:.3g}'):g} {unit}"
    return f"{n:g}"


def duration(lang: str, seconds: float) -> str:
    """Seconds in words, rounded to what a waiting person cares about."""
    whole = max(1, round(seconds))
    if whole < 60:
        return word(lang, "seconds", n=whole)
    if whole < 3600:
        return word(lang, "minutes", m=whole // 60, s=whole % 60)
    minutes = round(whole / 60)
    return word(lang, "hours", h=minutes // 60, m=minutes % 60)


def progress(lang: str, shape: dict[str, Any] | None) -> tuple[float, str]:
    """A Progress as JSON → (fraction from 0 to 1, one line: stage, amount, rate, time left)."""
    if not shape:
        return 0.0, word(lang, "job_starting")
    done, total, rate = shape.get("done") or 0, shape.get("total") or 0, shape.get("rate") or 0.0
    amount, speed = UNITS.get(str(shape.get("unit")), _plainly)(lang, done, total, rate)
    left = shape.get("seconds_left") or (max(0, total - done) / rate if total and rate else 0)
    parts = [
        word_or(lang, f"stage_{shape.get('stage')}", word(lang, "stage_other")),
        amount if total else "",
        speed if rate else "",
        word(lang, "time_left", time=duration(lang, left)) if left else "",
        str(shape.get("detail") or ""),
    ]
    return (min(1.0, max(0.0, done / total)) if total else 0.0), " · ".join(part for part in parts if part)


def _bytes(lang: str, done: float, total: float, rate: float) -> tuple[str, str]:
    return f"{size(done)} / {size(total)}", f"{size(rate)}/s"


def _steps(lang: str, done: float, total: float, rate: float) -> tuple[str, str]:
    """Steps of a training may take seconds or milliseconds."""
    speed = word(lang, "steps_rate", n=f"{rate:.3g}") if rate >= 1 or not rate else word(
        lang, "step_seconds", n=f"{1 / rate:.3g}"
    )  # fmt: skip
    return word(lang, "steps_of", done=done, total=total), speed


def _plainly(lang: str, done: float, total: float, rate: float) -> tuple[str, str]:
    return f"{count(lang, done)} / {count(lang, total)}", word(lang, "rate", n=count(lang, float(f"{rate:.3g}")))


UNITS: Final[dict[str, Callable[[str, float, float, float], tuple[str, str]]]] = {"bytes": _bytes, "steps": _steps}
"""A Progress's unit → how its amount and its rate are said."""


def moment(stamp: str | float | int | None) -> str:
    """A time as the server writes it (ISO 8601 or seconds since 1970), in this machine's zone; "" when there is none."""
    if stamp is None or stamp == "":
        return ""
    when = datetime.fromtimestamp(stamp, UTC) if isinstance(stamp, int | float) else datetime.fromisoformat(stamp)
    return when.astimezone().strftime("%Y-%m-%d %H:%M")


def seconds_between(start: str, end: str) -> float:
    """From one moment to another, both as the server writes them; to now where there is no end yet."""
    until = datetime.fromisoformat(end) if end else datetime.now(UTC)
    return max(0.0, (until - datetime.fromisoformat(start)).total_seconds())


def context(message: dict[str, Any]) -> tuple[int, int] | None:
    """Tokens of the model's context that an answer and all before it take, and tokens that there are; None: not told."""
    usage, n_ctx = message.get("usage") or {}, message.get("n_ctx") or 0
    used = (usage.get("prompt_tokens") or 0) + (usage.get("completion_tokens") or 0)
    return (used, n_ctx) if used and n_ctx else None


def speed_line(lang: str, message: dict[str, Any]) -> str:
    """What stands under an answer: tokens a second, time to the first token, token counts, model."""
    usage, timings = message.get("usage") or {}, message.get("timings") or {}
    parts = []
    if timings.get("predicted_per_second"):
        parts.append(word(lang, "speed", n=f"{timings['predicted_per_second']:.1f}"))
    if first := message.get("first_token_ms") or timings.get("prompt_ms"):
        parts.append(word(lang, "first_token", n=f"{first / 1000:.2f}"))
    if usage:
        parts.append(
            word(lang, "tokens", prompt=usage.get("prompt_tokens", 0), answer=usage.get("completion_tokens", 0))
        )
    if cached := (usage.get("prompt_tokens_details") or {}).get("cached_tokens"):
        parts.append(word(lang, "tokens_cached", n=cached))
    if message.get("model"):
        parts.append(str(message["model"]))
    return " · ".join(parts)
