"""The room of what generates. See docs/adding-engine.md."""
