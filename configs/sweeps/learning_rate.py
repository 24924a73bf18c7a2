"""The radiance field's learning rate at the ablations' size, three seeds each.

    t3d sweep --config sweeps/learning_rate --data data/cnn2 --out runs/learning_rate

Nine trainings of the ablations' "full" on a laptop's CPU or one GPU each (`--launcher`), of which
those with one seed share the stages before the field. Time and score: not yet measured. The first
rate is the config's own: the others are held against it.
"""

from ml_collections import ConfigDict

from t3d.config import product
from t3d.configs import ablations

RATES, SEEDS = (5e-3, 2e-3, 1e-2), range(3)


def sweep() -> list[dict]:
    """What differs from the config, training by training."""
    return product({"stages.nerf.learning_rate": RATES, "seed": SEEDS})


def get_config(paper: bool = False) -> ConfigDict:
    """The ablations' config."""
    return ablations.get_config(paper)
