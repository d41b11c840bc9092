"""Pre-training on plain text, continued or from random weights: the worker of recipes.pretrain.Pretrain."""

from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from mofang import settings
from mofang.data.rows import Document
from mofang.models.store import ModelStore
from mofang.recipes.pretrain import Pretrain
from mofang.runs import Run
from mofang.strings import say
from mofang.tokenizer import load
from mofang.train import examples, job
from mofang.train.methods.sft import learn


def run(recipe: Pretrain, run: Run) -> dict[str, Any]:
    """Train on every token; the adapter or the model, its tokenizer, and a manifest with the lineage are left."""
    begin = job.from_base(recipe) if recipe.base else from_scratch(recipe)
    if begin.base is None:
        run.note(say("train.new_model", parameters=begin.n_parameters, vocabulary=begin.config.vocab_size))
    return learn(recipe, run, begin, examples.load(recipe, begin.tokenizer, run, Document))


def from_scratch(recipe: Pretrain) -> job.Begin:
    """A Llama of the recipe's shape, with rows for every token; its weights are drawn when it is made."""
    source = ModelStore(settings.load()).get_or_path(recipe.tokenizer)
    tokenizer = job.with_system(load(source.path), recipe.system_prompt)
    config = LlamaConfig(
        vocab_size=-(-tokenizer.n_vocab // 64) * 64,  # whole tiles for matrix units
        hidden_size=recipe.hidden_size,
        intermediate_size=recipe.intermediate_size,
        num_hidden_layers=recipe.n_layers,
        num_attention_heads=recipe.n_heads,
        num_key_value_heads=recipe.n_kv_heads,
        max_position_embeddings=max(2048, recipe.max_length),
        tie_word_embeddings=recipe.tied_head,
        bos_token_id=tokenizer.bos_id,
        eos_token_id=tokenizer.eos_id,
        pad_token_id=tokenizer.pad_id,
    )
    with torch.device("meta"):
        n_parameters = sum(parameter.numel() for parameter in AutoModelForCausalLM.from_config(config).parameters())
    sha256 = tokenizer.sha256()
    return job.Begin(
        tokenizer=tokenizer,
        config=config,
        name=recipe.tokenizer,
        parents=[{"role": "tokenizer", "name": source.name, "tokenizer_sha256": sha256}],
        sha256=sha256,
        n_parameters=n_parameters,
    )
