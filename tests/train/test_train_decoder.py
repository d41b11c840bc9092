"""The fast path gives what the model's own modules give, states and gradients; what it does not fit goes another way."""

import copy
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GemmaConfig,
    GPTJConfig,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    Qwen2Config,
    Qwen3Config,
)
from transformers.utils import logging

from mofang.data.encode import Example
from mofang.train import attention, kernels, lora, loss, machine
from mofang.train.decoder import Decoder, fitting
from mofang.train.forward import Forward, _laid, _shared

CPU = torch.device("cpu")
SMALL: dict[str, Any] = {
    "vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "bos_token_id": 1,
    "eos_token_id": 2, "max_position_embeddings": 128, "initializer_range": 0.2,
}  # fmt: skip
LLAMA = {**SMALL, "intermediate_size": 48, "num_key_value_heads": 2}
CONFIGS: dict[str, tuple[Any, str]] = {
    # model → (its configuration, the way it goes)
    "llama": (LlamaConfig(**LLAMA), "fast"),
    "llama, tied, biases": (
        LlamaConfig(**LLAMA, tie_word_embeddings=True, attention_bias=True, mlp_bias=True),
        "fast",
    ),
    "qwen2": (Qwen2Config(**LLAMA), "fast"),
    "qwen3": (Qwen3Config(**LLAMA, head_dim=16), "fast"),
    "mistral": (MistralConfig(**LLAMA), "fast"),
    "mistral, a window shorter than the examples": (MistralConfig(**LLAMA, sliding_window=8), "apart"),
    "gemma": (GemmaConfig(**LLAMA, head_dim=8, pad_token_id=0), "plain"),
    "gemma2": (Gemma2Config(**LLAMA, head_dim=8, pad_token_id=0), "apart"),
    "gpt_neox": (GPTNeoXConfig(**SMALL, intermediate_size=48), "plain"),
    "gptj": (
        GPTJConfig(
            vocab_size=96, n_embd=32, n_layer=2, n_head=4, rotary_dim=4, n_positions=128, bos_token_id=1, eos_token_id=2
        ),
        "apart",  # its head has a bias
    ),
    "opt": (
        OPTConfig(
            vocab_size=96, hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4, word_embed_proj_dim=32,
            max_position_embeddings=128, init_std=0.2, dropout=0.0,
        ),
        "plain",
    ),
}  # fmt: skip


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    yield
    logging.set_verbosity(before)


def model(name: str, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    made = AutoModelForCausalLM.from_config(copy.deepcopy(CONFIGS[name][0]), attn_implementation=attention.install())
    with torch.no_grad():
        for parameter in made.parameters():  # norms of ones and biases of zeros would hide what is forgotten
            parameter.add_(0.05 * torch.randn_like(parameter))
    return made


def examples(*lengths: int) -> list[Example]:
    drawn = np.random.default_rng(0)
    found = []
    for length in lengths:
        mask = np.arange(length) >= length // 3
        found.append(Example(drawn.integers(3, 96, length).astype(np.int32), mask, "a.jsonl", 1, False))
    return found


def plain_loss(made: Any, rows: list[Example]) -> torch.Tensor:
    """By transformers alone, example by example."""
    total = torch.zeros(())
    for row in rows:
        ids = torch.from_numpy(row.ids).long()[None]
        logits = made(input_ids=ids, use_cache=False).logits[0, :-1]
        mask = torch.from_numpy(row.mask[1:])
        total = total + F.cross_entropy(logits[mask], ids[0, 1:][mask], reduction="sum")
    return total


@pytest.mark.parametrize("tune", ["lora", "full"])
@pytest.mark.parametrize("name", CONFIGS)
def test_every_architecture_trains_as_transformers_would(name: str, tune: str) -> None:
    made, reference = model(name), model(name)
    reference.set_attn_implementation("eager")
    for each in (made, reference):
        if tune == "lora":
            lora.add(each, ["all-linear"], rank=3, alpha=6.0, dropout=0.0, seed=1)
            with torch.no_grad():
                for number, parameter in enumerate(lora.parameters(each)):
                    torch.manual_seed(number)
                    parameter.copy_(0.1 * torch.randn_like(parameter))
    rows = examples(13, 5, 9)
    forward = Forward.of(made, CPU, torch.float32, False, kernels.PLAIN, longest=13)
    assert forward.path == CONFIGS[name][1]
    for each in (made, reference):
        each.train()
    ours, theirs = forward.loss(rows), plain_loss(reference, rows)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    ours.backward()
    theirs.backward()
    wanted = dict(reference.named_parameters())
    trained = [(name, parameter) for name, parameter in made.named_parameters() if parameter.requires_grad]
    assert len(trained) == sum(parameter.requires_grad for parameter in wanted.values()) > 0
    for parameter_name, parameter in trained:
        torch.testing.assert_close(
            parameter.grad, wanted[parameter_name].grad, rtol=2e-3, atol=2e-4, msg=parameter_name
        )


@pytest.mark.parametrize("name", CONFIGS)
def test_memory_is_estimated_for_every_architecture(name: str) -> None:
    def needed(**told: Any) -> int:
        shape = {"lora_rank": 8, "row_tokens": 512, "longest": 128, "item": 2, "n_whole": 0, "fast": False, **told}
        return machine.needed_bytes(CONFIGS[name][0], 10_000_000, **shape)

    assert needed() > 10_000_000 * 2
    assert needed(fast=True) < needed() < needed(row_tokens=1024)
    assert needed() < needed(longest=512) and needed() < needed(n_whole=10_000_000)


def test_the_fast_path_honours_a_base_without_its_companions_and_leaves_one_copy_of_the_weights() -> None:
    made = model("llama")
    plain = Forward(made, CPU, torch.float32, mixed=False).loss(examples(9, 6))
    lora.add(made, ["q_proj", "down_proj"], rank=2, alpha=4.0, dropout=0.0, seed=1)
    with torch.no_grad():
        for parameter in lora.parameters(made):
            parameter.fill_(0.1)
    fast = Forward.of(made, CPU, torch.float32, False, kernels.PLAIN, longest=9)
    assert fast.decoder
    assert not torch.isclose(fast.loss(examples(9, 6)), plain)
    with lora.off(made):
        torch.testing.assert_close(fast.loss(examples(9, 6)), plain)
    attended = made.base_model.layers[0].self_attn
    first = attended.q_proj.base.weight.untyped_storage().data_ptr()
    assert attended.k_proj.weight.untyped_storage().data_ptr() == first


def test_what_is_trained_in_another_way_does_not_take_it() -> None:
    for kind in ({"dropout": 0.1}, {"dropout": 0.0, "dora": True}):
        made = model("llama")
        lora.add(made, ["all-linear"], rank=2, alpha=4.0, seed=1, **kind)
        assert fitting(made, torch.float32, kernels.PLAIN) is None
        assert Forward.of(made, CPU, torch.float32, False, kernels.PLAIN, longest=9).path == "plain"


def test_a_model_that_looks_like_it_and_computes_otherwise_does_not_take_it() -> None:
    made = model("llama")
    made.base_model.norm.register_forward_hook(lambda module, given, out: out * 2)
    assert fitting(made, torch.float32, kernels.PLAIN) is not None, "its own last norm is called"
    made.base_model.layers[0].mlp.register_forward_hook(lambda module, given, out: out * 2)
    assert fitting(made, torch.float32, kernels.PLAIN) is None


def test_in_bfloat16_the_fast_path_is_as_near_to_float32_as_the_plain_one() -> None:
    reference = model("llama")
    reference.set_attn_implementation("eager")
    exact = plain_loss(reference, examples(60, 33))
    made = model("llama").to(torch.bfloat16)
    plain = Forward(made, CPU, torch.bfloat16, mixed=False)
    fast = Forward(made, CPU, torch.bfloat16, False, Decoder(made, torch.bfloat16, kernels.PLAIN))
    for forward in (plain, fast):
        assert abs(forward.loss(examples(60, 33)).item() / exact.item() - 1) < 0.01


# ---- a beginning that examples share ----


def beginning_alike(*lengths: int, same: int = 12) -> list[Example]:
    first = examples(same)[0].ids
    found = []
    for example in examples(*(length + same for length in lengths)):
        ids, mask = example.ids.copy(), np.arange(len(example.ids)) >= same + 2
        ids[:same] = first
        ids[same] = len(found)  # and no longer
        found.append(Example(ids, mask, "a.jsonl", 1, False))
    return found


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma", "gpt_neox"])
def test_what_examples_begin_with_is_computed_once_and_learned_from_by_all(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, reference = model(name), model(name)
    reference.set_attn_implementation("eager")
    rows = beginning_alike(13, 5, 9)
    forward = Forward.of(made, CPU, torch.float32, False, kernels.PLAIN, longest=40)
    seen = []
    attend = attention.attend
    monkeypatch.setattr(attention, "attend", lambda *given: seen.append(given[3]) or attend(*given))
    ours, theirs = forward.loss(rows), plain_loss(reference, rows)
    assert [list(each) for each in seen] == [[12, 13, 5, 9]] * 2, "both layers: the beginning, then each one's own"
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    ours.backward()
    theirs.backward()
    wanted = dict(reference.named_parameters())
    for parameter_name, parameter in made.named_parameters():
        torch.testing.assert_close(
            parameter.grad, wanted[parameter_name].grad, rtol=2e-3, atol=2e-4, msg=parameter_name
        )
    each = torch.stack([plain_loss(reference, [row]) for row in rows])
    torch.testing.assert_close(forward.logps(rows), -each, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("rows", "shared"),
    [
        (beginning_alike(9), 0),  # one alone shares with nobody
        (beginning_alike(9, 4), 12),
        (beginning_alike(9, 4, same=5), 0),  # too little to gain by
        (examples(40, 40), 0),
        # What is learned, and the token that foretells it, are each example's own.
        ([Example(np.arange(30, dtype=np.int32), np.arange(30) >= n, "a.jsonl", 1, False) for n in (20, 15)], 14),
        ([Example(np.arange(30, dtype=np.int32), np.arange(30) >= 0, "a.jsonl", 1, False)] * 2, 0),
    ],
)
def test_how_much_is_shared(rows: list[Example], shared: int) -> None:
    assert _shared(rows) == shared


def pairs(*questions: int, system: int = 10) -> list[Example]:
    """Two answers to each question, all behind one system message."""
    drawn = np.random.default_rng(1)
    first, found = drawn.integers(3, 96, system), []
    for number, length in enumerate(questions):
        question = drawn.integers(3, 96, length)
        question[0] = 3 + number
        for answer in (5, 8):
            ids = np.concatenate([first, question, drawn.integers(3, 96, answer)]).astype(np.int32)
            found.append(Example(ids, np.arange(len(ids)) >= system + length, "a.jsonl", 1, False))
    return found


@pytest.mark.parametrize("name", ["llama", "gemma"])
def test_a_pairs_question_is_computed_once_and_learned_from_by_both(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made, reference = model(name), model(name)
    reference.set_attn_implementation("eager")
    rows = pairs(20, 30, 12)
    forward = Forward.of(made, CPU, torch.float32, False, kernels.PLAIN, longest=60)
    seen = []
    attend = attention.attend
    monkeypatch.setattr(
        attention, "attend", lambda *given: seen.append((list(given[3]), list(given[5]))) or attend(*given)
    )
    ours = forward.logps(rows)
    # The system message; each question but for its last token, which foretells the answers' first; its two answers.
    lengths = [10, 19, 6, 9, 29, 6, 9, 11, 6, 9]
    assert seen == [(lengths, [-1, 0, 1, 1, 0, 4, 4, 0, 7, 7])] * 2
    assert sum(lengths) == 114 < sum(len(row.ids) for row in rows) == 223
    theirs = -torch.stack([plain_loss(reference, [row]) for row in rows])
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    draw = torch.linspace(-1, 1, len(rows))
    (ours * draw).sum().backward()
    (theirs * draw).sum().backward()
    wanted = dict(reference.named_parameters())
    for parameter_name, parameter in made.named_parameters():
        torch.testing.assert_close(
            parameter.grad, wanted[parameter_name].grad, rtol=2e-3, atol=2e-4, msg=parameter_name
        )


@given(
    st.lists(st.tuples(st.integers(0, 40), st.sampled_from([0, 9, 25]), st.integers(0, 2)), min_size=1, max_size=6),
    st.booleans(),
)
def test_a_row_is_its_examples_again(drawn: list[tuple[int, int, int]], share: bool) -> None:
    """However the beginnings fall: along its parents each example is whole, and learns what it learned alone."""
    rows = []
    for extra, same, kind in drawn:
        ids = np.concatenate([np.full(same, kind), np.arange(extra + 2) + 10]).astype(np.int32)
        rows.append(Example(ids, np.arange(len(ids)) >= len(ids) // 2, "a.jsonl", 1, False))
    parts = _laid(rows, share=share)
    leaves = {part.owner: part for number, part in enumerate(parts) if number not in {one.parent for one in parts}}
    assert leaves.keys() == set(range(len(rows)))
    for number, row in enumerate(rows):
        line = [leaves[number]]
        while line[0].parent >= 0:
            line.insert(0, parts[line[0].parent])
        assert np.concatenate([part.ids for part in line]).tolist() == row.ids.tolist()
        learned = np.concatenate([part.mask for part in line])
        assert learned[1:].tolist() == row.mask[1:].tolist() and not any(part.mask[0] for part in line)
    assert share or len(parts) == len(rows)


# ---- attention by blocks ----


@settings(max_examples=25)
@given(
    st.lists(st.integers(1, 30), min_size=1, max_size=4),
    st.sampled_from([(4, 4), (4, 2), (3, 1)]),
    st.integers(1, 9),
    st.integers(0, 40),
    st.data(),
)
def test_blocks_attend_as_torch_does(
    lengths: list[int], heads: tuple[int, int], block: int, kept: int, data: st.DataObject
) -> None:
    parents = [data.draw(st.integers(-1, number - 1), label="parent") for number in range(len(lengths))]
    torch.manual_seed(sum(lengths))
    n, (n_q, n_kv), scale = sum(lengths), heads, 0.3
    tensors = [torch.randn(h, n, 6, dtype=torch.float64, requires_grad=True) for h in (n_q, n_kv, n_kv)]
    upstream = torch.randn(n, n_q, 6, dtype=torch.float64)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(attention, "BLOCK", block)
        patched.setattr(attention, "KEPT", kept)  # beyond it, probabilities are computed again
        got = attention.attend(*tensors, lengths, scale, parents)
        slopes = torch.autograd.grad(got, tensors, upstream)
    pieces = []
    split = [tensor.split(lengths, dim=1) for tensor in tensors]
    for number, q in enumerate(split[0]):
        line = [number]
        while parents[line[0]] >= 0:
            line.insert(0, parents[line[0]])
        k, v = (torch.cat([parts[each] for each in line], dim=1) for parts in split[1:])
        mask = torch.ones(q.shape[1], k.shape[1], dtype=torch.bool).tril(k.shape[1] - q.shape[1])
        pieces.append(
            F.scaled_dot_product_attention(q[None], k[None], v[None], attn_mask=mask, scale=scale, enable_gqa=True)[0]
        )
    wanted = torch.cat(pieces, dim=1).transpose(0, 1)
    torch.testing.assert_close(got, wanted)
    for mine, theirs in zip(slopes, torch.autograd.grad(wanted, tensors, upstream), strict=True):
        torch.testing.assert_close(mine, theirs)


# ---- the small functions, and compiled ----


def cases() -> dict[str, tuple[Any, ...]]:
    torch.manual_seed(0)
    n, tensor = 11, lambda *shape: torch.randn(*shape, dtype=torch.float32)
    angle = torch.rand(n, 4).repeat(1, 2)
    return {
        "norm": (tensor(n, 16), tensor(16), 1e-5),
        "norm_back": (tensor(n, 16), tensor(16), 1e-5, tensor(n, 16)),
        "swiglu": (tensor(n, 24),),
        "swiglu_back": (tensor(n, 24), tensor(n, 12)),
        "turn": (tensor(n, 6, 8), angle.cos(), angle.sin(), 4),
        "turn_back": (tensor(6, n, 8), angle.cos(), angle.sin(), 4),
        "slope": (tensor(n, 50), torch.randint(0, 50, (n, 1))),
    }


@pytest.mark.parametrize("name", ["norm", "swiglu", "turn"])
def test_a_way_back_is_the_gradient(name: str) -> None:
    x, *rest = cases()[name]
    x = x.requires_grad_()
    out = getattr(kernels, name)(x, *rest)
    upstream = torch.randn_like(out)
    (wanted,) = torch.autograd.grad(out, x, upstream)
    back = getattr(kernels, f"{name}_back")
    with torch.no_grad():
        got = back(upstream, *rest) if name == "turn" else back(x, *rest, upstream)
    torch.testing.assert_close(got, wanted)


def test_the_slope_is_that_of_cross_entropy() -> None:
    logits, wanted = cases()["slope"]
    logits = logits.requires_grad_()
    lost = F.cross_entropy(logits, wanted[:, 0], reduction="none")
    got, slope = kernels.slope(logits.detach(), wanted)
    torch.testing.assert_close(got[:, 0], lost.detach())
    torch.testing.assert_close(slope, torch.autograd.grad(lost.sum(), logits)[0])


def compiled_equals_plain() -> None:
    found = kernels.compiled()
    for name, arguments in cases().items():
        both = (getattr(found, name)(*arguments), getattr(kernels, name)(*arguments))
        mine, theirs = (each if isinstance(each, tuple) else (each,) for each in both)
        for got, wanted in zip(mine, theirs, strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5, msg=name)
    hidden, weight = torch.randn(300, 8, requires_grad=True), torch.randn(40, 8)
    targets = torch.randint(0, 40, (300,))
    mine, theirs = (loss.head_loss(hidden, weight, targets, each) for each in (found, kernels.PLAIN))
    torch.testing.assert_close(mine, theirs)


@pytest.mark.slow
def test_compiled_kernels_compute_the_same(tmp_path: Path) -> None:
    if shutil.which("g++") is None:
        pytest.skip("no C++ compiler")
    # In a process of its own: torch's compiler imports what warns, and leaves it imported.
    code = "import test_train_decoder; test_train_decoder.compiled_equals_plain()"
    paths = [str(Path(__file__).parent), *sys.path]
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(paths)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
