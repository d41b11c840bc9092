"""One file by HTTP(S), from wherever it is: an office server, a release page."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import httpx

from mofang.errors import Invalid, MofangError, Unreachable
from mofang.models.progress import Report
from mofang.models.sources.base import Fetched, HubAnswers, RemoteFile, Spec, answers, http, plain_name
from mofang.models.sources.download import Download, refusal
from mofang.settings import Settings


class Url:
    """A Source. spec: url; sha256 (optional) as the person or the catalogue states it."""

    def __init__(self, settings: Settings, spec: Spec | None = None, *, answers: HubAnswers | None = None) -> None:
        self.settings = settings
        self.url = str((spec or {}).get("url", ""))
        self.sha256 = (spec or {}).get("sha256")
        self.answers = answers or HubAnswers()

    @classmethod
    def parse(cls, address: str) -> dict[str, Any]:
        """The spec of "https://HOST/…/FILE.gguf", "#sha256=…" may follow. Raises Invalid."""
        parts = urlsplit(address)
        digest = re.fullmatch(r"sha256=([0-9a-fA-F]{64})", parts.fragment)
        name = unquote(parts.path).rpartition("/")[2]
        if parts.scheme not in ("http", "https") or not parts.hostname or not name.endswith(".gguf"):
            raise Invalid("models.bad_source", param="source", source=address)
        if parts.fragment and not digest:
            raise Invalid("models.bad_source", param="source", source=address)
        return {"url": address.partition("#")[0], **({"sha256": digest[1].lower()} if digest else {})}

    @property
    def where(self) -> str:
        return urlsplit(self.url).hostname or "URL"

    async def probe(self) -> bool:
        if not self.url:
            return True

        async def ask() -> bool:
            return await answers(self.url, self.settings.hub_timeout_s)

        return await self.answers.of("{0.scheme}://{0.netloc}".format(urlsplit(self.url)), ask)

    def silence(self) -> MofangError:
        return self._silent(f"{self.settings.hub_timeout_s:g} s")

    async def files(self) -> list[RemoteFile]:
        size = None
        async with http(self.url) as client:
            try:
                answer = await client.head(self.url)
            except httpx.TransportError as error:
                raise self._silent(str(error) or type(error).__name__) from error
        if answer.status_code in (401, 403, 404, 410):
            raise refusal(answer, hub=self.where, url=self.url)
        length = answer.headers.get("Content-Length", "")
        if answer.is_success and length.isdigit():
            size = int(length)
        name = plain_name(unquote(urlsplit(self.url).path))
        return [RemoteFile(name, self.url, size, self.sha256, "pinned" if self.sha256 else "")]

    async def fetch(self, files: Sequence[RemoteFile], folder: Path, report: Report) -> list[Fetched]:
        async with http(self.url) as client:
            return [await Download(client, file, folder, hub=self.where).run(report) for file in files]

    def _silent(self, why: str) -> Unreachable:
        return Unreachable("models.hub_silent", hub=self.where, url=self.url, why=why)
