"""Embedders of a few dimensions with random weights, as Hugging Face folders that sentence-transformers would write."""

import json
from pathlib import Path
from typing import Any

LETTERS = "abcdefghijklmnopqrstuvwxyz长城中国天气:"
N_EMBD = 32


def write(
    folder: Path,
    *,
    architecture: str = "bert",
    pooling: str | None = "mean",
    normalize: bool = False,
    prompts: dict[str, str] | None = None,
    max_seq_length: int = 64,
    dense: bool = False,
) -> Path:
    """`architecture`: "bert" or "xlm-roberta". pooling: "mean" or "cls"; None: without modules.json."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast, XLMRobertaConfig, XLMRobertaModel

    torch.manual_seed(7)
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    vocabulary = {token: number for number, token in enumerate([*special, *LETTERS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.Split("", "isolated")]
    )
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", cls_token="<s>", sep_token="</s>",
        pad_token="<pad>", unk_token="<unk>", model_max_length=max_seq_length,
    )  # fmt: skip
    shape: dict[str, Any] = {
        "vocab_size": len(vocabulary), "hidden_size": N_EMBD, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "max_position_embeddings": max_seq_length + 2, "pad_token_id": 1,
    }  # fmt: skip
    model = BertModel(BertConfig(**shape)) if architecture == "bert" else XLMRobertaModel(XLMRobertaConfig(**shape))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    if pooling is not None:
        kinds = "sentence_transformers.models"
        modules = [("", "Transformer"), ("1_Pooling", "Pooling")]
        modules += [("2_Dense", "Dense")] if dense else []
        modules += [(f"{len(modules)}_Normalize", "Normalize")] if normalize else []
        listed = [
            {"idx": n, "name": str(n), "path": path, "type": f"{kinds}.{kind}"}
            for n, (path, kind) in enumerate(modules)
        ]
        _json(folder / "modules.json", listed)
        _json(folder / "sentence_bert_config.json", {"max_seq_length": max_seq_length, "do_lower_case": False})
        names = {"mean": "pooling_mode_mean_tokens", "cls": "pooling_mode_cls_token"}
        flags = {name: kind == pooling for kind, name in names.items()}
        _json(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": N_EMBD, **flags})
    if prompts is not None:
        _json(folder / "config_sentence_transformers.json", {"prompts": prompts, "default_prompt_name": None})
    return folder


def _json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")
