"""Grafts and distilled text encoders for other tools and the hub."""
