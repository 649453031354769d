"""Distillation: the base's own text encoder learns a graft's new words."""
