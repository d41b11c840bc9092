"""Pages of a PDF as pictures with the span marked, and the chunks of a document."""

import asyncio
import io
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from knowledge_bench import Bench
from pdfs import pdf
from PIL import Image, ImageChops

from mofang.errors import Invalid, NotFound, Unreadable
from mofang.knowledge import pages
from mofang.knowledge.loaders import pdf_page
from mofang.messages import Box

A5 = 420, 595
"""Points, as pdfs.pdf makes its pages."""
WIDTH = 840
"""Two pixels a point."""


def _drawn(data: bytes) -> Image.Image:
    assert data.startswith(b"\x89PNG")
    return Image.open(io.BytesIO(data)).convert("RGB")


def _coloured(drawn: Image.Image) -> tuple[int, int, int, int] | None:
    """The box around what is neither black, white nor grey: the marks."""
    red, _, blue = drawn.split()
    return ImageChops.difference(red, blue).point([0] * 40 + [255] * 216).getbbox()


@pytest.fixture
async def handbook(bench: Bench) -> str:
    """A document of two pages, with a paragraph at the top and one at the foot of the first."""
    lines = [(60.0, 500.0, 12.0, "年假五天。"), (60.0, 100.0, 12.0, "报销须在十五日内办理。")]
    report = await bench.put("手册.pdf", pdf([lines, [(60.0, 500.0, 12.0, "口令不少于十二位。")]]))
    assert report.files[0].status == "added"
    return bench.library.documents("库")[0].id


async def test_the_span_is_marked_where_it_stands(bench: Bench, handbook: str) -> None:
    text = bench.library.text("库", handbook)["text"]

    async def page(number: int, words: str) -> Image.Image:
        start = text.index(words)
        within = start, start + len(words)
        return _drawn(await bench.library.picture("库", handbook, number, width=WIDTH, within=within))

    plain = _drawn(await bench.library.picture("库", handbook, 1, width=WIDTH))
    assert plain.size == (WIDTH, 2 * A5[1]) and _coloured(plain) is None
    for words, baseline in (("年假", 500), ("十五日", 100)):
        box = _coloured(await page(1, words))
        assert box is not None
        left, top, right, bottom = (edge / 2 for edge in box)
        assert top < A5[1] - baseline < bottom + 2 and bottom - top < 24, "around its own line, and no other"
        assert 50 < left < 62 and right > left + 5 * 10
    assert _coloured(await page(2, "年假")) is None, "it stands on the first page"
    assert ImageChops.difference(await page(1, "年假"), plain).getbbox() == _coloured(await page(1, "年假")), (
        "the rest of the page is as it was"
    )


async def test_what_cannot_be_drawn_is_said(bench: Bench, handbook: str) -> None:
    await bench.put("说明.md", "# 安装\n\n没有网络也能安装。")
    plain = next(one.id for one in bench.library.documents("库") if one.name == "说明.md")
    with pytest.raises(Unreadable, match=r"说明\.md") as other:
        await bench.library.picture("库", plain, 1, width=WIDTH)
    assert other.value.code == "no_pictures"
    for number in (0, 3, -1, 10**9):
        with pytest.raises(NotFound) as missing:
            await bench.library.picture("库", handbook, number, width=WIDTH)
        assert missing.value.code == "page_not_found" and "2" in missing.value.message()
    with pytest.raises(NotFound):
        await bench.library.picture("库", "nothing", 1, width=WIDTH)
    bench.library.file("库", handbook).write_bytes(b"%PDF-1.7 and then the disk was full")
    with pytest.raises(Unreadable) as broken:
        await bench.library.picture("库", handbook, 1, width=WIDTH)
    assert broken.value.code == "page_not_drawn"


@pytest.mark.parametrize("box", [(1, 1), (14_400, 14_400), (14_400, 3), (3, 14_400)])
def test_a_page_of_any_shape_has_its_limit(tmp_path: Path, box: tuple[int, int]) -> None:
    path = tmp_path / "x"
    data = pdf([[(1.0, 1.0, 12.0, "字")]])
    path.write_bytes(data.replace(b"/MediaBox [0 0 420 595]", f"/MediaBox [0 0 {box[0]} {box[1]}]".encode()))
    wide, high = _drawn(pages.draw(pages.Page(path, "形.pdf", 1), 2_400)).size
    assert 1 <= wide <= 2_401 and wide * high <= pdf_page.MAX_PIXELS * 1.01 + wide + high


def test_a_page_turned_on_its_side_is_marked_in_its_place(tmp_path: Path) -> None:
    path = tmp_path / "x"
    data = pdf([[(60.0, 500.0, 12.0, "横着放")]])
    path.write_bytes(data.replace(b"/MediaBox", b"/Rotate 90 /MediaBox"))
    box: Box = (60.0, 498.0, 96.0, 512.0)
    drawn = _drawn(pages.draw(pages.Page(path, "横.pdf", 1, [box]), 595))
    assert drawn.size == (595, 420)
    left, top, right, bottom = _coloured(drawn) or (0, 0, 0, 0)
    assert abs(left - 498) < 4 and abs(right - 512) < 5 and abs(top - 60) < 4 and abs(bottom - 96) < 5, (
        "what was to the right is further down"
    )


def test_a_page_that_takes_long_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x"
    path.write_bytes(pdf([[(1.0, 1.0, 12.0, "字")]]))
    monkeypatch.setattr(pages, "SECONDS", 0.01)  # no Python is up by then
    with pytest.raises(Unreadable) as late:
        pages.draw(pages.Page(path, "慢.pdf", 1), 100)
    assert late.value.code == "page_takes_long"


async def test_no_more_than_a_few_at_once(bench: Bench, handbook: str, monkeypatch: pytest.MonkeyPatch) -> None:
    running, most = 0, 0

    def draw(page: pages.Page, width: int) -> bytes:
        nonlocal running, most
        running += 1
        most = max(most, running)
        started.set()
        gate.wait(5)
        running -= 1
        return b"x"

    gate, started = threading.Event(), threading.Event()
    monkeypatch.setattr(pages, "draw", draw)
    asked = [asyncio.create_task(bench.library.picture("库", handbook, 1, width=WIDTH)) for _ in range(6)]
    await asyncio.to_thread(started.wait, 5)
    await asyncio.sleep(0.1)
    gate.set()
    assert await asyncio.gather(*asked) == [b"x"] * 6
    assert 1 <= most <= pages.AT_ONCE


async def test_a_printed_page(bench: Bench, sample: Callable[[str], Path]) -> None:
    await bench.put("员工手册.pdf", sample("员工手册.pdf").read_bytes())
    [document] = bench.library.documents("库")
    found = (await bench.library.search(["库"], "报销要多少个工作日"))[0]
    assert found.page == 2
    drawn = await bench.library.picture("库", document.id, 2, width=600, within=(found.start, found.end))
    assert _coloured(_drawn(drawn)) is not None


async def test_chunks_are_those_that_are_searched(bench: Bench) -> None:
    await bench.put("长.md", "# 一\n\n" + "\n\n".join(f"第{n}条，{'说明文字。' * 30}" for n in range(1, 20)))
    [document] = bench.library.documents("库")
    whole = bench.library.chunks("库", document.id, n=1_000)
    assert len(whole) == document.n_chunks > 5
    spans = [(chunk.start, chunk.end) for chunk in whole]
    assert spans == sorted(spans) and all(start < end <= document.n_chars for start, end in spans)
    hits = await bench.library.search(["库"], "说明", k=None)
    assert {(hit.start, hit.end) for hit in hits} <= set(spans)
    third = whole[2]
    assert bench.library.chunks("库", document.id, start=third.start, n=2) == whole[2:4]
    assert bench.library.chunks("库", document.id, start=third.end) == whole[3:]
    assert bench.library.chunks("库", document.id, start=document.n_chars) == []
    with pytest.raises(NotFound):
        bench.library.chunks("库", "nothing")
    with pytest.raises(Invalid):
        bench.library.text("库", document.id, start=document.n_chars + 1)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems keep fewer limits")
def test_the_child_keeps_its_limits() -> None:
    program = (
        "from mofang.platform import limit_process\nlimit_process(memory_bytes=500_000_000, cpu_s=1)\n"
        "try:\n    bytearray(600_000_000)\nexcept MemoryError:\n    print('refused', flush=True)\nwhile True: pass"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=30)
    assert (done.stdout, done.returncode) == (b"refused\n", -signal.SIGKILL), "beyond its time the system ends it"
