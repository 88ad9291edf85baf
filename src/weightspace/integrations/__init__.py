"""Rules inside other trainers: `lightning` (a Lightning callback) and `huggingface` (one for `transformers.Trainer`).

Each module imports its trainer, so import the one that you use: `from weightspace.integrations.lightning import
RulesCallback`.
"""
