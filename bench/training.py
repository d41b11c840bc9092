"""LoRA on the same examples: `mofang train sft` against peft and transformers' Trainer, in turn, tokens a second.

    python bench/training.py [--model smollm2-135m-instruct] [--examples 48] [--rounds 3]

The same imported base (float32 unless the processor computes bfloat16), rank, targets, batch of 8 examples, AdamW, one
epoch, no checkpoints. Both sides train on the very same token ids and loss masks (ours, from `mofang.data`), so that
only the training differs; the peer pads a batch to its longest example, as it does by default. Real tokens count, not
padding. Times are of the steps alone: loading and saving are left out on both sides. Prints the median of each and the
ratio, and the losses after the epoch, which must be close.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import mofang
from mofang import settings
from mofang.data.encode import encode
from mofang.data.readers import read
from mofang.models.store import ModelStore
from mofang.tokenizer import load

DATA = Path(__file__).parent.parent / "journeys" / "data" / "mofang_zh.jsonl"
BATCH, RANK, RATE = 8, 8, 2e-4


def ours(base: str, data: Path) -> tuple[float, float]:
    """(tokens a second, last loss)."""
    run = mofang.sft(
        base=base, data=[str(data)], epochs=1, batch_size=BATCH, lora_rank=RANK, lora_alpha=2 * RANK, learning_rate=RATE,
        lr_scheduler="constant", warmup_ratio=0, save_every=10_000,
    )  # fmt: skip
    rows = [row for row in run.metrics() if "loss" in row]
    losses = [row["loss"] for row in rows]
    return sum(row["tokens"] for row in rows) / sum(row["seconds"] for row in rows), statistics.mean(losses[-2:])


def peer(base: str, data: Path) -> tuple[float, float]:
    """The same with peft.get_peft_model and transformers.Trainer."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

    from mofang.train import machine

    ref = ModelStore(settings.load()).get(base)
    tokenizer = load(ref.path)
    examples = encode(read([data]), tokenizer, max_length=1024).examples
    rows = [{"ids": example.ids, "mask": example.mask} for example in examples]

    def collate(batch: list) -> dict:
        longest = max(len(row["ids"]) for row in batch)
        ids = torch.full((len(batch), longest), tokenizer.eos_id, dtype=torch.long)
        labels, attend = torch.full_like(ids, -100), torch.zeros_like(ids)
        for place, row in enumerate(batch):
            n = len(row["ids"])
            ids[place, :n] = torch.from_numpy(row["ids"].astype("int64"))
            labels[place, :n] = torch.where(torch.from_numpy(row["mask"]), ids[place, :n], -100)
            attend[place, :n] = 1
        return {"input_ids": ids, "labels": labels, "attention_mask": attend}

    class Clock(TrainerCallback):
        seconds, began = 0.0, 0.0

        def on_step_begin(self, *_: object, **__: object) -> None:
            self.began = time.perf_counter()

        def on_step_end(self, *_: object, **__: object) -> None:
            self.seconds += time.perf_counter() - self.began

    model = AutoModelForCausalLM.from_pretrained(ref.path, dtype=machine.dtype("auto", torch.device("cpu")))
    model = get_peft_model(model, LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear"))
    clock = Clock()
    with tempfile.TemporaryDirectory() as out:
        arguments = TrainingArguments(
            out, num_train_epochs=1, per_device_train_batch_size=BATCH, learning_rate=RATE, lr_scheduler_type="constant",
            logging_steps=1, save_strategy="no", report_to=[], use_cpu=True, disable_tqdm=True, remove_unused_columns=False,
            max_grad_norm=1.0, optim="adamw_torch",
        )  # fmt: skip
        trainer = Trainer(model, arguments, train_dataset=rows, data_collator=collate, callbacks=[clock])
        trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return sum(len(row["ids"]) for row in rows) / clock.seconds, statistics.mean(losses[-2:])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--examples", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    base = options.model
    store = ModelStore(settings.load())
    if store.get(base).format != "hf":
        imported = f"{base}-hf"
        if not any(ref.name == imported for ref in store.list()):
            mofang.import_gguf(base)
        base = imported
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "pairs.jsonl"
        data.write_text("\n".join(DATA.read_text(encoding="utf-8").splitlines()[: options.examples]), encoding="utf-8")
        found: dict[str, list[tuple[float, float]]] = {"mofang": [], "peft + Trainer": []}
        for _ in range(options.rounds):
            for name, measure in (("mofang", ours), ("peft + Trainer", peer)):
                found[name].append(measure(base, data))
                print(name, json.dumps(found[name][-1]), flush=True)
    speeds = {name: statistics.median(speed for speed, _ in values) for name, values in found.items()}
    losses = {name: values[-1][1] for name, values in found.items()}
    for name, speed in speeds.items():
        print(f"{name:16} {speed:8.1f} tokens/s   loss {losses[name]:.3f}")
    print(f"ratio {speeds['mofang'] / speeds['peft + Trainer']:.2f}")


if __name__ == "__main__":
    main()
