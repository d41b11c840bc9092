"""A client of the gateway's HTTP API: what the command line and the workbench stand on. Synchronous.

It knows our routes, OpenAI's shapes and server-sent events, and turns the API's error JSON back into MofangError. What
it can do, any HTTP client can do.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote

import httpx

from mofang.errors import MofangError, Unreachable


class ApiError(MofangError):
    """An error that the gateway answered, as it was said there: its own code, message and hint."""

    def __init__(self, status: int, fault: Mapping[str, Any]) -> None:
        super().__init__("client.api_error", status=status)
        self.status = status
        self.fault = fault

    @property
    def code(self) -> str:
        return str(self.fault.get("code") or "api_error")

    def message(self, lang: str | None = None) -> str:
        return str(self.fault.get("message") or f"HTTP {self.status}")

    def hint(self, lang: str | None = None) -> str:
        return str(self.fault.get("hint") or "")


def quoted(name: str) -> str:
    """A name as one segment of a path: "a/b" and "a?b" stay names, they lead to no other route."""
    return quote(name, safe="")


class Client:
    """One gateway. `key` may be None on loopback; `lang` is the language that its messages should be in. Close it, or
    use it as a context manager."""

    def __init__(self, url: str, key: str | None = None, *, lang: str | None = None, timeout_s: float = 600.0) -> None:
        self.url = url.rstrip("/")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        if lang:
            headers["Accept-Language"] = lang
        # trust_env=False: a proxy set for the internet must not swallow calls to this machine.
        self._http = httpx.Client(
            base_url=self.url, headers=headers, timeout=httpx.Timeout(timeout_s, connect=5.0), trust_env=False
        )

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    # ---- the three ways to talk ----

    def request(self, method: str, path: str, body: Any = None, **options: Any) -> Any:
        """The decoded JSON answer (None for 204). Raises ApiError, or Unreachable when nobody answers."""
        if body is not None:
            options["json"] = body
        answer = self.send(method, path, **options)
        return answer.json() if answer.content else None

    def send(self, method: str, path: str, **options: Any) -> httpx.Response:
        """The answer as it came, where it is not JSON. Raises as `request` does."""
        try:
            answer = self._http.request(method, path, **options)
        except httpx.TransportError as error:
            raise Unreachable("client.gateway_unreachable", url=self.url, why=error) from error
        _check(answer)
        return answer

    @contextmanager
    def stream(self, method: str, path: str, body: Any = None) -> Iterator[Iterator[tuple[int | None, Any]]]:
        """Server-sent events as (id, decoded data); ends at [DONE]. Leaving the block closes the connection."""
        try:
            with self._http.stream(method, path, json=body) as answer:
                if answer.is_error:
                    answer.read()
                _check(answer)
                yield _events(answer)
        except httpx.TransportError as error:
            raise Unreachable("client.gateway_unreachable", url=self.url, why=error) from error

    def follow(self, path: str, after: int = -1) -> Iterator[dict[str, Any]]:
        """The events of a generation or job after number `after`, each with its "seq", until the log is closed."""
        with self.stream("GET", f"{path}/events?after={after}") as events:
            for seq, data in events:
                yield {**data, "seq": seq}

    # ---- the gateway ----

    def ready(self) -> dict[str, Any]:
        return self.request("GET", "/readyz")  # type: ignore[no-any-return]

    def system(self) -> dict[str, Any]:
        """The machine, memory, versions, loaded engines."""
        return self.request("GET", "/v1/system")  # type: ignore[no-any-return]

    def history(self, after: float = 0) -> list[dict[str, Any]]:
        """The last hour, a row every few seconds; those later than `after`."""
        return list(self.request("GET", "/v1/system/history", params={"after": after})["data"])

    def doctor(self) -> list[dict[str, Any]]:
        """What this machine has and lacks: name, status, found, cure."""
        return list(self.request("GET", "/v1/doctor")["data"])

    def logs(self) -> list[dict[str, Any]]:
        return list(self.request("GET", "/v1/logs")["data"])

    def log(self, name: str, lines: int = 200) -> str:
        """The last lines of one of them."""
        return str(self.request("GET", f"/v1/logs/{quoted(name)}", params={"lines": lines})["text"])

    # ---- models ----

    def models(self) -> list[dict[str, Any]]:
        return self.request("GET", "/v1/models")["data"]  # type: ignore[no-any-return]

    def model(self, name: str, n_ctx: int | None = None) -> dict[str, Any]:
        """Facts, and the memory that it needs at `n_ctx` tokens of context (None: as configured)."""
        params = {} if n_ctx is None else {"n_ctx": n_ctx}
        return self.request("GET", f"/v1/models/{quoted(name)}", params=params)  # type: ignore[no-any-return]

    def engine(self) -> dict[str, Any]:
        """The machine, the llama.cpp build in use, and what tuning found."""
        return self.request("GET", "/v1/engine")  # type: ignore[no-any-return]

    def catalogue(self) -> list[dict[str, Any]]:
        return self.request("GET", "/v1/catalogue")["data"]  # type: ignore[no-any-return]

    def pull(self, name: str, source: str | None = None, *, kind: str = "chat") -> dict[str, Any]:
        """Start bringing a model ("auto": the default of `kind`); the job's id leads to its progress (`follow_job`)."""
        return self.request("POST", "/v1/models/pull", {"name": name, "source": source, "kind": kind})  # type: ignore[no-any-return]

    def add_model(self, path: Path, name: str | None = None, base: str | None = None) -> dict[str, Any]:
        """Use a model file or an adapter's folder where it lies; `base` is the model that an adapter belongs to."""
        return self.request("POST", "/v1/models/add", {"path": str(path), "name": name, "base": base})  # type: ignore[no-any-return]

    def add_remote_model(self, name: str, **fields: Any) -> dict[str, Any]:
        """`fields`: base_url, model, kind, api_key_env, n_ctx."""
        return self.request("POST", "/v1/models/remote", {"name": name, **fields})  # type: ignore[no-any-return]

    def remove_model(self, name: str) -> None:
        self.request("DELETE", f"/v1/models/{quoted(name)}")

    def load_model(self, name: str, **wishes: Any) -> dict[str, Any]:
        """`wishes`: pin, keep_alive, reload, replicas, max_replicas; see wire.LoadRequest."""
        return self.request("POST", f"/v1/models/{quoted(name)}/load", wishes or None)  # type: ignore[no-any-return]

    def unload_model(self, name: str) -> None:
        self.request("POST", f"/v1/models/{quoted(name)}/unload")

    # ---- jobs: pulls and ingests ----

    def jobs(self) -> list[dict[str, Any]]:
        return self.request("GET", "/v1/jobs")["data"]  # type: ignore[no-any-return]

    def job(self, job_id: str) -> dict[str, Any]:
        return self.request("GET", f"/v1/jobs/{quoted(job_id)}")  # type: ignore[no-any-return]

    def stop_job(self, job_id: str) -> None:
        self.request("POST", f"/v1/jobs/{quoted(job_id)}/stop")

    def pause_job(self, job_id: str) -> dict[str, Any]:
        """Of a pull: what it has brought stays, and `resume_job` goes on with it, also after a restart."""
        return dict(self.request("POST", f"/v1/jobs/{quoted(job_id)}/pause"))

    def resume_job(self, job_id: str) -> dict[str, Any]:
        return dict(self.request("POST", f"/v1/jobs/{quoted(job_id)}/resume"))

    def drop_job(self, job_id: str) -> None:
        """Stop a pull, and delete what it has brought."""
        self.request("DELETE", f"/v1/jobs/{quoted(job_id)}")

    def follow_job(self, job_id: str, after: int = -1) -> Iterator[dict[str, Any]]:
        return self.follow(f"/v1/jobs/{quoted(job_id)}", after)

    # ---- answers ----

    @contextmanager
    def chat_stream(self, body: Mapping[str, Any]) -> Iterator[Iterator[dict[str, Any]]]:
        """POST /v1/chat/completions, streamed: OpenAI chunks. Leaving the block stops the generation."""
        shape = {**body, "stream": True, "stream_options": {"include_usage": True}}
        with self.stream("POST", "/v1/chat/completions", shape) as events:
            yield (data for _, data in events)

    def generate(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Start an answer that outlives this client: {"id", "conversation_id", "message_id", "status"}."""
        return self.request("POST", "/v1/generations", dict(body))  # type: ignore[no-any-return]

    def generation(self, generation_id: str) -> dict[str, Any]:
        return self.request("GET", f"/v1/generations/{quoted(generation_id)}")  # type: ignore[no-any-return]

    def follow_generation(self, generation_id: str, after: int = -1) -> Iterator[dict[str, Any]]:
        return self.follow(f"/v1/generations/{quoted(generation_id)}", after)

    def stop_generation(self, generation_id: str) -> None:
        self.request("POST", f"/v1/generations/{quoted(generation_id)}/stop")

    # ---- files that conversations refer to ----

    def add_file(self, name: str, content: bytes | BinaryIO, *, expires_in_s: int | None = None) -> dict[str, Any]:
        """Upload a file; a turn refers to it by its id. `expires_in_s`: it leaves by itself where no turn did."""
        fields = {"purpose": "user_data"}
        if expires_in_s is not None:
            fields |= {"expires_after[anchor]": "created_at", "expires_after[seconds]": str(expires_in_s)}
        files = {"file": (name, content, "application/octet-stream")}
        return dict(self.request("POST", "/v1/files", data=fields, files=files))

    def file_reading(self, file_id: str, model: str | None = None) -> dict[str, Any]:
        """What it says to a model: kind, n_chars, notes; with `model`, which is loaded for that, also tokens."""
        params = {} if model is None else {"model": model}
        return dict(self.request("GET", f"/v1/files/{quoted(file_id)}/reading", params=params))

    def delete_file(self, file_id: str) -> None:
        self.request("DELETE", f"/v1/files/{quoted(file_id)}")

    # ---- trainings and exports ----

    def recipes(self) -> dict[str, Any]:
        """Every method and exporter with the schema of its fields."""
        return dict(self.request("GET", "/v1/recipes"))

    def runs(self, *, training: bool | None = None, kind: str | None = None) -> list[dict[str, Any]]:
        """All runs; or trainings only, or all others only; or those of one recipe."""
        query = {name: value for name, value in (("training", training), ("kind", kind)) if value is not None}
        return list(self.request("GET", "/v1/runs", params=query)["data"])

    def launchers(self) -> dict[str, Any]:
        """Where a training can be computed, each with the schema of its fields; the first is the default."""
        return dict(self.request("GET", "/v1/launchers"))

    def start_run(
        self, kind: str, recipe: Mapping[str, Any], launcher: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """`launcher`: {"launcher": "torchrun", "processes": 2}; one process without."""
        body = {"kind": kind, "recipe": dict(recipe), "launcher": dict(launcher or {})}
        return dict(self.request("POST", "/v1/runs", body))

    def run(self, run_id: str) -> dict[str, Any]:
        return dict(self.request("GET", f"/v1/runs/{quoted(run_id)}"))

    def run_metrics(self, run_id: str, after: int = -1) -> list[dict[str, Any]]:
        return list(self.request("GET", f"/v1/runs/{quoted(run_id)}/metrics?after={after}")["data"])

    def run_file(self, run_id: str, name: str) -> bytes:
        """What a run left for people: "report.md", "picture.png"."""
        return self.send("GET", f"/v1/runs/{quoted(run_id)}/files/{quoted(name)}").content

    def stop_run(self, run_id: str) -> dict[str, Any]:
        return dict(self.request("POST", f"/v1/runs/{quoted(run_id)}/stop"))

    def resume_run(self, run_id: str, launcher: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """`launcher` in place of the one that it had, or fields of that one alone."""
        return dict(self.request("POST", f"/v1/runs/{quoted(run_id)}/resume", {"launcher": dict(launcher or {})}))

    def remove_run(self, run_id: str) -> None:
        self.request("DELETE", f"/v1/runs/{quoted(run_id)}")

    def datasets(self) -> list[dict[str, Any]]:
        return list(self.request("GET", "/v1/datasets")["data"])

    def add_datasets(self, files: Sequence[tuple[str, bytes | BinaryIO]]) -> list[dict[str, Any]]:
        parts = [("files", (name, content)) for name, content in files]
        return list(self.request("POST", "/v1/datasets", files=parts)["data"])

    def preview_dataset(self, name: str, model: str = "auto", max_length: int | None = None) -> dict[str, Any]:
        """The first examples as a training on `model` would see them."""
        query = {"model": model} | ({} if max_length is None else {"max_length": max_length})
        return dict(self.request("GET", f"/v1/datasets/{quoted(name)}/preview", params=query))

    # ---- keys ----

    def keys(self) -> list[dict[str, Any]]:
        return list(self.request("GET", "/v1/keys")["data"])

    def create_key(self, name: str, **fields: Any) -> dict[str, Any]:
        """The new key; its field "key" is the secret, which is never told again."""
        return dict(self.request("POST", "/v1/keys", {"name": name, **fields}))

    def revoke_key(self, key_id: str) -> dict[str, Any]:
        return dict(self.request("DELETE", f"/v1/keys/{quoted(key_id)}"))

    # ---- below the text ----

    def tokenize(self, text: str, model: str = "auto") -> list[int]:
        return list(self.request("POST", "/v1/tokenize", {"model": model, "text": text})["tokens"])

    def next_token(
        self,
        prompt: str | list[int],
        model: str = "auto",
        *,
        forced: int | None = None,
        n_top: int = 20,
        sampling: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """`sampling`: the samplers to tell the probabilities after, see wire.NextSampling."""
        body = {"model": model, "prompt": prompt, "forced": forced, "n_top": n_top}
        more = {} if sampling is None else {"sampling": dict(sampling)}
        return dict(self.request("POST", "/v1/next_token", {**body, **more}))

    def pieces(self, text: str, model: str = "auto", *, parse_special: bool = True) -> list[dict[str, Any]]:
        """The tokens of a text: {"id", "piece", "bytes"}; "piece" is None for a part of a character."""
        body = {"model": model, "text": text, "with_pieces": True, "parse_special": parse_special}
        return list(self.request("POST", "/v1/tokenize", body)["pieces"])

    def neighbours(self, name: str, token: str | int, n: int = 10) -> dict[str, Any]:
        """The tokens whose embedding rows are nearest to that of `token`, its text or its id."""
        params: dict[str, Any] = {"id" if isinstance(token, int) else "token": token, "n": n}
        return dict(self.request("GET", f"/v1/models/{quoted(name)}/neighbours", params=params))

    def embeddings(
        self, texts: Sequence[str], model: str = "auto", *, input_type: str = "passage"
    ) -> list[list[float]]:
        """One vector a text, in their order."""
        body = {"model": model, "input": list(texts), "input_type": input_type}
        return [list(one["embedding"]) for one in self.request("POST", "/v1/embeddings", body)["data"]]

    @contextmanager
    def completion_stream(self, body: Mapping[str, Any]) -> Iterator[Iterator[dict[str, Any]]]:
        """POST /v1/completions, streamed. Leaving the block stops the generation."""
        shape = {**body, "stream": True, "stream_options": {"include_usage": True}}
        with self.stream("POST", "/v1/completions", shape) as events:
            yield (data for _, data in events)

    # ---- conversations ----

    def conversations(self, query: str = "") -> list[dict[str, Any]]:
        """With a query those that hold its words, each with the message where ("hit")."""
        params = {"query": query} if query else {}
        return self.request("GET", "/v1/conversations", params=params)["data"]  # type: ignore[no-any-return]

    def export_conversation(self, conversation_id: str, format: str = "json", leaf: str | None = None) -> bytes:
        """A file: "json", the whole tree, or "markdown", the path down to `leaf`."""
        params = {"format": format} | ({"leaf": leaf} if leaf else {})
        return self.send("GET", f"/v1/conversations/{quoted(conversation_id)}/export", params=params).content

    def import_conversations(self, data: Any) -> dict[str, Any]:
        """{"data": the new conversations, "skipped_messages"} of the decoded JSON of an export."""
        return dict(self.request("POST", "/v1/conversations/import", data))

    def create_conversation(self, **fields: Any) -> dict[str, Any]:
        return self.request("POST", "/v1/conversations", fields)  # type: ignore[no-any-return]

    def conversation(self, conversation_id: str) -> dict[str, Any]:
        return self.request("GET", f"/v1/conversations/{quoted(conversation_id)}")  # type: ignore[no-any-return]

    def change_conversation(self, conversation_id: str, **fields: Any) -> dict[str, Any]:
        return self.request("PATCH", f"/v1/conversations/{quoted(conversation_id)}", fields)  # type: ignore[no-any-return]

    def add_message(self, conversation_id: str, content: str, **place: Any) -> dict[str, Any]:
        """A message that nobody answers; `place`: role and parent_id, or edits. See wire.MessageRequest."""
        path = f"/v1/conversations/{quoted(conversation_id)}/messages"
        return dict(self.request("POST", path, {"content": content, **place}))

    def delete_conversation(self, conversation_id: str) -> None:
        self.request("DELETE", f"/v1/conversations/{quoted(conversation_id)}")

    # ---- tools ----

    def tools(self, *, again: bool = False) -> dict[str, Any]:
        """{"data": the tools, "servers": each MCP server with its fault}; `again` tries those that failed just now."""
        return dict(self.request("GET", "/v1/tools", params={"again": again}))

    def decide_call(
        self, conversation_id: str, message_id: str, call_id: str, decision: str, **wishes: Any
    ) -> dict[str, Any]:
        """Make a call that an answer asks for ("run") or not ("refuse"): the message of the result. `wishes`: go_on,
        wait_s; see wire.ToolDecision."""
        path = f"/v1/conversations/{quoted(conversation_id)}/tool_calls"
        body = {"message_id": message_id, "call_id": call_id, "decision": decision, **wishes}
        return dict(self.request("POST", path, body))

    def stop_call(self, conversation_id: str, message_id: str) -> dict[str, Any]:
        """End a call that is being made: the message of its result."""
        path = f"/v1/conversations/{quoted(conversation_id)}/tool_calls/{quoted(message_id)}/stop"
        return dict(self.request("POST", path))

    # ---- what conversations begin with ----

    def personas(self) -> list[dict[str, Any]]:
        return list(self.request("GET", "/v1/personas")["data"])

    def create_persona(self, **fields: Any) -> dict[str, Any]:
        return dict(self.request("POST", "/v1/personas", fields))

    def change_persona(self, persona_id: str, **fields: Any) -> dict[str, Any]:
        return dict(self.request("PATCH", f"/v1/personas/{quoted(persona_id)}", fields))

    def delete_persona(self, persona_id: str) -> None:
        self.request("DELETE", f"/v1/personas/{quoted(persona_id)}")

    def import_personas(self, content: bytes) -> list[dict[str, Any]]:
        """Those of a file: a character card (JSON, PNG), YAML, our own JSON."""
        answer = self.send("POST", "/v1/personas/import", content=content)
        return list(answer.json()["data"])

    def presets(self) -> list[dict[str, Any]]:
        return list(self.request("GET", "/v1/presets")["data"])

    def create_preset(self, name: str, sampling: Mapping[str, Any]) -> dict[str, Any]:
        return dict(self.request("POST", "/v1/presets", {"name": name, "sampling": dict(sampling)}))

    def delete_preset(self, preset_id: str) -> None:
        self.request("DELETE", f"/v1/presets/{quoted(preset_id)}")

    # ---- knowledge ----

    def knowledge(self) -> list[dict[str, Any]]:
        return self.request("GET", "/v1/knowledge")["data"]  # type: ignore[no-any-return]

    def create_knowledge(self, name: str, **fields: Any) -> dict[str, Any]:
        return self.request("POST", "/v1/knowledge", {"name": name, **fields})  # type: ignore[no-any-return]

    def remove_knowledge(self, name: str) -> None:
        self.request("DELETE", f"/v1/knowledge/{quoted(name)}")

    def documents(self, name: str) -> list[dict[str, Any]]:
        return self.request("GET", f"/v1/knowledge/{quoted(name)}/documents")["data"]  # type: ignore[no-any-return]

    def add_documents(
        self, name: str, files: Sequence[tuple[str, bytes | BinaryIO]], **where: str | int
    ) -> dict[str, Any]:
        """Upload (relative name, content) pairs; the job's id leads to the progress, its last event to the report.

        where: who takes them in (launcher, cluster, workers; docs/api.md); the gateway itself when nothing is said.
        """
        parts = [("files", (relative, content, "application/octet-stream")) for relative, content in files]
        path = f"/v1/knowledge/{quoted(name)}/documents"
        return self.request("POST", path, files=parts, params=where)  # type: ignore[no-any-return]

    def remove_document(self, name: str, document_id: str) -> None:
        self.request("DELETE", f"/v1/knowledge/{quoted(name)}/documents/{quoted(document_id)}")

    def document_text(self, name: str, document_id: str, start: int = 0, end: int | None = None) -> dict[str, Any]:
        """Canonical text of a span and what surrounds it."""
        params = {"start": start} if end is None else {"start": start, "end": end}
        path = f"/v1/knowledge/{quoted(name)}/documents/{quoted(document_id)}/text"
        return self.request("GET", path, params=params)  # type: ignore[no-any-return]

    def document_chunks(self, name: str, document_id: str, start: int = 0, n: int = 100) -> list[dict[str, Any]]:
        """How it was cut: the first n spans that reach beyond `start`."""
        path = f"/v1/knowledge/{quoted(name)}/documents/{quoted(document_id)}/chunks"
        return list(self.request("GET", path, params={"start": start, "n": n})["data"])

    def document_page(
        self, name: str, document_id: str, page: int, *, width: int = 1_000, start: int = 0, end: int = 0
    ) -> bytes:
        """A page of a PDF as PNG; what stands in the span is marked."""
        path = f"/v1/knowledge/{quoted(name)}/documents/{quoted(document_id)}/pages/{page}.png"
        return self.send("GET", path, params={"width": width, "start": start, "end": end}).content

    def passages(self, name: str, n: int = 20, seed: int = 0) -> list[dict[str, Any]]:
        """n passages drawn by `seed`; see Library.passages."""
        path = f"/v1/knowledge/{quoted(name)}/passages"
        return self.request("GET", path, params={"n": n, "seed": seed})["data"]  # type: ignore[no-any-return]

    def ask(self, name: str, question: str, **choices: Any) -> dict[str, Any]:
        """{"answer", "sources", …} of one question to one base; `choices`: see wire.AskRequest."""
        return dict(self.request("POST", f"/v1/knowledge/{quoted(name)}/ask", {"question": question, **choices}))

    def evaluate_knowledge(
        self,
        name: str,
        files: Sequence[tuple[str, Path | BinaryIO]],
        *,
        split: str | None = None,
        answers: bool = False,
        model: str = "auto",
    ) -> dict[str, Any]:
        """Start an evaluation on a set's files (paths, or open files); the job's result holds the figures."""
        params: dict[str, Any] = {"answers": answers, "model": model} | ({"split": split} if split else {})
        with ExitStack() as stack:
            opened = [
                (relative, stack.enter_context(file.open("rb")) if isinstance(file, Path) else file)
                for relative, file in files
            ]
            parts = [("files", (relative, file, "application/octet-stream")) for relative, file in opened]
            path = f"/v1/knowledge/{quoted(name)}/evaluate"
            return dict(self.request("POST", path, params=params, files=parts))

    def questions(self, name: str) -> list[dict[str, Any]]:
        """Those that were drafted about a base, each with its passage and its state: open, accepted, dropped."""
        return list(self.request("GET", f"/v1/knowledge/{quoted(name)}/questions")["data"])

    def draft_questions(self, name: str, n: int = 20, model: str = "auto") -> dict[str, Any]:
        """Start drafting n more; returns the job."""
        return dict(self.request("POST", f"/v1/knowledge/{quoted(name)}/questions", {"n": n, "model": model}))

    def change_question(self, name: str, question_id: str, **changes: Any) -> dict[str, Any]:
        """`changes`: question, answer, state."""
        return dict(self.request("PATCH", f"/v1/knowledge/{quoted(name)}/questions/{quoted(question_id)}", changes))

    def forget_questions(self, name: str) -> None:
        self.request("DELETE", f"/v1/knowledge/{quoted(name)}/questions")

    def question_set(self, name: str) -> bytes:
        """The accepted ones as a file for `evaluate_knowledge`."""
        return self.send("GET", f"/v1/knowledge/{quoted(name)}/questions.jsonl").content

    def readers(self, name: str) -> list[dict[str, Any]]:
        """The keys that may read a base beside its owner: {"key", "name"}."""
        return list(self.request("GET", f"/v1/knowledge/{quoted(name)}/readers")["data"])

    def share_knowledge(self, name: str, key_id: str) -> None:
        self.request("PUT", f"/v1/knowledge/{quoted(name)}/readers/{quoted(key_id)}")

    def unshare_knowledge(self, name: str, key_id: str) -> None:
        self.request("DELETE", f"/v1/knowledge/{quoted(name)}/readers/{quoted(key_id)}")

    def rebuild_knowledge(self, name: str) -> dict[str, Any]:
        """Fill its index anew; returns the job."""
        return self.request("POST", f"/v1/knowledge/{quoted(name)}/rebuild")  # type: ignore[no-any-return]

    def search(
        self,
        knowledge: Sequence[str],
        query: str,
        k: int | None = 8,
        *,
        notices: list[str] | None = None,
        **fields: Any,
    ) -> list[dict[str, Any]]:
        """Hits, best first. `notices` gets what a person should know of how the search was done."""
        body = {"knowledge": list(knowledge), "query": query, "k": k, **fields}
        found = self.request("POST", "/v1/knowledge/search", body)
        if notices is not None:
            notices.extend(found.get("notices") or [])
        return found["data"]  # type: ignore[no-any-return]


def _check(answer: httpx.Response) -> None:
    if not answer.is_error:
        return
    try:
        fault = answer.json()["error"]
    except (ValueError, KeyError, TypeError):
        fault = {"message": answer.text[:500] or f"HTTP {answer.status_code}"}
    raise ApiError(answer.status_code, fault)


def _events(answer: httpx.Response) -> Iterator[tuple[int | None, Any]]:
    """Parse text/event-stream (WHATWG HTML, 9.2). An event {"error": …} of the OpenAI routes becomes ApiError."""
    seq: int | None = None
    data: list[str] = []
    for line in _lines(answer):
        if line.startswith("data:"):
            data.append(line[5:].removeprefix(" "))
        elif line.startswith("id:"):
            seq = int(line[3:])
        elif not line and data:
            text, data = "\n".join(data), []
            if text == "[DONE]":
                return
            decoded = json.loads(text)
            if isinstance(decoded, dict) and isinstance(decoded.get("error"), dict) and "type" not in decoded:
                raise ApiError(502, decoded["error"])
            yield seq, decoded


def _lines(answer: httpx.Response) -> Iterator[str]:
    """Lines end at line feeds, as the format says; httpx's own also cuts at U+2028, U+0085 and others inside a text."""
    rest = b""
    for piece in answer.iter_bytes():
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            yield line.removesuffix(b"\r").decode()
    if rest:
        yield rest.decode()
