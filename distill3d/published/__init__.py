"""Published weights: authors' checkpoints as run folders of this library, and its weights under their names."""
