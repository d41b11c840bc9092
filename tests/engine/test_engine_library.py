"""llama.cpp as a library, in a process of its own: what it reads is what transformers computes, and what it frees."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import tiny_llama
from mofang.engine import build
from mofang.engine.llama import library
from mofang.engine.llama.native import Native
from mofang.engine.llama.wheel import Wheel
from mofang.settings import Settings

TEXT = "模坊 is a workshop.\n\n<|im_start|>user\n你好🙂<|im_end|>\n" * 4
READ = """
import json, sys
from pathlib import Path
import numpy as np
from mofang import settings
from mofang.engine.llama import library
library.mark_alone()
path, name = library.find(settings.load())
text, target = sys.argv[2], sys.argv[3]
with library.Model(library.load(path), Path(sys.argv[1]), n_ctx=128, n_threads=1) as model:
    ids = model.tokenize(text)
    blocks = list(model.read(ids[:100]))
    again = np.concatenate(list(model.read(ids[:100])))
    short = np.concatenate(list(model.read(ids[:40])))
    data = b"".join(map(model.data, ids))
    np.savez(target, ids=ids, rows=np.concatenate(blocks), again=again, short=short)
    print(json.dumps({"name": name, "data": data.decode(), "n_vocab": model.n_vocab, "n_blocks": len(blocks)}))
"""


def alone(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=120)


def test_what_it_reads_is_what_transformers_computes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from mofang.tokenizer import load

    folder = tiny_llama.make(tmp_path / "tiny")
    file = tiny_llama.write_gguf(folder, tmp_path / "tiny.gguf")
    done = alone(READ, str(file), TEXT, str(tmp_path / "read.npz"))
    assert done.returncode == 0 and not done.stderr, done.stderr  # llama.cpp's log is kept, not printed
    said, found = json.loads(done.stdout), np.load(tmp_path / "read.npz")
    assert said["data"] == TEXT and said["name"].startswith("xllamacpp ")
    ids = list(found["ids"])
    assert ids == load(file).encode(TEXT)
    with torch.no_grad():
        model = AutoModelForCausalLM.from_pretrained(folder)
        expected = torch.log_softmax(model(torch.tensor(ids[:100])[None]).logits[0].float(), -1).numpy()
    assert found["rows"].shape == expected.shape == (100, said["n_vocab"])
    assert np.abs(found["rows"] - expected).max() < 2e-2  # its cache of keys and values is float16
    assert np.array_equal(found["rows"], found["again"])  # each window from its beginning
    assert np.abs(found["short"] - found["rows"][:40]).max() < 2e-2
    assert (np.exp(expected) * (expected - found["rows"])).sum(-1).mean() < 1e-5
    assert np.exp(found["rows"].astype(float)).sum(-1) == pytest.approx(np.ones(100), abs=1e-5)


def test_blocks_are_bounded_by_bytes(tmp_path: Path) -> None:
    file = tiny_llama.write_gguf(tiny_llama.make(tmp_path / "tiny"), tmp_path / "tiny.gguf")
    small = READ.replace("library.mark_alone()", "library.mark_alone(); library.BLOCK_BYTES = 1")
    done = alone(small, str(file), TEXT, str(tmp_path / "small.npz"))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["n_blocks"] == -(-100 // library.BATCH[0])
    whole = alone(READ, str(file), TEXT, str(tmp_path / "whole.npz"))
    assert json.loads(whole.stdout)["n_blocks"] == 1
    rows = [np.load(tmp_path / f"{name}.npz")["rows"] for name in ("small", "whole")]
    assert (np.exp(rows[1]) * (rows[1] - rows[0])).sum(-1).mean() < 1e-5


def test_a_file_that_is_no_model_is_refused_with_llama_cpps_words(tmp_path: Path) -> None:
    path = tmp_path / "no.gguf"
    path.write_bytes(b"GGML, not GGUF")
    done = alone(READ, str(path), TEXT, str(tmp_path / "x.npz"))
    assert done.returncode == 1 and str(path) in done.stderr and "invalid magic" in done.stderr


def test_it_is_loaded_only_where_a_crash_takes_nothing_along(home: Path) -> None:
    assert library.find(Settings(home=home))[0].is_file()  # looking is free
    done = alone(READ.replace("library.mark_alone()", ""), "x", TEXT, "x")
    assert done.returncode == 1 and "RuntimeError" in done.stderr and "mark_alone" in done.stderr


def test_another_layout_of_its_structs_is_found_out_before_anything_is_set(tmp_path: Path) -> None:
    other = 'library.mark_alone(); library.CONTEXT = {**library.CONTEXT, "n_batch": (1, 4096)}'
    done = alone(READ.replace("library.mark_alone()", other), "x", TEXT, "x")
    assert done.returncode == 1 and "MissingSystem" in done.stderr and "1: 0x800" in done.stderr
    done = alone(READ.replace("library.load(path)", "library.load(Path(library.__file__))"), "x", TEXT, "x")
    assert done.returncode == 1 and "MissingSystem" in done.stderr


def test_a_build_linked_in_one_piece_leaves_the_wheels_library(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bin").mkdir()
    made = build.Build(tmp_path, "k", "s", "cpu", {}, "zig", "cpu", "c", "now", 1.0)
    monkeypatch.setattr(library, "choose", lambda home, wanted: Native(made))
    assert library.find(Settings(home=home)) == (Wheel().library(), f"xllamacpp {Wheel().version}")
    (tmp_path / "bin" / "libllama.so").touch()
    assert library.find(Settings(home=home)) == (tmp_path / "bin" / "libllama.so", "native k")
