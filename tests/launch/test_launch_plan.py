"""`mofang plan`: from what this machine has stored, and from nothing else; what is not known is said."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rich.cells import cell_len
from typer.testing import CliRunner, Result

from mofang.engine import profile
from mofang.engine.profile import Choices, Profile
from mofang.errors import Invalid, NotFound, UnknownName
from mofang.launch import plan_picture, plan_serve, plan_train
from mofang.launch.plan_serve import Asked, fewest_for, seen_lengths
from mofang.models.base import MemoryEstimate, ModelRef
from mofang.recipes import parse, recipe_class
from mofang.runs import Runs, now
from mofang.settings import Settings

PROVIDER = "native · llama.cpp b1"
FOUND = Profile(
    "qwen", Choices(n_slots=4), "both", PROVIDER, made_at="2026-11-20T08:00:00+00:00",
    speeds={"prompt": 400.0, "answer": 40.0}, together={"1": 40.0, "2": 60.0, "4": 80.0, "8": 82.0},
)  # fmt: skip


class Models:
    """mofang.models.store.ModelStore with one model, as large as a test says."""

    needs = 2_000_000_000

    def __init__(self, settings: Settings) -> None:
        self._ref = ModelRef("qwen", settings.home / "qwen.gguf", "gguf", "chat", 10, "ab" * 32)

    def resolve(self, name: str, kind: str) -> ModelRef:
        return self._ref

    def memory(self, ref: ModelRef, n_ctx: int, n_slots: int) -> MemoryEstimate:
        assert (n_ctx, n_slots) == (8192, 4)
        return MemoryEstimate(0, 0, 0, self.needs)


@pytest.fixture
def measured(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home where the model was tuned on this machine."""
    (home / "qwen.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr(plan_serve, "ModelStore", Models)
    monkeypatch.setattr(plan_serve, "describe", lambda provider: PROVIDER)
    monkeypatch.setattr(
        plan_serve, "tuned", lambda settings, ref: ("native", profile.load(settings.home, ref, PROVIDER))
    )
    profile.save(home, Models(Settings(home=home))._ref, FOUND)
    return home


@pytest.fixture
def mofang(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("MOFANG_LANG", "en")
    from mofang.cli.main import build

    def invoke(*arguments: str) -> Result:
        return CliRunner().invoke(build(), ["plan", *arguments])

    return invoke


def planned(home: Path, **wish: Any) -> plan_serve.ServingPlan:
    return plan_serve.plan(Asked(**{"users": 20, "think_s": 30.0, "ttft_s": 8.0, **wish}), Settings(home=home))


def log_answers(home: Path, pairs: list[tuple[int, int, int]]) -> None:
    """Lines as server/journal.py writes them, beside those of requests that wrote nothing."""
    (home / "logs").mkdir(exist_ok=True)
    lines = [
        {"event": "request", "prompt_tokens": prompt, "cached_tokens": cached, "completion_tokens": answer}
        for prompt, cached, answer in pairs
    ]
    embedding = {"event": "request", "prompt_tokens": 999, "cached_tokens": 0, "completion_tokens": 0}
    text = "".join(json.dumps(line) + "\n" for line in [embedding, *lines, embedding])
    (home / "logs" / "requests.jsonl").write_text(text + '{"event": "requ', encoding="utf-8")


# ---- serving ----


def test_the_fewest_replicas_that_are_enough(measured: Path) -> None:
    found = planned(measured)
    by_count = {row.replicas: row for row in found.rows}
    assert by_count[found.replicas].ttft_p95_s <= 8.0
    assert {found.replicas - 1, found.replicas, found.replicas + 1} - {0} <= by_count.keys()
    assert found.replicas == 1 or by_count[found.replicas - 1].ttft_p95_s > 8.0
    more = planned(measured, users=80)
    assert more.replicas > found.replicas, "four times the people"
    assert more.memory_bytes == Models.needs and more.slots == 4 and more.machine_bytes > 0


def test_it_says_what_it_was_drawn_from(measured: Path) -> None:
    found = planned(measured, prompt_tokens=400, answer_tokens=100)
    assert (found.prompt_tokens, found.answer_tokens) == (400, 100)
    assert "2026-11-20T08:00" in found.sources[0] and PROVIDER in found.sources[0] and not found.notes


def test_a_bench_at_that_length_goes_before_the_tuning(measured: Path) -> None:
    rows = [
        {"n_ctx": 128, "prompt_per_second": 420.0, "predicted_per_second": 40.0, "bandwidth_share": 0.5},
        {"n_ctx": 4096, "prompt_per_second": 100.0, "predicted_per_second": 20.0, "bandwidth_share": 0.5},
    ]
    run = Runs(measured).create(parse(recipe_class("bench"), {"model": "qwen"}))
    run.update(status="done", result={"model": "qwen", "provider": PROVIDER, "rows": rows})
    other = Runs(measured).create(parse(recipe_class("bench"), {"model": "other"}))
    other.update(status="done", result={"model": "other", "provider": PROVIDER, "rows": [{**rows[0], "n_ctx": 4000}]})
    ref = Models(Settings(home=measured))._ref
    known = plan_serve._known(Settings(home=measured), ref, 3500)
    assert known.speeds.prompt == 100.0 and known.speeds.together[4] == pytest.approx(40.0), "half as fast there"
    assert run.id in known.sources[1]
    assert plan_serve._known(Settings(home=measured), ref, 100).speeds.prompt == 420.0


def test_a_profile_without_the_crowd_is_taken_at_its_worst_and_that_is_said(measured: Path) -> None:
    ref = Models(Settings(home=measured))._ref
    profile.save(measured, ref, replace(FOUND, together={}))
    known = plan_serve._known(Settings(home=measured), ref, 100)
    assert known.speeds.step_s(4) == pytest.approx(4 / 40) and "engine tune qwen" in known.notes[0]


def test_lengths_are_those_of_the_log_of_requests(measured: Path) -> None:
    log_answers(measured, [(100 + n, 40, 30) for n in range(60)])
    assert seen_lengths(measured / "logs")[-1] == (60, 30), "what the cache held is not read again"
    found = planned(measured)
    assert (found.prompt_tokens, found.answer_tokens) == (pytest.approx(89.5), 30)
    assert "60" in found.sources[-1]
    half = planned(measured, answer_tokens=300)
    assert (half.prompt_tokens, half.answer_tokens) == (pytest.approx(89.5), 300), "the rest as it was seen"
    log_answers(measured, [(100, 0, 30)] * 3)
    few = planned(measured)
    assert (few.prompt_tokens, few.answer_tokens) == (plan_serve.PROMPT, plan_serve.ANSWER)


def test_a_model_that_was_not_measured_is_refused_with_what_measures_it(measured: Path) -> None:
    profile.forget(measured, Models(Settings(home=measured))._ref, PROVIDER)
    with pytest.raises(NotFound) as raised:
        planned(measured)
    assert raised.value.code == "not_tuned" and "mofang engine tune qwen" in raised.value.hint("en")


def test_a_wish_that_no_number_fulfils_is_refused_with_what_would_be_right(measured: Path) -> None:
    with pytest.raises(Invalid) as raised:
        planned(measured, prompt_tokens=4000, ttft_s=1.0)
    assert raised.value.code == "never" and raised.value.param == "--p95-ttft"
    assert float(raised.value.values["least"]) > 10, "4000 tokens at 400 a second"


@pytest.mark.parametrize("needed", range(1, 40))
def test_the_search_finds_the_smallest(needed: int) -> None:
    tried: list[int] = []

    def p95(count: int) -> float:
        tried.append(count)
        return 0.0 if count >= needed else 9.0

    assert fewest_for(p95, 1.0, most=39) == needed
    assert len(tried) < 16 and fewest_for(p95, 1.0, most=needed - 1 or 1) == (1 if needed == 1 else None)


def test_the_command_says_it_and_as_json(measured: Path, mofang, tmp_path: Path) -> None:
    shown = mofang("serve", "--users", "20", "--p95-ttft", "8s", "--picture", str(tmp_path / "plan.png"))
    assert shown.exit_code == 0, shown.output
    assert "qwen" in shown.stdout and "→" in shown.stdout and "2.00 GB" in shown.stdout
    with Image.open(tmp_path / "plan.png") as image:
        assert image.format == "PNG" and image.size == (plan_picture.WIDTH * 2, plan_picture.HEIGHT * 2)
        assert len(image.convert("RGB").getcolors(1 << 20) or ()) > 10, "something is drawn"
    told = json.loads(mofang("serve", "--users", "20", "--p95-ttft", "8s", "--json").stdout)
    assert told["model"] == "qwen" and told["asked"]["users"] == 20 and told["rows"][0]["replicas"] == 1


def test_help_is_whole_at_80_columns(home: Path, mofang, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for command in ("serve", "train"):
        shown = mofang(command, "--help").stdout
        assert "…" not in shown and max(cell_len(line) for line in shown.splitlines()) <= 80


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("--users", "5", "--think-time", "soon"), "--think-time"),
        (("--users", "5", "--p95-ttft", "0"), "--p95-ttft"),
        (("--users", "5", "--think-time", "-1"), "--think-time"),
        (("--users", "5", "--picture", "/nowhere/at/all.png"), ".png"),
        (("--users", "5", "--picture", "plan.svg"), ".png"),
    ],
)
def test_what_cannot_be_used_is_refused(measured: Path, mofang, arguments: tuple[str, ...], code: str) -> None:
    done = mofang("serve", *arguments)
    assert done.exit_code == 2 and code in done.output


# ---- training ----


def past(home: Path, rate: float, *, workers: int = 1, base: str = "tiny", peak: int = 10**9, **fields: Any) -> str:
    """A finished run of sft that showed so much."""
    run = Runs(home).create(parse(recipe_class("sft"), {"base": base, "data": ["d"], **fields}))
    began = "2026-11-20T08:00:00.000+00:00"
    result = {"tokens_per_s": rate, "peak_memory_bytes": peak * workers, "processes": workers}
    for step in range(1, 5):
        run.record({"step": step, "tokens": 100, "seconds": 10.0, "loss": 1.0})
    ended = "2026-11-20T08:01:00.000+00:00"
    run.update(status="done", started_at=began, ended_at=ended, created_at=now(), result=result)
    return run.id


def test_hours_and_memory_are_those_of_runs_of_like_kind(home: Path) -> None:
    first, second = past(home, 100.0, peak=3 * 10**9), past(home, 120.0)
    past(home, 5000.0, base="other")
    past(home, 900.0, tune="full", name="whole")
    last = past(home, 110.0)
    found = plan_train.plan(3_960_000, home, base="tiny")
    assert set(found.runs) == {first, second, last} and found.tune == "lora"
    assert found.hours == pytest.approx(10.0) and (found.least_hours, found.most_hours) == (
        pytest.approx(10 * 110 / 120, abs=0.001), pytest.approx(11.0))  # fmt: skip
    assert found.memory_bytes == 3 * 10**9
    assert found.beside == pytest.approx(0.5), "a minute, of which forty seconds were steps"


def test_without_a_base_that_of_the_newest_run(home: Path) -> None:
    past(home, 100.0)
    past(home, 50.0, base="other")
    assert plan_train.plan(1000, home).base == "other"


def test_more_workers_are_drawn_from_those_that_ran(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOFANG_LANG", "en")
    past(home, 100.0)
    one = plan_train.plan(360_000, home, workers=4)
    assert one.hours == pytest.approx(0.25) and "best that can be" in one.notes[0], "assumed, and said"
    past(home, 150.0, workers=2)
    two = plan_train.plan(360_000, home, workers=2)
    assert two.hours == pytest.approx(360_000 / 150 / 3600, abs=0.001) and not two.notes
    four = plan_train.plan(360_000, home, workers=4)
    assert four.tokens_per_s == pytest.approx(150 * 1.5, rel=0.01), "twice as many were one and a half times as fast"


def test_nothing_like_it_is_refused_with_what_measures_it(home: Path) -> None:
    past(home, 100.0, base="other")
    with pytest.raises(NotFound) as raised:
        plan_train.plan(1000, home, base="tiny")
    assert "other" in raised.value.message("en") and "mofang train sft" in raised.value.hint("en")
    with pytest.raises(UnknownName):
        plan_train.plan(1000, home, method="sfft")


def test_a_run_that_did_not_end_well_is_no_measure(home: Path) -> None:
    run = Runs(home).create(parse(recipe_class("sft"), {"base": "tiny", "data": ["d"]}))
    run.update(status="failed", result={"tokens_per_s": 1e9})
    with pytest.raises(NotFound):
        plan_train.plan(1000, home)


def test_the_training_command(home: Path, mofang) -> None:
    past(home, 100.0)
    shown = mofang("train", "--tokens", "50M")
    assert shown.exit_code == 0, shown.output
    assert "138.9 hours" in shown.stdout and "1.00 GB" in shown.stdout
    told = json.loads(mofang("train", "--tokens", "5000万", "--json").stdout)
    assert told["tokens"] == 50_000_000 and told["hours"] == pytest.approx(138.889)


@pytest.mark.parametrize(
    ("text", "amount"), [("500k", 500_000), ("1.2B", 1_200_000_000), ("12,000", 12_000), ("1亿", 100_000_000)]
)
def test_amounts_as_people_write_them(text: str, amount: int) -> None:
    from mofang.cli.plan import _amount

    assert _amount(text) == amount


@pytest.mark.parametrize("text", ["", "many", "0", "-5", "5Q", "1e999"])
def test_amounts_that_are_none(text: str) -> None:
    from mofang.cli.plan import _amount

    with pytest.raises(Invalid):
        _amount(text)
