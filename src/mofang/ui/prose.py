"""A model's answer → Markdown that Streamlit may show, with [n] as links to the answer's numbered sources.

Notable: an answer is not trusted. Images become plain links (an image would be fetched from wherever the text says),
and Streamlit's own directives (":red[…]", ":material/x:") stay text. Code is left alone. Knows nothing of Streamlit.
"""

import re
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from html import escape
from textwrap import dedent
from typing import Any

from mofang.strings import where

_CODE = re.compile(r"(^[ \t]*(?P<fence>`{3,}|~{3,}).*?(?:^[ \t]*(?P=fence)|\Z)|`[^`\n]+`)", re.S | re.M)
_FENCE = re.compile(r"\A([ \t]*(?:`{3,}|~{3,})[ \t]*)mermaid\b", re.I)
_DIAGRAM = re.compile(r" {0,3}(`{3,}|~{3,})[ \t]*mermaid[ \t]*\n(?P<source>.*)\n[ \t]*\1", re.S | re.I)
_IMAGE = re.compile(r"!\[([^\]]*)\](?=[(\[])")
_DIRECTIVE = re.compile(r":(?=[a-z_+-]+[\[/:])")
_MATH = re.compile(
    r"\\\[(?P<block>(?!\s*\d+\s*\\\]).+?)\\\]|\\\((?P<inline>[^\n]+?)\\\)"
    r"|\$\$(?P<display>.+?)\$\$|\\\$|\$(?P<dollars>[^$\n]+)\$|\$",
    re.S,
)
_FORMULA = re.compile(r"[\\^_={}]|^[A-Za-z](?:\s*[-+*/<>|,()]\s*[A-Za-z0-9]*)*$")
_MARK = re.compile(r"[\[【](\d{1,2}(?:\s*[,，、]\s*\d{1,2})*)[\]】](?![(\[:])|[\[【](\d{1,2})[\]】](?=[\[【]\d)")


def pieces(text: str) -> Iterator[tuple[str, bool]]:
    """An answer cut at its Mermaid diagrams: (text, False) and (a diagram's source, True). One that is not closed is
    text, and so is one that stands deeper, within a list."""
    last = 0
    for code in _CODE.finditer(text):
        found = _DIAGRAM.fullmatch(code.group())
        if found and found["source"].strip():
            yield text[last : code.start()], False
            yield dedent(found["source"]), True
            last = (text.find("\n", code.end()) + 1) or len(text)
    yield text[last:], False


def to_markdown(text: str, numbers: Container[int] = (), anchor: str = "") -> str:
    """`numbers` are the sources that exist; [n] of another number stays as it is. `anchor` is what `anchor_of` gave.

    A diagram's source stays code: Streamlit would draw it, and draw half of it while it is being written."""
    parts, last = [], 0
    for code in _CODE.finditer(text):
        parts += [_prose(text[last : code.start()], numbers, anchor), _FENCE.sub(r"\1text", code.group())]
        last = code.end()
    return "".join([*parts, _prose(text[last:], numbers, anchor)])


def anchor_of(message_id: str, number: int | str) -> str:
    """The HTML id of a source's text within a page."""
    return f"s-{re.sub(r'[^A-Za-z0-9_-]', '', message_id)}-{number}"


def _prose(text: str, numbers: Container[int], anchor: str) -> str:
    """Formulas stay as they are; the words between them are made safe and linked."""
    text = _IMAGE.sub(lambda found: f"[{found[1] or '🖼'}]", text)
    parts, at = [], 0
    while math := _MATH.search(text, at):
        shown, end = _formula(text, math)
        parts += [_words(text[at : math.start()], numbers, anchor), shown]
        at = end
    return "".join([*parts, _words(text[at:], numbers, anchor)])


def _words(text: str, numbers: Container[int], anchor: str) -> str:
    text = _DIRECTIVE.sub(r"\:", text)

    def link(found: re.Match[str]) -> str:
        named = [int(digits) for digits in re.findall(r"\d+", found.group())]
        if not all(number in numbers for number in named):
            return found.group()
        # "Good![1]" is no image: a word joiner, which nobody sees, between the two.
        apart = "\u2060" if text[max(0, found.start() - 1) : found.start()] == "!" else ""
        return apart + "".join(f"[{number}](#{anchor}{number})" for number in named)

    return _MARK.sub(link, text)


def _formula(text: str, found: re.Match[str]) -> tuple[str, int]:
    """A formula as Streamlit reads it, and where it ends: between dollars, and what stands alone on lines of its own.
    A dollar that begins none is a dollar."""
    if inline := found["inline"]:
        return f"${inline.strip()}$", found.end()
    if block := found["block"] or found["display"]:
        before = text[text.rfind("\n", 0, found.start()) + 1 : found.start()]
        if before.strip() or text[found.end() :].partition("\n")[0].strip():
            return f"$${' '.join(block.split())}$$", found.end()
        lines = [before + line.strip() for line in block.splitlines() if line.strip()]  # a list keeps its indent
        return "\n".join(["$$", *lines, f"{before}$$"]), found.end()
    inner = found["dollars"] or ""
    is_formula = (
        inner and inner == inner.strip() and (_FORMULA.search(inner) or (len(inner) <= 2 and not inner.isdigit()))
    )
    if is_formula or found.group() == r"\$":
        return found.group(), found.end()
    return r"\$", found.start() + 1


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
