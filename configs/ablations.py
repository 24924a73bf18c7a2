"""The paper's ablations at preview size: Table II (audio) and Table III (Standardized Space).

    t3d sweep --config ablations --data data/cnn2 --out runs/ablations

The preview with a shorter field and space, so that two CPU cores train a variant in under 12
minutes; all variants have the same schedule. As in the paper, whose figures of "use dis. aud." and
"w/o Global" are the same, Table II is made without the global codebook.
"""

from ml_collections import ConfigDict

from t3d.configs import preview, talker

# Variant → what differs from the config. The first one is "ours".
MEMBERS = {
    "full": (),
    "without_global": ("space.use_global=False",),
    "without_au": ("space.use_au=False",),
    "speech": ("space.use_global=False", "speech.inputs=speech"),
    "entire": ("space.use_global=False", "speech.inputs=entire"),
}

# Title → the rows of the paper's table: its words, our variant, and its figures, which were
# measured on other videos (SSIM, LPIPS, AU Acc in %, LMD-79, SyncNet). The last row is what the
# others are held against.
TABLES = {
    "Table II: audio disentanglement": (
        ("use ent. aud.", "entire", (0.796, 0.046, 69.1, 3.001, 1.412)),
        ("use spe. aud.", "speech", (0.808, 0.044, 72.7, 2.794, 1.699)),
        ("use dis. aud.", "without_global", (0.819, 0.041, 72.4, 2.637, 1.721)),
    ),
    "Table III: Standardized Space": (
        ("w/o Global", "without_global", (0.819, 0.041, 72.4, 2.637, 1.721)),
        ("w/o AU", "without_au", (0.832, 0.039, 73.1, 2.624, 1.719)),
        ("Ours", "full", (0.835, 0.037, 75.3, 2.529, 1.956)),
    ),
}


def get_config(paper: bool = False) -> ConfigDict:
    """The preview, with 800 steps of the field and of the space.

    The space learns from renders with the sound's mouths: with the entire sound there are no
    others, and all variants have to learn from the same.
    """
    config = preview.get_config(paper)
    config.space.filmed_mouths = False
    config.stages.nerf = talker.stage(800, 2, 5e-3)
    config.stages.space = talker.stage(800, 4, 2e-3)
    return config
