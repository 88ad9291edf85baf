"""weightspace."""
