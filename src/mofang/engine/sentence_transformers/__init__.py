"""Embedders in Hugging Face folders, by sentence-transformers in PyTorch, in a child process. Needs the extra [train]."""
