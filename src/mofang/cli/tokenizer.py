"""`mofang tokenizer`: look at a tokenizer, measure it, train one, add Chinese to one."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mofang.strings import say

if TYPE_CHECKING:
    from rich.text import Text

app = typer.Typer(help=say("cli.tokenizer"), no_args_is_help=True)

Json = Annotated[bool, typer.Option("--json", help=say("cli.option_json"))]
Named = Annotated[str, typer.Argument(help=say("cli.argument_tokenizer"), metavar="MODEL")]
Out = Annotated[Path, typer.Option("--out", help=say("cli.option_out"), metavar="FOLDER")]
STYLES = ("black on bright_cyan", "black on bright_yellow", "black on bright_green", "black on bright_magenta")
"""Of neighbouring tokens; where there is no colour, the bar between them stays."""
EXAMPLES = 8


@app.command("inspect", help=say("cli.tokenizer_inspect"))
def inspect(
    name: Named,
    text: Annotated[str | None, typer.Argument(help=say("cli.argument_cut"), metavar="[TEXT]")] = None,
    ids: Annotated[list[int] | None, typer.Option("--id", help=say("cli.option_token_id"), metavar="ID")] = None,
    as_json: Json = False,
) -> None:
    from mofang import api
    from mofang.cli import render

    found = api.inspect_tokenizer(name, text, ids or ())
    if as_json:
        render.show_json(found)
        return
    if cut := found.get("cut"):
        render.show(_coloured(cut["tokens"]), "", _tokens(cut["tokens"]))
        render.show(say("cli.cut_counts", **{key: cut[key] for key in ("n_tokens", "n_characters", "n_bytes")}))
        if not cut["round_trip"]:
            render.warn(say("cli.cut_changed"))
    if "tokens" in found:
        render.show(_tokens(found["tokens"]))
    if "kind" in found:
        render.show(render.facts((say(f"cli.fact_{key}"), value) for key, value in _facts(found) if value))


def _facts(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    from mofang.cli import render

    pieces = " · ".join(f"{render.word('script', name)} {n:,}" for name, n in found["pieces"].items())
    ends = {key: f"{found[key]['piece']} ({found[key]['id']})" if found[key] else "" for key in ("bos", "eos")}
    return [
        ("tokenizer", found["kind"]),
        ("n_vocab", f"{found['n_vocab']:,}"),
        ("special", f"{found['n_special']:,}"),
        ("pieces", pieces),
        ("longest", found["longest_han"]),
        ("bos", ends["bos"]),
        ("eos", ends["eos"]),
        ("template", say("cli.yes") if found["chat_template"] else say("cli.no")),
        ("sha256", found["sha256"]),
    ]


def _coloured(tokens: Sequence[Mapping[str, Any]]) -> "Text":
    """The text, a colour for each token; bytes that are no whole character as ⟨e4 bd⟩, special tokens in reverse."""
    from rich.text import Text

    line = Text()
    for number, token in enumerate(tokens):
        shown = token["text"] or (f"⟨{token['bytes']}⟩" if token["bytes"] else token["piece"])
        line.append(shown, style="reverse" if token["special"] else STYLES[number % len(STYLES)])
        if number + 1 < len(tokens):
            line.append("│", style="dim")
    return line


def _tokens(tokens: Sequence[Mapping[str, Any]]) -> Any:
    from mofang.cli import render

    headings = [(say(f"cli.heading_{name}"), align) for name, align in (
        ("id", "right"), ("piece", "left"), ("bytes", "left"), ("text", "left"))]  # fmt: skip
    rows = [(str(each["id"]), each["piece"], each["bytes"], repr(each["text"])[1:-1]) for each in tokens]
    return render.table(headings, rows)


@app.command("measure", help=say("cli.tokenizer_measure"))
def measure(
    name: Named,
    texts: Annotated[list[Path], typer.Argument(help=say("cli.argument_texts"), metavar="TEXT...")],
    against: Annotated[str, typer.Option("--against", help=say("cli.option_against"), metavar="MODEL")] = "",
    bits: Annotated[bool, typer.Option("--bits", help=say("cli.option_bits"))] = False,
    as_json: Json = False,
) -> None:
    from mofang import api
    from mofang.cli import render

    found = api.measure_tokenizer(name, texts, against=against, bits=bits)
    if as_json:
        render.show_json(found)
        return
    sides = [found, *([found["after"]] if against else [])]
    render.show(_scripts(sides), _figures(sides))
    for side in sides:
        for changed in side["changed"]:
            render.note(say("cli.changed_line", **changed))
        if side["n_unaligned"]:
            render.note(say("cli.unaligned", n=side["n_unaligned"]))
    if against:
        _card(found["card"])
        render.note(say("cli.card_same"))


def _scripts(sides: Sequence[Mapping[str, Any]]) -> Any:
    """Characters, tokens and characters per token by script; of two tokenizers the last beside each other."""
    from mofang.cli import render

    headings = [(say("cli.heading_script"), "left"), (say("cli.heading_characters"), "right")]
    if len(sides) == 1:
        headings += [(say("cli.heading_tokens"), "right"), (say("cli.heading_per_token"), "right")]
    else:
        headings += [(say("cli.heading_before"), "right"), (say("cli.heading_after"), "right")]
    rows = []
    for script, share in sides[0]["scripts"].items():
        row = [render.word("script", script), f"{share['characters']:,}"]
        if len(sides) == 1:
            row.append(f"{share['tokens']:,.0f}")
        row += [_ratio(side["scripts"].get(script, {}).get("characters_per_token")) for side in sides]
        rows.append(row)
    return render.table(headings, rows)


def _figures(sides: Sequence[Mapping[str, Any]]) -> Any:
    from mofang.cli import render

    def both(show: Any) -> str:
        return " → ".join(show(side) for side in sides)

    facts = [
        ("n_vocab", both(lambda side: f"{side['n_vocab']:,}")),
        ("per_token", both(lambda side: _ratio(side["characters_per_token"]))),
        ("bytes_per_token", both(lambda side: _ratio(side["bytes_per_token"]))),
        ("chinese_per_token", both(lambda side: _ratio(side["chinese_per_token"]))),
        ("round_trip", both(_round_trip)),
        ("dead", both(_dead)),
    ]
    if sides[0].get("bits_per_character") is not None:
        facts.append(("bits", f"{sides[0]['bits_per_character']:.3f}"))
    return render.facts((say(f"cli.fact_{key}"), value) for key, value in facts)


def _ratio(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _round_trip(side: Mapping[str, Any]) -> str:
    n, changed = f"{side['n_lines']:,}", side["n_changed"]
    return say("cli.round_trip_some", n=n, changed=changed) if changed else say("cli.round_trip_all", n=n)


def _dead(side: Mapping[str, Any]) -> str:
    dead = side["dead"]
    examples = " ".join(each["piece"] for each in dead[:EXAMPLES])
    return say("cli.dead_some", n=f"{len(dead):,}", examples=examples) if dead else "0"


def _card(card: Mapping[str, Any]) -> None:
    """The verdict and what it rests on."""
    from mofang.cli import render

    values = {
        "before": card["chinese_before"] or 0.0,
        "speed_up": card["speed_up"],
        "share": card["share_of_parameters"] or 0.0,
        "n_dead": card["n_dead"],
    }
    rows = card["row_parameters"]
    facts = [
        ("chinese_per_token", f"{_ratio(card['chinese_before'])} → {_ratio(card['chinese_after'])}"),
        ("per_token", f"{card['all_before']:.2f} → {card['all_after']:.2f}"),
        ("added", f"{card['n_added']:,}"),
        ("unused", f"{card['n_unused']:,}"),
        ("new_rows", render.count(rows) if rows else ""),
        ("speed_up", f"× {card['speed_up']:.2f}"),
        ("bits", f"{card['bits_before']:.3f}" if card["bits_before"] is not None else ""),
    ]
    render.show(render.facts((say(f"cli.fact_{key}"), value) for key, value in facts if value))
    reasons = [say(f"tokenizer.{reason}", **values) for reason in card["reasons"]]
    render.show(
        say("tokenizer.pays" if card["pays"] else "tokenizer.does_not_pay"), *(f"  · {each}" for each in reasons)
    )


@app.command("train", help=say("cli.tokenizer_train"))
def train(
    texts: Annotated[list[Path], typer.Argument(help=say("cli.argument_texts"), metavar="TEXT...")],
    out: Out,
    kind: Annotated[str, typer.Option("--kind", help=say("cli.option_tokenizer_kind"), metavar="KIND")] = "byte-bpe",
    size: Annotated[int, typer.Option("--size", min=1, help=say("cli.option_size"), metavar="N")] = 16_000,
    as_json: Json = False,
) -> None:
    from mofang import api
    from mofang.cli import render

    with render.working(say("cli.learning_tokenizer")):
        made = api.train_tokenizer(texts, out, kind=kind, size=size)
    if as_json:
        render.show_json(made)
    else:
        render.show(say("cli.tokenizer_made", path=made["path"], n=f"{made['n_vocab']:,}"))


@app.command("extend", help=say("cli.tokenizer_extend"))
def extend(
    name: Named,
    out: Out,
    texts: Annotated[list[Path] | None, typer.Argument(help=say("cli.argument_texts"), metavar="TEXT...")] = None,
    size: Annotated[int, typer.Option("--size", min=1, help=say("cli.option_extend_size"), metavar="N")] = 10_000,
    script: Annotated[str, typer.Option("--script", help=say("cli.option_script"), metavar="han|all")] = "han",
    unreachable: Annotated[
        str, typer.Option("--unreachable", help=say("cli.option_unreachable"), metavar="drop|complete|keep")
    ] = "drop",
    vocabulary: Annotated[str, typer.Option("--vocabulary", help=say("cli.option_vocabulary"), metavar="FILE")] = "",
    as_json: Json = False,
) -> None:
    from mofang import api
    from mofang.cli import render

    with render.working(say("cli.learning_tokenizer")):
        made = api.extend_tokenizer(
            name, texts or [], out, size=size, script=script, unreachable=unreachable, vocabulary=vocabulary
        )
    if as_json:
        render.show_json(made)
        return
    shown = {key: f"{made[key]:,}" for key in ("n_old", "n_added", "n_vocab")}
    render.show(say("cli.tokenizer_extended", path=made["path"], **shown))
    if made["n_short"]:
        render.note(say("cli.tokenizer_fewer", n=f"{made['n_short']:,}"))
    if made["dropped"]:
        examples = " ".join(made["dropped"][:EXAMPLES])
        render.note(say("cli.tokenizer_dropped", n=f"{len(made['dropped']):,}", examples=examples))
    if made["n_completed"]:
        render.note(say("cli.tokenizer_completed", n=f"{made['n_completed']:,}"))
    if "card" in made:
        _card(made["card"])
        render.note(say("cli.card_note", n=f"{made['n_held_out']:,}"))
    elif texts:
        render.note(say("cli.card_none"))
