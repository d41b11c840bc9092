"""A gateway in memory for tests of the command line, and a terminal small enough to be read."""

import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO

from rich.cells import cell_len
from typer.testing import Result

from mofang.client import ApiError

ROOT = "root"
Run = Callable[..., Result]
"""The fixture `run`: arguments of `mofang` in, its result out."""


class FakeClient:
    """Keeps what the real gateway keeps, and echoes the last user turn character by character."""

    def __init__(self, delay_s: float = 0.0) -> None:
        self.delay_s = delay_s
        self.models_: list[dict[str, Any]] = [
            {"id": "echo", "kind": "chat", "size_bytes": 491_400_064, "quantization": "Q4_K_M", "source": "pypi",
             "managed": True, "loaded": True},
            {"id": "千问-小", "kind": "chat", "size_bytes": 92_000_000, "quantization": "Q4_1", "source": "path",
             "managed": False, "loaded": False},
            {"id": "e5", "kind": "embedding", "size_bytes": 80_000_000, "quantization": "Q4_0", "source": "pypi",
             "managed": True, "loaded": False},
        ]  # fmt: skip
        engine = {"model": "echo", "kind": "chat", "n_slots": 4, "memory_bytes": 640_000_000, "estimated_bytes": 700_000_000,
                  "running": 2, "waiting": 3, "idle_s": 0.0, "unloads_in_s": None, "pinned": False, "notices": []}  # fmt: skip
        idle = {"idle_s": 75.0, "unloads_in_s": 825.0, "running": 0, "waiting": 0, "notices": ["内存只够 1 个对话"]}
        self.engines: list[dict[str, Any]] = [
            engine, {**engine, **idle, "model": "千问-小"}, {**engine, **idle, "model": "e5", "pinned": True},
        ]  # fmt: skip
        self.bodies: list[dict[str, Any]] = []
        self.searched: dict[str, Any] = {}
        self.search_notices: list[str] = []
        self.conversations_: dict[str, dict[str, Any]] = {}
        self.bases: dict[str, dict[str, bytes]] = {}
        self.uploads: list[list[str]] = []
        self.where: list[dict[str, Any]] = []
        """Who was asked to take each upload in."""
        self.stopped: set[str] = set()
        self.problems: list[dict[str, Any]] = []
        self.events: dict[str, list[dict[str, Any]]] = {}
        self.pull_steps = 4
        self.removed: list[str] = []
        self.batch_refused = False
        self.answer: str | None = None
        self.fault: dict[str, Any] | None = None

    @contextmanager
    def gateway(self) -> Iterator["FakeClient"]:
        yield self

    def _id(self, prefix: str) -> str:
        self._last = getattr(self, "_last", 0) + 1
        return f"{prefix}-{self._last}"

    # ---- models ----

    def ready(self) -> dict[str, Any]:
        return {"status": "ok", "chat_model": "echo", "embedding_model": "e5"}

    def request(self, method: str, path: str) -> Any:
        assert (method, path) == ("GET", "/v1/models")
        return {"object": "list", "data": self.models_, "problems": self.problems}

    def models(self) -> list[dict[str, Any]]:
        return self.models_

    def system(self) -> dict[str, Any]:
        return {"engines": self.engines}

    def load_model(self, name: str, **wishes: Any) -> dict[str, Any]:
        self.bodies.append(wishes)
        return {**self.engines[0], "model": name}

    def unload_model(self, name: str) -> None:
        self.engines = [engine for engine in self.engines if engine["model"] != name]

    def model(self, name: str, n_ctx: int | None = None) -> dict[str, Any]:
        for model in self.models_:
            if model["id"] == name:
                n = n_ctx or 8192
                memory = {"n_ctx": n, "weights": 491_400_064, "kv_cache": n * 24_576,
                          "compute": 300_000_000, "total": 791_400_064 + n * 24_576}  # fmt: skip
                facts = {"architecture": "qwen2", "parameters": 494_032_768, "n_layers": 24, "n_ctx_train": 32768,
                         "n_vocab": 151_936, "n_embd": 896, "tokenizer": "gpt2", "chat_template": "{{ 你好 }}"}  # fmt: skip
                return {**model, **facts, "memory": memory, "path": "/数据/模型.gguf", "sha256": "1d96"}
        raise ApiError(
            404, {"message": f"没有名为 {name} 的模型", "hint": "最接近的名字：echo", "code": "model_not_found"}
        )

    def catalogue(self) -> list[dict[str, Any]]:
        small = {"name": "qwen2.5-0.5b-instruct", "kind": "chat", "size_bytes": 491_400_064, "licence": "Apache-2.0",
                 "memory_bytes": 800_000_000, "n_ctx_train": 32768, "installed": True, "fits": True,
                 "summary": {"zh": "通义千问 2.5，五亿参数；能说流利中文，普通笔记本上每秒二十多个 token", "en": "small"}}  # fmt: skip
        large = {**small, "name": "qwen3-32b", "memory_bytes": 24_000_000_000, "installed": False, "fits": False}
        return [small, large]

    def pull(self, name: str, source: str | None = None, *, kind: str = "chat") -> dict[str, Any]:
        job = self._id("job")
        total = 491_400_064
        self.events[job] = [
            {
                "type": "progress",
                "stage": "download",
                "done": total * step // 4,
                "total": total,
                "unit": "bytes",
                "rate": 12_300_000.0,
                "seconds_left": 30.0 - step,
                "detail": "",
            }
            for step in range(self.pull_steps)
        ] + [{"type": "done", "result": {"id": name}}]
        self.events[job].insert(1, {"type": "progress", "stage": "notice", "done": 0, "detail": "huggingface 没有应答"})  # fmt: skip
        return {"id": job, "status": "running"}

    def add_model(self, path: Path, name: str | None = None, base: str | None = None) -> dict[str, Any]:
        return {"id": name or path.stem, "size_bytes": path.stat().st_size, "path": str(path)}

    def remove_model(self, name: str) -> None:
        self.removed.append(name)

    # ---- jobs and generations: one event log each ----

    def _follow(self, key: str, stopped: dict[str, Any]) -> Iterator[dict[str, Any]]:
        for event in self.events[key]:
            if key in self.stopped:
                yield stopped
                return
            yield event
            time.sleep(self.delay_s)

    def follow_job(self, job_id: str, after: int = -1) -> Iterator[dict[str, Any]]:
        return self._follow(job_id, {"type": "stopped"})

    def stop_job(self, job_id: str) -> None:
        self.stopped.add(job_id)

    def generate(self, body: dict[str, Any]) -> dict[str, Any]:
        self.bodies.append(dict(body))
        conversation = self.conversations_.get(body.get("conversation_id") or "")
        parent = body.get("parent_id")
        parent = None if parent == ROOT else parent
        asked: list[str] = []
        said = body["messages"][-1]["content"] if body["messages"] else ""
        if conversation:
            for turn in body["messages"]:
                asked.append(self._id("msg"))
                conversation["messages"].append({"id": asked[-1], "parent_id": parent, "status": "done", **turn})
                parent = asked[-1]
            said = said or next(m["content"] for m in conversation["messages"] if m["id"] == parent)
        content = self.answer if self.answer is not None else said
        generation, message = self._id("gen"), self._id("msg")
        answer = {"id": message, "parent_id": parent, "role": "assistant", "content": content, "model": "echo",
                  "status": "done"}  # fmt: skip
        if conversation:
            conversation["messages"].append(answer)
            conversation["updated_at"] = f"{len(self.bodies):06}"
            conversation["title"] = conversation["title"] or said[:30]
        sources = [
            {"number": n, "knowledge": body["knowledge"][0], "document_id": f"d{n}", "title": f"手册/第{n}章.md",
             "text": f"第 {n} 段原文", "page": 3 if n == 1 else None, "headings": ["安装", "Linux"] if n == 2 else [],
             "cited": False}
            for n in (1, 2)
        ] if body.get("knowledge") else []  # fmt: skip
        events: list[dict[str, Any]] = [{"type": "queued"}, {"type": "prompt", "done": 1, "total": 2}]
        if sources:
            events.append({"type": "sources", "sources": sources})
        events += [{"type": "delta", "content": piece, "reasoning": ""} for piece in content]
        if self.fault is not None:
            events.append({"type": "error", "error": self.fault})
        else:
            cited = [{**source, "cited": f"[{source['number']}]" in content} for source in sources]
            events.append(
                {"type": "done", "finish_reason": "stop", "message_id": message, "sources": cited,
                 "usage": {"prompt_tokens": 7, "completion_tokens": len(content)},
                 "timings": {"prompt_per_second": 150.0, "predicted_per_second": 23.4}}
            )  # fmt: skip
        self.events[generation] = events
        return {"id": generation, "conversation_id": body.get("conversation_id"), "message_id": message,
                "user_message_ids": asked, "model": "echo", "status": "queued"}  # fmt: skip

    def follow_generation(self, generation_id: str, after: int = -1) -> Iterator[dict[str, Any]]:
        usage = {"prompt_tokens": 7, "completion_tokens": 1}
        return self._follow(generation_id, {"type": "stopped", "finish_reason": "stop", "usage": usage})

    def stop_generation(self, generation_id: str) -> None:
        self.stopped.add(generation_id)

    # ---- conversations ----

    def conversations(self) -> list[dict[str, Any]]:
        return [{k: v for k, v in one.items() if k != "messages"} for one in self.conversations_.values()]

    def create_conversation(self, **fields: Any) -> dict[str, Any]:
        one = {"id": self._id("conv"), "title": "", "updated_at": "", "messages": [], **fields}
        self.conversations_[one["id"]] = one
        return one

    def conversation(self, conversation_id: str) -> dict[str, Any]:
        return self.conversations_[conversation_id]

    def change_conversation(self, conversation_id: str, **fields: Any) -> dict[str, Any]:
        self.conversations_[conversation_id].update(fields)
        return self.conversations_[conversation_id]

    # ---- knowledge ----

    def knowledge(self) -> list[dict[str, Any]]:
        return [
            {"name": name, "title": "", "embedding_model": "e5", "n_documents": len(documents), "n_chunks": 5,
             "size_bytes": 1000}
            for name, documents in self.bases.items()
        ]  # fmt: skip

    def create_knowledge(self, name: str, **fields: Any) -> dict[str, Any]:
        self.bases[name] = {}
        return {"name": name, "embedding_model": "e5", **fields}

    def remove_knowledge(self, name: str) -> None:
        del self.bases[name]

    def documents(self, name: str) -> list[dict[str, Any]]:
        return [
            {"id": f"id-{document}", "name": document, "sha256": sha256(content).hexdigest(), "size_bytes": len(content), "n_chars": len(content) // 3,
             "n_pages": None, "n_chunks": 1, "notes": []}
            for document, content in self.bases[name].items()
        ]  # fmt: skip

    def add_documents(self, name: str, files: Sequence[tuple[str, bytes | BinaryIO]], **where: Any) -> dict[str, Any]:
        self.where.append(where)
        contents = [(relative, file if isinstance(file, bytes) else file.read()) for relative, file in files]
        if self.batch_refused and len(contents) > 1:
            raise ApiError(413, {"message": "太大", "code": "too_large"})
        self.uploads.append([relative for relative, _ in contents])
        reports = []
        for relative, content in contents:
            if not content:
                fault = {"error": "文件是空的", "hint": "请检查文件", "code": "empty_document"}
                reports.append({"name": relative, "status": "failed", "n_chunks": 0, **fault})
                continue
            status = "replaced" if relative in self.bases[name] else "added"
            self.bases[name][relative] = content
            reports.append({"name": relative, "status": status, "n_chunks": 2, "notes": []})
        job = self._id("job")
        self.events[job] = [{"type": "done", "result": {"files": reports, "seconds": 0.1}}]
        return {"id": job}

    def remove_document(self, name: str, document_id: str) -> None:
        names = {document["id"]: document["name"] for document in self.documents(name)}
        del self.bases[name][names[document_id]]

    def rebuild_knowledge(self, name: str) -> dict[str, Any]:
        job = self._id("job")
        self.events[job] = [{"type": "done", "result": {"n_chunks": 1200 * len(self.bases[name])}}]
        return {"id": job}

    def search(
        self, knowledge: Sequence[str], query: str, k: int = 8, *, notices: list[str] | None = None, **fields: Any
    ) -> list[dict[str, Any]]:
        self.searched = fields
        if notices is not None:
            notices += self.search_notices
        return [
            {"knowledge": knowledge[0], "document_id": "d1", "title": "手册/重置密码.md", "text": "先打开设置，再选重置密码。" * 30,
             "start": 0, "end": 13, "page": 2, "headings": ["帐户"], "score": 0.0325, "bm25_rank": 1, "dense_rank": 2,
             "cosine": 0.9},
            {"knowledge": knowledge[0], "document_id": "d2", "title": "常见问题.md", "text": "其他内容", "start": 0, "end": 4,
             "page": None, "headings": [], "score": 0.01, "bm25_rank": None, "dense_rank": 1, "cosine": 0.8},
        ][:k]  # fmt: skip


class Terminal:
    """What stands on the screen after a program wrote to it: cursor moves, erasing, wide characters, scrolling."""

    def __init__(self, width: int = 80, height: int = 24) -> None:
        self.width, self.height = width, height
        self.lines: list[list[str]] = [[]]
        """All lines, those scrolled away included; a wide character is followed by an empty cell."""
        self.top = 0
        self.x = self.y = 0
        self._rest = ""
        self.answers = ""
        """What the terminal would send back (cursor position reports)."""

    _TOKEN = re.compile(
        r"\x1b\[([?>]?)([\d;]*)([A-Za-z])|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b[()][A-Z0-9]|\x1b[=>78]"
    )

    def write(self, text: str) -> None:
        text, self._rest = self._rest + text, ""
        position = 0
        while position < len(text):
            character = text[position]
            if character == "\x1b":
                match = self._TOKEN.match(text, position)
                if match is None:
                    if len(text) - position > 40:
                        raise AssertionError(f"unknown sequence {text[position : position + 20]!r}")
                    self._rest = text[position:]
                    return
                position = match.end()
                if match[3] and not match[1]:
                    self._control(match[3], [int(part or 0) for part in match[2].split(";")])
                continue
            position += 1
            if character == "\r":
                self.x = 0
            elif character == "\n":
                self._down()
            elif character == "\b":
                self.x = max(0, self.x - 1)
            elif character >= " ":
                self._put(character)

    def _down(self) -> None:
        self.y += 1
        if self.y >= self.height:
            self.y = self.height - 1
            self.top += 1

    def _line(self) -> list[str]:
        while len(self.lines) <= self.top + self.y:
            self.lines.append([])
        return self.lines[self.top + self.y]

    def _put(self, character: str) -> None:
        wide = cell_len(character)
        if wide == 0:
            self._line()[self.x - 1] += character
            return
        if self.x + wide > self.width:
            self.x = 0
            self._down()
        line = self._line()
        while len(line) < self.x + wide:
            line.append(" ")
        line[self.x] = character
        if wide == 2:
            line[self.x + 1] = ""
        self.x += wide

    def _control(self, kind: str, numbers: list[int]) -> None:
        n = max(1, numbers[0])
        if kind == "A":
            self.y = max(0, self.y - n)
        elif kind == "B":
            self.y = min(self.height - 1, self.y + n)
        elif kind == "C":
            self.x = min(self.width - 1, self.x + n)
        elif kind == "D":
            self.x = max(0, self.x - n)
        elif kind == "G":
            self.x = n - 1
        elif kind == "H":
            self.y, self.x = n - 1, max(1, numbers[1] if len(numbers) > 1 else 1) - 1
        elif kind == "K":
            line = self._line()
            if numbers[0] == 2:
                line.clear()
            else:
                del line[self.x :]
        elif kind == "J":
            del self._line()[self.x :]
            del self.lines[self.top + self.y + 1 :]
        elif kind == "n":
            self.answers += f"\x1b[{self.y + 1};{self.x + 1}R"

    def text(self) -> str:
        """Everything that was written, scrolled lines included, without spaces at line ends."""
        return "\n".join("".join(line).rstrip() for line in self.lines).rstrip()


class PtyProgram:
    """A program in a pseudo-terminal. `expect` waits until its screen shows a text."""

    def __init__(self, arguments: list[str], env: dict[str, str], width: int = 80, height: int = 24) -> None:
        import fcntl
        import os
        import pty
        import struct
        import subprocess
        import termios

        self._os = os
        self.terminal = Terminal(width, height)
        self.raw = ""
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))

        def own_terminal() -> None:  # so that Ctrl-C typed here becomes SIGINT there
            os.setsid()
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

        self._file = ours
        self.process = subprocess.Popen(
            arguments,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=env,
            preexec_fn=own_terminal,
        )
        os.close(theirs)
        self._lock = threading.Lock()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        import codecs

        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        while True:
            try:
                data = self._os.read(self._file, 65536)
            except OSError:
                return
            if not data:
                return
            with self._lock:
                piece = decoder.decode(data)
                self.raw += piece
                self.terminal.write(piece)
                reply, self.terminal.answers = self.terminal.answers, ""
            if reply:
                self._os.write(self._file, reply.encode())

    def type(self, keys: str) -> None:
        self._os.write(self._file, keys.encode())

    @property
    def screen(self) -> str:
        with self._lock:
            return self.terminal.text()

    def expect(self, text: str, *, times: int = 1, timeout_s: float = 20.0) -> None:
        deadline = time.monotonic() + timeout_s
        while self.screen.count(text) < times:
            if time.monotonic() > deadline or (self.process.poll() is not None and self.screen.count(text) < times):
                time.sleep(0.2)
                if self.screen.count(text) >= times:
                    return
                raise AssertionError(f"{text!r} (×{times}) did not appear:\n{self.screen}")
            time.sleep(0.02)

    def end(self, timeout_s: float = 20.0) -> int:
        """Wait for the end; the exit code."""
        try:
            return self.process.wait(timeout_s)
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()
            self._os.close(self._file)
