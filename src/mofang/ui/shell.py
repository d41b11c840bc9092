"""The HTML page around Streamlit: our title, mark and language, a content security policy, and a small script.

Notable: the policy forbids the browser to reach any host but this one, whatever an answer or a document says. The
script (static/shell.js) puts Streamlit's few fixed English sentences into the reader's language and copies answers.
"""

import json
import re
from collections.abc import Awaitable, Callable, MutableMapping
from functools import cache
from pathlib import Path
from typing import Any, Final

import streamlit
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from mofang.ui.places import PLACES
from mofang.ui.session import default_language
from mofang.ui.words import LANGUAGES, table, word

STATIC: Final = Path(__file__).parent / "static"
STREAMLIT: Final = Path(streamlit.__file__).parent / "static"
FIRST: Final = ("Html", "PageLink", "Button", "ButtonGroup", "Selectbox", "ChatInput")
"""Streamlit's parts that every first page draws, by the stems of their files. It asks for each when it meets it, one
after another; asked for at once they are there when they are met."""
POLICY: Final = "; ".join(
    [
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "font-src 'self' data:",
        "connect-src 'self'",
        "worker-src 'self' blob:",
        "object-src 'none'",
        "base-uri 'self'",
        "form-action 'self'",
        "frame-ancestors 'self'",
    ]
)

IMPORTED: Final = re.compile(r'(?:from|import)"\./([\w.-]+\.js)"')

Scope = MutableMapping[str, Any]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


def routes() -> list[Route]:
    """Before Streamlit's own: the page at each of our addresses, its mark, and its script."""
    return [
        *(Route(f"/{place.path}", _page) for place in PLACES.values()),
        Route("/favicon.png", _mark),
        Route("/workbench/shell.js", _script),
    ]


def middleware() -> list[Middleware]:
    return [Middleware(_Guard)]


class _Guard:
    """Adds the security headers to every HTTP answer, and lets visitors leave."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Any, send: Send) -> None:
        if scope["type"] == "websocket":
            await self._socket(scope, receive, send)
            return

        async def guarded(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message.get("headers", ()),
                    (b"content-security-policy", POLICY.encode()),
                    (b"referrer-policy", b"no-referrer"),
                    (b"x-content-type-options", b"nosniff"),
                ]
            await send(message)

        await self.app(scope, receive, guarded)

    async def _socket(self, scope: Scope, receive: Any, send: Send) -> None:
        """Streamlit closes a socket once more when its visitor left in the middle of a message, and fails with that: a page
        of the log for everybody who leaves so."""
        over = False

        async def told(message: MutableMapping[str, Any]) -> None:
            nonlocal over
            over = over or message["type"] == "websocket.close"
            try:
                await send(message)
            except OSError:
                over = True
                raise

        try:
            await self.app(scope, receive, told)
        except RuntimeError:
            if not over:
                raise


@cache
def page_html(lang: str) -> str:
    """Streamlit's own index.html with our title, language, script and first colours (no white flash in the dark)."""
    html = (STREAMLIT / "index.html").read_text(encoding="utf-8")
    html = html.replace('<html lang="en">', f'<html lang="{"zh-CN" if lang == "zh" else "en"}">')
    html = html.replace("<title>Streamlit</title>", f"<title>{word(lang, 'app_title')}</title>")
    # The preloaded font is Streamlit's, which our theme does not use.
    html = re.sub(r"<link\s+rel=\"preload\".*?/>", "", html, flags=re.S)
    html = re.sub(
        r"<noscript>.*?</noscript>", f"<noscript>{word(lang, 'needs_javascript')}</noscript>", html, flags=re.S
    )
    head = (
        '<meta name="color-scheme" content="light dark">'
        "<style>html{background:#fcfbf8}@media(prefers-color-scheme:dark){html{background:#17191b}}</style>"
        # Without it Streamlit looks for itself under /models first, and the console shows its 404s.
        "<script>window.__streamlit={BACKEND_BASE_URL:location.origin}</script>"
        '<script defer src="./workbench/shell.js"></script>'
        + "".join(f'<link rel="modulepreload" crossorigin href="./static/js/{name}">' for name in _parts())
    )
    return html.replace("</head>", f"{head}</head>")


@cache
def _parts() -> list[str]:
    """The files of FIRST and what they import. Another version of Streamlit may call them otherwise: none, then."""
    folder = STREAMLIT / "static" / "js"
    found: dict[str, None] = {}
    wanted = [path.name for stem in FIRST for path in sorted(folder.glob(f"{stem}.*.js"))]
    while wanted:
        name = wanted.pop()
        if name not in found and (folder / name).is_file():
            found[name] = None
            wanted += IMPORTED.findall((folder / name).read_text(encoding="utf-8"))
    return list(found)


async def _page(request: Request) -> Response:
    asked = request.query_params.get("lang")
    return HTMLResponse(
        page_html(asked if asked in LANGUAGES else default_language()), headers={"Cache-Control": "no-cache"}
    )


async def _mark(request: Request) -> Response:
    return Response((STATIC / "mark.svg").read_bytes(), media_type="image/svg+xml")


@cache
def script() -> str:
    """static/shell.js with the sentences it needs in both languages."""
    words = {
        lang: {key.removeprefix("leftover_"): text for key, text in table(lang).items() if key.startswith("leftover_")}
        for lang in LANGUAGES
    }
    data = {"words": words, "language": default_language()}
    return (
        f"const MOFANG = {json.dumps(data, ensure_ascii=False)};\n{(STATIC / 'shell.js').read_text(encoding='utf-8')}"
    )


async def _script(request: Request) -> Response:
    return Response(script(), media_type="text/javascript; charset=utf-8", headers={"Cache-Control": "no-cache"})
