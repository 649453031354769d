"""Fine-tune CLIP on captioned images and graft its text tower onto a frozen latent diffusion model."""

__version__ = "0.1.0"
