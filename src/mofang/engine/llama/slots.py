"""The computed state of long prompts, kept on disk while their model is out of memory.

llama.cpp writes and reads one slot at a time (POST /slots/{id}?action=save, restore; tools/server/README.md). A prompt
that another conversation pushed out of its slot lies in llama.cpp's own cache in memory, which cannot be written: asking
for that prompt again brings it back into a slot, at the price of a copy. So the longest-remembered thing here is the
request itself, in memory, until the model leaves. What is lost: everything but the last `n_slots` long prompts, the
answers after them, and prompts that were read with an adapter (a file does not say with which).
"""

import asyncio
import dataclasses
import hashlib
import json
import logging
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mofang.engine.llama.process import LlamaProcess, Refusal
from mofang.engine.llama.provider import Launch
from mofang.engine.llama.slot_files import Folder, Saved, prune
from mofang.errors import EngineFailed
from mofang.models.base import ModelRef

_log = logging.getLogger(__name__)

WORTH_TOKENS = 256
"""A shorter prompt is computed again: on two cores that takes a second or two, and a file of some megabytes does not
pay for itself."""
IN_CACHE = 0.9
"""Share of a prompt that must still be in memory for it to be saved: it is not computed again for that."""
SAME = 0.9
"""Two requests whose beginnings agree so far are one conversation; the newer is saved."""
TIMEOUT_S = 10.0
"""Saving ends then, whatever is left: an unload and the end of the gateway wait for it."""
_NOT_STATE = ("path", "name", "key", "slot_folder", "n_slots", "n_threads", "n_batch")
"""What a launch says that does not change a slot's content; whatever else it comes to say counts."""


def folder(home: Path, ref: ModelRef, launch: Launch, provider: str) -> Path:
    """Where the states of this model, as it is launched, lie: another file, build or context has another folder.

    `provider`: name and version of the llama.cpp build.
    """
    stat = ref.path.stat()
    file = f"{ref.sha256} {ref.path} {stat.st_size} {stat.st_mtime_ns}"  # a manifest's digest is of when it was added
    said = {name: value for name, value in dataclasses.asdict(launch).items() if name not in _NOT_STATE}
    what = json.dumps([file, provider, said], sort_keys=True)
    return root(home) / hashlib.sha256(what.encode()).hexdigest()[:32]


def prepare(home: Path, ref: ModelRef, launch: Launch, provider: str) -> Path:
    """That folder, made if need be. Nobody else on the machine may enter it: it holds what prompts said."""
    place = folder(home, ref, launch, provider)
    place.mkdir(parents=True, exist_ok=True)
    for part in (place.parent, place):
        part.chmod(0o700)
    return place


def root(home: Path) -> Path:
    return home / "cache" / "slots"


@dataclass(frozen=True, slots=True)
class Asked:
    """A request whose prompt is worth keeping."""

    path: str
    body: dict[str, Any]
    start: str
    """Its messages or its prompt, to be compared with others."""


class Memory:
    """The last long prompts of a server."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.newest: list[Asked] = []

    def add(self, path: str, body: dict[str, Any], n_tokens: int) -> None:
        """A prompt of `n_tokens` has been read."""
        if n_tokens < WORTH_TOKENS or body.get("cache_prompt") is False or body.get("lora"):
            return
        start = json.dumps(body.get("messages") or body.get("prompt"))
        others = [asked for asked in self.newest if not _continues(start, asked.start)]
        self.newest = [Asked(path, body, start), *others][: self._limit]


def _continues(start: str, earlier: str) -> bool:
    return start.startswith(earlier[: int(SAME * len(earlier))])


class Slots:
    """One server's slots and their files. Whatever goes wrong here is told to the log and costs a prompt, no more."""

    def __init__(self, process: LlamaProcess, n_slots: int, place: Path, limit: int) -> None:
        self._process = process
        self._n_slots = n_slots
        self._folder = Folder(place)
        self._limit = limit
        self._restored: dict[int, Saved] = {}
        self.memory = Memory(n_slots)

    async def restore(self) -> None:
        """Read the saved states into the slots, the newest first."""
        for one in await asyncio.to_thread(self._folder.read):
            number = len(self._restored)
            if number == self._n_slots:
                return
            if not await asyncio.to_thread(self._folder.check, one):
                continue
            try:
                await self._process.request("POST", f"/slots/{number}?action=restore", {"filename": one.file})
                self._restored[number] = one
            except Refusal as error:
                self._folder.drop(one, error.why)

    async def save(self) -> None:
        """Write the states of the last long prompts, beside those that were restored and not needed."""
        if not self.memory.newest:
            return
        try:
            await asyncio.wait_for(self._save(), TIMEOUT_S)
        except (TimeoutError, Refusal, EngineFailed, OSError) as error:
            _log.warning("prompts could not be saved: %s %s", type(error).__name__, error)

    async def _save(self) -> None:
        state = await self._slots()
        if all(slot["is_processing"] for slot in state):  # nobody waits for an answer that is about to be broken off
            return
        used = {int(slot["id"]) for slot in state if "id_task" in slot}
        saved: list[Saved] = []
        try:
            for asked in self.memory.newest:
                if one := await self._write(asked):
                    saved.append(one)  # noqa: PERF401 (what was written before a failure counts)
        finally:
            before = sorted(self._restored.items(), key=lambda item: item[0] in used)
            names = {one.file for one in saved}
            kept = [*saved, *(one for _, one in before if one.file not in names)][: self._n_slots]
            await asyncio.to_thread(self._folder.write, kept)
            await asyncio.to_thread(prune, self._folder.place.parent, self._limit)

    async def _write(self, asked: Asked) -> Saved | None:
        """The state after reading a prompt; None when it is in memory no more."""
        if not await self._bring_back(asked):
            return None
        slot = max(await self._slots(), key=lambda slot: int(slot.get("id_task", -1)))
        part = f"part-{slot['id']}.bin"
        answer = await self._process.request("POST", f"/slots/{slot['id']}?action=save", {"filename": part})
        return await asyncio.to_thread(self._folder.adopt, part, int(answer["n_saved"]))

    async def _bring_back(self, asked: Asked) -> bool:
        """Have a prompt put into a slot, from where it lies in memory; it is not computed for this."""
        body = {**asked.body, "max_tokens": 1, "n": 1, "stream": True, "return_progress": True}
        async with aclosing(self._process.events(asked.path, body)) as events:
            async for event in events:
                reading = event.get("prompt_progress")
                if reading and reading["cache"] < IN_CACHE * reading["total"]:
                    return False
        return True

    async def _slots(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = await self._process.request("GET", "/slots")
        return found
