"""An S3 server of a few hundred lines, on loopback: what pyarrow asks of one, kept in memory. Tells what it is asked.

As boto's makers' own stand-in (moto) cannot be installed beside pandas 3: they want different versions of dateutil.
Source: Amazon S3's API reference.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.etree import ElementTree
from xml.sax.saxutils import escape

KEYS = {"AWS_ACCESS_KEY_ID": "AKIDOFATEST", "AWS_SECRET_ACCESS_KEY": "the-secret-of-a-test"}
NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"


class Store:
    """Buckets of objects. `before`: called with method and path of every request, ahead of its answer."""

    def __init__(self) -> None:
        self.buckets: dict[str, dict[str, bytes]] = {}
        self.parts: dict[str, dict[int, bytes]] = {}
        """What was sent of an object that is not complete; nobody sees it."""
        self.before: Callable[[str, str], None] = lambda method, path: None
        self.lock = threading.Lock()
        self.place = ""

    def bucket(self, name: str) -> str:
        """The address of a prefix in a new bucket."""
        self.buckets[name] = {}
        return f"s3://{name}/some/prefix?endpoint_override={self.place}&scheme=http&region=us-east-1"


@contextmanager
def running() -> Iterator[Store]:
    store = Store()
    handler = type("Handler", (_Handler,), {"store": store})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    store.place = f"127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield store
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    store: Store
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None: ...

    def _asked(self) -> tuple[str, str, dict[str, str]]:
        parts = urlsplit(self.path)
        bucket, _, key = unquote(parts.path).lstrip("/").partition("/")
        return bucket, key, {name: value[0] for name, value in parse_qs(parts.query, keep_blank_values=True).items()}

    def _body(self) -> bytes:
        """What was sent; the SDK sends in pieces, each behind its length, and a checksum behind the last."""
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            data = self._pieces(self.rfile.readline, self.rfile.read)
        else:
            data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if "aws-chunked" not in self.headers.get("Content-Encoding", ""):
            return data
        rest = memoryview(data)

        def line() -> bytes:
            nonlocal rest
            end = bytes(rest).index(b"\r\n") + 2
            found, rest = bytes(rest[:end]), rest[end:]
            return found

        def read(n: int) -> bytes:
            nonlocal rest
            found, rest = bytes(rest[:n]), rest[n:]
            return found

        return self._pieces(line, read, trailers=False)

    @staticmethod
    def _pieces(line: Callable[[], bytes], read: Callable[[int], bytes], *, trailers: bool = True) -> bytes:
        found = b""
        while n := int(line().split(b";")[0], 16):
            found += read(n)
            read(2)
        while trailers and line() != b"\r\n":
            pass
        return found

    def _answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", headers.get("length") or str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _xml(self, kind: str, inner: str, status: int = 200) -> None:
        text = f'<?xml version="1.0" encoding="UTF-8"?><{kind} xmlns="{NAMESPACE}">{inner}</{kind}>'
        self._answer(status, text.encode(), Content_Type="application/xml")

    def _error(self, status: int, code: str) -> None:
        self._xml("Error", f"<Code>{code}</Code><Message>{code}</Message>", status)

    def _handle(self) -> None:
        body = self._body()
        self.store.before(self.command, unquote(urlsplit(self.path).path))
        bucket, key, query = self._asked()
        with self.store.lock:
            if bucket not in self.store.buckets:
                return self._error(404, "NoSuchBucket")
            getattr(self, f"_{self.command.lower()}")(self.store.buckets[bucket], key, query, body)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _handle

    def _head(self, objects: dict[str, bytes], key: str, query: dict[str, str], body: bytes) -> None:
        self._get(objects, key, query, body)

    def _get(self, objects: dict[str, bytes], key: str, query: dict[str, str], body: bytes) -> None:
        if not key and self.command == "HEAD":
            return self._answer(200)
        if not key:
            return self._listed(objects, query.get("prefix", ""), query.get("delimiter", ""))
        if key not in objects:
            return self._error(404, "NoSuchKey")
        data, first = objects[key], 0
        told = {"ETag": '"0"', "Last_Modified": "Thu, 26 Nov 2026 00:00:00 GMT", "Accept_Ranges": "bytes"}
        if asked := self.headers.get("Range"):
            start, _, end = asked.removeprefix("bytes=").partition("-")
            first, last = int(start), min(int(end or len(data) - 1), len(data) - 1)
            if first >= len(data):
                return self._error(416, "InvalidRange")
            told["Content_Range"] = f"bytes {first}-{last}/{len(data)}"
            data = data[first : last + 1]
        self._answer(206 if asked else 200, data, **told)

    def _listed(self, objects: dict[str, bytes], prefix: str, delimiter: str) -> None:
        files, folders = [], set()
        for key in sorted(objects):
            rest = key.removeprefix(prefix)
            if not key.startswith(prefix):
                continue
            if delimiter and delimiter in rest:
                folders.add(prefix + rest.partition(delimiter)[0] + delimiter)
            else:
                files.append(key)
        inner = "".join(
            f"<Contents><Key>{escape(key)}</Key><Size>{len(objects[key])}</Size>"
            "<LastModified>2026-11-26T00:00:00.000Z</LastModified><ETag>0</ETag></Contents>"
            for key in files
        ) + "".join(f"<CommonPrefixes><Prefix>{escape(name)}</Prefix></CommonPrefixes>" for name in sorted(folders))
        count = len(files) + len(folders)
        self._xml("ListBucketResult", f"<IsTruncated>false</IsTruncated><KeyCount>{count}</KeyCount>{inner}")

    def _put(self, objects: dict[str, bytes], key: str, query: dict[str, str], body: bytes) -> None:
        if "uploadId" in query:
            self.store.parts[query["uploadId"]][int(query["partNumber"])] = body
        else:
            objects[key] = body
        self._answer(200, ETag='"0"')

    def _post(self, objects: dict[str, bytes], key: str, query: dict[str, str], body: bytes) -> None:
        if "uploads" in query:
            name = f"upload-{len(self.store.parts)}"
            self.store.parts[name] = {}
            self._xml("InitiateMultipartUploadResult", f"<Key>{escape(key)}</Key><UploadId>{name}</UploadId>")
        elif "uploadId" in query:
            parts = self.store.parts.pop(query["uploadId"])
            objects[key] = b"".join(parts[number] for number in sorted(parts))
            self._xml("CompleteMultipartUploadResult", f"<Key>{escape(key)}</Key><ETag>0</ETag>")
        else:
            keys = [each.text or "" for each in ElementTree.fromstring(body).iter() if each.tag.endswith("Key")]
            for each in keys:
                objects.pop(each, None)
            self._xml("DeleteResult", "".join(f"<Deleted><Key>{escape(each)}</Key></Deleted>" for each in keys))

    def _delete(self, objects: dict[str, bytes], key: str, query: dict[str, str], body: bytes) -> None:
        if "uploadId" in query:
            self.store.parts.pop(query["uploadId"], None)
        objects.pop(key, None)
        self._answer(204)
