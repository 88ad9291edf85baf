"""What is claimed about scale and trust, measured: `python -m reliability` writes docs/reliability.md's tables."""
