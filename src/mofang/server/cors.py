"""Which web pages elsewhere may call us from a browser: none, unless the setting `cors_origins` names them.

(WHATWG Fetch, 3.2.) There are no cookies here, so credentials are not allowed: a page sends its key in a header.
"""

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response

from mofang.settings import Settings

METHODS = "GET, POST, PATCH, DELETE, OPTIONS"
EXPOSED = ", ".join(
    (
        "X-Request-Id",
        "Retry-After",
        *(f"x-ratelimit-{part}-{kind}" for kind in ("requests", "tokens") for part in ("limit", "remaining", "reset")),
    )
)
MAX_AGE_S = 600


def allows(settings: Settings, origin: str) -> bool:
    """Whether a page of `origin` may call. "*" counts only with MOFANG_API_KEY: else any page could use this machine."""
    return origin in settings.cors_origins or ("*" in settings.cors_origins and settings.api_key is not None)


def is_preflight(method: str, headers: Headers) -> bool:
    return method == "OPTIONS" and "origin" in headers and "access-control-request-method" in headers


def preflight(headers: Headers) -> Response:
    """The answer to a browser that asks first; it sends no key with that question."""
    answer = Response(status_code=204)
    answer.headers["Access-Control-Allow-Methods"] = METHODS
    answer.headers["Access-Control-Allow-Headers"] = headers.get("access-control-request-headers", "Authorization")
    answer.headers["Access-Control-Max-Age"] = str(MAX_AGE_S)
    if headers.get("access-control-request-private-network") == "true":
        answer.headers["Access-Control-Allow-Private-Network"] = "true"
    return answer


def add(headers: MutableHeaders, origin: str) -> None:
    """Let the page of `origin` read the answer."""
    headers["Access-Control-Allow-Origin"] = origin
    headers["Access-Control-Expose-Headers"] = EXPOSED
    headers.add_vary_header("Origin")
