"""The gateway: OpenAI's API and our own over HTTP. `create_app(backend)` makes the ASGI application."""

from mofang.server.app import create_app

__all__ = ["create_app"]
