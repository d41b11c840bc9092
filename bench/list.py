"""List the benchmarks: each script's first line, and how to run it."""

import ast
from pathlib import Path

HERE = Path(__file__).parent


def main() -> None:
    for path in sorted(HERE.glob("*.py")):
        if path.name == Path(__file__).name:
            continue
        summary = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").splitlines()[:1]
        print(f"{path.relative_to(HERE.parent)!s:28} {summary[0] if summary else ''}")
    print("\n.venv/bin/python bench/NAME.py --help")


if __name__ == "__main__":
    main()
