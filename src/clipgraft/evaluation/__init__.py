"""Evaluation of grafts: variants, scores, figures and their tables."""
