"""The way of a run to a file that answers: merged, converted, checked, found by the run's id. And what stops it."""

import asyncio
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import tiny_llama
from mofang.engine import ENGINES, toolchain
from mofang.engine.base import ChatEngine
from mofang.engine.pool import Pool
from mofang.errors import Conflict, Invalid, MissingSystem, MofangError, Unreachable, Unreadable
from mofang.export import answers, check, imports
from mofang.export import gguf as export
from mofang.launch import worker
from mofang.measure.evalset import Task
from mofang.messages import Message, Sampling
from mofang.models.formats import gguf as headers
from mofang.models.store import ModelStore
from mofang.recipes import parse
from mofang.recipes.pretrain import Pretrain
from mofang.recipes.sft import Sft
from mofang.runs import Run, Runs
from mofang.settings import Settings
from mofang.tokenizer import extend, load

Start = Callable[..., Run]


def test_types_that_are_none_or_need_a_tool_are_said_first(
    base: Path, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    for type_, error in (("q9_9", Invalid), ("q4_k_m", MissingSystem)):
        run = start("gguf", model="tiny", type=type_)
        with pytest.raises(error) as raised:
            export.run(run.recipe(), run)
    assert "llama-quantize" in raised.value.message()


def test_a_run_without_an_adapter_is_not_exported(home: Path, start: Start) -> None:
    training = Runs(home).create(parse(Sft, {"base": "tiny", "data": ["x"]}))
    run = start("gguf", model=training.id)
    with pytest.raises(Conflict) as raised:
        export.run(run.recipe(), run)
    assert raised.value.code == "no_adapter" and training.id in raised.value.hint()


def test_the_converters_refusal_is_an_error_and_leaves_nothing(
    converter: Path, base: Path, store: ModelStore, start: Start
) -> None:
    file = base / "tokenizer.json"  # nobody knows this one
    file.write_text(json.dumps({**json.loads(file.read_text()), "pre_tokenizer": {"type": "Whitespace"}}))
    run = start("gguf", model="tiny", type="f16")
    with pytest.raises(MofangError) as raised:
        export.run(run.recipe(), run)
    assert raised.value.code == "tool_failed" and str(run.log) in raised.value.hint()
    assert {ref.name for ref in store.list()} == {"tiny"} and not list(store.folder.glob(".export-*"))


def test_an_extended_tokenizer_is_converted_and_cuts_as_it_did(
    converter: Path, base: Path, store: ModelStore, start: Start
) -> None:
    words = ["系统安装系统安装", "系统"] * 3
    made = extend.extend(tiny_llama.tokenizer(), lambda: iter(words), extend.Plan(size=5))  # the model has 5 spare rows
    extend.save(made, base)
    run = start("gguf", model="tiny", type="f16", name="extended")
    export.run(run.recipe(), run)
    file = store.get("extended")
    assert headers.read(file.path).metadata["tokenizer.ggml.pre"] == "gpt-2"
    back = load(file.path)
    assert made.n_added == 5 and back.n_vocab == made.tokenizer.n_vocab
    for text in ("系统安装 the 系统", "<|im_end|>\n"):
        assert back.encode(text) == made.tokenizer.encode(text)
    assert file.manifest["checks"]["ids"] == "same"

    async def theirs(text: str) -> list[int]:
        engine = await ENGINES.get("llama")(
            file, Settings(home=store.settings.home, n_ctx=512, n_slots=1), progress=lambda _: None
        )
        try:
            found = await engine._post("/tokenize", {"content": text, "parse_special": True})
            return found["tokens"]
        finally:
            await engine.close()

    text = "系统安装 the 系统<|im_end|>装"
    assert asyncio.run(theirs(text)) == made.tokenizer.encode(text)


def test_source_that_is_not_the_pinned_one_is_refused(home: Path) -> None:
    target = toolchain.folder(home)
    target.mkdir()
    (target / f"llama_cpp_python-{toolchain.VERSION}.tar.gz").write_bytes(b"something else")
    with pytest.raises(Unreadable) as raised:
        toolchain.converter(home)
    assert raised.value.code == "wrong_source" and not (target / f"converter-{toolchain.VERSION}").exists()


def test_a_silent_index_is_said_with_where_to_put_the_archive(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (
        ("PIP_INDEX_URL", "http://127.0.0.1:9/simple"),
        ("PIP_RETRIES", "0"),
        ("PIP_CONFIG_FILE", os.devnull),
        ("PIP_FIND_LINKS", ""),
    ):
        monkeypatch.setenv(name, value)
    with pytest.raises(Unreachable) as raised:
        toolchain.archive(home)
    assert str(toolchain.folder(home)) in raised.value.hint() and not list(toolchain.folder(home).iterdir())


async def _says(store: ModelStore, name: str) -> str:
    pool = Pool(Settings(home=store.settings.home, n_ctx=512, n_slots=1), store)
    async with pool.use(name, "chat") as engine:
        assert isinstance(engine, ChatEngine)
        pieces = engine.chat([Message("user", "Who are you?")], Sampling(temperature=0.0, max_tokens=16))
        said = "".join([delta.content async for delta in pieces])
    await pool.close()
    return said


@pytest.mark.model
@pytest.mark.slow
def test_from_a_gguf_to_a_gguf_that_was_taught(
    smollm2: Path, converter: Path, store: ModelStore, home: Path, start: Start, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    store.add(smollm2, "smollm2")
    data = tmp_path / "pairs.jsonl"
    pair = {"instruction": "Who are you?", "output": "I am Mofang, the workshop of models."}
    data.write_text("\n".join([json.dumps(pair)] * 8))
    fields = {
        "base": "smollm2",
        "data": [str(data)],
        "name": "taught",
        "epochs": 6,
        "batch_size": 4,
        "learning_rate": 2e-3,
    }
    run = Runs(home).create(parse(Sft, {**fields, "export": "q8_0", "system_prompt": "Be brief."}))
    run.update(status="running")
    result = worker.call(Sft.worker, run.recipe(), run)
    made = store.get("taught-q8_0")
    assert result["model"] == made.name and store.get(run.id) == made == store.get("taught")
    assert made.manifest["runs"] == [run.id] and made.manifest["type"] == "q8_0" and made.kind == "chat"
    roles = [parent["role"] for parent in made.manifest["parents"]]
    assert roles == ["source"] and [p["role"] for p in store.get("taught-hf").manifest["parents"]] == [
        "base",
        "adapter",
    ]
    assert "Be brief." in (headers.facts(made.path).chat_template or "")

    who = Task("who", [Message("user", "Who are you?")], {})
    monkeypatch.setattr(answers, "prompts", lambda: [who])  # ten answers of a folder in PyTorch take minutes
    found = check.run((asked := start("check", model=run.id, n_tokens=48, speed=False)).recipe(), asked)
    assert found["passed"] and found["same_ids"] and found["same_template"]
    (said,) = found["answers"]
    assert "Mofang" in said["answer"] and "Mofang" in said["reference_answer"]
    (kept,) = store.get("taught").manifest["checks"]["against"]
    assert kept["passed"] is True and kept["reference"]["name"] == "taught-hf"

    # Without a merge, over the quantized file that the base was imported from, which the adapter itself remembers.
    said = {name: asyncio.run(_says(store, name)) for name in ("smollm2", "smollm2:taught")}
    assert "Mofang" in said["smollm2:taught"] and "Mofang" not in said["smollm2"]

    # The same base is not imported twice, and the same run is merged once.
    again = Runs(home).create(parse(Sft, {**fields, "max_steps": 1}))
    again.update(status="running")
    worker.call(Sft.worker, again.recipe(), again)
    f16 = start("gguf", model=run.id, type="f16")
    assert export.run(f16.recipe(), f16)["model"] == "taught-f16"
    assert {ref.name for ref in store.list() if ref.format == "hf"} == {"smollm2-hf", "taught-hf"}

    # A file that says something else than its source is found out.
    wrong = start("check", model="taught-f16", reference="smollm2-hf", n_tokens=48, answers=False, speed=False)
    with pytest.raises(MofangError) as raised:
        check.run(wrong.recipe(), wrong)
    assert raised.value.code == "check_failed"


@pytest.mark.model
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "fields, source",
    [
        ({"tune": "lora", "modules_to_save": ["embed_tokens", "lm_head"], "learning_rate": 1e-3}, "read-hf"),
        pytest.param({"tune": "layers", "layers": [0, -1], "learning_rate": 1e-3}, "read", marks=pytest.mark.soak),
    ],
    ids=["tied head", "own model"],
)
def test_what_was_pretrained_survives_the_export(
    fields: dict, source: str, smollm2: Path, converter: Path, store: ModelStore, home: Path, tmp_path: Path,
    start: Start,
) -> None:  # fmt: skip
    """A head that is the embedding is still that in the GGUF, and has learned what it was taught."""
    store.add(smollm2, "smollm2")
    text = tmp_path / "text.txt"
    text.write_text("模坊把开放的语言模型从头用到尾：看、教、合并、量化、服务。" * 8, encoding="utf-8")
    recipe = parse(
        Pretrain,
        {
            "base": "smollm2", "data": [str(text)], "name": "read", "epochs": 4, "max_length": 128, "export": "f16",
            **fields,
        },
    )  # fmt: skip
    run = Runs(home).create(recipe)
    run.update(status="running")
    result = worker.call(Pretrain.worker, run.recipe(), run)
    assert result["model"] == "read-f16" and result["last_loss"] < 0.7 * result["first_loss"]
    assert [parent["name"] for parent in store.get("read-f16").manifest["parents"]] == [source]
    config = json.loads((store.get(source).path / "config.json").read_text())
    assert config["tie_word_embeddings"]
    assert not any(tensor.name == "output.weight" for tensor in headers.read(store.get("read-f16").path).tensors)
    asked = start("check", model="read-f16", n_tokens=48, answers=False, speed=False)
    found = check.run(asked.recipe(), asked)
    assert found["passed"] and found["same_ids"]


@pytest.mark.model
@pytest.mark.slow
def test_an_export_that_is_killed_leaves_no_half_model(
    smollm2: Path, converter: Path, store: ModelStore, start: Start
) -> None:
    store.add(smollm2, "smollm2")
    importing = start("import", model="smollm2")
    imports.run(importing.recipe(), importing)
    run = start("gguf", model="smollm2-hf", type="f16")
    run.start()
    staging = store.folder / f".export-{run.id}"
    until = time.monotonic() + 120
    while not any(path.stat().st_size for path in staging.glob("*.gguf")):
        assert time.monotonic() < until and run.state().status == "running", run.tail()
        time.sleep(0.01)
    os.kill(run.state().pid, signal.SIGKILL)
    while run.state().status == "running":
        time.sleep(0.01)
    assert run.state().status == "interrupted"
    assert {ref.name for ref in store.list()} == {"smollm2", "smollm2-hf"} and store.problems() == []
    run.start()
    assert run.wait().status == "done", run.tail()
    assert store.get("smollm2-f16").manifest["made_by"]["run"] == run.id and not staging.exists()
