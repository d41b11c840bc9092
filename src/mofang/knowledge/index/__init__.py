"""Search structures of our own, over arrays: postings with BM25, vectors exactly or by HNSW, and their files on disk."""
