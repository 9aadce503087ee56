"""From a recipe to trained detectors."""
