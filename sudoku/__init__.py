"""Sudoku of 4x4, 6x6 and 9x9: rules, generator and puzzles (boards.py), the task (task.py) and its
training recipe (recipe.py), evaluation (evaluate.py, refinement.py, judge.py), figures (plot.py)
and a page (page.py)."""
