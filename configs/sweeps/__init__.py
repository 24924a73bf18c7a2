"""Sweeps that come with t3d: `t3d sweep --config sweeps/NAME`."""
