"""The talker with HeadNeRF's own field and neural renderer, to start from its checkpoints.

    t3d convert headnerf model_Reso32HR.pth --out weights/headnerf
    t3d train --config headnerf --init weights/headnerf --data data/speaker --workdir runs/speaker

`t3d convert` says what to set for its other files (32² rays to 256², 64² rays to 512²).
"""

from ml_collections import ConfigDict

from t3d.configs import talker


def get_config(paper: bool = False) -> ConfigDict:
    """The full-size talker whose rays, F_θ and H_u are HeadNeRF's to the letter."""
    config = talker.get_config(paper)
    config.nerf.update(
        rays=32,
        samples=64,
        width=384,
        depth=8,
        skip=4,
        features=256,
        colour=192,
        encoding="fourier",
        octaves=10,
        unit=10.0,  # its world is in decimetres
        code_scale=1.0,
        density="relu",
        looks="colour",
        backdrop="map",
        sampling="heights",
        near=-25.0,
        far=35.0,
        points="edge",
        latent=0,
        latent_weight=0.0,
        geometry_weight=0.0,  # the 3DMM's surface comes with nerf.sampling=shell
        paint_weight=0.0,
    )
    return config
