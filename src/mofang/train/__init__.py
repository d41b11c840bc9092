"""Training: torch and transformers live here. `methods/` has one file a method; loop.py is the one visible loop."""
