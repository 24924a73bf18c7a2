"""How points are encoded and where rays are sampled, at the ablations' size with 32² rays.

    t3d sweep --config sweeps/fields --data data/cnn2 --out runs/fields

"shell" is the config's own way: learned planes, 16 samples about the 3DMM's surface, which random
cameras supervise. "box" knows nothing of the 3DMM's surface: 64 samples between two depths, no
expression undone, nothing seen at random cameras. "fourier" encodes points as the paper does.
Two CPU cores: time and score in docs/benchmarks.md.
"""

from ml_collections import ConfigDict

from t3d.configs import ablations, talker

BLIND = ("nerf.geometry_weight=0.0", "nerf.paint_weight=0.0")
MEMBERS = {
    "shell": (),
    "box": ("nerf.sampling=uniform", "nerf.samples=64", *BLIND),
    "fourier": ("nerf.encoding=fourier",),
}


def get_config(paper: bool = False) -> ConfigDict:
    """The ablations' config with 32² rays of 16 samples, and 500 steps of the field."""
    config = ablations.get_config(paper)
    config.nerf.update(rays=32, samples=16)
    config.stages.nerf = talker.stage(500, 2, 5e-3)
    return config
