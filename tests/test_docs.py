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


def _commands() -> dict[str, set[str]]:
    """Every command of the program with its options: "models pull" → {"--source", …}."""
    from mofang.cli.main import build

    found: dict[str, set[str]] = {}

    def walk(command: object, name: str) -> None:
        found[name] = {
            option
            for each in command.params  # type: ignore[attr-defined]
            for option in (*getattr(each, "opts", ()), *getattr(each, "secondary_opts", ()))  # --x, --no-x
        }
        for child, below in getattr(command, "commands", {}).items():
            walk(below, f"{name} {child}".strip())

    walk(typer.main.get_command(build()), "")
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


def test_the_makefile_has_what_the_readme_names() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    assert {"run", "test", "check", "bench", "soak"} <= targets
