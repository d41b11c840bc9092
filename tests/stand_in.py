"""A tiny honest model hub on loopback, and tiny honest models and wheels, for the tests of the room `models`.

The hub speaks Hugging Face's and ModelScope's few routes, redirects to a "CDN" under another host name as they do,
honours Range, and can be told to misbehave in the ways that hubs and lines do.
"""

import hashlib
import json
import threading
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import numpy as np
from gguf import GGUFWriter

from mofang.messages import Progress

REPO = "模坊测试".encode().hex()[:8] + "/tiny-GGUF"
FILE = "tiny-q8_0.gguf"


@dataclass
class Hub:
    """Serves `files` (path in the one repository → bytes). The switches below make it a bad one."""

    files: dict[str, bytes] = field(default_factory=dict)
    repo: str = REPO
    silent: bool = False
    """Accepts connections and says nothing."""
    gated: int = 0
    """Status instead of the file, 401 or 403, for requests without the token."""
    token: str = "秘密".encode().hex()
    lies: bool = False
    """States the digest of something else."""
    states_nothing: bool = False
    """A mirror that drops the X-Linked-* headers and has no file list."""
    list_only: bool = False
    """A mirror that drops the headers but has the list."""
    ignores_range: bool = False
    wrong_size: int = 0
    cuts: list[int] = field(default_factory=list)
    """Bytes after which each of the next answers breaks off."""
    failures: list[int] = field(default_factory=list)
    """Statuses of the next answers of the CDN."""
    pace_s: float = 0.0
    """Seconds of pause after each 64 KiB."""
    portal: bool = False
    """Answers everything with a login page."""
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    released: threading.Event = field(default_factory=threading.Event)
    url: str = ""

    def __enter__(self) -> "Hub":
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.server.daemon_threads = True
        self.port = self.server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.released.set()
        self.server.shutdown()
        self.server.server_close()

    def got(self, method: str, start: str) -> list[dict[str, str]]:
        """Headers of the requests whose path begins with `start`."""
        return [headers for verb, path, headers in self.requests if verb == method and path.startswith(start)]


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        hub, path = self.hub, unquote(urlsplit(self.path).path)
        hub.requests.append((self.command, path, {key.lower(): value for key, value in self.headers.items()}))
        if hub.silent:
            hub.released.wait(30)
            self.close_connection = True
            return
        if hub.portal:
            self._send(200, b"<html>login</html>", body, {"Content-Type": "text/html"})
        elif path.startswith("/cdn/"):
            self._cdn(path.removeprefix("/cdn/"), body)
        elif "/resolve/" in path:
            self._resolve(path.split("/resolve/", 1)[1].split("/", 1)[1], body, known=f"/{hub.repo}/" in path)
        elif path.startswith(f"/api/models/{hub.repo}/tree/") and not hub.states_nothing:
            self._send(200, json.dumps(self._hugging_face_list()).encode(), body)
        elif path == f"/api/v1/models/{hub.repo}/repo/files":
            self._send(200, json.dumps({"Code": 200, "Data": {"Files": self._modelscope_list()}}).encode(), body)
        elif path == "/":
            self._send(200, b"", body)
        else:
            self._send(404, b"{}", body)

    def _digest(self, content: bytes) -> str:
        return hashlib.sha256(content + (b"!" if self.hub.lies else b"")).hexdigest()

    def _resolve(self, name: str, body: bool, *, known: bool) -> None:
        hub = self.hub
        if hub.gated and self.headers.get("Authorization") != f"Bearer {hub.token}":
            self._send(hub.gated, b"gated", body)
        elif not known or name not in hub.files:
            self._send(404, b"", body)
        else:
            content = hub.files[name]
            headers = {"Location": f"http://localhost:{hub.port}/cdn/{quote(name)}"}
            if not (hub.states_nothing or hub.list_only):
                headers["X-Linked-Etag"] = f'"{self._digest(content)}"'
                headers["X-Linked-Size"] = str(len(content) + hub.wrong_size)
            self._send(302, b"", body, headers)

    def _hugging_face_list(self) -> list[dict[str, Any]]:
        return [
            {
                "type": "file",
                "path": name,
                "size": len(content) + self.hub.wrong_size,
                "lfs": {"oid": self._digest(content), "size": len(content)},
            }
            for name, content in self.hub.files.items()
        ]

    def _modelscope_list(self) -> list[dict[str, Any]]:
        return [
            {
                "Type": "blob",
                "Path": name,
                "Size": len(content) + self.hub.wrong_size,
                "Sha256": self._digest(content),
            }
            for name, content in self.hub.files.items()
        ]

    def _cdn(self, name: str, body: bool) -> None:
        hub = self.hub
        if hub.failures:
            self._send(hub.failures.pop(0), b"later", body, {"Retry-After": "0"})
            return
        if name not in hub.files:
            self._send(404, b"", body)
            return
        content = hub.files[name]
        etag = f'"{hashlib.md5(content).hexdigest()}"'
        asked = self.headers.get("Range", "")
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        if self.headers.get("If-Range", etag) != etag or hub.ignores_range:
            start = 0
        if start and start >= len(content):
            self._send(416, b"", body, {"Content-Range": f"bytes */{len(content)}"})
            return
        headers = {"ETag": etag, "Accept-Ranges": "bytes"}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self._send(206 if start else 200, content[start:], body, headers)

    def _send(self, status: int, content: bytes, body: bool, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if not body:
            return
        cut = self.hub.cuts.pop(0) if self.hub.cuts and status in (200, 206) and content else None
        sent = content if cut is None else content[:cut]
        for at in range(0, len(sent), 1 << 16):
            try:
                self.wfile.write(sent[at : at + (1 << 16)])
            except OSError:
                break
            self.hub.released.wait(self.hub.pace_s)
        if cut is not None:
            self.close_connection = True


class Told(list[Progress]):
    """Collects progress; `stages` are its stages in order, without repeats."""

    def __call__(self, progress: Progress) -> None:
        self.append(progress)

    @property
    def stages(self) -> list[str]:
        found: list[str] = []
        for progress in self:
            if not found or found[-1] != progress.stage:
                found.append(progress.stage)
        return found

    def notices(self) -> str:
        return "\n".join(progress.detail for progress in self if progress.stage == "notice")


def tiny_gguf(
    path: Path,
    *,
    architecture: str = "llama",
    template: str | None = "{% for m in messages %}{{ m.content }}{% endfor %}",
    pooling: int | None = None,
    weights_bytes: int = 4096,
    extra: Sequence[str] = (),
    metadata: dict[str, Any] | None = None,
) -> Path:
    """A sound GGUF of any size, written by llama.cpp's own package; it has no model that could run."""
    writer = GGUFWriter(path, architecture)
    writer.add_name("小模型🙂")
    writer.add_block_count(2)
    writer.add_context_length(2048)
    writer.add_embedding_length(64)
    writer.add_head_count(8)
    writer.add_head_count_kv(2)
    writer.add_file_type(7)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(["你", "好", "🙂", *(f"词{n}" for n in range(500))])
    if template is not None:
        writer.add_chat_template(template)
    if pooling is not None:
        writer.add_uint32(f"{architecture}.pooling_type", pooling)
    for key, value in (metadata or {}).items():
        getattr(writer, "add_array" if isinstance(value, list) else "add_uint32")(key, value)
    rng = np.random.default_rng(7)
    writer.add_tensor("token_embd.weight", rng.standard_normal((weights_bytes // 256, 64)).astype(np.float32))
    for name in extra:
        writer.add_tensor(name, np.ones((1, 64), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def wheel(folder: Path, package: str, version: str, members: dict[str, bytes], tag: str = "py3-none-any") -> Path:
    """A wheel by hand: `members` and the three files that pip wants to see."""
    name = package.replace("-", "_")
    info = f"{name}-{version}.dist-info"
    path = folder / f"{name}-{version}-{tag}.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, content in members.items():
            archive.writestr(member, content)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
        archive.writestr(f"{info}/WHEEL", f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
