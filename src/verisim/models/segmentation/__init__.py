"""Models that map images to masks; the ones that sample masks by diffusion are in models/diffusion."""
