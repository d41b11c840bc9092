"""The workbench's sentences in Chinese and English, from `strings/<lang>.toml` (flat keys, str.format placeholders).

Knows nothing of Streamlit: the language is an argument. tests/ui hold both files to the same keys and placeholders.
"""

import tomllib
from functools import cache
from pathlib import Path
from typing import Any, Final

LANGUAGES: Final = ("zh", "en")


@cache
def table(lang: str) -> dict[str, str]:
    """All sentences of a language."""
    with (Path(__file__).parent / "strings" / f"{lang}.toml").open("rb") as file:
        return tomllib.load(file)


def word(lang: str, key: str, /, **values: Any) -> str:
    """The sentence `key`, filled. Raises KeyError for an unknown key or a missing value: our fault, and a test's find."""
    return table(lang)[key].format(**values)


def word_or(lang: str, key: str, fallback: str) -> str:
    """The sentence of a key that is built from what the server said, where the server may know more than we do."""
    return table(lang).get(key, fallback)
