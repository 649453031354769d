"""CLIP, latent diffusion bases, bridges and grafts; their weights on disk and on the hub."""
