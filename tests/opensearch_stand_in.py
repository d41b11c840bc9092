"""A stand-in for OpenSearch on loopback: it does what our store asks for, and answers 400 to what the real one would.

Every request is checked by the published API (docs.opensearch.org: index APIs, bulk, search, query DSL, k-NN): method,
path, parameters, and a body in which no key is unknown and every type is right. Search is exact k-NN and Lucene's BM25.
"""

import json
import math
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import numpy as np

MAX_WINDOW, MAX_TERMS, MAX_BULK_BYTES = 10_000, 65_536, 100 << 20


class Refused(Exception):
    def __init__(self, status: int, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.status, self.kind, self.reason = status, kind, reason


def need(condition: Any, reason: str, *, kind: str = "parsing_exception", status: int = 400) -> None:
    if not condition:
        raise Refused(status, kind, reason)


def only(
    body: Any, known: dict[str, type | tuple[type, ...]], where: str, required: tuple[str, ...] = ()
) -> dict[str, Any]:
    need(isinstance(body, dict), f"[{where}] must be an object")
    for key, value in body.items():
        need(key in known, f"unknown key [{key}] in [{where}]")
        need(isinstance(value, known[key]), f"[{where}.{key}] has the wrong type")
        booleans = known[key] is bool or (isinstance(known[key], tuple) and bool in known[key])
        need(not isinstance(value, bool) or booleans, f"[{where}.{key}] must not be a boolean")
    for key in required:
        need(key in body, f"[{where}] needs [{key}]")
    return body  # type: ignore[no-any-return]


@dataclass
class Index:
    settings: dict[str, Any]
    mappings: dict[str, Any]
    documents: dict[str, dict[str, Any]] = field(default_factory=dict)
    visible: dict[str, dict[str, Any]] = field(default_factory=dict)
    """As of the last refresh."""


class OpenSearchStandIn:
    """`with OpenSearchStandIn(password="…") as url`: the address, with the password in it."""

    def __init__(self, password: str = "") -> None:
        self.password = password
        self.indices: dict[str, Index] = {}
        self.requests: list[str] = []
        self.refused: list[str] = []

    def __enter__(self) -> str:
        stand_in = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None: ...

            def _answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                try:
                    status, answer = stand_in.answer(self.command, self.path, body, self.headers)
                except Refused as error:
                    stand_in.refused.append(error.reason)
                    fault = {"type": error.kind, "reason": error.reason}
                    status, answer = error.status, {"error": {"root_cause": [fault], **fault}, "status": error.status}
                raw = b"" if self.command == "HEAD" else json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json; charset=UTF-8")
                self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _answer

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        login = f"admin:{self.password}@" if self.password else ""
        return f"http://{login}127.0.0.1:{self._server.server_port}"

    def __exit__(self, *_: Any) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    # ---- requests ----

    def answer(self, method: str, target: str, body: bytes, headers: Any) -> tuple[int, Any]:
        parts = urlsplit(target)
        self.requests.append(f"{method} {parts.path}")
        if self.password:
            import base64

            right = "Basic " + base64.b64encode(f"admin:{self.password}".encode()).decode()
            need(headers.get("Authorization") == right, "Unauthorized", kind="security_exception", status=401)
        if body:
            kind = (headers.get("Content-Type") or "").split(";")[0]
            need(
                kind in ("application/json", "application/x-ndjson"),
                f"Content-Type [{kind}] is not supported",
                status=406,
            )
        for (verbs, path), (parameters, act) in self._routes().items():
            match = re.fullmatch(path, parts.path)
            if match and method in verbs.split("|"):
                given = dict(parse_qsl(parts.query, keep_blank_values=True))
                unknown = given.keys() - parameters
                need(not unknown, f"request [{parts.path}] contains unrecognized parameters: {sorted(unknown)}")
                name = match.group(1)
                need(
                    re.fullmatch(r"[a-z0-9][a-z0-9_.\-]*", name),
                    f"Invalid index name [{name}]",
                    kind="invalid_index_name_exception",
                )
                return act(name, given, body)
        raise Refused(405, "illegal_argument_exception", f"no handler for [{method} {parts.path}]")

    def _routes(self) -> dict[tuple[str, str], tuple[set[str], Callable[..., tuple[int, Any]]]]:
        waits = {"timeout", "cluster_manager_timeout"}
        choice = {"ignore_unavailable", "allow_no_indices", "expand_wildcards"}
        return {
            ("HEAD", "/([^/_][^/]*)"): (choice | {"local", "flat_settings"}, self._exists),
            ("PUT", "/([^/_][^/]*)"): (waits | {"wait_for_active_shards"}, self._create),
            ("DELETE", "/([^/_][^/]*)"): (choice | waits, self._delete),
            ("GET", "/([^/]+)/_mapping"): (choice | {"local"}, self._get_mapping),
            ("PUT|POST", "/([^/]+)/_mapping"): (choice | waits | {"write_index_only"}, self._put_mapping),
            ("POST|GET", "/([^/]+)/_refresh"): (choice, self._refresh),
            ("POST|PUT", "/([^/]+)/_bulk"): ({"refresh", "routing", "timeout", "pipeline", "_source"}, self._bulk),
            ("POST|GET", "/([^/]+)/_search"): (
                choice | {"routing", "timeout", "preference", "request_cache"},
                self._search,
            ),
        }

    def _of(self, name: str) -> Index:
        need(name in self.indices, f"no such index [{name}]", kind="index_not_found_exception", status=404)
        return self.indices[name]

    def _exists(self, name: str, _: Any, __: bytes) -> tuple[int, Any]:
        return (200 if name in self.indices else 404), {}

    def _create(self, name: str, _: Any, body: bytes) -> tuple[int, Any]:
        need(name not in self.indices, f"index [{name}] already exists", kind="resource_already_exists_exception")
        about = only(json.loads(body), {"settings": dict, "mappings": dict, "aliases": dict}, "create index")
        settings = only(about.get("settings", {}), {"index": dict}, "settings").get("index", {})
        only(
            settings,
            {"knn": bool, "number_of_shards": int, "number_of_replicas": int, "refresh_interval": str},
            "index",
        )
        mappings = only(
            about.get("mappings", {}), {"dynamic": (str, bool), "properties": dict, "_meta": dict}, "mappings"
        )
        need(mappings.get("dynamic", "true") in ("strict", "true", "false", True, False), "unknown value of [dynamic]")
        for field_name, of in mappings.get("properties", {}).items():
            self._check_field(field_name, of, settings)
        self.indices[name] = Index(settings, mappings)
        return 200, {"acknowledged": True, "shards_acknowledged": True, "index": name}

    def _check_field(self, name: str, of: dict[str, Any], settings: dict[str, Any]) -> None:
        need(
            isinstance(of, dict) and "type" in of,
            f"No type specified for field [{name}]",
            kind="mapper_parsing_exception",
        )
        if of["type"] == "knn_vector":
            only(of, {"type": str, "dimension": int, "method": dict}, name, ("dimension",))
            need(settings.get("knn") is True, f"[{name}] needs index.knn")
            need(1 <= of["dimension"] <= 16_000, "dimension must be between 1 and 16000")
            method = only(
                of["method"], {"name": str, "engine": str, "space_type": str, "parameters": dict}, "method", ("name",)
            )
            need(method["name"] == "hnsw" and method["engine"] == "lucene", "only hnsw of lucene is checked here")
            need(method["space_type"] in ("l2", "cosinesimil", "innerproduct"), "unknown space_type")
        elif of["type"] == "text":
            only(of, {"type": str, "analyzer": str, "norms": bool, "index_options": str}, name)
            need(of.get("analyzer", "standard") in ("standard", "whitespace", "keyword", "simple"), "unknown analyzer")
        else:
            need(
                of["type"] in ("keyword", "long", "integer"),
                f"No handler for type [{of['type']}]",
                kind="mapper_parsing_exception",
            )
            only(of, {"type": str, "index": bool, "doc_values": bool}, name)

    def _delete(self, name: str, given: dict[str, str], _: bytes) -> tuple[int, Any]:
        if given.get("ignore_unavailable") != "true":
            self._of(name)
        self.indices.pop(name, None)
        return 200, {"acknowledged": True}

    def _get_mapping(self, name: str, _: Any, __: bytes) -> tuple[int, Any]:
        return 200, {name: {"mappings": self._of(name).mappings}}

    def _put_mapping(self, name: str, _: Any, body: bytes) -> tuple[int, Any]:
        new = only(json.loads(body), {"_meta": dict, "properties": dict, "dynamic": str}, "mapping")
        need("properties" not in new, "no field is added later here")
        self._of(name).mappings.update(new)
        return 200, {"acknowledged": True}

    def _refresh(self, name: str, _: Any, __: bytes) -> tuple[int, Any]:
        index = self._of(name)
        index.visible = dict(index.documents)
        return 200, {"_shards": {"total": 1, "successful": 1, "failed": 0}}

    def _bulk(self, name: str, _: Any, body: bytes) -> tuple[int, Any]:
        need(len(body) <= MAX_BULK_BYTES, "content too long", status=413)
        need(
            body.endswith(b"\n"),
            "The bulk request must be terminated by a newline [\\n]",
            kind="illegal_argument_exception",
        )
        index, lines, items = self._of(name), body.decode().split("\n")[:-1], []
        at = 0
        while at < len(lines):
            action = only(json.loads(lines[at]), {"index": dict, "delete": dict}, "bulk action")
            need(len(action) == 1, "Malformed action/metadata line")
            (verb, about) = next(iter(action.items()))
            only(about, {"_id": str, "_index": str, "routing": str}, verb)
            need(verb != "delete" or "_id" in about, "an id is required")
            at += 1
            if verb == "delete":
                there = index.documents.pop(about["_id"], None) is not None
                items.append({verb: {"_index": name, "_id": about["_id"], "status": 200 if there else 404}})
                continue
            source = json.loads(lines[at])
            at += 1
            fields = index.mappings["properties"]
            fault = next((f"[{key}] is not in a strict mapping" for key in source if key not in fields), None)
            if fault is None:
                fault = next((why for key, value in source.items() if (why := _misfit(fields[key], value))), None)
            if fault:
                error = {"type": "mapper_parsing_exception", "reason": fault}
                items.append({verb: {"_index": name, "_id": about["_id"], "status": 400, "error": error}})
                self.refused.append(fault)
                continue
            items.append({verb: {"_index": name, "_id": about["_id"], "status": 201}})
            index.documents[about["_id"]] = source
        return 200, {
            "took": 1,
            "errors": any(one["status"] == 400 for item in items for one in item.values()),
            "items": items,
        }

    def _search(self, name: str, given: dict[str, str], body: bytes) -> tuple[int, Any]:
        if name not in self.indices and given.get("ignore_unavailable") == "true":
            return 200, {"took": 0, "timed_out": False, "hits": {"total": {"value": 0, "relation": "eq"}, "hits": []}}
        index = self._of(name)
        asked = only(
            json.loads(body),
            {
                "size": int,
                "from": int,
                "_source": (bool, list),
                "query": dict,
                "aggs": dict,
                "track_total_hits": (bool, int),
            },
            "search",
        )
        size = asked.get("size", 10)
        need(
            0 <= size <= MAX_WINDOW,
            f"Result window is too large, must be at most [{MAX_WINDOW}]",
            kind="illegal_argument_exception",
        )
        scores = self._scores(index, asked.get("query", {"match_all": {}}))
        best = sorted(scores.items(), key=lambda one: (-one[1], int(one[0])))[:size]
        answer: dict[str, Any] = {
            "took": 1,
            "timed_out": False,
            "hits": {
                "total": {"value": len(scores), "relation": "eq"},
                "hits": [{"_index": name, "_id": one, "_score": score} for one, score in best],
            },
        }
        if "aggs" in asked:
            answer["aggregations"] = {key: self._aggregate(index, of, set(scores)) for key, of in asked["aggs"].items()}
        return 200, answer

    def _aggregate(self, index: Index, of: dict[str, Any], inside: set[str]) -> dict[str, Any]:
        only(of, {"global": dict, "filters": dict, "aggs": dict}, "aggregation")
        need(("global" in of) != ("filters" in of), "an aggregation has one type")
        if "global" in of:
            need(of["global"] == {}, "[global] takes nothing")
            every = set(index.visible)
            below = {key: self._aggregate(index, one, every) for key, one in of.get("aggs", {}).items()}
            return {"doc_count": len(every), **below}
        filters = only(of["filters"], {"filters": dict, "other_bucket": bool}, "filters", ("filters",))["filters"]
        return {
            "buckets": {
                key: {"doc_count": len(inside & self._scores(index, one).keys())} for key, one in filters.items()
            }
        }

    def _scores(self, index: Index, query: dict[str, Any]) -> dict[str, float]:
        need(isinstance(query, dict) and len(query) == 1, "[query] malformed, expected one type")
        kind, of = next(iter(query.items()))
        kinds = {"knn": self._knn, "match": self._match, "bool": self._bool, "terms": self._terms, "term": self._term}
        need(kind in kinds, f"unknown query [{kind}]")
        return kinds[kind](index, of)

    def _knn(self, index: Index, of: dict[str, Any]) -> dict[str, float]:
        need(len(of) == 1, "[knn] takes one field")
        name, about = next(iter(of.items()))
        only(about, {"vector": list, "k": int, "filter": dict, "method_parameters": dict}, "knn", ("vector", "k"))
        need(
            index.mappings["properties"].get(name, {}).get("type") == "knn_vector",
            f"Field '{name}' is not knn_vector type.",
        )
        need(1 <= about["k"] <= 10_000, "[knn] requires 1 <= k <= 10000")
        need(not _misfit(index.mappings["properties"][name], about["vector"]), "Query vector has invalid dimension")
        inside = self._scores(index, about["filter"]).keys() if "filter" in about else index.visible.keys()
        wanted = np.array(about["vector"])
        found = {one: (1 + float(np.dot(index.visible[one][name], wanted))) / 2 for one in inside}
        return dict(sorted(found.items(), key=lambda one: -one[1])[: about["k"]])

    def _match(self, index: Index, of: dict[str, Any]) -> dict[str, float]:
        need(len(of) == 1, "[match] takes one field")
        name, about = next(iter(of.items()))
        only(about, {"query": str, "operator": str, "boost": float}, "match", ("query",))
        need(index.mappings["properties"].get(name, {}).get("type") == "text", f"[{name}] is no text field")
        texts = {one: source[name].split() for one, source in index.visible.items()}
        return bm25(texts, about["query"].split())

    def _bool(self, index: Index, of: dict[str, Any]) -> dict[str, float]:
        only(of, {"must": list, "filter": list, "should": list, "must_not": list, "minimum_should_match": int}, "bool")
        scores = dict.fromkeys(index.visible, 0.0)
        for clause in of.get("must", []):
            found = self._scores(index, clause)
            scores = {one: score + found[one] for one, score in scores.items() if one in found}
        for clause in of.get("filter", []):
            found = self._scores(index, clause)
            scores = {one: score for one, score in scores.items() if one in found}
        if of.get("should") and of.get("minimum_should_match"):
            either = set().union(*(self._scores(index, clause) for clause in of["should"]))
            scores = {one: score for one, score in scores.items() if one in either}
        return scores

    def _terms(self, index: Index, of: dict[str, Any]) -> dict[str, float]:
        need(len(of) == 1, "[terms] takes one field")
        name, values = next(iter(of.items()))
        need(isinstance(values, list), "[terms] takes a list")
        need(
            len(values) <= MAX_TERMS,
            f"number of terms is over the limit of [{MAX_TERMS}]",
            kind="illegal_argument_exception",
        )
        wanted = set(values)
        return {one: 1.0 for one, source in index.visible.items() if source[name] in wanted}

    def _term(self, index: Index, of: dict[str, Any]) -> dict[str, float]:
        need(len(of) == 1, "[term] takes one field")
        name, about = next(iter(of.items()))
        value = only(about, {"value": str, "boost": float}, "term", ("value",))["value"]
        return {one: 1.0 for one, source in index.visible.items() if value in source[name].split()}


def _misfit(of: dict[str, Any], value: Any) -> str | None:
    if of["type"] == "knn_vector":
        good = isinstance(value, list) and all(isinstance(one, float | int) and math.isfinite(one) for one in value)
        if not good or len(value) != of["dimension"]:
            return f"Vector dimension mismatch. Expected: {of['dimension']}"
        return None if any(value) else "zero vector is not supported when space type is [cosinesimil]"
    return None if isinstance(value, str) else "failed to parse field"


def bm25(texts: dict[str, list[str]], words: list[str]) -> dict[str, float]:
    """Lucene's: k1 1.2, b 0.75, each word of the query."""
    n, mean = len(texts), sum(map(len, texts.values())) / max(1, len(texts))
    scores: dict[str, float] = {}
    for word in words:
        found = {one: text.count(word) for one, text in texts.items() if word in text}
        weight = math.log(1 + (n - len(found) + 0.5) / (len(found) + 0.5))
        for one, often in found.items():
            damp = 1.2 * (0.25 + 0.75 * len(texts[one]) / mean)
            scores[one] = scores.get(one, 0.0) + weight * 2.2 * often / (often + damp)
    return scores
