"""Chinese in one place: where sentences end, folding for search, encodings, cutting into words.

Standard library and rjieba only; knows nothing of documents, models or HTTP.
"""
