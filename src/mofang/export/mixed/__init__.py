"""A GGUF file of which every matrix has a type of its own, so that a given size loses the least.

What a type does to a matrix is measured on a text (sensitivity.py), types are shared out within the size (budget.py), and
the file is written by llama.cpp's own functions (blocks.py, writer.py). The choice is a text file that can be used again.
"""
