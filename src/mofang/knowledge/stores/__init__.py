"""What the legs search in: one file a store, named in STORES. See docs/adding-store.md."""
