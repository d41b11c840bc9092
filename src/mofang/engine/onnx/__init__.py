"""BERT embedders as ONNX, computed by onnxruntime in a child process: four times llama.cpp's speed on a portable wheel.

    engine.py      the gateway's side: an Embedder; what is no BERT that we know goes to the engine `llama`
    child.py       the process: tokens, rows of the embedding, one run of the graph a text
    vocabulary.py  a GGUF's tokenizer as one of the library `tokenizers`
    weights.py     a GGUF's tensors and shape
    graph.py       the layers as an ONNX graph, in float32 or with products of 8-bit integers

Why this runtime, and what others reach: docs/decisions/0005-embedding-by-onnxruntime.md.
"""
