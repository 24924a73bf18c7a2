"""A talker that two CPU cores train in a quarter of an hour: 128² images of one speaker.

    t3d train --config preview --data data/cnn2 --workdir runs/cnn2

Time and score: docs/benchmarks.md.
"""

from ml_collections import ConfigDict

from t3d.configs import talker


def get_config(paper: bool = False) -> ConfigDict:
    """The talker's config with smaller images, networks and schedules."""
    config = talker.get_config(paper)
    config.size = 128
    config.sync.update(width=16, dim=64, judge_width=24)
    config.lip.update(width=32, bottleneck=32)
    config.prior.update(width=48)
    config.speech.update(width=64)
    config.nerf.update(
        rays=64,
        samples=24 if paper else 8,
        width=96,
        depth=3,
        features=48,
        resolutions=(32, 128),
        channels=8,
    )
    config.au.update(width=16)
    config.space.update(width=96, patch=4, render_every=4, au_codes=128)
    config.stages = dict(
        sync=talker.stage(700, 24, 1e-3, weight_decay=1e-4),
        lip=talker.stage(500 if paper else 300, 16 if paper else 64, 2e-3, weight_decay=1e-2),
        prior=talker.stage(1_400, 24, 2e-3, weight_decay=1e-3),
        speech=talker.stage(1_000, 64, 1e-3),
        nerf=talker.stage(2_000, 2, 5e-3),
        au=talker.stage(800, 16, 1e-3),
        space=talker.stage(2_000, 4, 2e-3),
    )
    return config
