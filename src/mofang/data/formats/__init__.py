"""One file a layout of examples."""
