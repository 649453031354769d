"""Captioned images: formats, checks, loading and caches."""
