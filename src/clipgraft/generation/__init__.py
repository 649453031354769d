"""Generating images from prompts with a grafted base."""
