"""The denoiser: built, loaded, found."""
