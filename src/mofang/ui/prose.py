"""A model's answer → Markdown that Streamlit may show, with [n] as links to the answer's numbered sources.

Notable: an answer is not trusted. Images become plain links (an image would be fetched from wherever the text says),
and Streamlit's own directives (":red[…]", ":material/x:") stay text. Code is left alone. Knows nothing of Streamlit.
"""

import re
from collections.abc import Callable, Container, Iterable, Mapping
from html import escape
from typing import Any

from mofang.strings import where

_CODE = re.compile(r"(^[ \t]*(?P<fence>`{3,}|~{3,}).*?(?:^[ \t]*(?P=fence)|\Z)|`[^`\n]+`)", re.S | re.M)
_IMAGE = re.compile(r"!\[([^\]]*)\](?=[(\[])")
_DIRECTIVE = re.compile(r":(?=[a-z_+-]+[\[/:])")
_DOLLARS = re.compile(r"\\\$|\$\$.*?\$\$|\$([^$\n]+)\$|\$", re.S)
_MARK = re.compile(r"[\[【](\d{1,2}(?:\s*[,，、]\s*\d{1,2})*)[\]】](?![(\[:])|[\[【](\d{1,2})[\]】](?=[\[【]\d)")


def to_markdown(text: str, numbers: Container[int] = (), anchor: str = "") -> str:
    """`numbers` are the sources that exist; [n] of another number stays as it is. `anchor` is what `anchor_of` gave."""
    parts, last = [], 0
    for code in _CODE.finditer(text):
        parts += [_prose(text[last : code.start()], numbers, anchor), code.group()]
        last = code.end()
    return "".join([*parts, _prose(text[last:], numbers, anchor)])


def anchor_of(message_id: str, number: int | str) -> str:
    """The HTML id of a source's text within a page."""
    return f"s-{re.sub(r'[^A-Za-z0-9_-]', '', message_id)}-{number}"


def _prose(text: str, numbers: Container[int], anchor: str) -> str:
    text = _IMAGE.sub(lambda found: f"[{found[1] or '🖼'}]", text)
    text = re.sub(r"\\\[(.+?)\\\]", r"$$\1$$", text, flags=re.S)
    text = re.sub(r"\\\((.+?)\\\)", r"$\1$", text)
    text = _DOLLARS.sub(_dollar, text)
    text = _DIRECTIVE.sub(r"\:", text)

    def link(found: re.Match[str]) -> str:
        named = [int(digits) for digits in re.findall(r"\d+", found.group())]
        if not all(number in numbers for number in named):
            return found.group()
        return "".join(f"[{number}](#{anchor}{number})" for number in named)

    return _MARK.sub(link, text)


def _dollar(found: re.Match[str]) -> str:
    """Formulas stay formulas; prices stay prices."""
    whole, inner = found.group(), found.group(1)
    if whole.startswith(("$$", "\\")):
        return whole
    is_formula = inner and not inner[0].isspace() and (re.search(r"[\\^_={}]", inner) or len(inner) <= 2)
    return whole if is_formula and not inner[0].isdigit() else whole.replace("$", r"\$")


def place(source: Mapping[str, Any], lang: str) -> str:
    """Where in its document a source stands: "第 3 页 · 安装 › 离线"."""
    return " · ".join(where(source, lang))


def marked(text: str, spans: Iterable[tuple[int, int]]) -> str:
    """HTML of a text with these spans of it marked; they come in order."""
    parts, at = [], 0
    for start, end in spans:
        parts += [escape(text[at:start]), f"<mark>{escape(text[start:end])}</mark>"]
        at = end
    return "".join([*parts, escape(text[at:])])


def chunks_html(text: str, offset: int, chunks: Iterable[Mapping[str, Any]], label: Callable[[int], str]) -> str:
    """HTML of a piece of a document, which begins at `offset`, with its chunks in alternating shades.

    Each begins with `label(its characters)`, also where only its end is in this piece. What chunks share belongs to the
    first; what is in none has no shade."""
    parts, at = [], 0
    for number, chunk in enumerate(chunks):
        start, end = max(at, chunk["start"] - offset), min(len(text), chunk["end"] - offset)
        if start >= end:
            continue
        length = label(chunk["end"] - chunk["start"])
        parts += [
            escape(text[at:start]),
            f'<span class="mf-chunk{" odd" if number % 2 else ""}"><i>{escape(length)}</i>{escape(text[start:end])}</span>',
        ]
        at = end
    return "".join([*parts, escape(text[at:])])


def _rests_on(text: str, source: Mapping[str, Any]) -> list[tuple[int, int]]:
    """The spans of a source's text that the answer rests on; all of it where the answer does not say what that is."""
    offset = int(source.get("start") or 0)
    return [(start - offset, end - offset) for start, end in source.get("spans") or [(offset, offset + len(text))]]


def sources_html(
    sources: Iterable[Mapping[str, Any]],
    contexts: Mapping[int, Mapping[str, Any]],
    message_id: str,
    words: Mapping[str, str],
    lang: str,
) -> str:
    """The numbered sources as <details>: a link to the text inside opens it, without script or round trip.

    `contexts` gives, by number, the span with what surrounds it (GET …/text); a source without one shows its span alone.
    `words`: "title", "title_uncited" (when the answer marks none of them), "not_cited", "gone".
    """
    items = []
    sources = list(sources)
    some_cited = any(source.get("cited") for source in sources)
    title = words["title" if some_cited else "title_uncited"]
    for source in sources:
        number = int(source["number"])
        context = contexts.get(number)
        before, text, after = (
            (context or {}).get("before", ""),
            source.get("text", ""),
            (context or {}).get("after", ""),
        )
        stands = escape(place(source, lang))
        mark = (
            ""
            if source.get("cited") or not some_cited
            else f'<span class="mf-quiet">{escape(words["not_cited"])}</span>'
        )
        gone = f'<p class="mf-quiet">{escape(words["gone"])}</p>' if context == {} else ""
        items.append(
            f'<details class="mf-source"><summary><span class="mf-n">{number}</span>'
            f'<span class="mf-title">{escape(str(source.get("title", "")))}</span>'
            f'<span class="mf-where">{stands}</span>{mark}</summary>'
            f'<div class="mf-passage" id="{anchor_of(message_id, number)}">{escape(str(before))}'
            f"{marked(str(text), _rests_on(str(text), source))}{escape(str(after))}{gone}</div></details>"
        )
    return f'<div class="mf-sources"><div class="mf-label">{escape(title)}</div>{"".join(items)}</div>'
