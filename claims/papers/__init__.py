"""One module a paper: its claims, the numbers that decide them, and the runs that make these numbers."""
