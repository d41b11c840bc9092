"""What every engine keeps, whatever is inside: one suite over all names of ENGINES.

Models cost seconds to load, so an engine lives as long as this module, in one event loop. TINY says how each engine
gets a model for it: real ones where there is none smaller, a machine that says one sentence for PyTorch, and for
`remote` a gateway of our own behind real HTTP.
"""

import asyncio
import importlib.util
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

import tiny_bert
import tiny_embedder
import tiny_machine
from fakes import install_model
from mofang.engine import ENGINES, build, engine_name
from mofang.engine.base import ChatEngine, Embedder, Engine, Kind, Reranker
from mofang.engine.build import Build
from mofang.errors import Invalid, TooLarge
from mofang.messages import Delta, Message, Progress, Sampling
from mofang.models.base import ModelRef
from mofang.settings import Settings

pytestmark = pytest.mark.asyncio(loop_scope="module")

CHAT = [
    "echo",
    "transformers",
    "remote",
    pytest.param("smollm2", marks=pytest.mark.model),
    pytest.param("qwen", marks=pytest.mark.model),
    pytest.param("llama_cpp", marks=pytest.mark.model),
    pytest.param("native", marks=pytest.mark.model),
]
ECHOES = {"echo", "remote"}
"""They say what they were told, and take no options: behind `remote` stands `echo`."""
EMBEDDERS = [
    "hash",
    "onnx",
    "sentence_transformers",
    *(pytest.param(name, marks=pytest.mark.model) for name in ("e5", "e5-llama")),
]
PREFIXES = {"query": "query: ", "passage": "passage: "}


def _ref(name: str, path: Path, kind: Kind, **manifest: Any) -> ModelRef:
    return ModelRef(name, path, "gguf", kind, path.stat().st_size if path.is_file() else 0, manifest=manifest)


async def _load(ref: ModelRef, home: Path, **settings: Any) -> Engine:
    heard: list[Progress] = []
    load = ENGINES.get(engine_name(ref))
    engine: Engine = await load(ref, Settings(home=home, **settings), progress=heard.append)
    assert heard and heard[-1].done == heard[-1].total
    return engine


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=CHAT)
async def chat(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ChatEngine]:
    home = tmp_path_factory.mktemp("home")
    with TINY.get(request.param, _real)(request, home) as ref:
        engine = await _load(ref, home, n_ctx=256, n_slots=2)
        assert isinstance(engine, ChatEngine) and engine.alive()
        assert engine.info().provider.startswith("native") == (request.param == "native")
        yield engine
        await engine.close()
        await engine.close()
        assert not engine.alive()


@contextmanager
def _real(request: pytest.FixtureRequest, home: Path) -> Iterator[ModelRef]:
    yield _ref(request.param, request.getfixturevalue(request.param), "chat")


@contextmanager
def _echo(request: pytest.FixtureRequest, home: Path) -> Iterator[ModelRef]:
    yield _ref("echo", home, "chat", engine="echo")


@contextmanager
def _machine(request: pytest.FixtureRequest, home: Path) -> Iterator[ModelRef]:
    folder = tiny_machine.make(home / "machine")
    yield replace(_ref("machine", folder, "chat"), format="hf", size_bytes=400_000)


@contextmanager
def _bindings(request: pytest.FixtureRequest, home: Path) -> Iterator[ModelRef]:
    if importlib.util.find_spec("llama_cpp") is None:
        pytest.skip("llama-cpp-python is not installed: pip install 'mofang[llama_cpp]'")
    yield _ref("bindings", request.getfixturevalue("smollm2"), "chat", engine="llama_cpp")


@contextmanager
def _native(request: pytest.FixtureRequest, home: Path) -> Iterator[ModelRef]:
    """The same engine as `llama` over the build for this machine."""
    made: Build = request.getfixturevalue("native")
    target = build.folder(home) / made.key
    target.mkdir(parents=True)
    (target / "bin").symlink_to(made.folder / "bin")
    replace(made, folder=target).with_proof({"passed": True})
    assert build.current(home)
    yield _ref("native-smollm2", request.getfixturevalue("smollm2"), "chat")


@contextmanager
def _gateway(request: pytest.FixtureRequest, home: Path) -> Iterator[ModelRef]:
    """Real HTTP to a gateway of our own with `echo` in it."""
    sys.path.insert(0, str(Path(__file__).parent.parent / "server"))
    from served import serving

    from mofang.server.backend import LocalBackend

    settings = Settings(home=home / "there", n_ctx=256, n_slots=2, port=0)
    install_model(settings.home, "far", echo={"n_slots": 2})
    with serving(LocalBackend(settings)) as gateway:
        remote = {"base_url": f"{gateway.url}/v1", "model": "far", "n_ctx": 256, "n_slots": 2}
        yield _ref("remote", home, "chat", engine="remote", remote=remote)


TINY = {"echo": _echo, "transformers": _machine, "llama_cpp": _bindings, "remote": _gateway, "native": _native}
"""How an engine gets its model; a name that is not here is a fixture with a real one, for `llama`."""


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=EMBEDDERS)
async def embedder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Embedder]:
    home = tmp_path_factory.mktemp("home")
    if request.param == "hash":
        ref = _ref("hash", home, "embedding", engine="hash")
    elif request.param == "onnx":
        tiny_bert.write(home / "tiny.gguf", reranker=False, n_ctx=512)
        ref = _ref("tiny", home / "tiny.gguf", "embedding")
    elif request.param == "sentence_transformers":
        folder = tiny_embedder.write(home / "tiny", max_seq_length=512, prompts={"query": "q: ", "document": "d: "})
        ref = replace(_ref("tiny", folder, "embedding"), format="hf")
    else:
        by = {"engine": "llama"} if request.param == "e5-llama" else {}
        ref = _ref("e5", request.getfixturevalue("e5"), "embedding", prefixes=PREFIXES, normalizer="nfkc", **by)
    engine = await _load(ref, home)
    assert isinstance(engine, Embedder)
    assert engine.info().engine == {"e5": "onnx", "e5-llama": "llama"}.get(request.param, request.param)
    yield engine
    await engine.close()


async def _all(deltas: AsyncIterator[Delta]) -> tuple[str, Delta]:
    """The text, and the last piece; every piece before it has no end in it."""
    pieces = [delta async for delta in deltas]
    assert all(piece.finish_reason is None and piece.usage is None for piece in pieces[:-1])
    return "".join(piece.content for piece in pieces), pieces[-1]


def _say(text: str) -> list[Message]:
    return [Message("user", text)]


async def test_every_engine_is_tried_here() -> None:
    assert set(ENGINES.names()) == {"llama", "hash", "onnx", "sentence_transformers", *TINY} - {"native"}, (
        "a new engine takes part in this suite"
    )


# ---- chat ----


async def test_usage_adds_up_and_the_prompt_is_counted_alike(chat: ChatEngine) -> None:
    messages = [Message("system", "你是助手。"), *_say("长城🙂有多长？")]
    text, last = await _all(chat.chat(messages, Sampling(max_tokens=8, temperature=0)))
    assert last.usage and last.timings and text
    assert last.usage.prompt_tokens == await _count(chat, messages)
    assert 1 <= last.usage.completion_tokens <= 8
    assert 0 <= last.usage.cached_tokens <= last.usage.prompt_tokens
    if chat.info().engine != "remote":
        assert "长城🙂有多长？" in await chat.render(messages)


async def _count(chat: ChatEngine, messages: list[Message]) -> int:
    """Tokens of the prompt; of a remote server that cannot count, what an answer's usage says."""
    try:
        return await chat.count_tokens(messages)
    except Invalid as error:
        assert chat.info().engine == "remote" and error.code == "remote_has_no"
    _, last = await _all(chat.chat(messages, Sampling(max_tokens=1)))
    assert last.usage
    return last.usage.prompt_tokens


async def test_tokens_pieces_and_back(chat: ChatEngine) -> None:
    text = "长城龘🙂 a"
    ids = await chat.tokenize(text)
    pieces = await chat.pieces(text)
    assert [token for token, _ in pieces] == ids
    assert b"".join(piece for _, piece in pieces).decode().strip() == text
    assert (await chat.detokenize(ids)).strip() == text
    assert await chat.detokenize([]) == ""
    with pytest.raises(Invalid) as caught:
        await chat.detokenize([ids[0], 1 << 30])
    assert caught.value.param == "tokens"
    with_special = await chat.tokenize(text, add_special=True)
    assert with_special[-len(ids) :] == ids or with_special[: len(ids)] == ids or ids == with_special[1:-1]


async def test_options_that_reach_the_prompt_are_counted(chat: ChatEngine) -> None:
    plain = await chat.count_tokens(_say("你好"))
    assert await chat.count_tokens(_say("你好"), options={"chat_template_kwargs": {"enable_thinking": False}}) == plain
    assert await chat.render(_say("你好"), options={}) == await chat.render(_say("你好"))


async def test_next_token_lists_the_likeliest_and_knows_the_one_asked_about(chat: ChatEngine) -> None:
    ids = await chat.tokenize("中国的首都是北京，北")
    step = await chat.next_token(ids[:-1], forced=ids[-1], n_top=5)
    assert step.forced is not None and step.forced <= 0
    logprobs = [candidate.logprob for candidate in step.top]
    assert 1 <= len(logprobs) <= 5 and logprobs == sorted(logprobs, reverse=True)
    for one in step.top:
        assert bytes(one.bytes).decode(errors="ignore") == one.text.replace("\ufffd", "")
    best = step.top[0]
    again = await chat.next_token(ids[:-1], forced=best.token_id, n_top=1)
    assert again.forced == pytest.approx(best.logprob, abs=1e-3)
    free = await chat.next_token(ids[:-1], n_top=5)
    assert free.forced is None and [c.token_id for c in free.top] == [c.token_id for c in step.top]


async def test_max_tokens_cuts_and_says_so(chat: ChatEngine) -> None:
    _, last = await _all(chat.chat(_say("请从一数到一百：一、二、三"), Sampling(max_tokens=3, temperature=0)))
    assert last.finish_reason == "length" and last.usage and last.usage.completion_tokens == 3


async def test_a_stop_word_ends_the_answer_and_is_not_in_it(chat: ChatEngine) -> None:
    whole, _ = await _all(chat.complete("一二三四五，一二三四五，一二三", Sampling(max_tokens=8, temperature=0)))
    assert len(whole) > 1
    stop = whole[1:3]
    text, last = await _all(
        chat.complete("一二三四五，一二三四五，一二三", Sampling(max_tokens=8, temperature=0, stop=(stop,)))
    )
    assert (text, last.finish_reason) == (whole[: whole.index(stop)], "stop")


async def test_characters_arrive_whole_wherever_the_answer_is_cut(chat: ChatEngine) -> None:
    rare, grammar = "你好🙂𠮷龘👍🏽完", {}
    if chat.info().engine == "llama":
        grammar = {"grammar": f'root ::= "{rare}"'}
    elif chat.info().engine not in ECHOES:  # what it says by itself
        rare, _ = await _all(chat.chat(_say(rare), Sampling(max_tokens=40, temperature=0)))
        assert "\ufffd" not in rare and rare
    for max_tokens in (1, 3, 5, 8, 13, 40):
        pieces = []
        async for delta in chat.chat(_say(rare), Sampling(max_tokens=max_tokens, temperature=0, options=grammar)):
            pieces.append(delta.content)  # noqa: PERF401
        assert rare.startswith("".join(pieces)), pieces
    assert "".join(pieces) == rare


async def test_the_same_seed_says_the_same(chat: ChatEngine) -> None:
    async def text(**choices: Any) -> str:
        return (await _all(chat.chat(_say("讲一个故事"), Sampling(max_tokens=12, **choices))))[0]

    assert await text(temperature=0) == await text(temperature=0)
    # cache_prompt off: a prompt computed in other batches rounds otherwise, and a sampled answer may then differ.
    options = {} if chat.info().engine in ECHOES else {"cache_prompt": False}
    assert await text(seed=7, temperature=1.0, options=options) == await text(seed=7, temperature=1.0, options=options)


async def test_too_long_a_prompt_is_refused_with_both_numbers(chat: ChatEngine) -> None:
    messages = _say("天地玄黄" * 400)
    with pytest.raises(Invalid) as caught:
        await anext(chat.chat(messages, Sampling()))
    assert caught.value.code == "context_length_exceeded" and caught.value.status == 400
    n_prompt = 1607 if chat.info().engine == "remote" else await chat.count_tokens(messages)  # "user" and 3 more
    assert caught.value.values == {"n_prompt": n_prompt, "n_ctx": 256}


async def test_what_is_not_known_is_refused_by_name(chat: ChatEngine) -> None:
    if chat.info().engine in ("echo", "llama"):
        pytest.skip("the gateway's own check stands before these")
    with pytest.raises(Invalid) as caught:
        await _all(chat.chat(_say("你好"), Sampling(max_tokens=2, options={"no_such_choice": 1})))
    assert "no_such_choice" in caught.value.message("zh")


async def test_an_answer_ends_where_the_context_ends(chat: ChatEngine) -> None:
    messages = _say("数数。" * 2)
    n_prompt = await _count(chat, messages)
    while n_prompt < 235:
        messages = _say(messages[0].text + "数" * max(1, (235 - n_prompt) // 4))
        n_prompt = await _count(chat, messages)
    if n_prompt >= 256:
        pytest.skip(f"the prompt grew to {n_prompt} tokens")
    options = {} if chat.info().engine in ECHOES else {"ignore_eos": True}
    _, last = await _all(chat.chat(messages, Sampling(max_tokens=100, temperature=0, options=options)))
    assert last.finish_reason == "length" and last.usage
    assert last.usage.prompt_tokens + last.usage.completion_tokens == 256


async def test_raw_text_and_token_ids_are_continued_alike(chat: ChatEngine) -> None:
    prompt = "从前有座山，山上有座庙"
    sampling = Sampling(max_tokens=6, temperature=0)
    text, last = await _all(chat.complete(prompt, sampling))
    ids = await chat.tokenize(prompt)
    again, same = await _all(chat.complete(ids, sampling))
    assert again == text and last.usage and same.usage
    assert last.usage.prompt_tokens == len(ids)


async def test_leaving_frees_the_place(chat: ChatEngine) -> None:
    """Both slots are left amid an answer four times; then both answer at once."""
    options = {} if chat.info().engine in ECHOES else {"ignore_eos": True}
    for _ in range(4):
        async with aclosing(chat.chat(_say("一二三四五六七八"), Sampling(max_tokens=300, options=options))) as deltas:  # type: ignore[type-var]
            async for delta in deltas:
                if delta.content:
                    break
    await _until(lambda: _idle(chat))
    both = [_all(chat.chat(_say("你好"), Sampling(max_tokens=2))) for _ in range(2)]
    assert len(await asyncio.wait_for(asyncio.gather(*both), 60)) == 2


async def test_a_cancelled_reader_frees_the_place(chat: ChatEngine) -> None:
    options = {} if chat.info().engine in ECHOES else {"ignore_eos": True}
    task = asyncio.create_task(_all(chat.chat(_say("一" * 30), Sampling(max_tokens=400, options=options))))
    await asyncio.sleep(0.3)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await _until(lambda: _idle(chat))


async def _idle(engine: Engine) -> bool:
    if busy := getattr(engine, "busy", None):  # in a worker of ours
        return await busy() == 0
    process = getattr(engine, "_process", None)
    return process is None or not any(slot["is_processing"] for slot in await process.request("GET", "/slots"))


async def _until(holds: Callable[[], Any], seconds: float = 20.0) -> float:
    loop = asyncio.get_running_loop()
    began = loop.time()
    while not await holds():
        assert loop.time() - began < seconds, "still busy"
        await asyncio.sleep(0.01)
    return loop.time() - began


# ---- embeddings ----

TEXTS = ["长城是中国古代的军事防御工程", "The Great Wall of China", "🙂🙂", "ＡＢＣ　全角", "一" * 200, "今天天气很好"]


async def test_rows_have_length_one_and_keep_their_order(embedder: Embedder) -> None:
    many = await embedder.embed(TEXTS * 4, "passage")
    assert many.shape == (24, embedder.dimensions) and many.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(many, axis=1), 1.0, atol=1e-5)
    for number, text in enumerate(TEXTS):
        (alone,) = await embedder.embed([text], "passage")
        # Not bit for bit: with 4-bit weights the kernels round otherwise in another batch, up to 1.4e-3 a component.
        assert np.all(many[number::6] @ alone > 1 - 1e-3)


async def test_no_texts_are_no_rows(embedder: Embedder) -> None:
    assert (await embedder.embed([], "query")).shape == (0, embedder.dimensions)


async def test_likeness_is_nearness(embedder: Embedder) -> None:
    near, far = await embedder.embed(["长城是古代的防御工程", "红烧肉要先焯水再炖"], "passage")
    (query,) = await embedder.embed(["长城是什么工程"], "query")
    assert query @ near > query @ far


async def test_too_long_a_text_is_named(embedder: Embedder) -> None:
    n_ctx = embedder.info().n_ctx
    with pytest.raises(TooLarge) as caught:
        await embedder.embed(["短", "城墙，" * n_ctx], "passage")
    values = caught.value.values
    assert values["number"] == 1 and values["n_ctx"] == n_ctx < values["n_tokens"]


async def test_two_callers_at_once_get_their_own(embedder: Embedder) -> None:
    apart = [await embedder.embed([text], "query") for text in TEXTS[:2]]
    together = await asyncio.gather(*(embedder.embed([text] * 5, "query") for text in TEXTS[:2]))
    for one, five in zip(apart, together, strict=True):
        assert np.all(five @ one[0] > 1 - 1e-3)


# ---- rerank ----


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def reranker(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Reranker]:
    """A tiny one with random weights: it keeps the contract, and knows nothing."""
    home = tmp_path_factory.mktemp("home")
    tiny_bert.write(home / "tiny.gguf", reranker=True)
    engine = await _load(_ref("tiny", home / "tiny.gguf", "reranker"), home)
    assert isinstance(engine, Reranker)
    yield engine
    await engine.close()


async def test_scores_follow_the_documents(reranker: Reranker) -> None:
    documents = ["def", "长城", "天气 abc", ""]
    scores = await reranker.rerank("长城", documents)
    assert len(scores) == 4 and len(set(scores)) == 4
    backwards = await reranker.rerank("长城", documents[::-1])
    np.testing.assert_allclose(backwards, scores[::-1], atol=1e-4)
    assert await reranker.rerank("长城", []) == []


async def test_too_long_a_document_is_named(reranker: Reranker) -> None:
    with pytest.raises(TooLarge) as caught:
        await reranker.rerank("长城", ["短", "天 " * 200])
    assert caught.value.values["number"] == 1 and caught.value.values["n_tokens"] > 200


# ---- all ----


async def test_closing_twice_is_closing_once(tmp_path: Path) -> None:
    for name, kind in (("echo", "chat"), ("hash", "embedding")):
        engine = await _load(_ref(name, tmp_path, kind, engine=name), tmp_path)  # type: ignore[arg-type]
        assert engine.alive() and engine.info().engine == name
        await engine.close()
        await engine.close()
        assert not engine.alive()
