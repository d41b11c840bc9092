"""A check as a page for people: the verdict first, then figures, then answers side by side. Markdown, our words by `say`.

What models said stands in fenced blocks: it is shown as it is, and never becomes markup of the page.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Any

from mofang.export.picture import FILE as PICTURE
from mofang.export.picture import Point
from mofang.strings import say

FILE = "report.md"

Found = dict[str, Any]


def markdown(found: Found, points: Sequence[Point], notices: Sequence[str] = ()) -> str:
    """The whole page. `notices`: what a person should know of how it was measured."""
    parts = [
        f"# {say('export.report_title', name=found['model'], reference=found['reference']['name'])}",
        f"**{_verdict(found)}** {_in_short(found)}",
        *(["\n".join(f"- {notice}" for notice in notices)] if notices else []),
        *_texts(found),
        *_speed(found),
        *_points(points),
        *_answers(found),
        *_origin(found),
    ]
    return "\n\n".join(parts) + "\n"


def line(found: Found, one: Found) -> str:
    """One text's figures in a sentence."""
    names = {"name": found["model"], "reference": found["reference"]["name"]}
    cut = say("export.report_cut", bytes=one["bytes"]) if one["truncated"] else ""
    return say("export.checked" if "mean_kl" in one else "export.checked_bits", **names, **one) + cut


def why(found: Found) -> str:
    """What is beyond its limit."""
    return say("export.check_and").join(
        say(f"export.beyond_{one['figure']}", **{**one, "text": one.get("text", "")}) for one in found["failures"]
    )


def _verdict(found: Found) -> str:
    if found["passed"] is None:
        return say("export.report_no_limit")
    if found["passed"]:
        limits = say("export.check_and").join(
            say(f"export.limit_{name}", limit=limit) for name, limit in found["limits"].items()
        )
        return say("export.report_passed", limits=limits)
    return say("export.report_failed", why=why(found))


def _in_short(found: Found) -> str:
    return say("export.report_short" if "mean_kl" in found else "export.report_short_bits", **found)


def _texts(found: Found) -> Iterator[str]:
    yield f"## {say('export.report_texts')}"
    compared = "mean_kl" in found
    head = [
        say("export.report_text"),
        say("export.report_tokens"),
        say("export.report_bits"),
        say("export.report_perplexity"),
    ]
    if compared:
        head += [say(f"export.report_{name}") for name in ("kl", "kl_median", "kl_p99", "top1", "top5")]
    rows = []
    for one in (*found["texts"], {**found, "text": say("export.report_all")}):
        cells = [
            str(one["text"]), f"{one['n_tokens']:,}", f"{one['bits_per_byte']:.4f} / {one['reference_bits_per_byte']:.4f}",
            f"{one['perplexity']:.3f} ± {one['perplexity_error']:.3f} / "
            f"{one['reference_perplexity']:.3f} ± {one['reference_perplexity_error']:.3f}",
        ]  # fmt: skip
        if compared:
            cells += [
                f"{one['mean_kl']:.5f} ± {one['kl_error']:.5f}", f"{one['median_kl']:.5f}", f"{one['kl_p99']:.4f}",
                f"{one['same_top']:.1%} ± {one['same_top_error']:.1%}", f"{one['same_top5']:.1%}",
            ]  # fmt: skip
        rows.append(cells)
    yield _table(head, rows)
    names = {"name": found["model"], "reference": found["reference"]["name"]}
    yield say("export.report_how" if compared else "export.report_how_bits", **names)
    cut = [one for one in found["texts"] if one["truncated"]]
    if cut:
        yield say("export.report_truncated", texts=", ".join(f"{one['text']} ({one['bytes']:,} B)" for one in cut))


def _speed(found: Found) -> Iterator[str]:
    yield f"## {say('export.report_speed')}"
    reference = found["reference"]
    rows = [
        [say("export.report_kind"), found["model_kind"], reference["kind"]],
        [say("export.report_size"), _size(found["model_size_bytes"]), _size(reference["size_bytes"])],
    ]
    ours, theirs = found.get("speed") or {}, found.get("reference_speed") or {}
    if ours or theirs:
        for name, unit in (("load_s", "s"), ("prompt_per_second", "token/s"), ("predicted_per_second", "token/s")):
            rows.append([say(f"export.report_{name}"), *(_cell(side, name, unit) for side in (ours, theirs))])
        rows.append([say("export.report_provider"), *(side.get("provider") or "–" for side in (ours, theirs))])
    yield _table(["", found["model"], reference["name"]], rows)


def _cell(side: Found, name: str, unit: str) -> str:
    return f"{side[name]:,} {unit}" if side.get(name) is not None else "–"


def _points(points: Sequence[Point]) -> Iterator[str]:
    yield f"## {say('export.report_points')}"
    head = ["", say("export.report_model"), say("export.report_size"), say("export.report_kl_short")]
    head += [say("export.report_ratio"), say("export.report_predicted_per_second")]
    rows = [
        [
            str(point.number), f"**{point.name}**" if point.is_new else point.name, _size(point.size_bytes),
            "–" if point.kl is None else f"{point.kl:.5f}", f"{point.ratio:.4f}",
            "–" if point.speed is None else f"{point.speed:,}",
        ]
        for point in points
    ]  # fmt: skip
    yield _table(head, rows)
    yield f"![{say('export.report_picture')}]({PICTURE})"


def _answers(found: Found) -> Iterator[str]:
    if not found.get("answers"):
        return
    yield f"## {say('export.report_answers')}"
    for number, one in enumerate(found["answers"], 1):
        yield f"### {number}. {say('export.report_question')}\n\n{_verbatim(one['prompt'])}"
        sides = (
            (found["model"], "answer", "ended"),
            (found["reference"]["name"], "reference_answer", "reference_ended"),
        )
        if one["answer"] is not None and one["answer"] == one["reference_answer"]:
            yield f"{say('export.report_same_answer')}{_end(one['ended'])}\n\n{_verbatim(one['answer'])}"
            continue
        for name, text, ended in sides:
            if one[text] is not None:
                yield f"**{name}**{_end(one[ended])}\n\n{_verbatim(one[text])}"


def _end(ended: bool | None) -> str:
    return f" ({say('export.report_endless')})" if ended is False else ""


def _origin(found: Found) -> Iterator[str]:
    yield f"## {say('export.report_origin')}"
    readers = [" ".join(f"{name} {version}" for name, version in each.items()) for each in found["readers"]]
    facts = [
        say("export.report_at", at=found["at"], run=found["run"], version=found["tools"]["mofang"]),
        say("export.report_read_by", name=found["model"], tool=readers[0]),
        say("export.report_read_by", name=found["reference"]["name"], tool=readers[1]),
        say("export.report_digest", name=found["reference"]["name"], sha256=found["reference"]["sha256"]),
        *(say("export.report_digest", name=one["text"], sha256=one["sha256"]) for one in found["texts"]),
    ]
    yield "\n".join(f"- {fact}" for fact in facts)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 1e6:,.1f} MB"


def _verbatim(text: str) -> str:
    """A fenced block that ends where we end it."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text.strip()}\n{fence}"
