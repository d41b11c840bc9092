"""训练: teach a model with examples, watch it learn, talk to what came of it.

A training lives in a process of its own; this page reads everything from the gateway and may come and go.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from html import escape
from typing import Any, Final

import streamlit as st

from mofang.client import ApiError
from mofang.errors import MofangError
from mofang.ui import figures
from mofang.ui.components import compare, datasets, extension, runs
from mofang.ui.components.base import attempt, chart, fragment, quiet, show_error, show_fault, show_flash, stats
from mofang.ui.components.form import Schema, form
from mofang.ui.components.runs import Run
from mofang.ui.curve import Curve
from mofang.ui.session import client, language, link_params, t, t_or

TICK_S: Final = 1.0
EXPORTED: Final = "q8_0"
"""The GGUF type that needs nothing but Python, and loses next to nothing."""
BASES: Final = {"kind": ("chat", "base"), "format": ("gguf", "hf")}
"""What a model must be to be taught."""
USUAL_LAUNCHER: Final = "local"
"""Not worth a word where it was used."""
MAIN: Final = ("epochs", "max_minutes", "learning_rate", "batch_size", "lora_rank", "eval_fraction")
"""Fields that are seen at once, in this order; every other one of the schema is under "more"."""
PLACED: Final = ("base", "data", "eval_data", "name", "export")
"""Fields that this page asks for in its own way."""
GROUPS: Final[Mapping[str, Sequence[str]]] = {
    "data": ("format", "columns", "weights", "system_prompt", "max_length"),
    "pace": ("max_steps", "lr_scheduler", "warmup_ratio", "weight_decay", "max_grad_norm"),
    "tune": (
        "tune", "layers", "modules_to_save", "first_new_row", "lora_alpha", "lora_targets", "lora_dropout", "lora_rslora",
        "lora_dora", "quantize_base",
    ),
    "watch": (
        "eval_every", "early_stopping_patience", "sample_every", "sample_tokens", "sample_prompts",
        "load_best_model_at_end", "tensorboard",
    ),
    "machine": ("row_tokens", "dtype", "seed", "save_every", "keep_checkpoints", "packing"),
}  # fmt: skip
"""How the fields of every method lie under "more"; what else a schema has is the method's own, and comes first."""
DATA_TYPES: Final = ["jsonl", "json", "csv", "tsv", "parquet", "txt", "md"]
EXAMPLE: Final = """\
{"instruction": "你是谁？", "input": "", "output": "我是小坊，一个在你自己的电脑上运行的助手。"}
{"instruction": "把下面的话改得更礼貌", "input": "把文件发我", "output": "麻烦您方便时把文件发给我，谢谢。"}"""


def page() -> None:
    show_flash()
    if run := runs.looked_at():
        extension.PAGES.get(run["kind"], _run)(run)
        return
    st.html(f'<div class="mf-head"><h2>{escape(t("page_train"))}</h2><p>{escape(t("train_text"))}</p></div>')
    known = client().runs(training=True)
    if not known:
        _welcome()
    compared = [run for run in known if run["status"] != "created"]
    parts: dict[str, Callable[[], None]] = {
        **({t("runs_n", n=len(known)): partial(runs.listed, known, training=True)} if known else {}),
        t("train_new"): partial(_new, is_first=not known),
        t("extend_tab"): extension.begin,
        **({t("compare"): partial(compare.show, compared)} if len(compared) > 1 else {}),
    }
    for tab, draw in zip(st.tabs(list(parts), default=_first(parts)), parts.values(), strict=True):
        with tab:
            draw()


def _first(parts: Iterable[str]) -> str:
    """The tab to open with: the form where a step before has filled it in, else the first."""
    return t("train_new") if st.session_state.get(extension.PREFILLED) else next(iter(parts))


# ---- a new training ----


def _welcome() -> None:
    steps = "".join(f"<li>{escape(t(f'train_welcome_{number}'))}</li>" for number in (1, 2, 3))
    st.html(
        f'<div class="mf-welcome"><h3>{escape(t("train_welcome"))}</h3><p>{escape(t("train_welcome_text"))}</p>'
        f"<ol>{steps}</ol></div>"
    )
    _data_form()


def _data_form() -> None:
    quiet(t("data_form"))
    st.code(EXAMPLE, language="json", wrap_lines=True)
    quiet(t("data_form_more"))


@fragment()
def _new(*, is_first: bool) -> None:
    methods = {kind: one["schema"] for kind, one in client().recipes().items() if one["training"]}
    models = [model["id"] for model in client().models() if _is_base(model)]
    if not models:
        quiet(t("train_no_base"))
        if st.button(t("go_models"), key="go_models", type="primary", icon=":material/deployed_code:"):
            st.switch_page(st.session_state["pages"]["models"], query_params=link_params())
        return
    kind = _method(list(methods))
    if told := t_or(f"method_{kind}_text", ""):
        quiet(told)
    schema = methods[kind]
    base = _base(schema, models)
    data, held_out = _data(schema, shows_form=not is_first)
    seen = st.container(key="train_preview")
    name = st.text_input(t("train_name"), key="train_name", max_chars=100, placeholder=t("train_name_placeholder"))
    with st.container(key="train_main"):
        chosen = form(schema, [name for name in MAIN if name in schema["properties"]], key=f"train_{kind}")
    with st.expander(t("train_more"), icon=":material/tune:", key="train_more_fields"):
        chosen |= _more(schema, kind)
        launcher = _launcher()
    exports = st.toggle(t("train_export"), value=True, key="train_export", help=t("train_export_help"))
    with seen:
        if data and base:
            _preview(data[0], base, chosen.get("max_length"))
    recipe = {
        **chosen, "base": base, "data": data, "eval_data": held_out, "name": name.strip(),
        "export": EXPORTED if exports else "",
    }  # fmt: skip
    if st.button(t("train_start"), key="train_start", type="primary", icon=":material/play_arrow:", disabled=not data):
        wished = {field: value for field, value in recipe.items() if value not in ("", [])}
        if runs.start(kind, wished, launcher):
            st.session_state.pop(extension.PREFILLED, None)
            st.rerun()
    if not data:
        quiet(t("train_needs_data"))


def _base(schema: Schema, models: list[str]) -> str:
    """The model to teach; "" for a new one, where the method can begin one."""
    offered = models if "base" in schema["required"] else [*models, ""]
    return str(
        st.selectbox(
            t("train_base"),
            offered,
            index=models.index(_usual(models)),
            format_func=lambda name: name or t("train_base_new"),
            key="train_base" if offered is models else "train_base_or_new",
            help=t("train_base_help"),
        )
    )


def _more(schema: Schema, kind: str) -> dict[str, Any]:
    """The rarely changed fields, group by group; the values that somebody changed."""
    grouped = {name for names in (MAIN, PLACED, *GROUPS.values()) for name in names}
    own = [name for name in schema["properties"] if name not in grouped]
    chosen: dict[str, Any] = {}
    titles = {"own": t_or(f"method_{kind}_own", t("train_group_own"))}
    for group, names in {"own": own, **GROUPS}.items():
        if shown := [name for name in names if name in schema["properties"]]:
            st.html(f'<h4 class="mf-group">{escape(titles.get(group) or t(f"train_group_{group}"))}</h4>')
            with st.container(key=f"train_more_{group}"):
                chosen |= form(schema, shown, key=f"train_{kind}")
    return chosen


def _launcher() -> dict[str, Any]:
    """Who computes it, as the API wants it named; {} for what happens anyway."""
    found = client().launchers()
    st.html(f'<h4 class="mf-group">{escape(t("train_group_launcher"))}</h4>')
    with st.container(key="train_more_launcher"):
        name = st.selectbox(
            t("train_launcher"),
            list(found),
            format_func=lambda name: t_or(f"launcher_{name}", name),
            key="train_launcher",
            help=t("train_launcher_help"),
        )
        schema = found[name]["schema"]
        fields = form(schema, schema["properties"], key=f"train_launcher_{name}")
    return {} if name == next(iter(found)) else {"launcher": name, **fields}


def _is_base(model: Mapping[str, Any]) -> bool:
    return all(model.get(name) in wanted for name, wanted in BASES.items())


def _usual(models: list[str]) -> str:
    """The model that chats are answered with, else the first."""
    try:
        usual = client().ready().get("chat_model")
    except ApiError:  # several models and none chosen: also an answer
        usual = None
    return usual if usual in models else models[0]


def _method(kinds: list[str]) -> str:
    """How to teach; asked only where there is a choice."""
    if len(kinds) == 1:
        return kinds[0]
    return str(
        st.segmented_control(
            t("train_method"),
            kinds,
            default=kinds[0],
            required=True,
            format_func={kind: t_or(f"method_{kind}", kind) for kind in kinds}.__getitem__,
            key="train_method",
        )
    )


# ---- examples to teach with ----


def _data(schema: Schema, *, shows_form: bool) -> tuple[list[str], list[str]]:
    """(files to learn from, files to hold out), both by their names at the gateway."""
    chosen, names = datasets.choose(
        "train", DATA_TYPES,
        label=t("train_data"), placeholder=t("train_data_placeholder"), upload=t("train_upload"),
    )  # fmt: skip
    if shows_form:
        with st.expander(t("data_form_title"), icon=":material/help:"):
            _data_form()
    held_out: list[str] = []
    others = [name for name in names if name not in chosen]
    if "eval_data" in schema["properties"] and chosen and others:
        held_out = st.multiselect(
            t("train_eval_data"),
            others,
            key="train_eval_data",
            placeholder=t("train_eval_data_placeholder"),
            help=t("train_eval_data_help"),
            select_all=False,
        )
    return chosen, list(held_out)


def _preview(name: str, base: str, max_length: int | None) -> None:
    """The first example with what is learned marked, and what becomes of all of them."""
    try:
        with st.spinner(t("preview_reading", name=name)):
            shape = _previewed(client(), name, datasets.uploads("train"), base, max_length, language())
    except MofangError as error:
        show_error(error)
        return
    counts = [
        t("preview_examples", n=f"{shape['n_examples']:,}"),
        t("preview_tokens", n=f"{shape['n_tokens']:,}"),
        t("preview_cut", n=shape["n_cut"]) if shape["n_cut"] else "",
        t("preview_dropped", n=shape["n_dropped"]) if shape["n_dropped"] else "",
    ]
    line = "".join(f"<span>{escape(text)}</span>" for text in counts if text)
    st.html(f'<div class="mf-figures"><b>{escape(name)}</b>{line}</div>')
    for example in shape["examples"][:1]:
        text = "".join(
            f"<mark>{escape(part['text'])}</mark>" if part["learned"] else escape(part["text"])
            for part in example["segments"]
        )
        said = t("preview_row", row=example["row"], n=example["n_tokens"], learned=example["n_supervised"])
        st.html(
            f'<div class="mf-hit"><div class="mf-quiet">{escape(said)}</div><div class="mf-passage">{text}</div></div>'
        )


@st.cache_data(max_entries=32, show_spinner=False)
def _previewed(_client: Any, name: str, stamp: int, base: str, max_length: int | None, lang: str) -> dict[str, Any]:
    """`stamp` grows with every upload: a file may be replaced by one of the same name."""
    shape: dict[str, Any] = _client.preview_dataset(name, base, max_length)
    return shape


# ---- one training ----


def _run(run: Run) -> None:
    own = run["id"]
    runs.way_back(t("all_runs"))
    export = _export_of(run)
    base, launcher = run["recipe"].get("base"), run["launcher"]["launcher"]
    elsewhere = t_or(f"launcher_{launcher}", launcher) if launcher != USUAL_LAUNCHER else ""
    runs.head(run, t("run_base", name=base) if base else "", elsewhere)
    with st.container(horizontal=True, vertical_alignment="center", key="run_actions"):
        _actions(run, export)
    with st.container(key="run_faults"):  # places of their own: what stands below is not moved, and so not redrawn
        for one in (run, export):
            if one and one["status"] == "failed":
                show_fault(one.get("error"))
    statuses = _statuses(run, export)
    (_live if "running" in statuses else _still)(own, statuses)


def _export_of(run: Run) -> Run | None:
    """The newest export that was begun from a finished training, when there is one."""
    if run["status"] != "done" or run.get("model"):
        return None
    exports = [one for one in client().runs(training=False) if one["kind"] == "gguf" and one["title"] == run["id"]]
    return exports[0] if exports else None


def _statuses(run: Run, export: Run | None) -> tuple[str, ...]:
    return (run["status"], export["status"] if export else "")


def _actions(run: Run, export: Run | None) -> None:
    own, status = run["id"], run["status"]
    made = run.get("model") or (export or {}).get("model")
    if made:
        runs.chat_button(made)
    exporting = bool(export and export["status"] == "running")
    if status == "done" and not made and not exporting:
        st.button(
            t("run_export"),
            key="run_export",
            type="primary",
            icon=":material/deployed_code:",
            on_click=attempt,
            args=(partial(client().start_run, "gguf", {"model": own, "type": EXPORTED}),),
        )
    running = own if status == "running" else (export or {}).get("id") if exporting else None
    runs.handles(run, running, deletes=t("run_delete_text"))


# ---- what changes while it runs ----


def _watch(run_id: str, known: tuple[str, ...]) -> None:
    """Progress, figures, curve, notes and log. `known`: the statuses that the page was drawn with; when one changes,
    the whole page is drawn again."""
    run = client().run(run_id)
    export = _export_of(run)
    if _statuses(run, export) != known:
        st.rerun()
    with st.container(key="run_progress"):
        for one in (run, export):
            if one and one["status"] == "running":
                runs.progress(one)
    curve = _curve(run)
    _figures(run, curve)
    _chart(curve)
    for note in (*run["notes"], *(export["notes"] if export else ())):
        quiet(note)
    if run.get("samples"):
        with st.expander(t("run_samples"), icon=":material/chat:", key="run_samples"):
            _samples(run["samples"])
    runs.papers(run)


_still: Final = fragment()(_watch)
_live: Final = fragment(run_every=TICK_S)(_watch)


def _samples(samples: Sequence[Mapping[str, Any]]) -> None:
    """Each prompt with what was said to it, the newest first: how it changed is what one looks for."""
    for prompt in dict.fromkeys(sample["prompt"] for sample in samples):
        st.code(prompt.strip(), language=None, wrap_lines=True)
        for sample in reversed([sample for sample in samples if sample["prompt"] == prompt]):
            st.html(
                f"<p><small>{escape(t('run_samples_step', step=sample['step']))}</small> {escape(sample['text'])}</p>"
            )


def _curve(run: Run) -> Curve:
    """What this visitor's page knows of the run's lines, and those since. A run that was resumed is read anew: lines
    beyond its checkpoint are measured again."""
    key = f"curve_{run['id']}_{run['started_at']}"
    curve: Curve = st.session_state.get(key) or Curve()
    curve = curve.grown(client().run_metrics(run["id"], curve.after))
    st.session_state[key] = curve
    return curve


def _figures(run: Run, curve: Curve) -> None:
    speed = (run.get("result") or {}).get("tokens_per_s") or curve.tokens_per_s
    shown = [(t(f"curve_{name}"), _change(curve.of(name))) for name in ("loss", "eval_loss")]
    shown.append((t("tokens_per_s"), f"{speed:,.0f}" if speed else ""))
    if run["started_at"]:
        seconds = figures.seconds_between(run["started_at"], run["ended_at"])
        shown.append((t("run_took"), figures.duration(language(), seconds)))
    stats(*shown)


def _change(values: list[tuple[int, float]]) -> str:
    """The first and the last of them."""
    texts = [f"{value:.3f}" for _, value in (values[0], values[-1])] if values else []
    return " → ".join(dict.fromkeys(texts))


def _chart(curve: Curve) -> None:
    labels = {name: t(f"curve_{name}") for name in ("loss", "eval_loss") if curve.of(name)}
    if len(curve.rows) < 2:  # one point is no curve
        return
    chart(curve.table(labels), _spec(), t("curve_alt"))
    if curve.every > 1:
        quiet(t("curve_every", n=curve.every))


def _spec() -> dict[str, Any]:
    """Always the same for a language, so that a growing curve is the same chart with more data. Colours: theme.py."""
    series = {"loss": t("curve_loss"), "eval_loss": t("curve_eval_loss")}
    step = {"field": "step", "type": "quantitative", "title": t("curve_step")}
    loss = {"field": "loss", "type": "quantitative", "title": t("curve_value")}
    return {
        "height": 320,
        "encoding": {
            "x": {
                **step,
                "axis": {"tickMinStep": 1, "format": "d", "grid": False, "titlePadding": 4},
                "scale": {"nice": False},
            },
            "y": {**loss, "scale": {"zero": False, "nice": True}, "axis": {"tickCount": 5, "format": ".3~g"}},
            "color": {
                "field": "series",
                "type": "nominal",
                "scale": {"domain": list(series.values())},
                "legend": {"title": None, "symbolOpacity": 1},
            },
            "tooltip": [
                {"field": "series", "type": "nominal", "title": t("curve_series")},
                step,
                {**loss, "format": ".4f"},
            ],
        },
        "layer": [
            {"mark": {"type": "line", "strokeWidth": 2, "interpolate": "linear"}},
            {
                "transform": [{"filter": {"field": "series", "equal": series["eval_loss"]}}],
                "mark": {"type": "point", "filled": True, "size": 70, "opacity": 1},
            },
        ],
    }
