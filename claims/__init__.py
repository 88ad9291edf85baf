"""What five papers and this project claim, how each claim was tested, and what came of it: `python -m claims`."""
