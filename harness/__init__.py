"""What every task shares: the Task interface (tasks.py), checkpoints, command lines, a sitting of
training (sitting.py), measuring (measure.py, speed.py, roads.py) and figures (plot.py)."""
