"""Language: arithmetic stories with checkable answers, and any text file (see text/task.py)."""
