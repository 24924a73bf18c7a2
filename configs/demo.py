"""What `t3d demo` trains on its synthetic speaker: the preview with short schedules.

    t3d demo

Two CPU cores: time and score in docs/benchmarks.md.
"""

from ml_collections import ConfigDict

from t3d.configs import preview, talker


def get_config(paper: bool = False) -> ConfigDict:
    """The preview's networks on 128² images, trained for a few minutes."""
    config = preview.get_config(paper)
    config.sync.update(width=16, judge_width=16, dim=64)
    config.lip.update(width=16)
    config.prior.update(width=24)
    config.space.update(width=64, render_every=8, global_codes=512, au_codes=128)
    config.stages = dict(
        sync=talker.stage(250, 32, 1e-3),
        lip=talker.stage(250, 32, 1e-3),
        prior=talker.stage(300, 32, 1e-3),
        speech=talker.stage(500, 64, 1e-3),
        nerf=talker.stage(1_000, 2, 5e-3),
        au=talker.stage(150, 16, 1e-3),
        space=talker.stage(1_200, 4, 2e-3),
    )
    return config
