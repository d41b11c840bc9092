"""The workbench's style sheet, from static/style.css. Sentences of Streamlit's file uploader are replaced by shell.js."""

from functools import cache
from pathlib import Path


@cache
def css() -> str:
    return (Path(__file__).parent / "static" / "style.css").read_text(encoding="utf-8")
