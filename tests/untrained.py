"""A run whose networks were never trained: their parameters are drawn by lot, nothing compiles."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from t3d import checkpoint, talker
from t3d import config as configs
from t3d import run as runs
from t3d.camera import Camera
from t3d.codes import HeadCodes
from t3d.data.speaker_dataset import SpeakerDataset
from t3d.nerf.head import View
from t3d.nerf.rays import Guide
from t3d.run import Run


def _shapes(net: talker.Talker, config, frames: int) -> dict:
    """Parameters of all stages as abstract arrays."""

    def init(key: jax.Array) -> dict:
        rays = config.nerf.rays**2
        face, expression = jnp.zeros((1, 96, 96, 3)), jnp.zeros((1, 79))
        mel, image = (
            jnp.zeros((1, config.mel_steps, 80)),
            jnp.zeros((1, config.size, config.size, 3)),
        )
        codes = HeadCodes(
            jnp.zeros((1, 100)), expression, expression, jnp.zeros((1, 100)), jnp.zeros((1, 27))
        )
        eye = jnp.eye(4)[None]
        depth = jnp.ones((1, rays))
        guide = Guide(depth, depth + 1, jnp.zeros((1, rays, 3)), jnp.ones((1, rays), bool))
        view = View(Camera(jnp.ones((1, 4)), eye), eye, guide)
        sync = jnp.zeros((1, 5, 96, 96, 3)), jnp.zeros((1, 16, 80))
        au = net.au.init(key, image)
        features, _ = net.au.apply(au, image)
        return {
            "sync": {"coach": net.coach.init(key, *sync), "judge": net.judge.init(key, *sync)},
            "lip": net.lip.init(key, mel, face),
            "prior": net.encoder.init(key, face),
            "speech": {
                "style": net.style.init(key, mel, codes.identity),
                "fuse": net.fuse.init(key, expression, expression),
            },
            "nerf": net.head.init(key, codes, view, jnp.zeros(1, int)),
            "au": au,
            "space": net.space.init(key, image, features),
        }

    return jax.eval_shape(init, jax.random.key(0))


def make_run(name: str, dataset: SpeakerDataset, workdir: Path, seed: int = 0) -> Run:
    """A run of the config `name` on a dataset, with random parameters, in `workdir`."""
    config = configs.load_config(name)
    frames = dataset.num_frames
    net = talker.build(config, frames, config.nerf.rays**2)
    rng = np.random.default_rng(seed)
    params = jax.tree.map(
        lambda leaf: rng.normal(0, 0.1, leaf.shape).astype(np.float32),
        _shapes(net, config, frames),
    )
    checkpoint.update_run(workdir, **runs.record_of(config, [dataset]))
    return Run(workdir, config, net, params, [runs._speaker(dataset, 0)])
