"""A run's folder: layout, lock, recipe, environment and resources."""
