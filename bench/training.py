"""Training on the same examples, in turn: `mofang train` against peft + transformers' Trainer and TRL's SFTTrainer.

    python bench/training.py [--model smollm2-135m-instruct] [--tune lora|full] [--examples 2000] [--steps N]
                             [--rounds 3] [--quick] [--json FILE]

Every side trains on the very same token ids and masks (ours, from `mofang.data`), with the same base in bfloat16, rank,
targets, AdamW, learning rate and examples a step, and is a process of its own; a peer's examples come in another order.
The peers are first swept once over what people turn: batches of 1, 4, 8, 16 examples (accumulated to the same step),
with and without grouping by length, TRL packed and padded. The best of each is then measured in turn with ours.
Tokens are real ones, never padding. A step's time is all of it, compiling included; loading and saving are left out on
all sides. The evaluation loss is -log p a supervised token of the same held-out examples: the peers' by transformers, each
example alone, ours by our own loop. Memory is the peak of the process (VmHWM).

Examples are questions for the sections of LibreOffice's and Debian's Chinese documentation (bench/corpora, fetch.sh and
both *_beir.py); --tune full learns the same texts with every token supervised, as pre-training goes on. Needs
`make training` and `pip install trl`; without TRL its rows are left out and said.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
STEP, RANK, RATE, ROW, LENGTH = 16, 8, {"lora": 2e-4, "full": 2e-5}, 2048, 1024
"""Examples a step, LoRA's rank, learning rates, tokens of a packed row, tokens of the longest example."""
HELD_OUT = 32


def examples(n: int) -> Iterator[dict[str, str]]:
    """Pieces of pages under their titles, a few sentences to a few paragraphs long."""
    from mofang.text.sentences import sentence_ends

    drawn, found = random.Random(0), []
    for name in ("libreoffice", "debian"):
        rows = [json.loads(line) for line in (HERE / "corpora" / name / "queries.jsonl").open(encoding="utf-8")]
        titles = {row["_id"].split(":", 1)[1]: row["text"] for row in rows if row["_id"].startswith("zh")}
        for line in (HERE / "corpora" / name / "corpus.jsonl").open(encoding="utf-8"):
            page = json.loads(line)
            if page["_id"] not in titles:
                continue
            start, most = 0, 0.0
            for end in sentence_ends(page["text"]):
                most = most or drawn.lognormvariate(5.0, 0.6)  # characters: half of them below 150
                if end - start >= most or end == len(page["text"]):
                    piece = page["text"][start:end].strip()[:600]
                    if len(piece) >= 20:
                        found.append({"instruction": f"{titles[page['_id']]}：请说明。", "output": piece})
                    start, most = end, 0.0
    drawn.shuffle(found)
    if len(found) < n:
        sys.exit(f"bench/corpora holds {len(found)} examples, {n} were asked for")
    yield from found[:n]


def rows_of(path: Path, base: str, tune: str) -> tuple[Any, list[dict[str, Any]]]:
    """The tokenizer and the examples as ids and masks, as Mofang makes them."""
    from mofang import settings
    from mofang.data.encode import encode
    from mofang.data.readers import Layout, rows, wanted
    from mofang.data.rows import Conversation, Document
    from mofang.models.store import ModelStore
    from mofang.tokenizer import load

    tokenizer = load(ModelStore(settings.load()).get(base).path)
    kind = Conversation if tune == "lora" else Document
    found = encode(wanted(rows(path, Layout("auto")), kind), tokenizer, max_length=LENGTH).examples
    return tokenizer, [{"ids": example.ids.astype("int64"), "mask": example.mask} for example in found]


def losses(model: Any, rows: list[dict[str, Any]]) -> float:
    """-log p a supervised token, each example alone."""
    import torch
    import torch.nn.functional as F

    model.eval()
    total = count = 0.0
    with torch.no_grad():
        for row in rows:
            ids, mask = torch.from_numpy(row["ids"])[None], torch.from_numpy(row["mask"]).clone()
            mask[0] = False
            logits = model(input_ids=ids).logits[0, :-1].float()
            total += F.cross_entropy(logits[mask[1:]], ids[0, 1:][mask[1:]], reduction="sum").item()
            count += mask.sum().item()
    return total / count


# ---- the sides: each in a process of its own ----


def ours(choice: dict[str, Any]) -> dict[str, Any]:
    import mofang

    method: Callable[..., Any] = mofang.sft if choice["tune"] == "lora" else mofang.pretrain
    kind = {"lora_rank": RANK, "lora_alpha": 2 * RANK} if choice["tune"] == "lora" else {"tune": "full"}
    run = method(
        base=choice["base"], data=[choice["data"]], eval_data=[choice["held_out"]], epochs=1, batch_size=STEP,
        max_steps=choice["steps"], max_length=LENGTH, learning_rate=RATE[choice["tune"]], lr_scheduler="constant",
        warmup_ratio=0, save_every=10_000, row_tokens=ROW, dtype="bfloat16", eval_every=10_000, **kind,
    )  # fmt: skip
    rows = [row for row in run.metrics() if "loss" in row]
    result = run.state().result
    return {
        "tokens": sum(row["tokens"] for row in rows),
        "seconds": sum(row["seconds"] for row in rows),
        "eval_loss": result["last_eval_loss"],
        "peak_bytes": result["peak_memory_bytes"],
    }


def peer(choice: dict[str, Any]) -> dict[str, Any]:
    """peft.get_peft_model (or the whole model) with transformers.Trainer or trl.SFTTrainer."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

    from mofang import settings
    from mofang.models.store import ModelStore
    from mofang.platform import peak_memory

    tokenizer, rows = rows_of(Path(choice["data"]), choice["base"], choice["tune"])
    _, held_out = rows_of(Path(choice["held_out"]), choice["base"], choice["tune"])
    path = ModelStore(settings.load()).get(choice["base"]).path
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16)
    if choice["tune"] == "lora":
        model = get_peft_model(model, LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear"))
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()  # as peft's autocast_adapter_dtype does for half precision
    clock = {"seconds": 0.0, "began": 0.0, "steps": 0}

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: object, **__: object) -> None:
            clock["began"] = time.perf_counter()

        def on_step_end(self, *_: object, **__: object) -> None:
            clock["seconds"] += time.perf_counter() - clock["began"]

    tokens = 0

    def collate(batch: list[dict[str, Any]]) -> dict[str, Any]:
        nonlocal tokens
        longest = max(len(row["ids"]) for row in batch)
        ids = torch.full((len(batch), longest), tokenizer.eos_id, dtype=torch.long)
        labels, attend = torch.full_like(ids, -100), torch.zeros_like(ids)
        for place, row in enumerate(batch):
            n = len(row["ids"])
            tokens += n
            ids[place, :n] = torch.from_numpy(row["ids"])
            labels[place, :n] = torch.where(torch.from_numpy(row["mask"]), ids[place, :n], -100)
            attend[place, :n] = 1
        return {"input_ids": ids, "labels": labels, "attention_mask": attend}

    with tempfile.TemporaryDirectory() as out:
        told: dict[str, Any] = {
            "output_dir": out, "num_train_epochs": 1, "max_steps": choice["steps"] or -1,
            "learning_rate": RATE[choice["tune"]], "lr_scheduler_type": "constant", "logging_steps": 1,
            "save_strategy": "no", "report_to": [], "use_cpu": True, "disable_tqdm": True, "max_grad_norm": 1.0,
            "optim": "adamw_torch", "remove_unused_columns": False, "seed": 42, "bf16": True,
        }  # fmt: skip
        if choice["side"] == "trainer":
            grouped = "group_by_length" if choice["grouped"] else "random"
            arguments = TrainingArguments(
                per_device_train_batch_size=choice["batch"], gradient_accumulation_steps=STEP // choice["batch"],
                train_sampling_strategy=grouped, length_column_name="length", **told,
            )  # fmt: skip
            data = [{**row, "length": len(row["ids"]), "input_ids": row["ids"]} for row in rows]
            trainer: Any = Trainer(model, arguments, train_dataset=data, data_collator=collate, callbacks=[Clock()])
        else:
            trainer = _trl(model, tokenizer, choice, rows, told, Clock)
        trainer.train()
        if choice["side"] == "trl":
            tokens = int(trainer.state.num_input_tokens_seen)
    peak = peak_memory()  # before the evaluation, which holds all logits
    return {
        "tokens": tokens,
        "seconds": clock["seconds"],
        "eval_loss": losses(model, held_out),
        "peak_bytes": peak,
    }


def _trl(model: Any, tokenizer: Any, choice: dict[str, Any], rows: list[dict[str, Any]], told: dict, clock: Any) -> Any:
    import datasets
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    mean = sum(len(row["ids"]) for row in rows) / len(rows)
    length = max(LENGTH, max(len(row["ids"]) for row in rows))
    packed = choice["packed"]
    batch = 1 if packed else choice["batch"]
    accumulate = max(1, round(STEP * mean / length)) if packed else STEP // batch
    told = {**told, "max_length": length, "remove_unused_columns": True, "include_num_input_tokens_seen": "non_padding"}
    arguments = SFTConfig(
        per_device_train_batch_size=batch, gradient_accumulation_steps=accumulate, packing=packed, **told
    )
    data = datasets.Dataset.from_list(
        [{"input_ids": row["ids"].tolist(), "labels": [
            int(one) if kept else -100 for one, kept in zip(row["ids"], row["mask"], strict=True)
        ]} for row in rows]
    )  # fmt: skip
    fast = AutoTokenizer.from_pretrained(model.name_or_path or model.base_model.model.name_or_path)
    fast.pad_token = fast.pad_token or fast.eos_token
    return SFTTrainer(model, args=arguments, train_dataset=data, processing_class=fast, callbacks=[clock()])


SIDES = {"mofang": ours, "trainer": peer, "trl": peer}


def run(choice: dict[str, Any]) -> dict[str, Any]:
    """One training in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, "--child", json.dumps(choice)], capture_output=True, text=True, check=False,
        env={**os.environ, "TOKENIZERS_PARALLELISM": "false"},
    )  # fmt: skip
    if done.returncode:
        why = "killed: too little memory?" if done.returncode < 0 else (done.stderr.strip() or "?").splitlines()[-1]
        return {"failed": f"ended with {done.returncode}, {why}"}
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return {**found, "tokens_per_s": found["tokens"] / found["seconds"]}


def named(choice: dict[str, Any]) -> str:
    if choice["side"] == "mofang":
        return "mofang"
    how = "packed" if choice.get("packed") else f"batch {choice['batch']}{' grouped' if choice.get('grouped') else ''}"
    return {"trainer": "peft + Trainer", "trl": "TRL"}[choice["side"]] + f", {how}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--tune", choices=["lora", "full"], default="lora")
    parser.add_argument("--examples", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=None, help=f"of {STEP} examples; default: one epoch")
    parser.add_argument("--sweep-steps", type=int, default=2, help="steps of each setting in the sweep")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="no sweep: batch 4, grouped; TRL padded in fours")
    parser.add_argument("--ours", action="store_true", help="our side alone")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        choice = json.loads(options.child)
        print(json.dumps(SIDES[choice["side"]](choice)))
        return
    base = _base(options.model)
    with tempfile.TemporaryDirectory() as folder:
        lines = [json.dumps(row, ensure_ascii=False) for row in examples(options.examples + HELD_OUT)]
        if options.tune == "full":
            lines = [json.dumps({"text": json.loads(line)["output"]}, ensure_ascii=False) for line in lines]
        data, held_out = Path(folder) / "examples.jsonl", Path(folder) / "held-out.jsonl"
        data.write_text("\n".join(lines[HELD_OUT:]), encoding="utf-8")
        held_out.write_text("\n".join(lines[:HELD_OUT]), encoding="utf-8")
        common = {
            "base": base, "tune": options.tune, "data": str(data), "held_out": str(held_out), "steps": options.steps,
        }  # fmt: skip
        chosen = [{**common, "side": "mofang"}]
        if not options.ours:
            chosen += _best(common, options)
        found: dict[str, list[dict[str, Any]]] = {named(choice): [] for choice in chosen}
        for number in range(options.rounds):
            for choice in chosen:
                one = run(choice)
                found[named(choice)].append(one)
                print(f"round {number + 1}: {named(choice):32} {_said(one)}", flush=True)
    print()
    speeds = {}
    for name, runs in found.items():
        good = [one for one in runs if "failed" not in one]
        if good:
            speeds[name] = statistics.median(one["tokens_per_s"] for one in good)
            middle = min(good, key=lambda one: abs(one["tokens_per_s"] - speeds[name]))
            print(f"{name:32} {speeds[name]:8.1f} tokens/s  eval loss {middle['eval_loss']:.4f}  "
                  f"peak {middle['peak_bytes'] / 1e6:,.0f} MB")  # fmt: skip
    for name, speed in speeds.items():
        if name != "mofang":
            print(f"ratio to {name}: {speeds['mofang'] / speed:.2f}")
    if options.json:
        options.json.write_text(json.dumps(found, indent=1), encoding="utf-8")


def _said(one: dict[str, Any]) -> str:
    if "failed" in one:
        return one["failed"]
    return (
        f"{one['tokens_per_s']:8.1f} tokens/s  eval loss {one['eval_loss']:.4f}  peak {one['peak_bytes'] / 1e6:,.0f} MB"
    )


def _best(common: dict[str, Any], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Each peer's fastest setting."""
    batches = [4] if options.quick else [1, 4, 8, 16]
    settings: dict[str, list[dict[str, Any]]] = {
        "trainer": [{"batch": b, "grouped": g} for b in batches for g in ((True,) if options.quick else (False, True))],
        "trl": [{"batch": 4, "packed": False}] if options.quick else
               [{"batch": b, "packed": False} for b in batches] + [{"batch": 1, "packed": True}],
    }  # fmt: skip
    best = []
    for side, each in settings.items():
        speeds: list[tuple[float, dict[str, Any]]] = []
        for setting in each:
            choice = {**common, "side": side, **setting}
            if len(each) == 1:
                speeds.append((0.0, choice))
                continue
            one = run({**choice, "steps": options.sweep_steps})
            print(f"sweep: {named(choice):32} {_said(one)}", flush=True)
            if "failed" not in one:
                speeds.append((one["tokens_per_s"], choice))
        if speeds:
            best.append(max(speeds, key=lambda pair: pair[0])[1])
    return best


def _base(name: str) -> str:
    import mofang
    from mofang import settings
    from mofang.models.store import ModelStore

    store = ModelStore(settings.load())
    if store.get(name).format == "hf":
        return name
    imported = f"{name}-hf"
    if not any(ref.name == imported for ref in store.list()):
        mofang.import_gguf(name)
    return imported


if __name__ == "__main__":
    main()
