"""Image segmentation in JAX and Flax; the map of the folders is in README.md."""
