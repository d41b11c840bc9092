"""A Llama that says one sentence and knows nothing: each token names the next one. Its answers are known beforehand.

Attention and feed-forward are zero, so the last token's embedding alone decides. Every byte of the sentence is there
once; what is not in it leads to its first byte, its last byte to the end of the answer.
"""

from pathlib import Path

import tiny_llama

SENTENCE = "中文好🙂龘"


def make(folder: Path) -> Path:
    """Write the model and its tokenizer into `folder`."""
    import torch
    from transformers import AutoModelForCausalLM

    tiny_llama.make(folder, tied=False)
    model = AutoModelForCausalLM.from_pretrained(folder)
    cut = tiny_llama.tokenizer()
    said = cut.encode(SENTENCE)
    assert len(set(said)) == len(said)
    next_of = {**dict(zip(said, said[1:], strict=False)), said[-1]: cut.eos_id}
    n_rows, width = model.lm_head.weight.shape
    codes = torch.nn.functional.normalize(torch.randn(n_rows, width, generator=torch.Generator().manual_seed(1)))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                weight.zero_()
        model.model.embed_tokens.weight.copy_(torch.stack([codes[next_of.get(row, said[0])] for row in range(n_rows)]))
        model.lm_head.weight.copy_(4 * codes)
    model.save_pretrained(folder)
    return folder
