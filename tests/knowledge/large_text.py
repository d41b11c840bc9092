"""A program of its own: takes a text of so many MB into a new base, and prints what that took. Run by a test.

Arguments: folder, megabytes, encoding. Prints JSON: status, n_chunks, peak_mb, base_mb, ms of a search and of a span.
"""

import asyncio
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from knowledge_bench import Bench, CountingEmbedder

from mofang.engine.base import Purpose, Vectors

LINE = "第{}条　员工出差期间的住宿费用按照城市等级报销，超出标准的部分由个人承担，特殊情况须经部门经理书面批准后方可办理。\n"
SECRET = "最后一行写着：麒麟的密钥是七十七。"


class Quick(CountingEmbedder):
    """384 numbers a passage, as e5-small gives, and no time: what is measured is the rest."""

    dimensions = 384

    async def embed(self, texts: Sequence[str], purpose: Purpose) -> Vectors:
        made = np.zeros((len(texts), 384), np.float32)
        made[:, 0] = 1.0
        return made


def peak_mb() -> float:
    """Of this program alone: ru_maxrss would begin with what the process that started it held."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1000


def main(folder: Path, megabytes: int, encoding: str) -> None:
    path = folder / "大.txt"
    with path.open("wb") as file:
        n = 0
        while file.tell() < megabytes * 1_000_000:
            n += 1
            file.write((LINE.format(n) + ("\n" if n % 5 == 0 else "")).encode(encoding))
        file.write(SECRET.encode(encoding))
    bench = Bench(folder)
    bench.embedder = Quick()
    before = peak_mb()
    (report,) = asyncio.run(bench.library.add("库", [("大.txt", path)], progress=lambda progress: None)).files
    peak = peak_mb()
    asyncio.run(bench.library.search(["库"], "麒麟"))  # the first one brings the index into memory
    began = time.monotonic()
    hits = asyncio.run(bench.library.search(["库"], "麒麟的密钥"))
    searched = time.monotonic()
    hit = next(hit for hit in hits if "麒麟" in hit.text)
    shown = bench.library.text("库", hit.document_id, hit.start, hit.end)
    done = {
        "status": report.status,
        "n_chunks": report.n_chunks,
        "base_mb": round(before),
        "peak_mb": round(peak),
        "found": SECRET in hit.text and shown["text"] == hit.text,
        "search_ms": round(1000 * (searched - began)),
        "span_ms": round(1000 * (time.monotonic() - searched)),
    }
    print(json.dumps(done))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
