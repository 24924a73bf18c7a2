"""Frames side by side on several devices, or one frame's rays over all: the same images."""

import numpy as np
import pytest

SCRIPT = """
import sys
import numpy as np
from t3d import run
from t3d.talker import Motion

opened = run.open_run(sys.argv[1])
speaker = opened.speakers[0]
rng = np.random.default_rng(0)
motion = Motion(*(rng.normal(size=(4, 79)).astype(np.float32) for _ in range(3)))
pose = np.broadcast_to(speaker.still_pose, (4, 4, 4))
views = np.broadcast_to(np.eye(4, dtype=np.float32), (4, 4, 4))
for batch in (4, 1):
    mesh = run._render_mesh(batch)
    parts = list(run.render_frames(opened, speaker, motion, pose, views, batch=batch))
    found = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    np.savez(f"{sys.argv[2]}_{batch}.npz", shape=list(mesh.shape.values()), **found)
"""


@pytest.fixture(scope="module")
def rendered(ready, start, end, tmp_path_factory):
    folder = tmp_path_factory.mktemp("rendered")
    for devices in (1, 4):
        process = start(["-c", SCRIPT, ready, folder / f"on{devices}"], devices)
        code, output = end(process)
        assert code == 0, output
    return {path.stem: dict(np.load(path)) for path in folder.glob("*.npz")}


@pytest.mark.parametrize("batch, mesh", [(4, [1, 4, 1]), (1, [1, 1, 4])])
def test_four_devices_draw_what_one_draws(rendered, batch, mesh):
    one, four = rendered["on1_4"], rendered[f"on4_{batch}"]
    assert four["shape"].tolist() == mesh
    for name in ("alpha", "depth"):
        scale = max(1.0, np.abs(one[name]).max())
        np.testing.assert_allclose(four[name], one[name], atol=1e-5 * scale)
    for name in ("nerf", "standardised"):
        difference = np.abs(four[name].astype(int) - one[name].astype(int))
        assert difference.max() <= 1 and (difference > 0).mean() < 1e-3  # a rounding to uint8
    assert np.ptp(one["nerf"]) > 0 and one["alpha"].max() > 0
