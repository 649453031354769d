"""Formulas of evaluation: tensors and numbers in, numbers out."""
