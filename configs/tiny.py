"""The whole chain in about a minute, for the tests: it learns something, not a face.

t3d train --config tiny --data DATASET --workdir RUN
"""

from ml_collections import ConfigDict

from t3d.configs import talker


def get_config(paper: bool = False) -> ConfigDict:
    """Every stage of the talker at 32² with networks of a few thousand parameters."""
    config = talker.get_config(paper)
    config.size = 32
    config.sync.update(width=8, dim=16, judge_width=8)
    config.lip.update(width=8, bottleneck=4, dropout=0.1, ears=min(2, config.lip.ears))
    config.prior.update(width=8, rendered=min(32, config.prior.rendered))
    # At full weight the lips would be left to an encoder of 60 steps.
    config.speech.update(width=16, leak_weight=min(30.0, config.speech.leak_weight))
    config.nerf.update(
        rays=16, samples=4, width=16, depth=2, features=8, resolutions=(16,), channels=4
    )
    config.au.update(width=8, dim=16)
    config.space.update(au_codes=16, global_codes=32, width=16, patch=4, render_every=8)
    config.stages = dict(
        sync=talker.stage(60, 8, 2e-3),
        lip=talker.stage(100, 8, 5e-3),
        prior=talker.stage(60, 8, 2e-3),
        speech=talker.stage(60, 16, 2e-3),
        nerf=talker.stage(80, 2, 1e-2),
        au=talker.stage(60, 8, 2e-3),
        space=talker.stage(60, 4, 2e-3),
    )
    return config
