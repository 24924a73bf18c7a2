"""The bars of `prepare` on whole real clips."""

import pytest

from t3d.data.prepare import prepare


@pytest.mark.full
@pytest.mark.parametrize("clip", ["WDA_KatieHill_000.mp4", "cnn2_25fps.mp4"])
def test_a_real_clip_is_tracked_to_the_bars(clip, clips, assets, tmp_path):
    if not (clips / clip).exists():
        pytest.skip(f"{clips / clip} is missing: set T3D_CLIPS to the folder that has it")
    quality = prepare(clips / clip, tmp_path / "data", prior="ict")["quality"]
    assert quality["tracked"] >= 0.99
    assert quality["reprojection"] <= 0.03
    assert quality["mouth_r"] >= 0.95
