"""Layers and dense encodings used by more than one detector."""
