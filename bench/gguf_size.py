"""The same size, less lost: `mofang export gguf --size` against llama-quantize at the size of its Q4_K_M and Q3_K_M.

    python bench/gguf_size.py [--model smollm2-135m-instruct] [--types q4_k_m q3_k_m] [--chunks 24] [--home FOLDER]

--model qwen2.5-coder-0.5b-instruct is the second one. Both sides get the same importance matrix, made of LibreOffice's
Chinese help; llama.cpp's own llama-perplexity measures both on Debian's Chinese reference (bench/corpora: fetch.sh and both
*_beir.py) against the float16 file. Needs `mofang engine build`, for llama-quantize and llama-perplexity.

The models at hand are files that were quantized before. Their weights stand on the grid of some type, which the same
type finds again without loss: a comparison would be decided by that. So the model's inner order is shuffled first (the
width between layers, the insides of heads, the width of the feed-forward part): it is the same function, whose weights
have other neighbours, as those of a model that never was quantized.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from quantizing import imported, pages, rows


def shuffle(source: Path, target: Path) -> float:
    """The same function with its inner order shuffled; returns the largest difference of a logit."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    ids = torch.arange(100, 164)[None]
    config, inner = model.config, model.model
    generator = torch.Generator().manual_seed(0)

    def order(n: int) -> torch.Tensor:
        return torch.randperm(n, generator=generator)

    with torch.no_grad():
        before = model(ids).logits
        width = order(config.hidden_size)
        heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
        size = getattr(config, "head_dim", None) or config.hidden_size // heads
        tied = model.lm_head.weight is inner.embed_tokens.weight
        inner.embed_tokens.weight.data = inner.embed_tokens.weight.data[:, width].contiguous()
        if not tied:
            model.lm_head.weight.data = model.lm_head.weight.data[:, width].contiguous()
        inner.norm.weight.data = inner.norm.weight.data[width]
        for layer in inner.layers:
            attention, feed = layer.self_attn, layer.mlp
            for norm in (layer.input_layernorm, layer.post_attention_layernorm):
                norm.weight.data = norm.weight.data[width]
            for reads in (attention.q_proj, attention.k_proj, attention.v_proj, feed.gate_proj, feed.up_proj):
                reads.weight.data = reads.weight.data[:, width].contiguous()
            own = [order(size) for _ in range(kv_heads)]
            values = torch.cat([own[head] + head * size for head in range(kv_heads)])
            attention.v_proj.weight.data = attention.v_proj.weight.data[values].contiguous()
            if attention.v_proj.bias is not None:
                attention.v_proj.bias.data = attention.v_proj.bias.data[values]
            asked = torch.cat([own[head * kv_heads // heads] + head * size for head in range(heads)])
            attention.o_proj.weight.data = attention.o_proj.weight.data[width][:, asked].contiguous()
            hidden = order(config.intermediate_size)
            for widens in (feed.gate_proj, feed.up_proj):
                widens.weight.data = widens.weight.data[hidden].contiguous()
            feed.down_proj.weight.data = feed.down_proj.weight.data[width][:, hidden].contiguous()
        after = model(ids).logits
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.safetensors*", "manifest.json"))
    model.to(torch.float16).save_pretrained(target)
    return float((before - after).abs().max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--types", nargs="+", default=["q4_k_m", "q3_k_m"])
    parser.add_argument("--chunks", type=int, default=24, help="of 512 tokens, that are measured on")
    parser.add_argument("--samples", type=int, default=64, help="sequences of 512 tokens, that are calibrated with")
    parser.add_argument("--home", type=Path, help="MOFANG_HOME of the trial; this machine's when not given")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    if given.home:
        os.environ["MOFANG_HOME"] = str(given.home)
    with tempfile.TemporaryDirectory() as place:
        compare(given, Path(place))


def compare(given: argparse.Namespace, place: Path) -> None:
    import mofang
    from mofang import settings
    from mofang.engine import toolchain
    from mofang.models.store import ModelStore

    home, store = settings.load().home, ModelStore(settings.load())
    quantize, measure = (toolchain.tool(home, name) for name in ("llama-quantize", "llama-perplexity"))
    base = imported(given.model)
    print(f"{given.model}, shuffled: largest difference of a logit {shuffle(base.path, place / 'shuffled'):.1e}")
    learned, held_out = rows("libreoffice", place / "learned.jsonl"), place / "held_out.txt"
    held_out.write_text("\n\n".join(pages("debian")), encoding="utf-8")

    def tool(*command: Any) -> str:
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(done.stderr[-2000:])
        return done.stdout + done.stderr

    source = str(place / "shuffled")
    whole = store.get(mofang.to_gguf(source, "f16", name="bench-f16", overwrite=True).state().result["model"]).path
    base_file = place / "base.kld"
    common = ["-f", held_out, "--chunks", given.chunks, "-c", 512, "--kl-divergence-base", base_file]
    tool(measure, "-m", whole, *common)

    def divergence(path: Path) -> dict[str, float]:
        said = tool(measure, "-m", path, *common, "--kl-divergence")
        kl = re.search(r"Mean\s+KLD:\s+([\d.]+) ±\s+([\d.]+)", said)
        top = re.search(r"Same top p:\s+([\d.]+)", said)
        assert kl and top
        return {"kl": float(kl[1]), "error": float(kl[2]), "same_top": float(top[1]) / 100}

    found: dict[str, Any] = {}
    options: dict[str, Any] = {"calibration": [str(learned)], "samples": given.samples, "overwrite": True}
    for kind in given.types:
        theirs = place / f"{kind}.gguf"
        tool(quantize, whole, theirs, kind.upper())
        size = theirs.stat().st_size
        run = mofang.to_gguf(source, name="bench-ours", size=f"{size}B", **options)
        ours = store.get(run.state().result["model"]).path
        importance = ours.parent / "importance.imatrix"
        sides = {"llama-quantize": divergence(theirs)}
        tool(quantize, "--imatrix", importance, whole, theirs, kind.upper())
        sides["llama-quantize, imatrix"] = divergence(theirs)
        sides["mofang --size"] = divergence(ours)
        sizes = {"mofang --size": ours.stat().st_size}
        for side, figures in sides.items():
            figures["bytes"] = sizes.get(side, size)
            print(
                f"{kind:8} {side:24} {figures['bytes']:12,} bytes   KL {figures['kl']:.4f} ± {figures['error']:.4f}   "
                f"same top {figures['same_top']:.1%}",
                flush=True,
            )
        less = 1 - sides["mofang --size"]["kl"] / sides["llama-quantize, imatrix"]["kl"]
        print(f"{kind:8} mofang loses {less:.0%} less, in {_seconds(run):.0f} s", flush=True)
        found[kind] = {**sides, "less": less, "predicted": run.state().result.get("predicted_kl")}
    if given.json:
        given.json.write_text(json.dumps(found, indent=1))


def _seconds(run: Any) -> float:
    from datetime import datetime

    state = run.state()
    return (datetime.fromisoformat(state.ended_at) - datetime.fromisoformat(state.started_at)).total_seconds()


if __name__ == "__main__":
    main()
