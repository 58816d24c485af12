"""Evaluators: each yields (name, value) or (name, image); the trainer never learns what they measure."""
