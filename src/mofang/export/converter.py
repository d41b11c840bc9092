"""llama.cpp's converter, told how a tokenizer cuts text where it does not recognize it: a child process's program.

The converter knows a byte-level BPE by the hash of a text's ids. New merges change those ids, so it refuses an extended
tokenizer, though how it cuts text before its merges is the base's. Run as
`python converter.py TOOLS PRE [the converter's own arguments]`; PRE is llama.cpp's name of the cut. It imports nothing
of ours: its PYTHONPATH is llama.cpp's. Source: llama.cpp conversion/base.py, TextModel.get_vocab_base_pre.
"""

import runpy
import sys
from pathlib import Path
from typing import Any


def main() -> None:
    tools, pre, *arguments = sys.argv[1:]
    start(tools, pre, arguments)


def start(tools: str, pre: str, arguments: list[str]) -> None:
    """Run the converter; `pre` "-" leaves the tokenizer to it."""
    sys.path.insert(0, tools)
    from conversion import base  # type: ignore[import-not-found]

    recognized = base.TextModel.get_vocab_base_pre

    def named(model: Any, tokenizer: Any) -> str:
        try:
            return str(recognized(model, tokenizer))
        except NotImplementedError:
            if pre == "-":
                raise
            print(f"tokenizer.ggml.pre: {pre}, from the tokenizer's own rule", flush=True)
            return pre

    base.TextModel.get_vocab_base_pre = named
    script = Path(tools) / "convert_hf_to_gguf.py"
    sys.argv = [str(script), *arguments]
    runpy.run_path(str(script), run_name="__main__")


if __name__ == "__main__":
    main()
