"""Serving on a Ray cluster: the same gateway, its models on many machines (Ray Serve).

    mofang serve --launcher ray     the gateway as always: routes, keys, queue, conversations (engine.pool)
      a loaded model                an application of Ray Serve: so many replicas, each with a process of llama.cpp
        Replica                     on whichever machine has room; found dead or hung within seconds, and begun anew
      Remote…                       what the pool holds in its place: an engine that asks the replicas

A conversation goes to the replica that holds its prompt: requests are spread by a hash of the system prompt and the first
turn (a ring, so that a replica that comes or goes moves only its share). A request whose replica is lost before the first
piece is asked of another one; after it, the answer ends with an error: half an answer is none. A replica that waits says
so every second, so silence means that it hangs.

Docs: https://docs.ray.io/en/latest/serve/api/index.html
"""

import asyncio
import hashlib
import logging
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, aclosing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from ray import serve
from ray.exceptions import RayActorError, RayTaskError
from ray.serve.config import AutoscalingConfig, RequestRouterConfig
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from mofang.engine import ENGINES
from mofang.engine.base import Engine, EngineInfo
from mofang.engine.pool import Pool
from mofang.errors import EngineFailed, MofangError
from mofang.launch import ray_cluster
from mofang.messages import Delta, Message, NextToken, Progress, Sampling
from mofang.models.base import MemoryEstimate, ModelRef
from mofang.models.store import ModelStore
from mofang.registry import Registry
from mofang.settings import Settings, secrets

BEAT_S, SILENCE_S = 1.0, 8.0
"""How often a replica that has nothing to say yet says so, and for how long it may be silent before it counts as lost."""
JOIN_S = 0.02
"""Pieces that come within it travel together, but for the first."""
PATIENCE_S, PAUSE_S = 30.0, 0.25
"""For how long another replica is looked for, at other places of the ring, until one has come in place of the lost one."""
CHECK_EVERY_S, CHECK_TIMEOUT_S = 1, 2
"""Three checks in a row that fail, and Serve begins the replica anew: some nine seconds for one that hangs."""
STARTS = 2
"""How often a replica that cannot load its model tries again."""
ROUTER = "ray.serve.experimental.consistent_hash_router:ConsistentHashRouter"

Report = Callable[[Progress], None]


@dataclass(frozen=True, slots=True)
class Serving:
    """How models are spread over the cluster."""

    cluster: str = ""
    """See recipes.launchers.Ray."""
    replicas: int = 1
    """Of each model."""
    max_replicas: int = 0
    """As many when there is much to do, `replicas` when there is not; 0: always `replicas`."""
    cpus: int = 0
    """Cores that Ray keeps for each replica, and its threads; 0: none are kept, and they share a machine's cores."""


@contextmanager
def engines(serving: Serving, settings: Settings) -> Iterator[tuple[ModelStore, Pool]]:
    """The models on disk, and those in the cluster's memory, for the length of the block."""
    with ray_cluster.connected(serving.cluster):
        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        # No port of Ray's own: the gateway is the way in.
        serve.start(proxy_location="Disabled", logging_config={"log_level": "ERROR"})
        models = ModelStore(settings)
        yield models, Pool(settings, _Elsewhere(models), engines=_OnRay(serving))


def spread(**options: Any) -> Callable[[Settings], AbstractContextManager[tuple[ModelStore, Pool]]]:
    """The parts of `mofang serve --launcher ray`; `options` are the fields of Serving."""
    return partial(engines, Serving(**options))


class _Elsewhere:
    """The models on disk for a pool that need not count this machine's memory for what is spread."""

    def __init__(self, models: ModelStore) -> None:
        self._models = models
        self.resolve, self.get = models.resolve, models.get

    def memory(self, ref: ModelRef, n_ctx: int, n_slots: int) -> MemoryEstimate:
        return MemoryEstimate(0, 0, 0, 0) if _is_spread(ref) else self._models.memory(ref, n_ctx, n_slots)


class _OnRay(Registry):
    """The engines: those of chat models loaded in replicas, the others here, beside the documents."""

    def __init__(self, serving: Serving) -> None:
        super().__init__("engine", {})
        self._serving = serving

    def get(self, name: str) -> Any:
        here = ENGINES.get(name)

        async def load(ref: ModelRef, settings: Settings, *, progress: Report) -> Engine:
            if _is_spread(ref):
                return await _load(self._serving, name, ref, settings)
            engine: Engine = await here(ref, settings, progress=progress)
            return engine

        return load


def _is_spread(ref: ModelRef) -> bool:
    return ref.kind in ("chat", "base")


async def _load(serving: Serving, engine: str, ref: ModelRef, settings: Settings) -> "RemoteChat":
    """The model in its replicas, once they answer. Raises EngineFailed with what was wrong."""
    most = serving.max_replicas or serving.replicas
    threads = settings.n_threads or serving.cpus or ray_cluster.share(most)
    told = {**dict.fromkeys(secrets()), "n_threads": threads}
    between = AutoscalingConfig(
        min_replicas=serving.replicas, max_replicas=most, target_ongoing_requests=max(1, settings.n_slots)
    )
    deployment = serve.deployment(Replica).options(
        name="Replica",
        **({"autoscaling_config": between} if most > serving.replicas else {"num_replicas": serving.replicas}),
        # A conversation whose replica is full goes to the next one; a place more is for questions that need no slot.
        max_ongoing_requests=max(1, settings.n_slots) + 1,
        max_constructor_retry_count=STARTS,
        request_router_config=RequestRouterConfig(request_router_class=ROUTER),
        ray_actor_options={"num_cpus": serving.cpus, "runtime_env": {"env_vars": ray_cluster.environment()}},
        health_check_period_s=CHECK_EVERY_S,
        health_check_timeout_s=CHECK_TIMEOUT_S,
        graceful_shutdown_timeout_s=settings.shutdown_grace_s,
    )
    name = f"mofang-{ref.name}"
    bound = deployment.bind(engine, ref, settings.model_copy(update=told))
    try:
        handle = await asyncio.to_thread(serve.run, bound, name=name, route_prefix=None)
        info: EngineInfo = await _asked(handle, "info")
    except RuntimeError as error:
        await asyncio.to_thread(serve.delete, name)
        raise EngineFailed("launch.replica_failed", model=ref.name, why=_said(error)) from error
    except BaseException:
        await asyncio.to_thread(serve.delete, name)
        raise
    spread = replace(info, pid=None, n_slots=info.n_slots * most, provider=f"ray · {info.provider}")
    return RemoteChat(name, handle, spread)


def _said(error: BaseException) -> str:
    """Its last line's first sentence: what follows are Ray's numbers."""
    return ray_cluster.last_line(error).split(". ")[0]


# ---- on the cluster's machines ----


class Replica:
    """One model in one process of the cluster. Every call names the engine's method, so that it knows none of them."""

    async def __init__(self, engine: str, ref: ModelRef, settings: Settings) -> None:  # type: ignore[misc]  # Serve waits
        self._engine: Any = await ENGINES.get(engine)(ref, settings, progress=lambda _: None)

    async def call(self, method: str, *arguments: Any, **named: Any) -> Any:
        """What the engine's method returns."""
        value = getattr(self._engine, method)(*arguments, **named)
        return await value if isinstance(value, Awaitable) else value

    async def stream(self, method: str, *arguments: Any) -> AsyncGenerator[list[Delta], None]:
        """The pieces of an answer, those of JOIN_S together; an empty list every BEAT_S while there is none."""
        async with aclosing(getattr(self._engine, method)(*arguments)) as source:
            next_piece: asyncio.Task[Delta] = asyncio.ensure_future(anext(source))
            joined, begun, loop = [], False, asyncio.get_running_loop()
            until = loop.time() + BEAT_S
            try:
                while True:
                    done, _ = await asyncio.wait({next_piece}, timeout=max(0.0, until - loop.time()))
                    if done:
                        joined.append(next_piece.result())
                        next_piece = asyncio.ensure_future(anext(source))
                        if len(joined) == 1:
                            until = loop.time() + (JOIN_S if begun else 0.0)  # the first travels alone
                    if loop.time() >= until:
                        yield joined
                        begun = begun or bool(joined)
                        joined, until = [], loop.time() + BEAT_S
            except StopAsyncIteration:
                if joined:
                    yield joined
            finally:
                next_piece.cancel()

    async def check_health(self) -> None:
        if not self._engine.alive():
            raise RuntimeError("the model's process is gone")

    async def __del__(self) -> None:
        await self._engine.close()


# ---- in the gateway ----


async def _asked(handle: DeploymentHandle[Any], method: str, *arguments: Any, session: str = "", **named: Any) -> Any:
    """What a replica's engine returns; another one is asked where the first is lost."""
    patience = _Patience()
    while True:
        chosen = handle.options(session_id=patience.session(session))
        try:
            return await chosen.call.remote(method, *arguments, **named)
        except LOST as error:
            await patience.wait(_lost(error))


class _Patience:
    """Where on the ring a request goes, with every attempt to another place, until PATIENCE_S are over."""

    def __init__(self) -> None:
        self._attempt, self._until = 0, time.monotonic() + PATIENCE_S

    def session(self, session: str) -> str:
        return f"{session}#{self._attempt}" if self._attempt else session or uuid.uuid4().hex

    async def wait(self, lost: EngineFailed) -> None:
        """A moment, longer each time. Raises `lost` when there is no more."""
        self._attempt += 1
        if time.monotonic() > self._until:
            raise lost
        await asyncio.sleep(min(1.0, PAUSE_S * (self._attempt - 1)))


LOST = (RayActorError, RayServeException, RayTaskError, TimeoutError)
"""What a replica that is gone, hangs or fails looks like from here."""


def _lost(error: BaseException) -> EngineFailed:
    """Why its replica cannot answer. Raises what the replica itself says where another one would say the same."""
    cause = error.cause if isinstance(error, RayTaskError) else None
    if isinstance(cause, EngineFailed):
        return cause
    if isinstance(cause, MofangError):
        raise cause from error
    return EngineFailed("launch.replica_lost", why=_said(cause or error))


class RemoteChat:
    """An engine.base.ChatEngine whose model is in its replicas."""

    def __init__(self, name: str, handle: DeploymentHandle[Any], info: EngineInfo) -> None:
        self._name, self._handle, self._info = name, handle, info
        self._closed = False

    def info(self) -> EngineInfo:
        return self._info

    def alive(self) -> bool:
        return not self._closed  # a replica that is lost is Serve's to begin anew

    async def close(self) -> None:
        if not self._closed:
            self._closed = True
            await asyncio.to_thread(serve.delete, self._name)

    async def tokenize(self, text: str, **how: Any) -> list[int]:
        return list(await _asked(self._handle, "tokenize", text, **how))

    async def pieces(self, text: str, **how: Any) -> list[tuple[int, bytes]]:
        return list(await _asked(self._handle, "pieces", text, **how))

    async def detokenize(self, tokens: Sequence[int]) -> str:
        return str(await _asked(self._handle, "detokenize", tokens))

    async def next_token(self, prompt: str | list[int], *, forced: int | None = None, n_top: int = 20) -> NextToken:
        found: NextToken = await _asked(
            self._handle, "next_token", prompt, forced=forced, n_top=n_top, session=_of_text(prompt)
        )
        return found

    async def render(
        self,
        messages: Sequence[Message],
        template_kwargs: dict[str, Any] | None = None,
        *,
        options: Mapping[str, Any] | None = None,
    ) -> str:
        return str(await _asked(self._handle, "render", messages, template_kwargs, options=options))

    async def count_tokens(self, messages: Sequence[Message], *, options: Mapping[str, Any] | None = None) -> int:
        return int(await _asked(self._handle, "count_tokens", messages, options=options))

    def chat(self, messages: Sequence[Message], sampling: Sampling) -> AsyncIterator[Delta]:
        return self._pieces(_of_talk(messages), "chat", messages, sampling)

    def complete(self, prompt: str | list[int], sampling: Sampling) -> AsyncIterator[Delta]:
        return self._pieces(_of_text(prompt), "complete", prompt, sampling)

    async def _pieces(self, session: str, method: str, *arguments: Any) -> AsyncGenerator[Delta, None]:
        """The pieces from the replica of that session, or from another one as long as there was none."""
        begun, patience = False, _Patience()
        while True:
            source = self._handle.options(session_id=patience.session(session), stream=True).stream.remote(
                method, *arguments
            )
            try:
                while True:
                    async with asyncio.timeout(SILENCE_S):
                        pieces = await anext(source)
                    for piece in pieces:
                        begun = begun or bool(piece.content or piece.reasoning or piece.tool_calls)
                        yield piece
            except StopAsyncIteration:
                return
            except LOST as error:
                lost = _lost(error)
                if begun:
                    raise lost from error
            finally:
                source.cancel()
            await patience.wait(lost)


def _of_talk(messages: Sequence[Message]) -> str:
    """What the turns of one conversation share: its system prompt and its first question."""
    opening: list[str] = []
    for message in messages:
        opening.append(f"{message.role}:{message.text}")
        if message.role == "user":
            break
    return hashlib.blake2b("\0".join(opening).encode(), digest_size=16).hexdigest()


def _of_text(prompt: str | list[int]) -> str:
    return hashlib.blake2b(str(prompt[:256]).encode(), digest_size=16).hexdigest()
