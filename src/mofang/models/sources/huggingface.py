"""Hugging Face, or a mirror of it named by HF_ENDPOINT (settings.hf_endpoint).

The answer to HEAD …/resolve/<revision>/<path> states size and SHA-256 of a large file (X-Linked-Size, X-Linked-Etag)
before it redirects to where the bytes are; mirrors pass these headers on. Where they do not, the repository's file
list says the same. Source: huggingface_hub file_download.py (get_hf_file_metadata); hub API /api/models/…/tree.
"""

from typing import Any
from urllib.parse import quote, urljoin

import httpx

from mofang.models.sources.base import RemoteFile, plain_name
from mofang.models.sources.download import refusal
from mofang.models.sources.hub import Hub, sha256_or_none
from mofang.settings import Settings

MOST_REDIRECTS = 5


class HuggingFace(Hub):
    title = "Hugging Face"
    token_variables = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
    default_revision = "main"

    def _endpoint(self, settings: Settings) -> str:
        return settings.hf_endpoint

    async def _describe(self, client: httpx.AsyncClient) -> list[RemoteFile]:
        if not self.paths:
            self.paths = self._folder(str(entry.get("path")) for entry in await self._entries(client, ""))
        return [await self._file(client, path) for path in self.paths]

    async def _file(self, client: httpx.AsyncClient, path: str) -> RemoteFile:
        url = f"{self.endpoint}/{self.repo}/resolve/{quote(self.revision, safe='')}/{quote(path)}"
        answer = await self._head(client, url)
        size = answer.headers.get("X-Linked-Size") or (
            answer.headers.get("Content-Length") if answer.is_success else None
        )
        digest = sha256_or_none(answer.headers.get("X-Linked-Etag"))
        if not (size and digest):
            listed = await self._listed(client, path)
            size, digest = listed.get("size", size), sha256_or_none((listed.get("lfs") or {}).get("oid")) or digest
        stated_size = str(size or "")
        pinned = self.sha256.get(path)
        return RemoteFile(
            plain_name(path),
            url,
            int(stated_size) if stated_size.isdigit() else None,
            pinned or digest,
            "pinned" if pinned else "hub" if digest else "",
        )

    async def _head(self, client: httpx.AsyncClient, url: str) -> httpx.Response:
        """The first answer that speaks of the file itself; only redirects within the hub are followed by hand."""
        here = url
        for _ in range(MOST_REDIRECTS):
            answer = await client.head(here, follow_redirects=False)
            if "X-Linked-Etag" in answer.headers or not answer.is_redirect:
                break
            target = urljoin(here, answer.headers.get("Location", ""))
            if httpx.URL(target).host != httpx.URL(self.endpoint).host:
                break
            here = target
        if answer.is_error:
            raise refusal(answer, hub=self.title, url=url, variable=self.token_variables[0])
        return answer

    async def _listed(self, client: httpx.AsyncClient, path: str) -> dict[str, Any]:
        """The entry of the repository's file list; empty when the mirror has no list."""
        entries = await self._entries(client, path.rpartition("/")[0])
        return next((entry for entry in entries if entry.get("path") == path), {})

    async def _entries(self, client: httpx.AsyncClient, folder: str) -> list[dict[str, Any]]:
        """The repository's file list of one folder; empty when the mirror has none."""
        url = f"{self.endpoint}/api/models/{self.repo}/tree/{quote(self.revision, safe='')}/{quote(folder)}".rstrip("/")
        answer = await client.get(url)
        if not answer.is_success:
            return []
        try:
            entries = answer.json()
            return [dict(entry) for entry in entries]
        except (ValueError, TypeError) as error:
            raise self._nonsense(url, "JSON") from error
