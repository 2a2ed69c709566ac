"""Data sets so small that FMLM+ has an exact solution (exact.py): two modes learned against it
(two_mode.py), where tau pays (vocabulary.py), and what a training step costs (scaling.py)."""
