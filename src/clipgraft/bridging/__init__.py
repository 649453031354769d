"""Bridges from a CLIP's text tower to a base: fit, refine."""
