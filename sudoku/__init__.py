"""Sudoku boards of 4x4, 6x6 and 9x9: rules, generator, puzzles (boards.py) and evaluation tables (evaluate.py)."""
