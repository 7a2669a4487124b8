"""Generators, the discriminator, and the color space they work in."""
