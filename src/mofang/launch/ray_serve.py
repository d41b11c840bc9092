"""Serving on a Ray cluster: the same gateway, its models on many machines (Ray Serve).

    mofang serve --launcher ray     the gateway as always: routes, keys, queue, conversations (engine.pool)
      a loaded model                an application of Ray Serve: so many replicas, each with a process of llama.cpp
        Replica                     on whichever machine has room; found dead or hung within seconds, and begun anew
      Remote…                       what the pool holds in its place: an engine that asks the replicas

A conversation goes to the replica that holds its prompt: requests are spread by a hash of the system prompt and the first
turn (a ring, so that a replica that comes or goes moves only its share). A request whose replica is lost before the first
piece is asked of another one; after it, the answer ends with an error: half an answer is none. A replica that waits says
so every second, so silence means that it hangs; a request that no replica has taken waits as long as all are busy.

A model that is loaded anew is another application beside the first (engine.pool): Serve's own rolling update would leave
half of each where the new one does not start. More or fewer copies of the same are changed in place. A replica that goes
ends its answers first.

Docs: https://docs.ray.io/en/latest/serve/api/index.html
"""

import asyncio
import copy
import hashlib
import itertools
import logging
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, aclosing, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from ray import serve
from ray.exceptions import RayActorError, RayTaskError, TaskCancelledError
from ray.serve.config import AutoscalingConfig, RequestRouterConfig
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from mofang.engine import ENGINES
from mofang.engine.base import Engine, EngineInfo
from mofang.engine.pool import Pool, adapted
from mofang.errors import EngineFailed, Invalid, MofangError
from mofang.launch import ray_cluster
from mofang.messages import Delta, Message, NextToken, Progress, Sampling
from mofang.models import adapters
from mofang.models.base import MemoryEstimate, ModelRef
from mofang.models.formats import lora
from mofang.models.store import ModelStore
from mofang.registry import Registry
from mofang.settings import Settings, secrets

BEAT_S, SILENCE_S = 1.0, 8.0
"""How often a replica that has nothing to say yet says so, and for how long it may be silent before it counts as lost."""
JOIN_S = 0.02
"""Pieces that come within it travel together, but for the first: a message between Ray's processes takes a millisecond of
a core, whatever is in it."""
PATIENCE_S, PAUSE_S = 30.0, 0.25
"""For how long another replica is looked for, at other places of the ring, until one has come in place of the lost one."""
CHECK_EVERY_S, CHECK_TIMEOUT_S = 1, 2
"""Three checks in a row that fail, and Serve begins the replica anew: some nine seconds for one that hangs."""
STARTS = 2
"""How often a replica that cannot load its model tries again."""
DRAIN_S, DRAIN_LOOK_S = 300.0, 1.0
"""For how long a replica that is to go may still answer, and how often it looks whether it does: not before the gateway has
heard that it goes."""
FOR_SERVE = {"RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS": "1"}
"""One that hangs, or whose llama.cpp is gone, has nothing to end in peace: by itself Serve would wait for it all of DRAIN_S,
with the model in memory twice. Source: ray.serve._private.constants."""
BUSY_S, CALM_S, LOOK_BACK_S = 5.0, 300.0, 12.0
"""How long there must be much, or little, to do before replicas come or go, and over which time that is measured: the
gateway counts every ten seconds."""
A_LITTLE = 0.001
"""Cores that Ray keeps for a replica that is to have none: what asks for nothing is put on any machine, not on each."""
LOOK_S = 0.25
"""How often it is looked whether replicas have started."""
ROUTER = "ray.serve.experimental.consistent_hash_router:ConsistentHashRouter"

Report = Callable[[Progress], None]
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Serving:
    """How models are spread over the cluster."""

    cluster: str = ""
    """See recipes.launchers.Ray."""
    replicas: int = 1
    """Of each model."""
    max_replicas: int = 0
    """As many when there is much to do, `replicas` when there is not; 0: always `replicas`."""
    calm: float = 0.0
    """Seconds of little to do before an additional replica goes; 0: CALM_S."""
    cpus: int = 0
    """Cores that Ray keeps for each replica, and its threads; 0: none are kept, and they share a machine's cores."""

    @property
    def most(self) -> int:
        return self.max_replicas or self.replicas


@contextmanager
def engines(serving: Serving, settings: Settings) -> Iterator[tuple[ModelStore, Pool]]:
    """The models on disk, and those in the cluster's memory, for the length of the block."""
    with ray_cluster.connected(serving.cluster, environment=FOR_SERVE):
        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        # No port of Ray's own: the gateway is the way in.
        serve.start(proxy_location="Disabled", logging_config={"log_level": "ERROR"})
        ours = f"mofang-{hashlib.blake2b(str(settings.home).encode(), digest_size=4).hexdigest()}-"
        for name in serve.status().applications:
            if name.startswith(ours):  # of a gateway of this home that was killed: a home has one owner
                serve.delete(name, _blocking=False)
        models, spread = ModelStore(settings), _OnRay(serving, ours)
        yield models, Pool(settings, _Elsewhere(models, spread), engines=spread)


def spread(**options: Any) -> Callable[[Settings], AbstractContextManager[tuple[ModelStore, Pool]]]:
    """The parts of `mofang serve --launcher ray`; `options` are the fields of Serving."""
    return partial(engines, Serving(**options))


class _Elsewhere:
    """The models on disk for a pool that counts this machine's memory for replicas only where they all are here."""

    def __init__(self, models: ModelStore, spread: "_OnRay") -> None:
        self._models, self._spread = models, spread
        self.resolve, self.get = models.resolve, models.get

    def memory(self, ref: ModelRef, n_ctx: int, n_slots: int) -> MemoryEstimate:
        one, serving = self._models.memory(ref, n_ctx, n_slots), self._spread.serving(ref.name)
        if not _is_spread(ref):
            return one
        if serving.cluster:
            return MemoryEstimate(0, 0, 0, 0)
        kv_cache, compute = one.kv_cache * serving.most, one.compute * serving.most  # they share the weights' pages
        return MemoryEstimate(one.weights, kv_cache, compute, one.weights + kv_cache + compute)


class _OnRay(Registry):
    """The engines: those of chat models loaded in replicas, the others here, beside the documents."""

    def __init__(self, serving: Serving, prefix: str) -> None:
        super().__init__("engine", {})
        self._serving, self._prefix = serving, prefix
        self._numbers = itertools.count()
        self._changed: dict[str, Serving] = {}
        """Of the models whose number of replicas somebody changed."""

    def serving(self, model: str) -> Serving:
        return self._changed.get(model, self._serving)

    def change(self, model: str, serving: Serving) -> None:
        self._changed[model] = serving

    def get(self, name: str) -> Any:
        here = ENGINES.get(name)

        async def load(ref: ModelRef, settings: Settings, *, progress: Report) -> Engine:
            if _is_spread(ref):
                application = _Application(f"{self._prefix}{ref.name}-{next(self._numbers)}", name, ref, settings)
                return await _load(application, ref, settings, self)
            engine: Engine = await here(ref, settings, progress=progress)
            return engine

        return load


def _is_spread(ref: ModelRef) -> bool:
    return ref.kind in ("chat", "base")


async def _load(application: "_Application", ref: ModelRef, settings: Settings, spread: _OnRay) -> "RemoteChat":
    """The model in its replicas, once they answer. Raises EngineFailed with what was wrong."""
    held = await asyncio.to_thread(_stamps, ref, settings)  # before the replicas look: what they have is no older
    try:
        await application.run(spread.serving(ref.name))
        info: EngineInfo = await application.ask("info")
    except BaseException:
        await application.delete()
        raise
    return RemoteChat(application, info, held, spread)


def _stamps(ref: ModelRef, settings: Settings) -> dict[str, str]:
    """The adapters over a model as they lie on disk."""
    return {one.name: lora.stamp(one.path) for one in adapters.of_base(ModelStore(settings), ref)}


def _says(piece: Delta) -> bool:
    """Whether somebody has read something with it."""
    return bool(piece.content or piece.reasoning or piece.tool_calls)


# ---- on the cluster's machines ----


class Replica:
    """One model in one process of the cluster. Every call names the engine's method, so that it knows none of them, and the
    adapter over the model, if any."""

    async def __init__(self, engine: str, ref: ModelRef, settings: Settings) -> None:  # type: ignore[misc]  # Serve waits
        self._engine: Any = await ENGINES.get(engine)(ref, settings, progress=lambda _: None)

    async def call(self, adapter: ModelRef | None, method: str, *arguments: Any, **named: Any) -> Any:
        """What the engine's method returns."""
        value = getattr(self._under(adapter), method)(*arguments, **named)
        return await value if isinstance(value, Awaitable) else value

    async def stream(self, adapter: ModelRef | None, method: str, *arguments: Any) -> AsyncGenerator[list[Delta], None]:
        """The pieces of an answer, several together but for the first words; an empty list every BEAT_S of silence."""
        pieces: list[Delta] = []
        news = asyncio.Event()

        async def read() -> None:
            try:
                async with aclosing(getattr(self._under(adapter), method)(*arguments)) as source:
                    async for piece in source:
                        pieces.append(piece)
                        news.set()
            finally:
                news.set()

        reading, begun = asyncio.create_task(read()), False
        try:
            while pieces or not reading.done():
                with suppress(TimeoutError):
                    await asyncio.wait_for(news.wait(), BEAT_S)
                if begun and pieces:
                    await asyncio.wait({reading}, timeout=JOIN_S)
                joined = pieces.copy()
                pieces.clear()
                news.clear()
                yield joined
                begun = begun or any(map(_says, joined))
            await reading
        finally:
            reading.cancel()
            await asyncio.wait({reading})

    def _under(self, adapter: ModelRef | None) -> Any:
        return adapted(self._engine, adapter) if adapter else self._engine

    async def check_health(self) -> None:
        if not self._engine.alive():
            raise RuntimeError("the model's process is gone")

    async def __del__(self) -> None:
        await self._engine.close()


# ---- in the gateway ----


LOST = (RayActorError, RayServeException, RayTaskError, TaskCancelledError, TimeoutError)
"""What a replica that is gone, hangs or fails looks like from here."""


def _lost(error: BaseException) -> EngineFailed:
    """Why its replica cannot answer. Raises what the replica itself says where another one would say the same."""
    cause = error.cause if isinstance(error, RayTaskError) else None
    if isinstance(cause, EngineFailed):
        return cause
    if isinstance(cause, MofangError):
        raise cause from error
    return EngineFailed("launch.replica_lost", why=_said(cause or error))


def _said(error: BaseException | str) -> str:
    """Its last line's first sentence: what follows are Ray's numbers."""
    return ray_cluster.last_line(error).split(". ")[0]


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


class _Application:
    """One model's replicas: an application of Ray Serve, and what it is asked."""

    def __init__(self, name: str, engine: str, ref: ModelRef, settings: Settings) -> None:
        self._name, self._engine, self._ref, self._settings = name, engine, ref, settings
        self.serving = Serving()
        self.closed = False
        self._handle: DeploymentHandle[Any]
        self._asked: dict[Any, bool] = {}
        """The answers under way, and whether a replica has taken them."""

    async def run(self, serving: Serving) -> None:
        """So many replicas; those that are there already stay. Raises EngineFailed where they do not start."""
        limit_s = self._settings.load_timeout_s
        until = time.monotonic() + limit_s
        await self.deploy(serving)
        while True:
            running, why = await self._state()
            if running >= serving.replicas:
                return
            if why:
                raise EngineFailed("launch.replica_failed", model=self._ref.name, why=_said(why))
            if time.monotonic() > until:
                values = {"replicas": serving.replicas, "running": running, "seconds": f"{limit_s:g}"}
                raise EngineFailed("launch.replicas_wait", model=self._ref.name, **values)
            await asyncio.sleep(LOOK_S)

    async def deploy(self, serving: Serving) -> None:
        """Have Serve bring about so many replicas, without waiting for them."""
        settings, most, n_slots = self._settings, serving.most, max(1, self._settings.n_slots)
        threads = settings.n_threads or serving.cpus or ray_cluster.share(most)
        # Replicas share the cluster's home: states of prompts, kept by each when it ends, would be written over.
        told = {**dict.fromkeys(secrets()), "n_threads": threads, "save_slots": False}
        between = AutoscalingConfig(
            min_replicas=serving.replicas,
            max_replicas=most,
            target_ongoing_requests=n_slots,
            upscale_delay_s=BUSY_S,
            downscale_delay_s=serving.calm or CALM_S,
            look_back_period_s=LOOK_BACK_S,
        )
        deployment = serve.deployment(Replica).options(
            name="Replica",
            **({"autoscaling_config": between} if most > serving.replicas else {"num_replicas": serving.replicas}),
            # A conversation whose replica is full goes to the next one; a place more is for questions that need no slot.
            max_ongoing_requests=n_slots + 1,
            max_constructor_retry_count=STARTS,
            request_router_config=RequestRouterConfig(request_router_class=ROUTER),
            ray_actor_options={
                "num_cpus": serving.cpus or A_LITTLE,
                "runtime_env": ray_cluster.runtime_env(),
            },
            health_check_period_s=CHECK_EVERY_S,
            health_check_timeout_s=CHECK_TIMEOUT_S,
            graceful_shutdown_timeout_s=DRAIN_S,
            graceful_shutdown_wait_loop_s=DRAIN_LOOK_S,
        )
        deployment._version = self._name  # told nothing, Serve would begin the replicas that are there anew
        bound = deployment.bind(self._engine, self._ref, settings.model_copy(update=told))
        target = serve.RunTarget(bound, name=self._name, route_prefix=None)
        run = partial(serve.run_many, [target], wait_for_applications_running=False)
        self._handle = (await asyncio.to_thread(run))[0]
        self.serving = serving

    async def _state(self) -> tuple[int, str]:
        """(replicas that answer, why they could not be started)."""
        application = (await asyncio.to_thread(serve.status)).applications.get(self._name)
        found = application.deployments.get("Replica") if application else None
        if application is None or found is None:  # Serve has not got to it yet
            return 0, ""
        why = found.message if application.status == "DEPLOY_FAILED" else ""
        return found.replica_states.get("RUNNING", 0), why

    async def delete(self) -> None:
        """End the replicas; answers under way end with an error."""
        self.closed = True
        for source in list(self._asked):
            source.cancel()
        try:
            await asyncio.to_thread(serve.delete, self._name)
        except TimeoutError:
            _log.warning("%s: its replicas hang, and are ended in %g s", self._name, DRAIN_S)

    async def ask(
        self, method: str, *arguments: Any, adapter: ModelRef | None = None, session: str = "", **named: Any
    ) -> Any:
        """What a replica's engine returns; another one is asked where the first is lost."""
        patience = _Patience()
        while True:
            chosen = self._handle.options(session_id=patience.session(session))
            try:
                return await chosen.call.remote(adapter, method, *arguments, **named)
            except LOST as error:
                await patience.wait(self._lost(error))

    async def stream(
        self, method: str, *arguments: Any, adapter: ModelRef | None, session: str, n_slots: int
    ) -> AsyncGenerator[Delta, None]:
        """The pieces from the replica of that session, or from another one as long as there was none."""
        begun, patience = False, _Patience()
        while True:
            chosen = self._handle.options(session_id=patience.session(session), stream=True)
            source = chosen.stream.remote(adapter, method, *arguments)
            self._asked[source] = False
            try:
                await self._taken(source, n_slots)
                while True:
                    async with asyncio.timeout(SILENCE_S):
                        pieces = await anext(source)
                    for piece in pieces:
                        begun = begun or _says(piece)
                        yield piece
            except StopAsyncIteration:
                return
            except LOST as error:
                lost = self._lost(error)
                if begun:
                    raise lost from error
            finally:
                del self._asked[source]
                source.cancel()
            await patience.wait(lost)

    async def _taken(self, source: Any, n_slots: int) -> None:
        """Wait until a replica takes the request: as long as all are busy. Raises TimeoutError where one should have."""
        taking = asyncio.ensure_future(source._fetch_future_result_async())  # what its first piece would wait for
        try:
            while not (await asyncio.wait({taking}, timeout=SILENCE_S))[0]:
                if sum(self._asked.values()) < n_slots * (await self._state())[0]:
                    raise TimeoutError
            if taking.cancelled():  # by `delete`
                raise TimeoutError
            taking.result()
        finally:
            taking.cancel()
        self._asked[source] = True

    def _lost(self, error: BaseException) -> EngineFailed:
        """See _lost. Raises EngineFailed where the replicas were ended."""
        if self.closed:
            raise EngineFailed("engine.closed", model=self._ref.name) from error
        return _lost(error)


class RemoteChat:
    """An engine.base.ChatEngine whose model is in its replicas; Scalable, and Adaptable where the model's engine is."""

    def __init__(self, application: _Application, one: EngineInfo, held: Mapping[str, str], spread: _OnRay) -> None:
        self._application, self._one, self._held, self._spread = application, one, held, spread
        self._adapter: ModelRef | None = None
        """The adapter that answers; None: the model alone."""

    def info(self) -> EngineInfo:
        return replace(
            self._one,
            model=self._adapter.name if self._adapter else self._one.model,
            pid=None,
            n_slots=self._one.n_slots * self._application.serving.most,
            provider=f"ray · {self._one.provider}",
        )

    def alive(self) -> bool:
        return not self._application.closed  # a replica that is lost is Serve's to begin anew

    async def close(self) -> None:
        if self.alive():
            await self._application.delete()

    async def scale(self, replicas: int, max_replicas: int) -> None:
        if 0 < max_replicas < replicas:
            values = {"replicas": replicas, "max_replicas": max_replicas}
            raise Invalid("launch.replicas_range", param="max_replicas", **values)
        before = self._application.serving
        wanted = replace(before, replicas=replicas, max_replicas=max_replicas)
        try:
            await self._application.run(wanted)
        except BaseException:
            await self._application.deploy(before)
            raise
        self._spread.change(self._one.model, wanted)

    def knows(self, ref: ModelRef) -> bool:
        return self._held.get(ref.name) == lora.stamp(ref.path)

    def adapted(self, ref: ModelRef) -> "RemoteChat":
        view = copy.copy(self)  # the same replicas
        view._adapter = ref
        return view

    async def tokenize(self, text: str, **how: Any) -> list[int]:
        return list(await self._ask("tokenize", text, **how))

    async def pieces(self, text: str, **how: Any) -> list[tuple[int, bytes]]:
        return list(await self._ask("pieces", text, **how))

    async def detokenize(self, tokens: Sequence[int]) -> str:
        return str(await self._ask("detokenize", tokens))

    async def next_token(self, prompt: str | list[int], *, forced: int | None = None, n_top: int = 20) -> NextToken:
        session = self._session(_of_text(prompt))
        found: NextToken = await self._ask("next_token", prompt, forced=forced, n_top=n_top, session=session)
        return found

    async def render(
        self,
        messages: Sequence[Message],
        template_kwargs: dict[str, Any] | None = None,
        *,
        options: Mapping[str, Any] | None = None,
    ) -> str:
        return str(await self._ask("render", messages, template_kwargs, options=options))

    async def count_tokens(self, messages: Sequence[Message], *, options: Mapping[str, Any] | None = None) -> int:
        return int(await self._ask("count_tokens", messages, options=options))

    def chat(self, messages: Sequence[Message], sampling: Sampling) -> AsyncIterator[Delta]:
        return self._stream(_of_talk(messages), "chat", messages, sampling)

    def complete(self, prompt: str | list[int], sampling: Sampling) -> AsyncIterator[Delta]:
        return self._stream(_of_text(prompt), "complete", prompt, sampling)

    async def _ask(self, method: str, *arguments: Any, **named: Any) -> Any:
        return await self._application.ask(method, *arguments, adapter=self._adapter, **named)

    def _stream(self, session: str, method: str, *arguments: Any) -> AsyncGenerator[Delta, None]:
        session, n_slots = self._session(session), self._one.n_slots
        return self._application.stream(method, *arguments, adapter=self._adapter, session=session, n_slots=n_slots)

    def _session(self, session: str) -> str:
        """A prompt that was read with an adapter is of no use to the model alone."""
        return f"{self._adapter.name} {session}" if self._adapter else session


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
