"""概念: ten words that everything here is made of, each explained, and shown on the model that is at hand."""

from collections.abc import Callable
from functools import partial
from html import escape
from typing import Any, Final

import streamlit as st

from mofang.ui import figures, sums
from mofang.ui.components.base import facts as facts_table
from mofang.ui.components.base import guarded, quiet, show_flash
from mofang.ui.components.cuts import cut_by
from mofang.ui.components.odds import odds, option_of
from mofang.ui.components.tokens import bar, flow, legend, unmarked
from mofang.ui.components.working import EMBEDDERS, WRITERS, ask, keep, model_of, no_model
from mofang.ui.projection import cosines
from mofang.ui.session import client, language, link_params, t
from mofang.ui.tokens import legible, percent, token_of

Models = list[dict[str, Any]]
STARTED_TOKENS: Final = 1_000_000
"""That the cost of a training is told for."""
WRITTEN: Final = 16
"""Tokens of the continuation that shows inference."""


def page() -> None:
    st.html(f'<div class="mf-head"><h2>{escape(t("page_concepts"))}</h2><p>{escape(t("concepts_about"))}</p></div>')
    show_flash()
    models = client().models()
    with st.container(key="concept_fields"):
        sentence = st.text_input(t("concept_sentence"), key=keep("concept_text", t("concept_example")))
        model = model_of(models, WRITERS, "concept_asked")
    for number, (name, panel) in enumerate(CONCEPTS.items(), 1):
        with st.container(key=f"about_{name}"):
            lines = t(f"concept_{name}").strip().splitlines()
            st.html(
                f'<div class="mf-concept"><h3><i>{number}</i>{escape(t(f"concept_{name}_title"))}</h3>'
                f"{''.join(f'<p>{escape(line)}</p>' for line in lines)}</div>"
            )
            label = t(f"concept_{name}_show")
            shown = st.expander(label, key=f"show_{name}", icon=":material/play_circle:", on_change="rerun")
            if shown.open:
                with shown:
                    guarded(partial(panel, sentence, model, models))()


def _facts(model: str) -> dict[str, Any] | None:
    return ask("concept_facts", model, partial(client().model, model))


def _counted(model: str) -> dict[str, Any] | None:
    """Its facts, where they tell the parameters; that they do not is said."""
    known = _facts(model)
    if known is not None and not known.get("parameters"):
        quiet(t("concept_no_facts", name=model))
        return None
    return known


def _needs(function: Callable[[str, str, Models], None]) -> Callable[[str, str | None, Models], None]:
    """A panel that shows something of a model; where there is none, the way to one."""

    def shown(sentence: str, model: str | None, models: Models) -> None:
        if model is None:
            no_model(WRITERS, f"concept_{function.__name__}")
        elif not sentence:
            quiet(t("concept_no_sentence"))
        else:
            function(sentence, model, models)

    return shown


def _lens_link(label: str) -> None:
    st.page_link(st.session_state["pages"]["lens"], label=label, icon=":material/biotech:", query_params=link_params())


@_needs
def _language_model(sentence: str, model: str, models: Models) -> None:
    found = ask("concept_model_next", (model, sentence), partial(client().next_token, sentence, model, n_top=5))
    if found:
        odds(found)
        best = option_of(found["top"][0])
        quiet(t("concept_model_seen", sentence=sentence, text=legible(best.data), p=percent(best.probability)))


@_needs
def _token(sentence: str, model: str, models: Models) -> None:
    cut_by("concept_token", model, sentence)
    _lens_link(t("concept_token_more"))


@_needs
def _context(sentence: str, model: str, models: Models) -> None:
    facts = _facts(model)
    pieces = ask("concept_context", (model, sentence), partial(client().pieces, sentence, model))
    if facts is None or pieces is None:
        return
    n_ctx = int((facts.get("memory") or {}).get("n_ctx") or 0)
    if n_ctx:
        share = len(pieces) / n_ctx
        st.html(bar(share, t("concept_context_bar", n=len(pieces), n_ctx=f"{n_ctx:,}", share=percent(share))))
    facts_table(
        (t("concept_context_here"), f"{n_ctx:,} token" if n_ctx else ""),
        (t("concept_context_train"), f"{facts['n_ctx_train']:,} token" if facts.get("n_ctx_train") else ""),
        (t("concept_context_sentences"), f"{n_ctx // max(1, len(pieces)):,}" if n_ctx else ""),
    )


@_needs
def _parameter(sentence: str, model: str, models: Models) -> None:
    facts = _counted(model)
    if facts is None:
        return
    n = facts["parameters"]
    n_bytes = int((facts.get("memory") or {}).get("weights") or facts.get("size_bytes") or 0)
    facts_table(
        (t("fact_parameters"), f"{n:,}"),
        (t("fact_layers"), str(facts.get("n_layers") or "")),
        (t("fact_width"), str(facts.get("n_embd") or "")),
        (t("concept_parameter_embedding"), _embedding_share(facts)),
        (t("concept_parameter_size"), figures.size(n_bytes) if n_bytes else ""),
        (t("concept_parameter_bits"), f"{8 * n_bytes / n:.2f}" if n_bytes else ""),
    )


def _embedding_share(facts: dict[str, Any]) -> str:
    rows, width = facts.get("n_vocab"), facts.get("n_embd")
    return f"{rows:,} × {width:,} = {rows * width:,}" if rows and width else ""


@_needs
def _training(sentence: str, model: str, models: Models) -> None:
    facts = _counted(model)
    if facts is None:
        return
    n = facts["parameters"]
    lang, operations = language(), sums.training_flops(n, STARTED_TOKENS)
    quiet(
        t("concept_training_seen", n=figures.count(lang, n), tokens=figures.count(lang, STARTED_TOKENS),
          operations=f"{operations:.2g}", hours=f"{operations / 1e11 / 3600:,.1f}")
    )  # fmt: skip


def _finetuning(sentence: str, model: str | None, models: Models) -> None:
    done = [
        run for run in client().runs(training=True) if run["status"] == "done" and "last_loss" in (run["result"] or {})
    ]
    if done:
        run = done[0]
        result = run["result"]
        facts_table(
            (t("concept_tuned_run"), str(run["title"])),
            (t("concept_tuned_steps"), f"{result.get('steps', 0):,}"),
            (t("concept_tuned_loss"), f"{result['first_loss']:.3f} → {result['last_loss']:.3f}"),
            (t("concept_tuned_model"), str(run.get("model") or "")),
        )
    else:
        quiet(t("concept_tuned_none"))
    st.page_link(
        st.session_state["pages"]["train"],
        label=t("concept_tuned_go"),
        icon=":material/school:",
        query_params=link_params(),
    )


@_needs
def _inference(sentence: str, model: str, models: Models) -> None:
    body = {"model": model, "prompt": sentence, "max_tokens": WRITTEN, "temperature": 0, "logprobs": 5}
    found = ask("concept_inference", (model, sentence), partial(client().request, "POST", "/v1/completions", body))
    if not found:
        return
    choice = found["choices"][0]
    tokens = [token_of(entry) for entry in (choice.get("logprobs") or {}).get("content") or ()]
    if tokens:
        legend()
        flow(sentence, tokens)
    else:
        unmarked(sentence, choice["text"])
    if speed := (found.get("timings") or {}).get("predicted_per_second"):
        quiet(t("concept_inference_seen", n=len(tokens), speed=f"{speed:.1f}", ms=f"{1000 / speed:.0f}"))
    _lens_link(t("concept_inference_more"))


def _embedding(sentence: str, model: str | None, models: Models) -> None:
    names = [one["id"] for one in models if one["kind"] in EMBEDDERS]
    if not names:
        no_model(EMBEDDERS, "concept_embedding")
        return
    names.sort(key=lambda name: not any(one["id"] == name and one.get("loaded") for one in models))
    other = st.text_input(t("concept_embedding_other"), key=keep("concept_other", t("concept_embedding_other_example")))
    third = st.text_input(t("concept_embedding_third"), key=keep("concept_third", t("concept_embedding_third_example")))
    texts = (sentence, other, third)
    if not all(texts):
        quiet(t("concept_no_sentence"))
        return
    vectors = ask("concept_embedding", (names[0], texts), partial(client().embeddings, texts, names[0]))
    if not vectors:
        return
    likeness = cosines(vectors)
    for column, text in ((1, other), (2, third)):
        value = likeness[0][column]
        st.html(f'<div class="mf-likely">{bar(max(0.0, value), f"{value:.3f}")}<span>{escape(text)}</span></div>')
    numbers = ", ".join(f"{value:.3f}" for value in vectors[0][:6])
    quiet(t("concept_embedding_seen", model=names[0], d=len(vectors[0]), numbers=numbers))


@_needs
def _quantization(sentence: str, model: str, models: Models) -> None:
    facts = _counted(model)
    if facts is None:
        return
    n = facts["parameters"]
    sizes = {kind: sums.size_in(kind, n) for kind in sums.SHOWN}
    largest = max(sizes.values())
    for kind, n_bytes in sizes.items():
        told = t("concept_quantization_row", kind=kind, size=figures.size(n_bytes), bits=f"{sums.BITS[kind]:g}")
        st.html(bar(n_bytes / largest, told))
    now = facts.get("size_bytes")
    if now:
        told = t(
            "concept_quantization_now", kind=str(facts.get("quantization") or "?"), size=figures.size(now), name=model
        )
        quiet(told)
    quiet(t("concept_quantization_note"))


@_needs
def _lora(sentence: str, model: str, models: Models) -> None:
    facts = _facts(model)
    if facts is None:
        return
    rank = st.slider(t("concept_lora_rank"), 1, 64, key=keep("concept_rank", 8))
    trained, n = sums.lora_parameters(facts, rank), facts.get("parameters")
    if trained is None or not n:
        quiet(t("concept_lora_unknown", name=model))
        return
    st.html(bar(trained / n, t("concept_lora_bar", trained=f"{trained:,}", all=f"{n:,}", share=percent(trained / n))))
    quiet(t("concept_lora_size", size=figures.size(2 * trained)))


CONCEPTS: Final[dict[str, Callable[[str, str | None, Models], None]]] = {
    "model": _language_model,
    "token": _token,
    "context": _context,
    "parameter": _parameter,
    "training": _training,
    "inference": _inference,
    "finetuning": _finetuning,
    "embedding": _embedding,
    "quantization": _quantization,
    "lora": _lora,
}
"""In the order of reading, each with what shows it."""
