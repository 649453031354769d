"""CLIP, latent diffusion bases, bridges and grafts, and their weights."""
