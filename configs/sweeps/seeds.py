"""One config with five seeds: what another training alone changes.

    t3d sweep --config sweeps/seeds --data data/cnn2 --out runs/seeds

Five trainings of the ablations' "full" on a laptop's CPU or one GPU each (`--launcher`). Time and
score: not yet measured.
"""

from ml_collections import ConfigDict

from t3d.config import product
from t3d.configs import ablations


def sweep() -> list[dict]:
    """What differs from the config, training by training."""
    return product({"seed": range(5)})


def get_config(paper: bool = False) -> ConfigDict:
    """The ablations' config."""
    return ablations.get_config(paper)
