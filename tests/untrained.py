"""A run whose networks were never trained: their parameters are drawn by lot, nothing compiles."""

from pathlib import Path

from t3d import bench
from t3d import config as configs
from t3d import run as runs
from t3d.data.speaker_dataset import SpeakerDataset


def make_run(
    name: str,
    dataset: SpeakerDataset,
    workdir: Path,
    seed: int = 0,
    overrides: tuple[str, ...] = (),
) -> runs.Run:
    """A run of the config `name` on a dataset, with random parameters, in `workdir`."""
    config = configs.load_config(name, overrides)
    bench.untrained_run(config, [dataset], workdir, seed)
    runs._save_speakers(workdir, [runs._speaker(config, dataset, 0)])
    return runs.open_run(workdir)
