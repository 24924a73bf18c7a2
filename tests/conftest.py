"""Where the tests find clips, assets and the peers' own numbers."""

import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"


def _folder(variable: str, default: Path) -> Path:
    return Path(os.environ.get(variable, default))


os.environ.setdefault("T3D_ASSETS", str(SHARED / "assets"))


def pytest_addoption(parser):
    parser.addoption("--full", action="store_true", help="run the tests that take minutes, too")


def pytest_collection_modifyitems(config, items):
    if config.getoption("--full"):
        return
    skip = pytest.mark.skip(reason="takes minutes: sh launch/test.sh --full")
    for item in items:
        if "full" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(scope="session", autouse=True)
def compiled_well():
    """SSIM's float64 convolutions, of which unoptimised code takes 30 times as long."""
    import jax

    from t3d.metrics import image

    figure = image._one_by_one.__wrapped__
    well = {"xla_backend_optimization_level": 1}
    with pytest.MonkeyPatch.context() as patch:
        made = jax.jit(figure, static_argnums=0, compiler_options=well)
        patch.setattr(image, "_one_by_one", made)
        yield


@pytest.fixture(scope="session")
def assets() -> Path:
    """The folder of model files; set T3D_ASSETS to it."""
    folder = Path(os.environ["T3D_ASSETS"])
    if not (folder / "face_landmarker.task").exists():
        pytest.skip(f"no assets in {folder}: set T3D_ASSETS, or run `t3d assets fetch`")
    return folder


@pytest.fixture(scope="session")
def clips() -> Path:
    """The folder of real talking clips; set T3D_CLIPS to it."""
    folder = _folder("T3D_CLIPS", SHARED / "data")
    if not any(folder.glob("*.mp4")):
        pytest.skip(f"no clips in {folder}: set T3D_CLIPS to a folder of talking videos")
    return folder


@pytest.fixture(scope="session")
def golden():
    """Loads numbers made by the peers' own code: golden('ssim') -> dict of arrays."""
    folder = _folder("T3D_GOLDEN", SHARED / "golden" / "dev")

    def load(name: str) -> dict[str, np.ndarray]:
        path = folder / f"{name}.npz"
        if not path.exists():
            pytest.skip(f"{path} is missing: set T3D_GOLDEN to the folder of golden numbers")
        with np.load(path, allow_pickle=False) as data:
            return dict(data)

    return load


@pytest.fixture(scope="session")
def golden_weights():
    """The module that computes the peers' weights from their tensors' names."""
    path = _folder("T3D_GOLDEN", SHARED / "golden" / "dev").parent / "golden_weights.py"
    if not path.exists():
        pytest.skip(f"{path} is missing: set T3D_GOLDEN to the folder of golden numbers")
    return _load(path)


def _load(path: Path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def synthetic_speaker(tmp_path_factory) -> Path:
    """Two seconds of a synthetic speaker at 64², and one other camera."""
    from t3d.data.synthetic import synthesize

    return synthesize(tmp_path_factory.mktemp("made") / "speaker", 2, views=1, size=64)


@pytest.fixture(scope="session")
def prepared_speaker(synthetic_speaker, tmp_path_factory) -> Path:
    """That speaker's dataset, not to be changed."""
    from t3d.data.prepare import prepare

    folder = tmp_path_factory.mktemp("prepared") / "speaker"
    prepare(synthetic_speaker, folder, size=64)
    return folder


@pytest.fixture(scope="session")
def untrained(prepared_speaker, tmp_path_factory):
    """A run of the tiny config on that dataset; its networks know nothing."""
    from t3d.data.speaker_dataset import SpeakerDataset

    make_run = _load(Path(__file__).parent / "untrained.py").make_run
    folder = tmp_path_factory.mktemp("untrained") / "run"
    return make_run("tiny", SpeakerDataset(prepared_speaker), folder)
