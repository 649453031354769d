"""Inference engines and approximations for the U-Net and the VAE."""
