"""Reports on runs: one page, JSON and model card."""
