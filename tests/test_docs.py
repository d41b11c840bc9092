"""The documents say what the program does: links lead somewhere, commands exist, settings and tables are complete."""

import re
from pathlib import Path

import pytest
import typer

from mofang.settings import PREFIX, Settings

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "bench").glob("*.md")])
IDS = [str(page.relative_to(ROOT)) for page in PAGES]


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if not target.startswith(("http://", "https://", "#")):
            assert (page.parent / target.split("#")[0]).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_every_page_has_its_other_language(page: Path) -> None:
    if page.name in ("CHANGELOG.md", "log.md"):
        return
    stem = page.name.removesuffix(".en.md").removesuffix(".md")
    assert (page.parent / f"{stem}.md").exists() and (page.parent / f"{stem}.en.md").exists()


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_nothing_outside_the_repository_is_named(page: Path) -> None:
    assert "../shared" not in page.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["settings.md", "settings.en.md"])
def test_every_setting_is_documented_with_its_default(name: str) -> None:
    rows = dict(
        re.findall(
            r"^\| `(MOFANG_\w+)` \| (.+?) \|", (ROOT / "docs" / name).read_text(encoding="utf-8"), flags=re.MULTILINE
        )
    )
    assert rows.keys() == {PREFIX + field.upper() for field in Settings.model_fields}
    for field, about in Settings.model_fields.items():
        shown = rows[PREFIX + field.upper()].strip("`")
        if isinstance(about.default, (int, float)) and not isinstance(about.default, bool):
            assert float(shown) == float(about.default), field
        elif isinstance(about.default, str) and about.default:
            assert shown == about.default, field


def _program() -> typer.Typer:
    from mofang.cli.main import build

    return build()


def _commands() -> dict[str, set[str]]:
    """Every command of the program with its options: "models pull" → {"--source", …}."""
    found: dict[str, set[str]] = {}

    def walk(command: object, name: str) -> None:
        found[name] = {
            option
            for each in command.params  # type: ignore[attr-defined]
            for option in (*getattr(each, "opts", ()), *getattr(each, "secondary_opts", ()))  # --x, --no-x
        }
        for child, below in getattr(command, "commands", {}).items():
            walk(below, f"{name} {child}".strip())

    walk(typer.main.get_command(_program()), "")
    return found


def test_commands_in_the_documents_exist() -> None:
    commands = _commands()
    wrong = []
    for page in PAGES:
        for block in re.findall(r"```sh\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL):
            for line in block.splitlines():
                words = re.sub(r"#.*", "", line).split()
                if "mofang" not in words or words[:1] == ["#"] or "pip" in words:
                    continue
                words = words[words.index("mofang") + 1 :]
                known = [name for name in commands if name and words[: len(name.split())] == name.split()]
                if not known:
                    wrong.append(f"{page.name}: {line}")
                    continue
                name = max(known, key=len)
                wrong += [
                    f"{page.name}: {line}"
                    for word in words
                    if word.startswith("--") and word not in commands[name] | {"--help"}
                ]
    assert not wrong


def _words_of(page: Path) -> list[list[str]]:
    """The words behind "mofang" of each command that a page shows, in blocks and in lines."""
    text = page.read_text(encoding="utf-8")
    shown = [
        re.sub(r"#.*", "", line)
        for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
        for line in block.splitlines()
    ]
    shown += [f"mofang {inline}" for inline in re.findall(r"`mofang ([^`\n]+)`", text)]
    return [line.split()[1:] for line in shown if line.startswith("mofang ")]


@pytest.mark.parametrize("name", ["training", "tokenizer", "quantize"])
def test_recipes_in_the_documents_are_accepted(name: str) -> None:
    """Every `mofang train …`, `export …` and `models import …` with more than a name: its flags and values are right."""
    from mofang.cli.recipe import chosen
    from mofang.recipes import EXPORTERS, METHODS, launcher_of, parse, read_yaml, recipe_class

    program = typer.main.get_command(_program())
    n_read = 0
    for page in (ROOT / "docs" / f"{name}.md", ROOT / "docs" / f"{name}.en.md"):
        for room, kind, *words in (words for words in _words_of(page) if len(words) > 2):
            tables = {"train": METHODS, "export": EXPORTERS, "models": ["import"]}
            if kind not in tables.get(room, ()) or "--help" in words:
                continue
            command = program.commands[room].commands[kind]  # type: ignore[attr-defined]
            given = dict(command.make_context(kind, words, parent=None).params)
            launcher, file = chosen(given) if room == "train" else {}, given.pop("recipe_file", None)
            recipe = recipe_class(kind)
            fields = read_yaml(ROOT / file) if file and (ROOT / file).exists() else {}
            fields |= {"base": "b", "data": ["d"]} if file and not fields else {}
            fields |= {key: value for key, value in given.items() if key in recipe.model_fields and value}
            parse(recipe, fields, given["overrides"] or ())
            launcher_of(launcher)
            n_read += 1
    assert n_read > 3 or name == "tokenizer"


@pytest.mark.parametrize("language", ["", ".en"])
def test_every_flag_of_training_and_tokenizers_is_documented(language: str) -> None:
    from mofang.recipes import EXPORTERS, LAUNCHERS, METHODS, recipe_class

    pages = [(ROOT / "docs" / f"{name}{language}.md") for name in ("training", "tokenizer", "quantize")]
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    fields = {name for kind in (*METHODS, *EXPORTERS) for name in recipe_class(kind).model_fields}
    fields |= {name for kind in LAUNCHERS for name in LAUNCHERS.get(kind).model_fields}
    fields -= {"model"}  # the argument
    flags = {f"--{name.replace('_', '-')}": name for name in fields}
    for name, options in _commands().items():
        if name.startswith(("tokenizer ", "data ")):
            flags |= {option: option for option in options if option.startswith("--")}
    missing = {
        flag for flag, name in flags.items()
        if not re.search(rf"`{name}\b|{flag}\b|--no-{flag[2:]}\b", text)
    } - {"--help"}  # fmt: skip
    assert not missing


@pytest.mark.parametrize("language", ["", ".en"])
def test_the_defaults_in_the_table_of_fields_are_the_recipes(language: str) -> None:
    from mofang.recipes.training import Training

    text = (ROOT / "docs" / f"training{language}.md").read_text(encoding="utf-8")
    compared = set()
    for named, defaults in re.findall(r"^\| (`[\w`、, ]+`) \| ([^|]+) \|", text, flags=re.MULTILINE):
        names, shown = re.findall(r"`(\w+)`", named), re.split("、|, ", defaults)
        for name, value in zip(names, shown, strict=False):
            default = Training.model_fields[name].default if name in Training.model_fields else None
            if isinstance(default, (int, float)) and not isinstance(default, bool) and len(names) == len(shown):
                assert float(value) == default, name
                compared.add(name)
    assert len(compared) > 15


def test_the_makefile_has_what_the_readme_names() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    assert {"run", "test", "check", "bench", "soak"} <= targets
