"""GGUF models through llama-cpp-python's bindings, in a child process of ours. Needs the extra [llama_cpp].

For whoever already has that package built for his machine; the engine `llama` is faster and knows more.
"""
