"""SSIM is scikit-image's, PSNR the textbook's."""

import numpy as np
import pytest

from t3d.metrics import image


@pytest.fixture
def pairs(golden):
    data = golden("ssim")
    return data["in_a_uint8"] / 255.0, data["in_b_uint8"] / 255.0, data


def test_ssim_is_scikit_images(pairs):
    a, b, data = pairs
    np.testing.assert_allclose(image.ssim(a, b), data["out_gaussian"], atol=1e-5)
    np.testing.assert_allclose(
        image.ssim_map(a[1], b[1]), data["out_gaussian_map_pair1"], atol=1e-5
    )


def test_psnr_is_scikit_images(pairs):
    a, b, data = pairs
    np.testing.assert_allclose(image.psnr(a, b), data["out_psnr"], rtol=1e-6)


@pytest.fixture
def noise():
    rng = np.random.default_rng(0)
    return rng.random((2, 24, 20, 3)), rng.random((2, 24, 20, 3))


def test_one_pixel_of_the_map_is_the_formula(noise):
    a, b = noise[0][0, ..., 0], noise[1][0, ..., 0]
    steps = np.arange(-5, 6)
    g = np.exp(-(steps**2) / (2 * 1.5**2))
    w = np.outer(g, g) / np.outer(g, g).sum()
    p, q = a[7:18, 5:16], b[7:18, 5:16]
    mp, mq = (w * p).sum(), (w * q).sum()
    vp, vq, c = (
        (w * (p - mp) ** 2).sum(),
        (w * (q - mq) ** 2).sum(),
        (w * (p - mp) * (q - mq)).sum(),
    )
    expected = (2 * mp * mq + 1e-4) * (2 * c + 9e-4) / ((mp**2 + mq**2 + 1e-4) * (vp + vq + 9e-4))
    np.testing.assert_allclose(image.ssim_map(noise[0], noise[1])[0, 12, 10, 0], expected)


def test_equal_images_score_one(noise):
    np.testing.assert_allclose(image.ssim(noise[0], noise[0]), 1.0)
    assert np.isinf(image.psnr(noise[0], noise[0])).all()


def test_a_full_mask_is_no_mask_and_a_small_one_looks_there_only(noise):
    a, b = noise
    full = image.ssim_over(a, b, np.ones((2, 24, 20)))
    np.testing.assert_allclose(full, image.ssim(a, b))
    mask = np.zeros((2, 24, 20, 1))
    mask[:, 12, 10] = 1.0
    there = image.ssim_map(a, b)[:, 12, 10].mean(-1)
    np.testing.assert_allclose(image.ssim_over(a, b, mask), there)
    assert np.isnan(image.ssim_over(a, b, 0 * mask)).all()


def test_too_small_or_unlike_images_are_refused(noise):
    with pytest.raises(ValueError, match="11"):
        image.ssim(noise[0][:, :8], noise[1][:, :8])
    with pytest.raises(ValueError, match="equal shapes"):
        image.psnr(noise[0], noise[1][:1])
