"""Data sets so small that FMLM+ has an exact solution (exact.py), and two modes learned against it (two_mode.py)."""
