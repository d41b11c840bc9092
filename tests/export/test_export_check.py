"""Two models compared: the figures against torch, limits, what is kept, the report and picture; and what is refused."""

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForCausalLM

import tiny_llama
from mofang.errors import Invalid, MissingExtra, MofangError, NotFound, TooLarge, Unreadable
from mofang.export import answers, check, paper, picture, readers, report
from mofang.measure import load_text
from mofang.models.store import ModelStore, digest, read_manifest, write_manifest
from mofang.platform import Memory
from mofang.recipes import parse
from mofang.recipes.sft import Sft
from mofang.runs import Run, Runs
from mofang.tokenizer import load

Start = Callable[..., Run]
QUICK: dict[str, Any] = {"n_tokens": 300, "answers": False, "speed": False}


@pytest.fixture
def models(base: Path, store: ModelStore, tmp_path: Path) -> ModelStore:
    """tiny (a folder) and what was made of it: tiny-f16, which says so, and tiny-q4, rounded coarsely."""
    for kind in ("F16", "Q4_0"):
        file = tiny_llama.write_gguf(base, tmp_path / f"{kind}.gguf", kind)
        store.add(file, f"tiny-{kind.lower().removesuffix('_0')}")
    made = store.folder / "tiny-f16"
    parent = {"role": "source", "name": "tiny", "format": "hf", "sha256": digest(store.get("tiny"))}
    write_manifest(made, {**read_manifest(made), "parents": [parent], "type": "f16"})
    return store


def checked(start: Start, model: str, **fields: Any) -> tuple[dict[str, Any], Run]:
    run = start("check", model=model, **{**QUICK, **fields})
    return check.run(run.recipe(), run), run


def test_figures_of_a_gguf_against_its_source_are_torchs(models: ModelStore, start: Start, base: Path) -> None:
    found, run = checked(start, "tiny-q4", reference="tiny", text=["text_en"])
    (one,) = found["texts"]
    # The same by hand: both in torch, the rounded weights taken from the file; one window of 300 byte tokens.
    cut = load(base)
    ids = cut.encode(load_text("text_en").text[:400])[:300]
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with torch.no_grad():
        theirs = torch.log_softmax(model(torch.tensor(ids)[None]).logits[0, :-1], -1).numpy()
    forced = theirs[np.arange(299), ids[1:]]
    assert one["n_tokens"] == 299 and one["truncated"] and found["same_ids"] and found["same_tokenizer"]
    assert one["reference_perplexity"] == pytest.approx(math.exp(-forced.mean()), rel=1e-4)
    n_bytes = sum(len(cut.backend.data(token)) for token in ids[1:])
    assert one["reference_bits_per_byte"] == pytest.approx(-forced.sum() / math.log(2) / n_bytes, rel=1e-3)
    assert one["mean_kl"] > 0.02 and one["median_kl"] < one["kl_p99"] <= one["kl_max"] and 0.3 < one["same_top"] < 1
    assert one["kl_error"] < one["mean_kl"] and one["same_top"] < one["same_top5"] + 0.3
    assert found["passed"] is None and "pass" not in (run.folder / report.FILE).read_text(encoding="utf-8").lower()
    assert found["reference"]["sha256"] == digest(models.get("tiny")) and found["readers"][0]["llama.cpp"]


def test_the_source_is_the_reference_where_none_is_named(models: ModelStore, start: Start) -> None:
    found, run = checked(start, "tiny-f16")
    assert found["reference"]["name"] == "tiny" and found["passed"] and found["limits"]["mean_kl"] == 0.005
    assert found["mean_kl"] < 1e-4 and found["same_top"] > 0.99 and found["same_template"] is True
    assert [one["text"] for one in found["texts"]] == ["text_zh", "text_en"]
    assert found["n_tokens"] == sum(one["n_tokens"] for one in found["texts"])
    (kept,) = models.get("tiny-f16").manifest["checks"]["against"]
    assert kept["run"] == run.id and kept["passed"] and kept["mean_kl"] == found["mean_kl"] and "answers" not in kept


def test_several_checks_live_side_by_side_and_a_repeated_one_replaces_itself(models: ModelStore, start: Start) -> None:
    checked(start, "tiny-f16")
    checked(start, "tiny-q4", reference="tiny-f16", text=["text_en"])
    checked(start, "tiny-q4", reference="tiny", text=["text_en"])
    _, last = checked(start, "tiny-q4", reference="tiny", text=["text_en"])
    kept = models.get("tiny-q4").manifest["checks"]["against"]
    assert [one["reference"]["name"] for one in kept] == ["tiny-f16", "tiny"] and kept[1]["run"] == last.id


def test_limits_of_ones_own_decide_and_the_figures_of_a_failure_are_kept(models: ModelStore, start: Start) -> None:
    found, _ = checked(start, "tiny-q4", reference="tiny", max_kl=10, min_top1=0.1)
    assert found["passed"] is True
    run = start("check", model="tiny-q4", reference="tiny", max_kl=0.001, **QUICK)
    with pytest.raises(MofangError) as raised:
        check.run(run.recipe(), run)
    assert raised.value.code == "check_failed" and raised.value.exit_code == 1
    assert "text_zh" in raised.value.message() and "0.001" in raised.value.message()
    (kept,) = models.get("tiny-q4").manifest["checks"]["against"]
    assert kept["passed"] is False and {one["figure"] for one in kept["failures"]} == {"mean_kl"}
    assert run.state().result["passed"] is False
    page = (run.folder / report.FILE).read_text(encoding="utf-8")
    assert page.index("没有通过") < page.index("## ") and (run.folder / picture.FILE).is_file()


def test_both_answer_and_are_timed_in_their_engines(
    models: ModelStore, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "busy", lambda: 0.9)
    found, run = checked(start, "tiny-q4", reference="tiny-f16", answers=True, speed=True)
    assert len(found["answers"]) == 10 and all(one["reference_answer"] is not None for one in found["answers"])
    assert any(one["ended"] is False for one in found["answers"])  # random weights do not know an end
    for side in ("speed", "reference_speed"):
        assert (
            found[side]["prompt_per_second"] > 0 and found[side]["predicted_per_second"] > 0 and found[side]["load_s"]
        )
    page = (run.folder / report.FILE).read_text(encoding="utf-8")
    assert page.startswith("# tiny-q4 对照 tiny-f16\n") and "没有结束" in page and found["answers"][0]["prompt"] in page
    with Image.open(run.folder / picture.FILE) as image:
        assert image.format == "PNG" and image.size == (picture.WIDTH * 2, picture.HEIGHT * 2)
    assert page.index("占了 90% 的处理器") < page.index("## ")  # figures that are too low are said to be
    kept = models.get("tiny-q4").manifest["checks"]["against"][0]
    assert kept["speed"] == found["speed"] and kept["busy"] == 0.9


def test_the_picture_compares_all_that_were_checked_against_the_same(models: ModelStore, start: Start) -> None:
    checked(start, "tiny-f16", text=["text_en"])
    checked(start, "tiny-f16")  # other texts: no point of the next picture
    found, run = checked(start, "tiny-q4", reference="tiny", text=["text_en"])
    points = picture.points(models.plain(), models.get("tiny-q4"), found)
    assert [one.name for one in points] == ["tiny-q4", "tiny-f16", "tiny"]
    assert [one.is_new for one in points] == [True, False, False] and points[2].is_reference and points[2].kl == 0
    assert points[0].kl == found["mean_kl"] > points[1].kl
    page = (run.folder / report.FILE).read_text(encoding="utf-8")
    assert "| 2 | tiny-f16 |" in page and f"({picture.FILE})" in page


def test_a_picture_without_chinese_letters_speaks_english(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paper, "PLACES", {})
    said: list[str] = []
    real = paper.Paper.text
    monkeypatch.setattr(paper.Paper, "text", lambda self, x, y, text, *more, **named: (
        said.append(text), real(self, x, y, text, *more, **named)))  # fmt: skip
    found = {"reference": {"name": "源"}, "texts": [{"text": "text_zh"}]}
    points = [
        picture.Point(1, "小的", 10**8, 0.05, 1.02, 30.0, is_new=True),
        picture.Point(2, "源", 10**9, 0.0, 1, None),
    ]
    picture.draw(points, tmp_path / "x.png", found)
    assert (tmp_path / "x.png").is_file() and "[1]" in said and all(text.isascii() for text in said)


def test_different_tokenizers_are_compared_by_bits_per_byte_alone(
    models: ModelStore, start: Start, tmp_path: Path
) -> None:
    other = tiny_llama.make(tmp_path / "other", seed=3)
    cut = tiny_llama.tokenizer(end="<|stop|>")
    cut.save(other)
    models.add(other, "other")
    found, run = checked(start, "tiny-f16", reference="other", text=["text_zh"])
    assert found["same_tokenizer"] is False and "mean_kl" not in found and found["ratio"] > 0
    assert any("分词器不同" in note for note in run.state().notes)
    assert "mean_kl" not in models.get("tiny-f16").manifest["checks"]["against"][0]
    run = start("check", model="tiny-f16", reference="other", max_kl=1, **QUICK)
    with pytest.raises(Invalid) as raised:
        check.run(run.recipe(), run)
    assert raised.value.code == "check_other_tokenizer" and "--max-kl" in raised.value.message()


def test_what_a_run_led_to_is_compared(models: ModelStore, start: Start, home: Path) -> None:
    run = Runs(home).create(parse(Sft, {"base": "tiny", "data": ["x"], "name": "taught"}))
    with pytest.raises(NotFound) as raised:
        checked(start, run.id, reference="tiny")
    assert raised.value.code == "run_made_nothing" and run.id in raised.value.hint()
    place = models.folder / "tiny-q4"
    write_manifest(place, {**read_manifest(place), "runs": [run.id]})
    found, _ = checked(start, run.id, reference="tiny", text=["text_en"])
    assert found["model"] == "tiny-q4"


def test_what_cannot_be_compared_is_said(
    models: ModelStore, start: Start, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short, binary = tmp_path / "short.txt", tmp_path / "gbk.txt"
    short.write_text("你", encoding="utf-8")
    binary.write_bytes("你好，模坊".encode("gbk"))
    cases: list[tuple[dict[str, Any], type[MofangError], str]] = [
        ({"model": "tiny-f16", "reference": "tinny"}, NotFound, "model_not_found"),
        ({"model": "tiny-q4"}, Invalid, "which_reference"),
        ({"model": "tiny-q4", "reference": "tiny-q4"}, Invalid, "check_itself"),
        ({"model": "tiny-f16", "text": ["text_zhh"]}, NotFound, "no_such_text"),
        ({"model": "tiny-f16", "text": [str(short)]}, Unreadable, "check_text_short"),
        ({"model": "tiny-f16", "text": [str(binary)]}, Unreadable, "not_utf8"),
    ]
    for fields, kind, code in cases:
        run = start("check", **{**QUICK, **fields})
        with pytest.raises(kind) as raised:
            check.run(run.recipe(), run)
        assert raised.value.code == code and raised.value.hint(), fields
        assert not (run.folder / report.FILE).exists()
    place = models.folder / "tiny-q4"
    write_manifest(place, {**read_manifest(place), "kind": "embedding"})
    with pytest.raises(Invalid) as raised:
        checked(start, "tiny-q4", reference="tiny")
    assert raised.value.code == "wrong_kind"
    with monkeypatch.context() as patch:
        patch.setattr(readers, "memory", lambda: Memory(1 << 30, 1 << 16))
        with pytest.raises(TooLarge) as large:
            checked(start, "tiny-f16")
    assert large.value.code == "check_too_large" and "--type f16" in large.value.hint()
    monkeypatch.setattr(readers, "has_module", lambda name: False)
    with pytest.raises(MissingExtra) as missing:
        checked(start, "tiny-f16")
    assert "mofang[train]" in missing.value.hint()


def test_a_model_of_no_numbers_is_found_out(models: ModelStore, start: Start, base: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(base / "model.safetensors")
    weights["model.norm.weight"][0] = float("nan")
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(MofangError) as raised:
        checked(start, "tiny-f16", reference="tiny")
    assert raised.value.code == "check_no_numbers"
    assert "checks" not in models.get("tiny-f16").manifest


def test_two_files_are_compared_without_torch() -> None:
    program = (
        "import sys, mofang.export.check; sys.exit(sum(name in sys.modules for name in ('torch', 'transformers')))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_what_models_said_cannot_leave_its_block() -> None:
    text = "```\n![x](http://example.com/x.png)\n````"
    block = report._verbatim(text)
    fence = block.splitlines()[0].removesuffix("text")
    assert fence not in text and block.endswith(fence) and json.dumps(text)[1:-1].count("`") == 7
