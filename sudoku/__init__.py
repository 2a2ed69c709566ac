"""Sudoku boards of 4x4, 6x6 and 9x9: rules, generator, puzzles (boards.py), evaluation tables
(evaluate.py), the training roads compared (roads.py), Posterior Refinement studied (refinement.py), figures (plot.py)."""
