"""ModelScope. Its repository list states size and SHA-256 of every file.

Source: modelscope hub/api.py (get_model_files) and hub/file_download.py.
"""

from typing import Any
from urllib.parse import quote

import httpx

from mofang.errors import NotFound
from mofang.models.sources.base import RemoteFile, plain_name
from mofang.models.sources.download import refusal
from mofang.models.sources.hub import Hub, sha256_or_none
from mofang.settings import Settings


class ModelScope(Hub):
    title = "ModelScope"
    token_variables = ("MODELSCOPE_API_TOKEN",)
    default_revision = "master"

    def _endpoint(self, settings: Settings) -> str:
        return settings.modelscope_endpoint

    async def _describe(self, client: httpx.AsyncClient) -> list[RemoteFile]:
        url = f"{self.endpoint}/api/v1/models/{self.repo}/repo/files"
        answer = await client.get(url, params={"Revision": self.revision, "Recursive": "true"})
        if answer.is_error:
            raise refusal(answer, hub=self.title, url=url, variable=self.token_variables[0])
        try:
            listed = {str(entry["Path"]): entry for entry in answer.json()["Data"]["Files"] if entry["Type"] != "tree"}
        except (ValueError, KeyError, TypeError) as error:
            raise self._nonsense(url, type(error).__name__) from error
        self.paths = self.paths or self._folder(listed)
        return [self._file(path, listed) for path in self.paths]

    def _file(self, path: str, listed: dict[str, dict[str, Any]]) -> RemoteFile:
        url = f"{self.endpoint}/models/{self.repo}/resolve/{quote(self.revision, safe='')}/{quote(path)}"
        if path not in listed:
            raise NotFound("models.file_not_found", hub=self.title, url=url)
        size, digest = listed[path].get("Size"), sha256_or_none(listed[path].get("Sha256"))
        pinned = self.sha256.get(path)
        return RemoteFile(
            plain_name(path),
            url,
            size if isinstance(size, int) and size > 0 else None,
            pinned or digest,
            "pinned" if pinned else "hub" if digest else "",
        )
