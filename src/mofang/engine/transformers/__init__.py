"""Hugging Face folders, in PyTorch: whatever transformers' AutoModelForCausalLM knows. Needs the extra [train]."""
