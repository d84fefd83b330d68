"""Stage one: images -> codes. A VQ-VAE, its training, and the extraction of its codes to disk."""
