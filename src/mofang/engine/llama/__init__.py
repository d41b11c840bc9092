"""GGUF models in a llama.cpp server of their own: one child process a model, one protocol, several builds."""
