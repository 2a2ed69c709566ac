"""Data sets so small that FMLM+ has an exact solution on them (exact.py), and two modes learned against it (two_mode.py)."""
