"""What model hubs have in common: an endpoint, a repository, a revision, files by HTTP, perhaps a token.

A hub's own file says how it answers "what is there"; everything else is here.
"""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import httpx

from mofang.errors import Invalid, MofangError, NotFound, Unreachable
from mofang.models.progress import Report
from mofang.models.sources.base import Fetched, HubAnswers, RemoteFile, Spec, answers, http, kept_bytes, need_disk
from mofang.models.sources.download import Download
from mofang.settings import Settings

_REPO = re.compile(r"^[\w.\-]+/[\w.\-]+$", re.ASCII)
_FOLDER_FILE = re.compile(
    r"(config|generation_config|tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab)\.json"
    r"|merges\.txt|tokenizer\.model|chat_template\.jinja|[\w.\-]+\.safetensors(\.index\.json)?",
    re.ASCII,
)
"""What transformers reads of a repository; no Python, no pickles, nothing in folders below."""
_FILE = re.compile(r"^[\w.\-+@ ]+(/[\w.\-+@ ]+)*$")


class Hub:
    """A Source for one repository. Subclasses set the class variables and write `_describe`."""

    title: ClassVar[str]
    token_variables: ClassVar[tuple[str, ...]]
    default_revision: ClassVar[str]

    def __init__(self, settings: Settings, spec: Spec | None = None, *, answers: HubAnswers | None = None) -> None:
        self.settings = settings
        self.endpoint = self._endpoint(settings).rstrip("/")
        self.answers = answers or HubAnswers()
        spec = spec or {}
        self.repo = str(spec.get("repo", ""))
        self.paths = [str(path) for path in spec.get("files", ())]
        """Empty: the model that the repository itself is, a Hugging Face folder."""
        self.revision = str(spec.get("revision", self.default_revision))
        self.sha256: Mapping[str, str] = spec.get("sha256", {})
        """Digests computed by us, by path in the repository; rarely there."""

    @classmethod
    def parse(cls, address: str) -> dict[str, Any]:
        """The spec of "USER/REPO/path/FILE.gguf" (",mmproj-FILE.gguf" may follow: what it sees images with), or of
        "USER/REPO" for a Hugging Face folder (an "@revision" may follow REPO). Raises Invalid."""
        owner, _, rest = address.partition("/")
        name, _, path = rest.partition("/")
        name, _, revision = name.partition("@")
        repo = f"{owner}/{name}"
        whole = not rest.partition("/")[1]
        files = [] if whole else path.split(",")
        plain = not any(".." in part.split("/") for part in (repo, *files))
        if not (plain and _REPO.match(repo) and all(_FILE.match(file) and file.endswith(".gguf") for file in files)):
            raise Invalid("models.bad_source", param="source", source=address)
        return {"repo": repo, "files": files, **({"revision": revision} if revision else {})}

    @property
    def where(self) -> str:
        return self.title

    async def probe(self) -> bool:
        async def ask() -> bool:
            return await answers(self.endpoint + "/", self.settings.hub_timeout_s)

        return await self.answers.of(self.endpoint, ask)

    def silence(self) -> MofangError:
        return self._silent(f"{self.settings.hub_timeout_s:g} s")

    async def files(self) -> list[RemoteFile]:
        async with http(self.endpoint) as client:
            client.headers.update(self._token_headers())
            try:
                return await self._describe(client)
            except httpx.TimeoutException as error:
                raise self._silent("timeout") from error
            except httpx.TransportError as error:
                raise self._silent(str(error) or type(error).__name__) from error

    async def fetch(self, files: Sequence[RemoteFile], folder: Path, report: Report) -> list[Fetched]:
        found = []
        need_disk(folder, sum(file.size_bytes or 0 for file in files) - kept_bytes(folder))
        async with http(self.endpoint) as client:
            for file in files:
                headers, variable = self._token_headers(), self.token_variables[0]
                download = Download(client, file, folder, hub=self.title, variable=variable, headers=headers)
                found.append(await download.run(report))
        return found

    def _endpoint(self, settings: Settings) -> str:
        raise NotImplementedError

    async def _describe(self, client: httpx.AsyncClient) -> list[RemoteFile]:
        """Size and stated digest of each of `self.paths`."""
        raise NotImplementedError

    def _folder(self, listed: Iterable[str]) -> list[str]:
        """The files of a Hugging Face folder among those of a repository. Raises NotFound where it holds no safetensors:
        weights in pickles can run whatever their author wanted, and are not brought.
        """
        paths = sorted(path for path in listed if _FOLDER_FILE.fullmatch(path))
        if "config.json" not in paths or not any(path.endswith(".safetensors") for path in paths):
            raise NotFound("models.no_safetensors", hub=self.title, repo=self.repo)
        return paths

    def _token_headers(self) -> dict[str, str]:
        token = next((os.environ[name] for name in self.token_variables if os.environ.get(name)), "")
        return {"Authorization": f"Bearer {token}"} if token else {}

    def _silent(self, why: str) -> Unreachable:
        return Unreachable("models.hub_silent", hub=self.title, url=self.endpoint, why=why)

    def _nonsense(self, url: str, why: object) -> Unreachable:
        return Unreachable("models.hub_nonsense", hub=self.title, url=url, why=why)


def sha256_or_none(text: object) -> str | None:
    """`text` when it is a SHA-256 in hexadecimal, as hubs state it for large files."""
    cleaned = str(text or "").strip().strip('"').lower()
    return cleaned if re.fullmatch(r"[0-9a-f]{64}", cleaned) else None
