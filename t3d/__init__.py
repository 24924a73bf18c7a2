"""t3d: a video of a person speaking in, a 3D talking head out (NeRF-3DTalker in JAX/Flax)."""

__version__ = "0.1.0"
