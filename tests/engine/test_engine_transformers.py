"""Hugging Face folders in PyTorch: what is said is what transformers' own generate() says, and a child may die."""

import os
import signal
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

import tiny_llama
from mofang.engine import ENGINES
from mofang.engine.transformers.engine import check
from mofang.engine.worker.generate import Slots, answer
from mofang.engine.worker.sample import Choices
from mofang.errors import EngineFailed, Invalid, Unreadable
from mofang.messages import Message, Sampling
from mofang.models.base import ModelRef
from mofang.models.formats import hf
from mofang.settings import Settings

PROMPT = "从前有座山 once upon a time 🙂"
OPTIONS = {"dtype": "float32", "device": "cpu", "trust_remote_code": False}


def _sizes(**more: Any) -> dict[str, Any]:
    return {"vocab_size": 262, "bos_token_id": 257, "eos_token_id": 259, "pad_token_id": None, **more}


def _llama() -> Any:
    from transformers import LlamaConfig

    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaConfig(**_sizes(**shape, num_key_value_heads=2, max_position_embeddings=512))


def _qwen2() -> Any:
    from transformers import Qwen2Config

    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    return Qwen2Config(**_sizes(**shape, num_key_value_heads=2, max_position_embeddings=512))


def _gptj() -> Any:
    from transformers import GPTJConfig

    return GPTJConfig(**_sizes(n_embd=32, n_layer=2, n_head=4, n_positions=512, rotary_dim=4))


def _neox() -> Any:
    from transformers import GPTNeoXConfig

    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    return GPTNeoXConfig(**_sizes(**shape, max_position_embeddings=512))


def _opt() -> Any:
    from transformers import OPTConfig

    shape = {"hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    return OPTConfig(**_sizes(**shape, word_embed_proj_dim=32, max_position_embeddings=512) | {"pad_token_id": 1})


FAMILIES: dict[str, Callable[[], Any]] = {
    "LLaMA": _llama,
    "Qwen2": _qwen2,
    "GPT-J": _gptj,
    "GPT-NeoX, Pythia": _neox,
    "OPT, GALACTICA": _opt,
}


def _core(folder: Path, **more: Any) -> Any:
    from mofang.engine.transformers.core import TransformersCore

    shape = {"path": str(folder), "model": "tiny", "n_ctx": 300, "n_slots": 2, "n_threads": 1}
    return TransformersCore({**shape, **OPTIONS, **more})


def _folder(folder: Path, config: Any, seed: int = 3) -> Path:
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():  # weights of a fresh model are so small that every answer would be alike
        for weight in model.parameters():
            if weight.dim() == 2:
                weight.normal_(0, 0.3)
    model.save_pretrained(folder)
    tiny_llama.tokenizer().save(folder)
    return folder


def _ids(core: Any, prompt: list[int], wanted: Choices, slots: Slots | None = None) -> tuple[list[int], str, Any]:
    """Token ids without the one that ends the answer, the text, and the last piece."""
    pieces = list(answer(core, slots or Slots(core), prompt, wanted, lambda: False))
    ids = [entry["id"] for piece in pieces for entry in (piece.get("logprobs") or {}).get("content", ())]
    return ids, "".join(piece.get("content", "") for piece in pieces), pieces[-1]


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_is_what_generate_says(family: str, tmp_path: Path) -> None:
    import torch

    core = _core(_folder(tmp_path / "m", FAMILIES[family]()))
    for prompt in (core.encode(PROMPT, special=True), core.encode(PROMPT * 5, special=True)):
        assert len(prompt) < 200
        expected = core._model.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=40, do_sample=False, pad_token_id=0,
        )[0, len(prompt) :].tolist()  # fmt: skip
        ended = expected[-1] in core.facts.end_ids
        ids, text, last = _ids(core, prompt, Choices(max_tokens=40, temperature=0, logprobs=True))
        assert ids == expected[: len(expected) - ended]
        assert len(set(ids)) > 3 and last["finish_reason"] == ("stop" if ended else "length")
        whole = core._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert text == whole.removesuffix("\ufffd")
    assert hf.facts(tmp_path / "m").n_layers == 2 and hf.facts(tmp_path / "m").n_ctx_train == 512


def test_a_prompt_in_pieces_or_from_the_cache_says_the_same(tmp_path: Path) -> None:
    core = _core(_folder(tmp_path / "m", _llama()))
    wanted, prompt = Choices(max_tokens=12, temperature=0, logprobs=True), core.encode(PROMPT * 5, special=True)
    assert len(prompt) > core.facts.batch  # two pieces
    slots = Slots(core)
    first, _, _ = _ids(core, prompt, wanted, slots)
    again, _, last = _ids(core, prompt, wanted, slots)
    assert again == first and last["usage"]["cached_tokens"] == len(prompt) - 1
    other = prompt[:50] + prompt[:60]
    _, _, last = _ids(core, other, wanted, slots)
    assert last["usage"]["cached_tokens"] == 50, "the slot that begins alike"
    assert _ids(core, other, wanted)[0] == _ids(core, other, Choices(**{**asdict(wanted), "cache_prompt": False}))[0]


def test_a_seed_repeats_a_sampled_answer(tmp_path: Path) -> None:
    core = _core(_folder(tmp_path / "m", _llama()))
    prompt = core.encode(PROMPT, special=True)

    def said(seed: int) -> list[int]:
        return _ids(core, prompt, Choices(max_tokens=30, temperature=1.0, seed=seed, logprobs=True))[0]

    assert said(7) == said(7) != said(8)


def test_whoever_leaves_stops_the_prompt_too(tmp_path: Path) -> None:
    from mofang.engine.worker.generate import Left

    core = _core(_folder(tmp_path / "m", _llama()))
    slots, asked = Slots(core), iter([False, True])
    with pytest.raises(Left):
        list(answer(core, slots, core.encode(PROMPT * 6, special=True), Choices(), lambda: next(asked)))
    assert slots.n_busy == 0


def test_pickled_weights_are_refused_in_words(tmp_path: Path) -> None:
    from mofang.engine.transformers.core import check_weights

    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(Unreadable) as raised:
        check_weights(tmp_path)
    assert raised.value.code == "pickled_weights" and "pytorch_model.bin" in raised.value.message("zh")


def test_the_manifest_says_only_what_is_known() -> None:
    assert check({}) == {"dtype": "auto", "device": "auto", "trust_remote_code": False}
    assert check({"trust_remote_code": True})["trust_remote_code"] is True
    with pytest.raises(Invalid) as raised:
        check({"trust_remot_code": True})
    assert "trust_remote_code" in raised.value.hint("en")
    with pytest.raises(Invalid) as raised:
        check({"dtype": "int3"})
    assert "bfloat16" in raised.value.hint("en")


async def test_a_killed_child_is_an_error_and_the_next_one_is_fresh(tmp_path: Path, home: Path) -> None:
    folder = tiny_llama.make(tmp_path / "tiny")
    ref = ModelRef("tiny", folder, "hf", "chat", hf.size_bytes(folder))
    load = ENGINES.get("transformers")
    sampling = Sampling(max_tokens=400, temperature=0, options={"ignore_eos": True})
    engine = await load(ref, Settings(home=home), progress=lambda progress: None)
    with pytest.raises(EngineFailed) as raised:
        async for delta in engine.chat([Message("user", "你好")], sampling):
            if delta.content:
                os.kill(engine.info().pid, signal.SIGKILL)
    assert raised.value.code == "engine_died" and raised.value.values["exit_code"] == -9
    assert not engine.alive()
    await engine.close()
    fresh = await load(ref, Settings(home=home), progress=lambda progress: None)
    with pytest.raises(Invalid) as refused:
        await anext(fresh.chat([Message("user", "你好")], Sampling(options={"grammar": "root ::= 'a'"})))
    assert refused.value.param == "grammar"
    assert [delta async for delta in fresh.chat([Message("user", "你好")], Sampling(max_tokens=2))][-1].usage
    await fresh.close()


async def test_an_embedder_is_refused_before_a_child_starts(tmp_path: Path, home: Path) -> None:
    ref = ModelRef("e", tmp_path, "hf", "embedding", 1)
    with pytest.raises(Invalid) as raised:
        await ENGINES.get("transformers")(ref, Settings(home=home), progress=lambda progress: None)
    assert raised.value.code == "kind_unknown"
