"""Distillation: terms, the blocks they are made of, and one file per published method."""
