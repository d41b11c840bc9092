"""Tokenizing and packing all of bench/corpora, each document once: `mofang.data` against `datasets.map`, in turn.

    python bench/data.py TOKENIZER [--corpora DIR] [--rounds 3] [--row-tokens 1024] [--quarter]

TOKENIZER: a GGUF file or a Hugging Face folder. The documents' texts are taken out once, before the clock starts, into
one JSONL. The peer does what transformers' run_clm.py does: load_dataset("json"), map(batched=True, num_proc=2) with the
same tokenizer as a PreTrainedTokenizerFast, then the same map again to join the texts and cut them into rows. Ours keeps
documents apart (best fit, nothing crosses a row; a training packs step by step, here all are packed at once), hashes the
files, and writes its cache of tokens; both write to an empty folder.
Each run is a process of its own; memory is the peak of what that process and its children hold for themselves (USS).
--quarter: ours once more on every fourth document, to see whether memory grows with the corpus. Needs `datasets`.
"""

import argparse
import gzip
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

HERE = Path(__file__).parent
PROCESSES = 2


def texts(corpora: Path) -> list[str]:
    """Every page, book and manual page that is a text, once each."""
    from mofang.errors import MofangError
    from mofang.knowledge.loaders import parse

    found: dict[str, None] = {}
    for path in sorted(corpora.rglob("*")):
        if path.is_symlink() or not path.is_file():
            continue
        if path.suffix == ".gz":
            text = gzip.decompress(path.read_bytes()).decode(errors="ignore")
            if "\0" not in text:
                found[text] = None
        elif path.suffix in (".html", ".epub"):
            try:
                found[parse(path, path.name).text] = None
            except MofangError:  # a page without text
                continue
    return list(found)


def ours(tokenizer: str, data: Path, folder: Path, row_tokens: int) -> dict[str, float]:
    from mofang.data.cache import prepare
    from mofang.data.pack import pack
    from mofang.data.rows import Document
    from mofang.tokenizer import load

    read = load(Path(tokenizer))
    began = time.monotonic()
    found = prepare(data, read, folder=folder, max_length=row_tokens, kind=Document)
    rows = pack(found.entries["length"].tolist(), row_tokens)
    seconds = time.monotonic() - began
    return {"seconds": seconds, "tokens": found.meta["n_supervised"], "rows": len(rows)}


def peer(tokenizer: str, data: Path, folder: Path, row_tokens: int) -> dict[str, float]:
    from datasets import load_dataset
    from transformers import PreTrainedTokenizerFast

    from mofang.tokenizer import load

    read = load(Path(tokenizer))
    fast = PreTrainedTokenizerFast(tokenizer_object=read.backend, eos_token=read.token(read.eos_id))
    end = read.eos_id

    def cut(batch: dict) -> dict:
        ids = fast(batch["text"], add_special_tokens=False, return_attention_mask=False)["input_ids"]
        return {"input_ids": [[*one, end] for one in ids]}

    def group(batch: dict) -> dict:
        joined = [token for one in batch["input_ids"] for token in one]
        whole = len(joined) // row_tokens * row_tokens
        return {"input_ids": [joined[start : start + row_tokens] for start in range(0, whole, row_tokens)]}

    began = time.monotonic()
    loaded = load_dataset("json", data_files=str(data), split="train", cache_dir=str(folder))
    tokens = loaded.map(cut, batched=True, num_proc=PROCESSES, remove_columns=loaded.column_names)
    rows = tokens.map(group, batched=True, num_proc=PROCESSES)
    seconds = time.monotonic() - began
    return {"seconds": seconds, "tokens": sum(map(len, tokens["input_ids"])), "rows": len(rows)}


SIDES = {"ours": ours, "peer": peer}


def measured(side: str, tokenizer: str, data: Path, row_tokens: int) -> dict[str, float]:
    """One run in a process of its own, with "peak_mb"."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, tokenizer, "--side", side, "--data", str(data), "--folder", folder]
        child = subprocess.Popen([*command, "--row-tokens", str(row_tokens)], stdout=subprocess.PIPE, text=True)
        peak = 0
        while child.poll() is None:
            peak = max(peak, held(psutil.Process(child.pid)))
            time.sleep(0.1)
        assert child.stdout
        said = child.stdout.read().splitlines()
        if child.returncode:
            raise SystemExit(f"{side} failed")
        return {**json.loads(said[-1]), "peak_mb": peak / 1e6}


def held(process: psutil.Process) -> int:
    total = 0
    try:
        for one in (process, *process.children(recursive=True)):
            total += one.memory_full_info().uss
    except psutil.Error:
        pass
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokenizer")
    parser.add_argument("--corpora", type=Path, default=HERE / "corpora")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--row-tokens", type=int, default=1024)
    parser.add_argument("--quarter", action="store_true")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--data", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.side:
        print(json.dumps(SIDES[given.side](given.tokenizer, given.data, given.folder, given.row_tokens)))
        return
    with tempfile.TemporaryDirectory() as folder:
        found = texts(given.corpora)
        data = Path(folder) / "all.jsonl"
        _write(data, found)
        print(f"{len(found):,} documents, {sum(map(len, found)):,} characters, {data.stat().st_size / 1e6:.1f} MB")
        runs: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
        for _ in range(given.rounds):
            for side in SIDES:
                run = measured(side, given.tokenizer, data, given.row_tokens)
                runs[side].append(run)
                print(f"  {side}: {run['seconds']:.1f} s, {run['tokens']:,} tokens, {run['rows']:,} rows, "
                      f"peak {run['peak_mb']:.0f} MB", flush=True)  # fmt: skip
        medians = {side: statistics.median(run["seconds"] for run in runs[side]) for side in SIDES}
        peaks = {side: max(run["peak_mb"] for run in runs[side]) for side in SIDES}
        print(f"ours {medians['ours']:.1f} s, datasets.map {medians['peer']:.1f} s: "
              f"{medians['peer'] / medians['ours']:.2f}×; peak {peaks['ours']:.0f} and {peaks['peer']:.0f} MB")  # fmt: skip
        if given.quarter:
            part = Path(folder) / "quarter.jsonl"
            _write(part, found[::4])
            run = measured("ours", given.tokenizer, part, given.row_tokens)
            print(f"a quarter: {run['tokens']:,} tokens, peak {run['peak_mb']:.0f} MB")


def _write(path: Path, found: list[str]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for text in found:
            file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
