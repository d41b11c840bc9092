"""The store: what is here, under which name, and what is wrong with the rest."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mofang.errors import Conflict, Invalid, NotFound, Unreadable
from mofang.models.store import ModelStore, check_name, suggest_name
from mofang.settings import Settings
from mofang.wire import AddRequest
from stand_in import sha256, tiny_gguf

ECHO = {"name": "echo", "kind": "chat", "format": "gguf", "engine": "echo"}
Manifest = Callable[..., Path]


def test_an_empty_home_has_no_models(store: ModelStore, home: Path) -> None:
    assert store.list() == store.problems() == []
    assert not (home / "models").exists(), "looking changes nothing"


def test_a_manifest_without_weights_is_a_model(store: ModelStore, manifest: Manifest) -> None:
    """Engines of tests need no file: the manifest names the engine."""
    folder = manifest("echo", ECHO)
    (ref,) = store.list()
    assert (ref.name, ref.kind, ref.format, ref.path, ref.size_bytes) == ("echo", "chat", "gguf", folder, 0)
    assert ref.manifest["engine"] == "echo"
    assert store.facts(ref).architecture == "echo"
    assert store.memory(ref, 8192, 2).weights == 0


def test_add_refers_in_place(store: ModelStore, tmp_path: Path) -> None:
    path = tiny_gguf(tmp_path / "我的 模型-Q8_0.gguf")
    seen: list[tuple[int, int]] = []
    ref = store.add(path, progress=lambda done, total: seen.append((done, total)))
    assert (ref.name, ref.path, ref.managed, ref.kind) == ("我的-模型-Q8_0", path, False, "chat")
    assert ref.sha256 == sha256(path.read_bytes())
    assert ref.size_bytes == path.stat().st_size
    assert seen[-1] == (path.stat().st_size, path.stat().st_size)
    assert store.list() == [ref] == [store.get(ref.name)]
    store.remove(ref.name)
    assert path.exists(), "what was added in place is only forgotten"
    assert store.list() == []


def test_add_a_split_model_by_any_part(store: ModelStore, tmp_path: Path) -> None:
    one = tiny_gguf(tmp_path / "大-00001-of-00002.gguf")
    two = tiny_gguf(tmp_path / "大-00002-of-00002.gguf")
    ref = store.add(two)
    assert (ref.name, ref.path) == ("大", one)
    assert ref.size_bytes == one.stat().st_size + two.stat().st_size
    assert [file["name"] for file in ref.manifest["files"]] == [one.name, two.name]


def test_add_a_hugging_face_folder(store: ModelStore, tmp_path: Path) -> None:
    folder = tmp_path / "千问"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}')
    header = b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}'
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    ref = store.add(folder)
    assert (ref.format, ref.path, ref.kind) == ("hf", folder, "base")
    assert store.facts(ref).parameters == 1


@pytest.mark.parametrize(
    ("content", "code"),
    [(b"", "file_empty"), (os.urandom(5000), "not_gguf"), (None, "gguf_truncated")],
)
def test_add_refuses_what_is_no_model_and_leaves_nothing(
    store: ModelStore, home: Path, tmp_path: Path, content: bytes | None, code: str
) -> None:
    path = tmp_path / "坏.gguf"
    if content is None:
        content = tiny_gguf(tmp_path / "好.gguf").read_bytes()[:-1]
    path.write_bytes(content)
    with pytest.raises(Unreadable) as caught:
        store.add(path)
    assert caught.value.code == code
    assert not (home / "models").exists() or not list((home / "models").iterdir())


def test_add_refuses_other_files(store: ModelStore, tmp_path: Path) -> None:
    with pytest.raises(NotFound) as missing:
        store.add(tmp_path / "没有.gguf")
    assert missing.value.code == "no_such_file"
    (tmp_path / "weights.bin").write_bytes(b"x")
    for path in (tmp_path / "weights.bin", tmp_path):
        with pytest.raises(Unreadable) as caught:
            store.add(path)
        assert caught.value.code == "unknown_format"


def test_a_name_is_given_once(store: ModelStore, tmp_path: Path) -> None:
    path = tiny_gguf(tmp_path / "m.gguf")
    store.add(path)
    with pytest.raises(Conflict) as caught:
        store.add(path)
    assert caught.value.code == "model_exists"
    store.add(path, "另一个")
    assert [ref.name for ref in store.list()] == ["m", "另一个"]


@pytest.mark.parametrize("name", ["", "..", "../x", "a/b", ".hidden", "-x", "a b", "a\0b", "x" * 129, "C:\\x"])
def test_names_cannot_lead_out_of_the_folder(store: ModelStore, home: Path, tmp_path: Path, name: str) -> None:
    path = tiny_gguf(tmp_path / "m.gguf")
    (home / "models").mkdir()
    if name:
        with pytest.raises(Invalid) as caught:
            store.add(path, name)
        assert caught.value.code == "bad_name"
    for use in (store.get, store.remove, lambda name: store.resolve(name, "chat")):
        with pytest.raises(NotFound):
            use(name)
    assert home.exists()


@given(st.text(max_size=200))
def test_a_suggested_name_can_always_be_used(stem: str) -> None:
    name = suggest_name(Path("/模型") / (stem.replace("/", "").replace("\0", "") + ".gguf"))
    assert check_name(name) == name
    assert AddRequest(path="x", name=name).name == name


def test_get_names_the_nearest(store: ModelStore, manifest: Manifest) -> None:
    manifest("qwen-chinese", ECHO)
    with pytest.raises(NotFound) as caught:
        store.get("qwen-chines")
    assert caught.value.code == "model_not_found"
    assert "qwen-chinese" in caught.value.hint()
    with pytest.raises(NotFound) as caught:
        store.get("multilingual-e5-small")
    assert "mofang models pull multilingual-e5-small" in caught.value.hint()


def test_remove_deletes_what_is_ours(store: ModelStore, manifest: Manifest, home: Path) -> None:
    folder = manifest("m", {"name": "m", "file": "m.gguf"})
    tiny_gguf(folder / "m.gguf")
    store.remove("m")
    assert list((home / "models").iterdir()) == []


# ---- MOFANG_MODEL_PATH ----


@pytest.fixture
def shelf(tmp_path: Path) -> Path:
    folder = tmp_path / "已有的模型"
    (folder / "Qwen" / "Qwen3-GGUF").mkdir(parents=True)
    tiny_gguf(folder / "Qwen" / "Qwen3-GGUF" / "Qwen3-0.6B-Q8_0.gguf")
    tiny_gguf(folder / "bge.gguf", architecture="bert", template=None, pooling=2)
    tiny_gguf(folder / "mmproj-Qwen3.gguf")
    tiny_gguf(folder / "大-00001-of-00002.gguf")
    tiny_gguf(folder / "大-00002-of-00002.gguf")
    (folder / "说明.txt").write_text("不是模型")
    return folder


def _with(home: Path, *folders: Path) -> ModelStore:
    return ModelStore(Settings(home=home, model_path=os.pathsep.join(map(str, folders))))


def test_model_path_is_listed_and_never_written_to(home: Path, shelf: Path) -> None:
    store = _with(home, shelf)
    before = sorted(shelf.rglob("*"))
    refs = {ref.name: ref for ref in store.list()}
    assert set(refs) == {"Qwen3-0.6B-Q8_0", "bge", "大"}
    assert refs["bge"].kind == "embedding"
    assert all(not ref.managed and ref.sha256 is None for ref in refs.values())
    assert store.get("bge").path == shelf / "bge.gguf"
    with pytest.raises(Conflict) as caught:
        store.remove("bge")
    assert caught.value.code == "not_ours"
    assert sorted(shelf.rglob("*")) == before


def test_what_cannot_be_used_is_a_problem_and_not_hidden(home: Path, shelf: Path, manifest: Manifest) -> None:
    (shelf / "断.gguf").write_bytes((shelf / "bge.gguf").read_bytes()[:-10])
    (shelf / "乱.gguf").write_bytes(os.urandom(100))
    (shelf / "sub").mkdir()
    tiny_gguf(shelf / "sub" / "bge.gguf")
    manifest("broken", "{")
    manifest("gone", {"path": "/没有/这个.gguf"})
    manifest("thief", {"file": "../../../etc/passwd"})
    manifest("strange", {"format": "exe"})
    store = _with(home, shelf, home / "not there")
    assert {ref.name for ref in store.list()} == {"Qwen3-0.6B-Q8_0", "bge", "大"}
    codes = sorted(problem.code for problem in store.problems())
    assert codes == sorted(
        [
            "manifest_broken",
            "manifest_broken",
            "manifest_broken",
            "file_missing",
            "gguf_truncated",
            "not_gguf",
            "shadowed",
        ]
    )
    for lang in ("zh", "en"):
        assert all(problem.message(lang) and problem.hint(lang) for problem in store.problems())


def test_the_homes_model_wins_over_the_shelfs(home: Path, shelf: Path, manifest: Manifest) -> None:
    manifest("bge", ECHO)
    store = _with(home, shelf)
    assert store.get("bge").manifest["engine"] == "echo"
    assert [problem.code for problem in store.problems()] == ["shadowed"]


def test_headers_are_read_once_a_file(home: Path, shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = _with(home, shelf)
    before = store.list()
    monkeypatch.setattr("mofang.models.formats.gguf.read", lambda *_, **__: pytest.fail("read again"))
    assert store.list() == before


# ---- resolve ----


def _echo(manifest: Manifest, name: str, kind: str) -> None:
    manifest(name, {**ECHO, "name": name, "kind": kind})


def test_auto_without_models_says_what_to_type(store: ModelStore) -> None:
    with pytest.raises(NotFound) as caught:
        store.resolve("auto", "embedding")
    assert caught.value.code == "no_model_installed"
    assert "mofang models pull multilingual-e5-small" in caught.value.hint()


def test_auto_is_the_only_one(store: ModelStore, manifest: Manifest) -> None:
    _echo(manifest, "甲", "chat")
    _echo(manifest, "乙", "embedding")
    assert store.resolve("auto", "chat").name == "甲"
    assert store.resolve("auto", "embedding").name == "乙"


def test_auto_prefers_an_installed_default_in_order(store: ModelStore, manifest: Manifest) -> None:
    _echo(manifest, "aaa", "chat")
    _echo(manifest, "qwen2.5-coder-0.5b-instruct", "chat")
    assert store.resolve("auto", "chat").name == "qwen2.5-coder-0.5b-instruct"
    _echo(manifest, "qwen2.5-1.5b-instruct", "chat")
    assert store.resolve("auto", "chat").name == "qwen2.5-1.5b-instruct"


def test_auto_among_several_asks(store: ModelStore, manifest: Manifest) -> None:
    _echo(manifest, "甲", "chat")
    _echo(manifest, "丙", "chat")
    with pytest.raises(Invalid) as caught:
        store.resolve("auto", "chat")
    assert caught.value.code == "which_model"
    assert "甲" in caught.value.message()
    assert "MOFANG_CHAT_MODEL" in caught.value.hint()


def test_auto_is_the_setting(home: Path, manifest: Manifest) -> None:
    _echo(manifest, "甲", "chat")
    _echo(manifest, "qwen2.5-1.5b-instruct", "chat")
    assert ModelStore(Settings(home=home, chat_model="甲")).resolve("auto", "chat").name == "甲"
    with pytest.raises(NotFound):
        ModelStore(Settings(home=home, chat_model="没有")).resolve("auto", "chat")


@pytest.mark.parametrize(
    ("has", "wanted", "works"),
    [
        ("chat", "chat", True),
        ("base", "chat", True),
        ("embedding", "chat", False),
        ("chat", "embedding", False),
        ("reranker", "embedding", False),
        ("embedding", None, True),
    ],
)
def test_kinds(store: ModelStore, manifest: Manifest, has: str, wanted: Any, works: bool) -> None:
    _echo(manifest, "m", has)
    if works:
        assert store.resolve("m", wanted).name == "m"
        return
    with pytest.raises(Invalid) as caught:
        store.resolve("m", wanted)
    assert caught.value.code == "wrong_kind"


def test_a_manifest_is_never_half(store: ModelStore, tmp_path: Path) -> None:
    ref = store.add(tiny_gguf(tmp_path / "m.gguf"))
    folder = store.folder / "m"
    assert [path.name for path in folder.iterdir()] == ["manifest.json"]
    assert json.loads((folder / "manifest.json").read_text(encoding="utf-8")) == ref.manifest
    assert ref.manifest["manifest"] == 1


def test_a_folder_answers_unasked_only_where_there_is_nothing_else(
    home: Path, store: ModelStore, tmp_path: Path
) -> None:
    from mofang.engine import BY_FORMAT
    from mofang.models.formats import RUNNABLE

    assert set(BY_FORMAT) == set(RUNNABLE)
    folder = tmp_path / "trainable"
    folder.mkdir()
    (folder / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    (folder / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    (folder / "chat_template.jinja").write_text("{{ 1 }}")
    ref = store.add(folder)
    assert ref.kind == "chat" and ref.runnable and store.resolve("auto", "chat") == ref
    gguf = store.add(tiny_gguf(tmp_path / "m.gguf"))
    assert store.resolve("trainable", "chat") == ref and store.resolve("auto", "chat") == gguf


def test_a_folder_that_no_engine_reads_says_what_to_do(store: ModelStore, tmp_path: Path) -> None:
    for name, config in (
        ("scores", '{"architectures": ["BertForSequenceClassification"]}'),
        ("gptq", '{"architectures": ["LlamaForCausalLM"], "quantization_config": {"quant_method": "gptq"}}'),
    ):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text(config)
        (folder / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
        ref = store.add(folder)
        assert not ref.runnable
        with pytest.raises(Invalid) as raised:
            store.resolve(name, "reranker" if ref.kind == "reranker" else "chat")
        assert raised.value.code in ("not_runnable", "wrong_kind")


def test_a_run_and_its_name_stand_for_the_newest_model_they_led_to(
    manifest: Callable[..., Path], store: ModelStore
) -> None:
    for name, when, form in (
        ("old", "2026-01-01", "gguf"),
        ("new", "2026-02-01", "gguf"),
        ("folder", "2026-03-01", "hf"),
    ):
        made = {"runs": ["helper-1"], "recipe": {"name": "helper"}, "added_at": when, "format": form, "file": "m.gguf"}
        (manifest(name, made) / "m.gguf").write_bytes(b"")
    assert store.get("helper-1").name == store.get("helper").name == "new"
    folder = store.made_by("helper", "hf")
    assert folder is not None and folder.name == "folder"
    with pytest.raises(NotFound):
        store.get("helper-2")
