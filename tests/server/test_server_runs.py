"""Trainings over HTTP: forms, faults, files of examples, runs; and what lies below the text."""

import json
from pathlib import Path

import pytest
from rich.cells import cell_len
from served import Gateway, serving, wait_until

import tiny_llama
from fakes import FakeLibrary, FakePool
from mofang import runs
from mofang.client import ApiError
from mofang.models.store import ModelStore
from mofang.recipes import EXPORTERS, LAUNCHERS, METHODS, TOKENIZERS, parse, recipe_class
from mofang.recipes.launchers import Torchrun
from mofang.server.backend import LocalBackend
from mofang.settings import Settings

GOOD = b'{"instruction": "\xe9\x97\xae", "output": "\xe7\xad\x94"}\n'


def test_every_form_has_words_in_both_languages(gateway: Gateway) -> None:
    for lang in ("zh", "en"):
        with gateway.client(lang=lang) as client:
            found, launchers = client.recipes(), client.launchers()
        assert list(found) == [*METHODS, *EXPORTERS, *TOKENIZERS]
        told = {kind: (found[kind]["training"], found[kind]["exports"]) for kind in ("sft", "merge", "extend")}
        assert told == {"sft": (True, False), "merge": (False, True), "extend": (False, False)}
        fields = found["sft"]["schema"]["properties"]
        for one in found.values():
            for field in one["schema"]["properties"].values():
                assert field["help"] and 0 < cell_len(field["title"]) <= 26, "a name fits above its widget"
        assert fields["lora_targets"]["default"] == ["all-linear"]
        assert fields["lora_rank"]["default"] == 16 and ("秩" in fields["lora_rank"]["help"]) is (lang == "zh")
        assert list(launchers) == list(LAUNCHERS) and launchers["local"]["schema"]["properties"] == {}
        processes = launchers["torchrun"]["schema"]["properties"]["processes"]
        assert processes["default"] == 0 and ("进程" in processes["title"]) is (lang == "zh")


def test_a_recipe_with_faults_comes_back_with_all_of_them(gateway: Gateway) -> None:
    with gateway.client() as client, pytest.raises(ApiError) as raised:
        client.start_run("sft", {"base": "echo", "epochs": 0, "lora_rnak": 2})
    assert raised.value.status == 400
    for part in ("data", "epochs", "lora_rank"):
        assert part in raised.value.message()


def test_the_missing_extra_is_named_with_the_pip_line(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "has_module", lambda name: False)
    with gateway.client() as client, pytest.raises(ApiError) as raised:
        client.start_run("sft", {"base": "echo", "data": ["x.jsonl"]})
    assert (raised.value.status, raised.value.code) == (501, "missing_extra") and "mofang[train]" in raised.value.hint()


def test_a_launcher_is_for_trainings(gateway: Gateway, home: Path) -> None:
    for kind, recipe, launcher, code in (
        ("merge", {"model": "x"}, {"launcher": "torchrun"}, "not_launched"),
        ("sft", {"base": "echo", "data": ["x.jsonl"]}, {"launcher": "torchrum"}, "unknown_name"),
        ("sft", {"base": "echo", "data": ["x.jsonl"]}, {"launcher": "torchrun", "processes": -1}, "faults"),
    ):
        with gateway.http() as http:
            answer = http.post("/v1/runs", json={"kind": kind, "recipe": recipe, "launcher": launcher})
        assert answer.status_code in (400, 404) and answer.json()["error"]["code"] == code
    assert runs.Runs(home).list() == []


def test_a_run_goes_on_with_the_launcher_that_is_said(
    gateway: Gateway, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = runs.Runs(home).create(parse(recipe_class("sft"), {"base": "echo", "data": ["x.jsonl"]}))
    monkeypatch.setattr(runs, "need", lambda *_: None)
    started = []
    monkeypatch.setattr(runs.Run, "start", lambda run, launcher=None: started.append(launcher))
    with gateway.client() as client:
        assert client.run(run.id)["launcher"] == {"launcher": "local"}
        client.resume_run(run.id)
        client.resume_run(run.id, {"launcher": "torchrun", "processes": 2})
        (run.folder / "launcher.yaml").write_text(Torchrun(processes=2).as_yaml(), encoding="utf-8")
        assert client.run(run.id)["launcher"]["processes"] == 2
        client.resume_run(run.id, {"processes": 3})
        with pytest.raises(ApiError) as raised:
            client.resume_run(run.id, {"proceses": 3})
    with gateway.http() as http:
        assert http.post(f"/v1/runs/{run.id}/resume").status_code == 202, "a body is not asked for"
    assert started == [None, Torchrun(processes=2), Torchrun(processes=3), None]
    assert raised.value.status == 400 and "processes" in raised.value.message()


def test_files_of_examples_are_read_before_they_are_kept(gateway: Gateway, home: Path) -> None:
    with gateway.client() as client:
        assert client.datasets() == []
        assert client.add_datasets([("问答.jsonl", GOOD * 3)]) == [{"name": "问答.jsonl", "n_examples": 3}]
        for name, content, code in (
            ("坏.jsonl", GOOD + b'{"instruction": "", "output": "x"}', "bad_row"),
            ("a.png", GOOD, "unknown_suffix"),
            ("b.jsonl", b"{", "not_json"),
        ):
            with pytest.raises(ApiError) as raised:
                client.add_datasets([("new.jsonl", GOOD), (name, content)])
            assert raised.value.code == code and name in raised.value.message()
            assert "uploads" not in raised.value.message()
        assert [one["name"] for one in client.datasets()] == ["问答.jsonl"]
        client.add_datasets([("问答.jsonl", GOOD)])
    assert (home / "datasets" / "问答.jsonl").read_bytes() == GOOD


def test_names_lead_out_of_no_folder(gateway: Gateway) -> None:
    with gateway.http() as http:
        assert http.get("/v1/datasets/..%2Fserver.db/preview").status_code == 404
        answer = http.post("/v1/datasets", files=[("files", ("../../up.jsonl", GOOD))])
    assert answer.json()["data"][0]["name"] == "up.jsonl"


def test_a_preview_shows_what_is_learned(gateway: Gateway, home: Path, tmp_path: Path) -> None:
    ModelStore(Settings(home=home)).add(tiny_llama.make(tmp_path / "tiny"), "tiny")
    with gateway.client() as client:
        client.add_datasets([("a.jsonl", GOOD * 5)])
        found = client.preview_dataset("a.jsonl", "tiny")
    assert (found["n_rows"], found["n_examples"], found["n_cut"], len(found["examples"])) == (5, 5, 0, 3)
    assert [part["text"] for part in found["examples"][0]["segments"] if part["learned"]] == ["答<|im_end|>"]


def test_what_a_run_left_for_people_is_served_and_nothing_else(gateway: Gateway, home: Path) -> None:
    run = runs.Runs(home).create(parse(recipe_class("check"), {"model": "tiny"}))
    (run.folder / "report.md").write_text("# 报告\n", encoding="utf-8")
    (run.folder / "picture.png").write_bytes(b"\x89PNG")
    with gateway.http() as http:
        page = http.get(f"/v1/runs/{run.id}/files/report.md")
        assert page.text == "# 报告\n" and page.headers["content-type"] == "text/markdown; charset=utf-8"
        assert http.get(f"/v1/runs/{run.id}/files/picture.png").headers["content-type"] == "image/png"
        for name in ("recipe.yaml", "state.json", "log.txt", "..%2Fserver.db", "%2Fetc%2Fpasswd"):
            assert http.get(f"/v1/runs/{run.id}/files/{name}").status_code == 404
    (run.folder / "report.md").unlink()
    with gateway.client() as client:
        assert client.run_file(run.id, "picture.png") == b"\x89PNG"
        with pytest.raises(ApiError) as raised:
            client.run_file(run.id, "report.md")
    assert (raised.value.status, raised.value.code) == (404, "no_file")


@pytest.mark.parametrize(("lang", "said"), [("en", "no model"), ("zh", "没有")])
def test_a_run_speaks_the_language_of_who_starts_it(gateway: Gateway, lang: str, said: str) -> None:
    with gateway.client(lang=lang) as client:
        run = client.start_run("check", {"model": "无此模型"})["id"]
        wait_until(lambda: client.run(run)["status"] == "failed", timeout_s=60)
        assert said in client.run(run)["error"]["message"].lower()
        client.resume_run(run)
        wait_until(lambda: client.run(run)["status"] == "failed", timeout_s=60)
        assert said in client.run(run)["error"]["message"].lower()


@pytest.mark.slow
def test_a_training_from_start_to_end(gateway: Gateway, home: Path, tmp_path: Path) -> None:
    ModelStore(Settings(home=home)).add(tiny_llama.make(tmp_path / "tiny"), "tiny")
    with gateway.client() as client:
        client.add_datasets([("a.jsonl", GOOD * 8)])
        recipe = {
            "base": "tiny",
            "data": ["a.jsonl"],
            "name": "课",
            "batch_size": 2,
            "epochs": 300,
            "eval_fraction": 0.25,
        }
        started = client.start_run("sft", recipe)
        assert started["status"] == "running" and client.runs(training=True)[0]["id"] == started["id"]
        wait_until(lambda: len(client.run_metrics(started["id"])) > 4, timeout_s=120)
        with pytest.raises(ApiError) as running:
            client.remove_run(started["id"])
        assert running.value.status == 409
        stopped = client.stop_run(started["id"])
        assert stopped["status"] == "stopped"
        before = client.run_metrics(started["id"])
        assert client.resume_run(started["id"])["status"] == "running"
        wait_until(lambda: len(client.run_metrics(started["id"])) > len(before), timeout_s=120)
        client.stop_run(started["id"])
        assert client.run_metrics(started["id"])[: len(before)] == before
        found = client.run(started["id"])
        assert found["recipe"]["data"] == [str(home / "datasets" / "a.jsonl")] and "样例预览" in found["log"]
        assert client.runs(training=False) == []
        client.remove_run(started["id"])
        assert client.runs() == []
        with pytest.raises(ApiError) as gone:
            client.run(started["id"])
        assert gone.value.status == 404


@pytest.mark.slow
def test_a_tokenizer_is_extended_by_a_run(gateway: Gateway, home: Path, tmp_path: Path) -> None:
    ModelStore(Settings(home=home)).add(tiny_llama.make(tmp_path / "tiny"), "tiny")
    with gateway.client() as client:
        client.add_datasets([("文.txt", "人工智能会写诗，数据要备份。\n".encode() * 40)])
        started = client.start_run("extend", {"model": "tiny", "texts": ["文.txt"], "new_tokens": 8, "name": "诗"})
        wait_until(lambda: client.run(started["id"])["status"] == "done", timeout_s=60)
        found = client.run(started["id"])
        assert found["recipe"]["texts"] == [str(home / "datasets" / "文.txt")]
        assert found["result"]["n_added"] == 8 and found["result"]["card"]["speed_up"] > 1 and found["model"] is None
        assert [one["id"] for one in client.runs(kind="extend")] == [started["id"]]
        assert client.runs(kind="resize") == client.runs(training=True) == []


def test_from_other_machines_nothing_is_started(home: Path, pool: FakePool, library: FakeLibrary) -> None:
    settings = Settings(home=home, host="0.0.0.0", api_key="k")
    with serving(LocalBackend(settings, engines=pool, library=library), key="k") as gateway, gateway.client() as client:
        with pytest.raises(ApiError) as raised:
            client.start_run("sft", {"base": "x", "data": ["/etc/passwd"]})
        assert raised.value.status == 403 and client.runs() == []


def test_below_the_text(gateway: Gateway) -> None:
    with gateway.client() as client:
        assert client.tokenize("你好", "echo") == [ord("你"), ord("好")]
        found = client.next_token("x", "echo", forced=5, n_top=1)
        assert found["forced"] == -2.0 and found["top"] == [{"token_id": 65, "text": "A", "logprob": -0.5, "bytes": []}]
        with pytest.raises(ApiError):
            client.next_token("", "echo")
    assert json.dumps(found)
