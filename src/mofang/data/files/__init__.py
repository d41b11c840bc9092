"""One file a kind of file: records(path) yields (row, record), and never holds the whole file."""
