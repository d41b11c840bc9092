"""The workbench's parts that know nothing of Streamlit: sentences, figures, the tree, prose, the watch, colours."""

import contextlib
import re
import string
import time
from html import escape
from pathlib import Path
from typing import Any

import fake_gateway
import httpx
import pytest
import streamlit
from hypothesis import example, given
from hypothesis import strategies as some
from starlette.websockets import WebSocket, WebSocketDisconnect

from mofang.client import Client
from mofang.engine.tune import MIXES
from mofang.ui import curve, figures, prose, run, shell, style, theme, tree, watch, words
from mofang.ui.components import document

UI = Path(words.__file__).parent


# ---- sentences ----


def test_both_languages_have_the_same_keys_and_placeholders() -> None:
    zh, en = words.table("zh"), words.table("en")
    assert zh.keys() == en.keys()
    for key in zh:
        fields = [{name for _, name, _, _ in string.Formatter().parse(table[key]) if name} for table in (zh, en)]
        assert fields[0] == fields[1], key
        assert not re.search(r"[一-鿿]", en[key]), f"{key} is not English"
        if not key.startswith(("source_", "fact_sha256", "top_", "min_p", "file_failed")):
            assert re.search(r"[一-鿿]|^[^A-Za-z]*$|\{\w+\} token|^token$", zh[key]), f"{key} is not Chinese"


def test_every_key_in_the_code_exists_and_every_key_is_used() -> None:
    code = "\n".join(path.read_text(encoding="utf-8") for path in UI.rglob("*.py"))
    known = words.table("zh")
    used = set(re.findall(r"""\b(?:t|t_or)\(\s*"([a-z0-9_]+)\"""", code))
    used |= set(re.findall(r"""\bword(?:_or)?\(\s*lang(?:uage\(\))?,\s*"([a-z0-9_]+)\"""", code))
    assert used <= known.keys()
    families = (
        "leftover_",
        "stage_",
        "kind_",
        "source_",
        "language_",
        "preset_",
        "memory_",
        "engine_speed_",
        "state_",
        "store_",
        "view_",
        "leg_",
        "step_",
        "job_",
        "page_",
        "run_",
        "launcher_",
        "train_group_",
        "method_",
        "train_welcome_",
        "order_",
        "export_",
        "quantize_by_",
        "quantize_none_",
        "doctor_",
        "evaluate_leg_",
        "questions_",
        "key_",
        "lens_",
        "concept_",
        "finish_",
        "tool_decide_",
        "tool_outcome_",
    )
    spoken = set(re.findall(r"""['\"]([a-z0-9_]+)['\"]""", code))
    fields = {*spoken, *(f"{name}_help" for name in spoken), *(f"{name}_version" for name in spoken)}
    unused = {key for key in known if key not in used | fields and not key.startswith(families)}
    assert not unused


def test_streamlits_leftovers_are_said_by_streamlit() -> None:
    """A sentence that Streamlit no longer says would mean that it says another one, in English."""
    scripts = Path(streamlit.__file__).parent / "static" / "static" / "js"
    said = "\n".join(path.read_text(encoding="utf-8") for path in scripts.glob("*.js"))
    composed = {"leftover_copied", "leftover_per_file", "leftover_drop_files", "leftover_drop_file"}
    composed |= {"leftover_upload_files", "leftover_upload_or_drop", "leftover_too_large"}
    for key, sentence in words.table("en").items():
        if key.startswith("leftover_") and key not in composed:
            assert sentence in said, key


# ---- figures ----


@pytest.mark.parametrize(
    ("n", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 KB"), (491_400_064, "491 MB"), (1_117_320_736, "1.1 GB"), (5e15, "5000 TB")]
)  # fmt: skip
def test_sizes(n: float, text: str) -> None:
    assert figures.size(n) == text


def test_counts_and_durations_in_both_languages() -> None:
    assert figures.count("zh", 630_167_424) == "6.3 亿"
    assert figures.count("en", 1_540_000_000) == "1.54 B"
    assert figures.duration("zh", 0.2) == "1 秒"
    assert figures.duration("zh", 130) == "2 分 10 秒"
    assert figures.duration("zh", 179.7) == "3 分 0 秒" and figures.duration("zh", 7199) == "2 小时 0 分"
    assert figures.duration("en", 7260) == "2 h 1 min"


def test_progress_tells_amount_rate_and_time_left() -> None:
    shape = {
        "stage": "download",
        "done": 250e6,
        "total": 500e6,
        "unit": "bytes",
        "rate": 25e6,
        "seconds_left": 10.0,
        "detail": "",
    }
    assert figures.progress("zh", shape) == (0.5, "下载 · 250 MB / 500 MB · 25.0 MB/s · 还剩约 10 秒")
    assert figures.progress("zh", {"stage": "something_new", "done": 3, "total": 0})[1] == "处理中"
    assert figures.progress("en", None) == (0.0, "Starting…")


@given(some.integers(0, 10**6), some.integers(0, 10**6))
def test_a_fraction_is_always_a_fraction(done: int, total: int) -> None:
    assert 0.0 <= figures.progress("zh", {"stage": "x", "done": done, "total": total})[0] <= 1.0


def test_steps_are_said_by_the_second_or_by_the_step() -> None:
    shape = {"stage": "train", "done": 12, "total": 40, "unit": "steps", "rate": 4.0}
    assert figures.progress("zh", shape) == (0.3, "训练 · 第 12 / 40 步 · 每秒 4 步 · 还剩约 7 秒")
    weights = {"stage": "import", "done": 38_046_528, "total": 134_515_008, "unit": "weights", "rate": 2.8e7}
    assert figures.progress("zh", weights)[1] == "导入 · 3800 万 / 1.35 亿 · 每秒 2800 万 · 还剩约 3 秒"
    assert "每步 2.5 秒 · 还剩约 1 分 10 秒" in figures.progress("zh", {**shape, "rate": 0.4})[1]
    assert figures.seconds_between("2026-01-01T00:00:00+00:00", "2026-01-01T00:01:30.500+00:00") == 90.5


# ---- the curve ----


def _lines(*steps: int) -> list[dict[str, Any]]:
    return [{"step": step, "loss": float(step), "tokens": 100, "seconds": 0.5} for step in steps]


def test_a_curve_grows_and_takes_the_eval_loss_that_comes_after_its_step() -> None:
    known = curve.Curve().grown([{"step": 0, "eval_loss": 9.0}, *_lines(1, 2)])
    assert curve.Curve().after == -1 and known.after == 1
    known = known.grown([*_lines(2), {"step": 2, "eval_loss": 3.0}, *_lines(3)])
    assert known.of("loss") == [(1, 1.0), (2, 2.0), (3, 3.0)]
    assert known.of("eval_loss") == [(0, 9.0), (2, 3.0)]
    assert known.grown(_lines(3)) == known and known.tokens_per_s == 200.0
    table = known.table({"loss": "甲", "eval_loss": "乙"})
    assert table == {"step": [1, 2, 3, 0, 2], "loss": [1.0, 2.0, 3.0, 9.0, 3.0], "series": ["甲"] * 3 + ["乙"] * 2}


@given(some.integers(0, 3 * curve.MAX_POINTS))
def test_a_long_curve_is_averaged_and_none_of_it_is_left_out(n: int) -> None:
    drawn = curve.Curve(tuple(_lines(*range(1, n + 1))))
    points = list(drawn.points("loss"))
    assert len(points) <= curve.MAX_POINTS and (n == 0 or points[-1][0] == n)
    assert (
        n % drawn.every or abs(sum(value for _, value in points) * drawn.every - n * (n + 1) / 2) < 1e-6 * (n + 1) ** 2
    )


# ---- the tree ----


def _message(identity: str, parent: str | None, role: str) -> dict[str, Any]:
    return {"id": identity, "parent_id": parent, "role": role}


def test_the_newest_version_is_shown_unless_another_is_chosen_or_was_gone_on_from() -> None:
    messages = [
        _message("q", None, "user"),
        _message("a1", "q", "assistant"),
        _message("a2", "q", "assistant"),
    ]
    shown = tree.path(messages, {})
    assert [turn.message["id"] for turn in shown] == ["q", "a2"]
    assert (shown[1].version, shown[1].versions) == (1, ("a1", "a2"))
    assert [turn.message["id"] for turn in tree.path(messages, {"q": "a1"})] == ["q", "a1"]
    messages.append(_message("q2", "a1", "user"))
    assert [turn.message["id"] for turn in tree.path(messages, {})] == ["q", "a1", "q2"], "what was said last"
    assert [turn.message["id"] for turn in tree.path(messages, {"q": "a2"})] == ["q", "a2"]


@given(some.lists(some.integers(0, 30), max_size=30))
def test_a_path_is_a_chain_from_a_root_to_a_leaf(parents: list[int]) -> None:
    messages = [_message(str(i), str(parent) if parent < i else None, "user") for i, parent in enumerate(parents)]
    shown = [turn.message for turn in tree.path(messages, {})]
    assert bool(shown) == bool(messages)
    for before, after in zip(shown, shown[1:], strict=False):
        assert after["parent_id"] == before["id"]
    assert not shown or all(message["parent_id"] != shown[-1]["id"] for message in messages)


def test_a_title_is_one_short_line() -> None:
    assert tree.title_of("  你好，\n世界") == "你好，"
    assert tree.title_of("长" * 50) == "长" * 29 + "…"


# ---- prose ----


def test_marks_become_links_only_where_a_source_is() -> None:
    shown = prose.to_markdown("甲[1]，乙【2】，丙[1, 2]，丁[9]，戊[1](http://x)", {1, 2}, "s-m-")
    assert shown == "甲[1](#s-m-1)，乙[2](#s-m-2)，丙[1](#s-m-1)[2](#s-m-2)，丁[9]，戊[1](http://x)"
    assert prose.to_markdown("相邻[1][2]。", {1, 2}, "s-m-") == "相邻[1](#s-m-1)[2](#s-m-2)。"


def test_code_is_left_alone() -> None:
    code = "```python\na[1] = '![x](http://evil/)'\n```\n和 `b[1]` 与[1]"
    assert prose.to_markdown(code, {1}, "s-").startswith(
        "```python\na[1] = '![x](http://evil/)'\n```\n和 `b[1]` 与[1](#s-1)"
    )
    assert prose.to_markdown("```\nopen [1]", {1}, "s-") == "```\nopen [1]"


def test_every_kind_of_work_that_tuning_measures_has_a_name() -> None:
    kinds = {kind for mix in MIXES.values() for kind in mix} | {"together"}
    assert all(words.word(lang, f"engine_speed_{kind}") for lang in ("zh", "en") for kind in kinds)


def test_an_image_is_never_fetched() -> None:
    assert prose.to_markdown("![图](http://evil/?q=1)") == "[图](http://evil/?q=1)"
    assert prose.to_markdown("![](http://evil/)").startswith("[🖼](")


def test_formulas_stay_and_prices_are_prices() -> None:
    assert prose.to_markdown(r"\[E=mc^2\] 与 \(x_1\)") == r"$$E=mc^2$$ 与 $x_1$"
    assert prose.to_markdown("从 $5 涨到 $10") == r"从 \$5 涨到 \$10"
    assert prose.to_markdown("价 $5，且 $x^2$ 与 $2^n$、$a+b$、$n$") == r"价 \$5，且 $x^2$ 与 $2^n$、$a+b$、$n$"
    assert prose.to_markdown(r"\(5\) 与 \( a:b[1] \)", {1}, "s-") == "$5$ 与 $a:b[1]$", "nothing is linked within"
    assert prose.to_markdown("$5[1] 到 $6", {1}, "s-") == r"\$5[1](#s-1) 到 \$6"
    assert prose.to_markdown("得\n\\[\n a^2\n = b \n\\]\n完") == "得\n$$\na^2\n= b\n$$\n完", "on lines of its own"
    assert prose.to_markdown("1. 项\n   \\[x=1\\]") == "1. 项\n   $$\n   x=1\n   $$", "within its list"
    assert prose.to_markdown(r"见 \[1\]") == r"见 \[1\]", "a bracket that was escaped"
    assert prose.to_markdown(":red[不是颜色] 10:30:15 http://a") == r"\:red[不是颜色] 10:30:15 http://a"


@given(some.text(alphabet="![](){}`~$\\:[]【】1, 23abc甲\n", max_size=60))
@example("太好了![1]")
@example("\\!【1】")
def test_no_answer_can_make_an_image(text: str) -> None:
    prosaic = re.sub(r"(?ms)^[ \t]*(`{3,}|~{3,}).*?(^[ \t]*\1|\Z)|`[^`\n]+`", "", prose.to_markdown(text, {1, 2}, "s-"))
    assert not re.search(r"(?<!\\)!\[[^\]]*\]\(", prosaic)


def test_sources_are_escaped_and_highlighted_in_their_context() -> None:
    source = {
        "number": 1,
        "title": "<b>手册</b>.md",
        "text": "第<一>段",
        "page": 3,
        "headings": ["安装", "离线"],
        "cited": True,
    }
    labels = {
        "title": "来源",
        "title_uncited": "没有引用",
        "not_cited": "未引用",
        "gone": "不在了",
    }
    html = prose.sources_html([source], {1: {"before": "前文 ", "after": " 后文"}}, "msg_1", labels, "zh")
    assert "前文 <mark>第&lt;一&gt;段</mark> 后文" in html
    assert 'id="s-msg_1-1"' in html and "第 3 页 · 安装 › 离线" in html and "<b>" not in html
    assert "不在了" in prose.sources_html([source], {1: {}}, "m", labels, "zh")
    at = source.get("start") or 0
    spans = {**source, "start": at, "spans": [[at + 1, at + 4]]}
    assert "第<mark>&lt;一&gt;</mark>段" in prose.sources_html([spans], {}, "m", labels, "zh")
    two = prose.sources_html([source, {**source, "number": 2, "cited": False}], {}, "m", labels, "zh")
    assert two.count("未引用") == 1 and "没有引用" not in two
    none = prose.sources_html([{**source, "cited": False}], {}, "m", labels, "zh")
    assert "没有引用" in none and "未引用" not in none


# ---- the watch ----


def _wait(watched: watch.Watch, wanted: Any, timeout_s: float = 10.0) -> watch.Answer:
    deadline = time.monotonic() + timeout_s
    while not wanted(watched.answer()):
        assert time.monotonic() < deadline, watched.answer()
        time.sleep(0.02)
    return watched.answer()


def _ask(client: Client, question: str, **more: Any) -> str:
    conversation = client.create_conversation()["id"]
    body = {"conversation_id": conversation, "messages": [{"role": "user", "content": question}], **more}
    return str(client.generate(body)["id"])


def test_a_watch_reads_an_answer_to_its_end(gateway: str) -> None:
    with Client(gateway) as client:
        answer = _wait(
            watch.Watch(client, _ask(client, "你好", knowledge=["handbook"])), lambda answer: answer.is_final
        )
    assert (answer.status, answer.content, len(answer.sources)) == ("done", fake_gateway.CITED, 3)


def test_a_watch_tells_an_error_and_an_unknown_generation(gateway: str) -> None:
    with Client(gateway) as client:
        answer = _wait(watch.Watch(client, _ask(client, "错误")), lambda answer: answer.is_final)
        assert answer.status == "error" and answer.error and answer.error["message"] == "模型进程意外退出"
        gone = watch.Watch(client, "gen_none").settle(5)
    assert gone.status == "error" and gone.error and gone.error["code"] == "generation_not_found"


def test_a_watch_goes_on_where_it_was_when_the_gateway_comes_back(
    state: fake_gateway.State, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "RETRY_S", 0.1)
    with fake_gateway.serving(state) as url:
        port = int(url.rsplit(":", 1)[1])
        client = Client(url)
        identity = _ask(client, "慢")
        watched = watch.Watch(client, identity)
        _wait(watched, lambda answer: len(answer.content) >= 3)
    _wait(watched, lambda answer: answer.is_lost)
    log = state.logs[identity]
    log.events += [{"type": "delta", "content": "续", "reasoning": ""}, {"type": "done", "sources": []}]
    log.closed = True
    with fake_gateway.serving(state, port):
        answer = _wait(watched, lambda answer: answer.is_final)
        client.close()
    assert answer.content == "".join(event.get("content", "") for event in log.events)
    assert not answer.is_lost


# ---- colours, shell, start ----


def _luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _contrast(one: str, other: str) -> float:
    high, low = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def _variables(css: str) -> dict[str, str]:
    return dict(re.findall(r"--mf-([a-z0-9-]+): (#[0-9a-f]{6})", css))


@pytest.mark.parametrize("colours", [theme.LIGHT, theme.DARK], ids=["light", "dark"])
def test_text_is_readable(colours: dict[str, Any]) -> None:
    for background in ("backgroundColor", "secondaryBackgroundColor"):
        for text in ("textColor", "primaryColor", "linkColor", "grayColor", "redColor"):
            assert _contrast(colours[text], colours[background]) >= 4.5, (text, background)
        for line in colours["chartCategoricalColors"]:  # WCAG 1.4.11: graphics
            assert _contrast(line, colours[background]) >= 3, line
    light, dark = style.css().split("@media (prefers-color-scheme: dark)", 1)
    own = _variables(light if colours is theme.LIGHT else dark.split("/*", 1)[0])
    pairs = [
        ("quiet", "paper"),
        ("quiet", "soft"),
        ("accent", "tint"),
        ("warn", "warn-soft"),
        ("ink", "bad-soft"),
        ("ink", "mark"),
        ("ink", "tint"),
        *(("ink", f"{kind}{step}") for kind in "st" for step in range(5)),
        ("quiet", "tint"),
    ]
    for text, background in pairs:
        assert _contrast(own[text], own[background]) >= 4.5, (text, background)


def test_primary_buttons_are_readable_in_the_dark() -> None:
    text = re.search(r'button\[kind\^="primary"\].*?color: (#[0-9a-f]{6})', style.css(), re.S)
    assert text and _contrast(text[1], theme.DARK["primaryColor"]) >= 4.5
    assert _contrast("#ffffff", theme.LIGHT["primaryColor"]) >= 4.5


def test_the_page_is_ours_before_streamlit_draws() -> None:
    html = shell.page_html("zh")
    assert '<html lang="zh-CN">' in html and "<title>模坊工作台</title>" in html
    assert "You need to enable" not in html and 'preload"\n' not in html
    assert '<html lang="en">' in shell.page_html("en")


def test_the_policy_lets_the_browser_reach_this_host_only() -> None:
    assert not re.search(r"https?:|\*", shell.POLICY)
    assert "connect-src 'self'" in shell.POLICY and "default-src 'self'" in shell.POLICY


class Broken(RuntimeError):
    pass


@pytest.mark.parametrize("leaves", [True, False])
async def test_a_visitor_who_leaves_in_the_middle_of_a_message_is_no_fault(leaves: bool) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        socket = WebSocket(scope, receive, send)
        await socket.accept()
        with contextlib.suppress(WebSocketDisconnect):
            await socket.send_bytes(b"a")
        if not leaves:
            await socket.close()
        await socket.close()  # as Streamlit does it

    async def receive() -> dict[str, Any]:
        return {"type": "websocket.connect"}

    async def send(message: dict[str, Any]) -> None:
        if leaves and message["type"] == "websocket.send":
            raise OSError("gone")

    scope = {"type": "websocket", "headers": [], "path": "/", "query_string": b""}
    (guard,) = shell.middleware()
    await guard.cls(app)(scope, receive, send)

    async def broken(scope: Any, receive: Any, send: Any) -> None:
        raise Broken

    with pytest.raises(Broken):
        await guard.cls(broken)(scope, receive, send)


def test_streamlit_is_told_to_be_quiet_and_careful() -> None:
    options = run.streamlit_options("127.0.0.1", 8643, 200)
    assert options["browser.gatherUsageStats"] is False
    assert options["server.enableXsrfProtection"] and options["server.enableCORS"]
    assert "*" not in options["server.allowedHosts"]
    assert not run.is_loopback("0.0.0.0") and run.is_loopback("::1") and not run.is_loopback("example.com")


@pytest.mark.slow
def test_the_process_serves_its_page_with_the_policy_and_refuses_other_names(bench: Any) -> None:
    answer = httpx.get(bench.url, trust_env=False)
    assert answer.headers["content-security-policy"] == shell.POLICY
    assert "模坊工作台" in answer.text
    assert httpx.get(f"{bench.url}/favicon.png", trust_env=False).headers["content-type"] == "image/svg+xml"


# ---- documents ----


@given(
    some.text(max_size=60),
    some.lists(some.tuples(some.integers(0, 80), some.integers(0, 80)), max_size=6),
    some.integers(0, 20),
)
def test_chunks_add_shades_and_lose_no_letter(text: str, spans: list[tuple[int, int]], offset: int) -> None:
    chunks = [{"start": min(span), "end": max(span)} for span in sorted(spans)]
    html = prose.chunks_html(text, offset, chunks, lambda n: f"{n} 字")
    bare = re.sub(r'<i>\d+ 字</i>|<span class="mf-chunk(?: odd)?">|</span>', "", html)
    assert bare == escape(text)


def test_neighbouring_chunks_have_different_shades() -> None:
    chunks = [{"start": 0, "end": 2}, {"start": 2, "end": 4}, {"start": 3, "end": 6}]
    assert prose.chunks_html("甲乙丙丁戊己<", 0, chunks, str) == (
        '<span class="mf-chunk"><i>2</i>甲乙</span><span class="mf-chunk odd"><i>2</i>丙丁</span>'
        '<span class="mf-chunk"><i>3</i>戊己</span>&lt;'
    ), "what two share is in the first"


def test_marks_escape_what_they_mark() -> None:
    assert prose.marked("a<b>c", [(1, 4)]) == "a<mark>&lt;b&gt;</mark>c" and prose.marked("a&", []) == "a&amp;"


@pytest.mark.parametrize(
    ("at", "span"), [("12-40", (12, 40)), ("", (0, 0)), ("x-1", (0, 0)), ("-5", (0, 0)), ("5", (0, 0))]
)
def test_the_urls_span(at: str, span: tuple[int, int]) -> None:
    assert document._span(at) == span
