"""A model behind another OpenAI-compatible server: a hosted service, vLLM, llama.cpp, another Mofang.

A model's manifest names the place, never a key:

    {"engine": "remote", "remote": {"base_url": "https://…/v1", "model": "…", "api_key_env": "NAME_OF_A_VARIABLE",
                                    "n_ctx": 65536, "n_slots": 8, "timeout_s": 300}}

What a request asks for is passed on as it is; what that server refuses is refused in its words. A call is tried again
only as long as not one byte of its answer has come. Sources: OpenAI API reference; llama.cpp tools/server/README.md;
vLLM's docs (/tokenize).
"""

import asyncio
import json
import os
import re
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from typing import Any

import httpx
import numpy as np

from mofang.engine.base import COUNTED, EngineInfo, Purpose, Vectors
from mofang.engine.llama.answer import Answer, as_bytes
from mofang.errors import Busy, EngineFailed, Invalid, MissingSystem, MofangError, NotFound, Unreachable
from mofang.messages import Candidate, Delta, Message, NextToken, Progress, Sampling, Timings, Usage
from mofang.models.base import ModelRef
from mofang.settings import Settings

TRIES, BACK_OFF_S = 3, 0.5
"""How often a call is tried, and the first pause between two tries; it doubles."""
PASSING = (502, 503, 504)
"""Statuses of a server that may be well in a moment."""
N_SLOTS, TIMEOUT_S, RETRY_AFTER_S = 8, 300.0, 5.0
"""Where the manifest or the answer says nothing: calls at a time, seconds of silence, seconds to wait after 429."""
TEXTS_A_REQUEST = 64


async def load(ref: ModelRef, settings: Settings, *, progress: Callable[[Progress], None]) -> Any:
    """Raises MissingSystem when the variable with the key is not set, Invalid for a kind that is not known here."""
    makers: dict[str, Any] = {"chat": RemoteChat, "base": RemoteChat, "embedding": RemoteEmbedder}
    if ref.kind not in makers:
        raise Invalid("engine.kind_unknown", param="model", engine="remote", model=ref.name, kind=ref.kind)
    engine = makers[ref.kind](ref, settings, Place(ref))
    try:
        await engine.measure()
    except BaseException:
        await engine.close()
        raise
    progress(Progress("load", 1, 1, detail=ref.name))
    return engine


class Place:
    """The other server: calls, tries, and its errors as ours. Knows nothing of chats."""

    def __init__(self, ref: ModelRef) -> None:
        stated: dict[str, Any] = ref.manifest["remote"]
        self.name, self.model = ref.name, str(stated["model"])
        self.url, self.variable = str(stated["base_url"]).rstrip("/"), str(stated.get("api_key_env") or "")
        self.n_slots = int(stated.get("n_slots") or N_SLOTS)
        self.n_ctx: int | None = stated.get("n_ctx")
        self.closed = False
        loopback = httpx.URL(self.url).host in ("127.0.0.1", "localhost", "::1")
        timeout = float(stated.get("timeout_s") or TIMEOUT_S)
        self._http = httpx.AsyncClient(
            headers={"User-Agent": "mofang", **self._authorization()},
            timeout=httpx.Timeout(timeout, connect=10.0),
            limits=httpx.Limits(max_connections=None),
            trust_env=not loopback,
        )

    def _authorization(self) -> dict[str, str]:
        if not self.variable:
            return {}
        key = os.environ.get(self.variable, "")
        if not key:
            raise MissingSystem("engine.remote_no_key", model=self.name, variable=self.variable)
        return {"Authorization": f"Bearer {key}"}

    async def close(self) -> None:
        self.closed = True
        await self._http.aclose()

    async def post(self, path: str, body: dict[str, Any]) -> Any:
        """The decoded JSON answer."""
        async with self._answer(path, body) as answer:
            text = await answer.aread()
        try:
            return json.loads(text)
        except ValueError as error:
            raise EngineFailed("engine.remote_nonsense", model=self.name, url=self.url, why=text[:200]) from error

    async def events(self, path: str, body: dict[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        """The events of a stream. Closing the iterator closes the connection."""
        async with self._answer(path, body) as answer:
            lines: Any = answer.aiter_lines()  # an async generator, says httpx's source, not its type
            async with aclosing(lines):
                async for line in lines:
                    if not line.startswith("data:"):
                        continue
                    if line[5:].strip() == "[DONE]":
                        return
                    yield self._event(line[5:])

    def _event(self, text: str) -> dict[str, Any]:
        try:
            event: dict[str, Any] = json.loads(text)
            fault = event.get("error")
        except (ValueError, AttributeError) as error:
            raise EngineFailed("engine.remote_nonsense", model=self.name, url=self.url, why=text[:200]) from error
        if fault:
            why = fault.get("message") if isinstance(fault, dict) else fault
            raise EngineFailed("engine.remote_failed", model=self.name, url=self.url, why=why)
        return event

    @asynccontextmanager
    async def _answer(self, path: str, body: dict[str, Any]) -> Any:
        """The answer once its head has come well; tried again before that. Raises what the server's words mean."""
        url = path if "://" in path else self.url + path
        content = json.dumps(body).encode()  # ASCII: half a surrogate pair reaches the server's own check
        headers = {"Content-Type": "application/json"}
        for tried in range(1, TRIES + 1):
            request = self._http.build_request("POST", url, content=content, headers=headers)
            try:
                answer = await self._http.send(request, stream=True)
            except httpx.ReadTimeout as error:
                raise self._unreachable(error) from error
            except (httpx.TransportError, RuntimeError) as error:  # RuntimeError: the client was closed
                if tried == TRIES or self.closed:
                    raise self._unreachable(error) from error
            else:
                if answer.status_code not in PASSING or tried == TRIES:
                    break
                await answer.aclose()
            await asyncio.sleep(BACK_OFF_S * 2 ** (tried - 1))
        try:
            if not answer.is_success:
                raise self._fault(answer, await answer.aread())
            yield answer
        except httpx.TransportError as error:
            raise self._unreachable(error) from error
        finally:
            await answer.aclose()

    def _unreachable(self, error: Exception) -> MofangError:
        if self.closed:
            return EngineFailed("engine.closed", model=self.name)
        why = f"{type(error).__name__} {error}".strip()
        return Unreachable("engine.remote_silent", model=self.name, url=self.url, why=why)

    def _fault(self, answer: httpx.Response, text: bytes) -> MofangError:
        """The server's refusal as an error of ours: the caller's fault stays the caller's."""
        fault, status = _stated(text), answer.status_code
        why = str(fault.get("message") or text[:300].decode("utf-8", "replace") or f"HTTP {status}")
        place = {"model": self.name, "url": self.url, "why": why}
        if status in (401, 403):
            return EngineFailed("engine.remote_denied", variable=self.variable or "-", **place)
        if status == 404:
            return NotFound("engine.remote_not_found", remote=self.model, **place)
        if status == 429:
            stated = answer.headers.get("Retry-After", "")
            seconds = float(stated) if stated.replace(".", "", 1).isdigit() else RETRY_AFTER_S
            return Busy("engine.remote_busy", retry_after_s=seconds, **place)
        if "context" in f"{fault.get('code')} {fault.get('type')}":
            return Invalid("engine.context_length_exceeded", param="messages", **_both(fault, why))
        if 400 <= status < 500:
            return Invalid("engine.refused", param=fault.get("param"), why=why)
        if status in PASSING:
            return Unreachable("engine.remote_silent", **place)
        return EngineFailed("engine.remote_failed", **place)


def _stated(text: bytes) -> dict[str, Any]:
    """OpenAI's error object in a body; empty when there is none."""
    try:
        decoded = json.loads(text)
    except ValueError:
        return {}
    fault = decoded.get("error", decoded) if isinstance(decoded, dict) else {}
    return fault if isinstance(fault, dict) else {"message": str(fault)}


def _both(fault: dict[str, Any], why: str) -> dict[str, Any]:
    """Tokens of the prompt and of the context: llama.cpp's fields, else the two numbers of the sentence."""
    numbers = sorted(int(number) for number in re.findall(r"\d+", why))
    n_ctx, n_prompt = (numbers[0], numbers[-1]) if len(numbers) > 1 else ("?", "?")
    return {"n_prompt": fault.get("n_prompt_tokens", n_prompt), "n_ctx": fault.get("n_ctx", n_ctx)}


class _Remote:
    """What the kinds share."""

    kind: Any

    def __init__(self, ref: ModelRef, settings: Settings, place: Place) -> None:
        self.ref, self._settings, self._place = ref, settings, place
        self._tokenize: int | None = None
        """How that server is asked to tokenize, once one way has worked."""

    def info(self) -> EngineInfo:
        """`n_ctx` is the manifest's word, else this machine's setting: the server enforces its own."""
        n_ctx = self._place.n_ctx or self._settings.n_ctx
        place = self._place
        return EngineInfo(self.ref.name, "remote", self.kind, n_ctx, place.n_slots, None, 0, provider=place.url)

    def alive(self) -> bool:
        return not self._place.closed

    async def close(self) -> None:
        await self._place.close()

    async def measure(self) -> None:
        """What must be known before the first request."""

    async def tokenize(self, text: str, *, add_special: bool = False, parse_special: bool = True) -> list[int]:
        """As Mofang, llama.cpp or vLLM do it. Raises Invalid where the server has no such route, as OpenAI's has not."""
        place, special = self._place, {"add_special": add_special, "parse_special": parse_special}
        root = place.url.removesuffix("/v1")
        ways: list[Callable[[str], tuple[str, dict[str, Any]]]] = [
            lambda text: ("/tokenize", {"model": place.model, "text": text, **special}),
            lambda text: (f"{root}/tokenize", {"content": text, **special}),
        ]
        if parse_special:  # vLLM always does
            vllm = {"model": place.model, "add_special_tokens": add_special}
            ways.append(lambda text: (f"{root}/tokenize", {**vllm, "prompt": text}))
        if self._tokenize is not None:
            ways = ways[self._tokenize : self._tokenize + 1]
        for number, way in enumerate(ways, self._tokenize or 0):
            found = await self._try(*way(text))
            if found is not None and "tokens" in found:
                self._tokenize = number
                return [int(token["id"] if isinstance(token, dict) else token) for token in found["tokens"]]
        raise self._has_no("tokenize")

    async def _try(
        self, path: str, body: dict[str, Any], missing: Sequence[str] = ("remote_not_found", "refused")
    ) -> dict[str, Any] | None:
        """The answer of a route that not every server has; None where it has not, which errors of `missing` mean."""
        try:
            found = await self._place.post(path, body)
        except MofangError as error:
            if error.code in missing:
                return None
            raise
        return found if isinstance(found, dict) else None

    def _has_no(self, what: str) -> Invalid:
        return Invalid("engine.remote_has_no", model=self.ref.name, url=self._place.url, what=what)


class RemoteChat(_Remote):
    """mofang.engine.base.ChatEngine over /chat/completions and /completions."""

    kind = "chat"

    def info(self) -> EngineInfo:
        return replace(super().info(), images=True)  # whether it can see, that server says when it is asked

    def chat(self, messages: Sequence[Message], sampling: Sampling) -> AsyncGenerator[Delta, None]:
        return self._stream("/chat/completions", {"messages": _shapes(messages)}, sampling)

    def complete(self, prompt: str | list[int], sampling: Sampling) -> AsyncGenerator[Delta, None]:
        return self._stream("/completions", {"prompt": prompt}, sampling)

    async def next_token(self, prompt: str | list[int], *, forced: int | None = None, n_top: int = 20) -> NextToken:
        body = {"model": self._place.model, "prompt": prompt, "n_top": n_top}
        found = await self._try("/next_token", {**body, **({} if forced is None else {"forced": forced})})
        if found is None:
            raise self._has_no("next_token")
        return NextToken(found["forced"], tuple(map(Candidate.read, found["top"])))

    async def pieces(
        self, text: str, *, add_special: bool = False, parse_special: bool = True
    ) -> list[tuple[int, bytes]]:
        """As Mofang and llama.cpp do it."""
        root = self._place.url.removesuffix("/v1")
        special = {"add_special": add_special, "parse_special": parse_special, "with_pieces": True}
        found = await self._try("/tokenize", {"model": self._place.model, "text": text, **special})
        if found is not None and "pieces" in found:
            return [(int(one["id"]), bytes(one["bytes"])) for one in found["pieces"]]
        found = await self._try(f"{root}/tokenize", {"content": text, **special})
        if found is not None and all(isinstance(one, dict) for one in found.get("tokens", [0])):
            return [(int(one["id"]), as_bytes(one["piece"])) for one in found["tokens"]]
        raise self._has_no("tokenize")

    async def detokenize(self, tokens: Sequence[int]) -> str:
        """As Mofang, llama.cpp or vLLM do it, whose answers differ in the name of the text."""
        body = {"model": self._place.model, "tokens": list(tokens)}
        for path in ("/detokenize", f"{self._place.url.removesuffix('/v1')}/detokenize"):
            found = await self._try(path, body, missing=["remote_not_found"])
            for name in ("text", "content", "prompt"):
                if found is not None and name in found:
                    return str(found[name])
        raise self._has_no("detokenize")

    async def render(
        self,
        messages: Sequence[Message],
        template_kwargs: dict[str, Any] | None = None,
        *,
        options: Mapping[str, Any] | None = None,
    ) -> str:
        root = self._place.url.removesuffix("/v1")
        body: dict[str, Any] = {"messages": _shapes(messages), **(options or {})}
        body |= {"chat_template_kwargs": template_kwargs} if template_kwargs else {}
        ways = (("/apply-template", {"model": self._place.model, **body}), (f"{root}/apply-template", body))
        for path, asked in ways:
            found = await self._try(path, asked)
            if found is not None and "prompt" in found:
                return str(found["prompt"])
        raise self._has_no("apply-template")

    async def count_tokens(self, messages: Sequence[Message], *, options: Mapping[str, Any] | None = None) -> int:
        """By the route that Mofang and llama.cpp have; where nothing but words is counted, else by Anthropic's, which
        vLLM has, too."""
        asked = {"model": self._place.model, "messages": _shapes(messages), **(options or {})}
        found = await self._try("/chat/completions/input_tokens", asked)
        if found is not None and "input_tokens" in found:
            return int(found["input_tokens"])
        if options or any(message.role == "tool" or message.tool_calls for message in messages):
            raise self._has_no("count_tokens")
        turns = [message for message in messages if message.role not in ("system", "developer")]
        system = "\n".join(message.text for message in messages if message not in turns)
        body = {"model": self._place.model, "messages": _shapes(turns), **({"system": system} if system else {})}
        found = await self._try("/messages/count_tokens", body)
        if found is None or "input_tokens" not in found:
            raise self._has_no("count_tokens")
        return int(found["input_tokens"])

    async def _stream(self, path: str, asked: dict[str, Any], sampling: Sampling) -> AsyncGenerator[Delta, None]:
        body = {"model": self._place.model, **asked, **self._choices(sampling), "stream": True}
        body["stream_options"] = {"include_usage": True}
        answer, usage = Answer(), None
        began, first = time.perf_counter(), 0.0
        async with aclosing(self._place.events(path, body)) as events:
            async for event in events:
                usage = event.pop("usage", None) or usage  # some send it with every event, each time of all
                for delta in answer.read(event):
                    first = first or time.perf_counter()
                    yield delta
        try:
            last = answer.last()
        except LookupError as error:
            raise EngineFailed("engine.remote_cut", model=self.ref.name, url=self._place.url) from error
        counts = _usage(usage)
        yield replace(last, usage=counts, timings=last.timings or _timings(counts, began, first))

    def _choices(self, sampling: Sampling) -> dict[str, Any]:
        """What somebody chose, under OpenAI's names; the rest is left to the server."""
        names = ("temperature", "top_p", "top_k", "min_p", "seed", "presence_penalty", "frequency_penalty")
        named = {name: getattr(sampling, name) for name in (*names, "repeat_penalty")}
        named |= {"max_tokens": sampling.max_tokens or self._settings.max_tokens, "stop": list(sampling.stop) or None}
        return {**sampling.options, **{name: value for name, value in named.items() if value is not None}}


class RemoteEmbedder(_Remote):
    """mofang.engine.base.Embedder over /embeddings. The prefixes for queries and passages are the manifest's."""

    kind = "embedding"

    def __init__(self, ref: ModelRef, settings: Settings, place: Place) -> None:
        super().__init__(ref, settings, place)
        self.dimensions = 0
        self._prefixes: dict[str, str] = ref.manifest.get("prefixes") or {}

    async def measure(self) -> None:
        self.dimensions = int((await self._embed(["a"]))[0].shape[1])

    async def embed(self, texts: Sequence[str], purpose: Purpose) -> Vectors:
        prefixed = [self._prefixes.get(purpose, "") + text for text in texts]
        rows = np.zeros((len(texts), self.dimensions), np.float32)
        counted: int | None = 0
        for start in range(0, len(prefixed), TEXTS_A_REQUEST):
            batch = prefixed[start : start + TEXTS_A_REQUEST]
            rows[start : start + len(batch)], n_tokens = await self._embed(batch)
            counted = None if counted is None or n_tokens is None else counted + n_tokens
        COUNTED.set(counted)
        lengths = np.linalg.norm(rows, axis=1, keepdims=True)
        return np.asarray(rows / np.maximum(lengths, np.finfo(np.float32).tiny), np.float32)

    async def _embed(self, texts: list[str]) -> tuple[Vectors, int | None]:
        """Rows as the server made them, and the tokens that it counted."""
        found = await self._place.post("/embeddings", {"model": self._place.model, "input": texts})
        try:
            listed = sorted(found["data"], key=lambda row: int(row["index"]))
            rows = np.array([row["embedding"] for row in listed], np.float32).reshape(len(texts), -1)
            return rows, (found.get("usage") or {}).get("prompt_tokens")
        except (KeyError, TypeError, ValueError) as error:
            place, why = self._place, str(found)[:200]
            raise EngineFailed("engine.remote_nonsense", model=place.name, url=place.url, why=why) from error


def _shapes(messages: Sequence[Message]) -> list[dict[str, Any]]:
    return [message.to_openai() for message in messages]


def _usage(counts: dict[str, Any] | None) -> Usage | None:
    """None where the server never said."""
    if not counts:
        return None
    cached = (counts.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    return Usage(int(counts.get("prompt_tokens") or 0), int(counts.get("completion_tokens") or 0), int(cached))


def _timings(counts: Usage | None, began: float, first: float) -> Timings:
    """As seen from here, the line included."""
    now = time.perf_counter()
    waited, said = (first or now) - began, now - (first or now)
    n_prompt, n_said = (counts.prompt_tokens, counts.completion_tokens) if counts else (0, 0)
    return Timings(1000 * waited, 1000 * said, n_prompt / max(waited, 1e-6), n_said / max(said, 1e-6))
