"""SSIM is scikit-image's, PSNR the textbook's, sharpness falls with blur."""

import numpy as np
import pytest
from scipy import ndimage

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


def test_the_map_of_a_nearly_flat_image_is_scipys_in_float64():
    rng = np.random.default_rng(0)
    a, b = 0.9 + 1e-4 * rng.random((2, 40, 30, 3))

    def blur(x):
        return ndimage.gaussian_filter(x, 1.5, truncate=3.5, axes=(0, 1))

    means = blur(a), blur(b)
    powers = blur(a * a) - means[0] ** 2 + blur(b * b) - means[1] ** 2
    covariance = blur(a * b) - means[0] * means[1]
    luminance = (2 * means[0] * means[1] + 1e-4) / (means[0] ** 2 + means[1] ** 2 + 1e-4)
    expected = luminance * (2 * covariance + 9e-4) / (powers + 9e-4)
    np.testing.assert_allclose(image.ssim_map(a, b), expected, atol=1e-9)


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
    with pytest.raises(ValueError, match="equal shapes"):
        image.image_series(noise[0], noise[1][:1], np.ones((2, 24, 20)))


# ---- whole films


@pytest.fixture(scope="module")
def film():
    """More images than go to the device at once, and not a multiple."""
    rng = np.random.default_rng(0)
    count = image._LOT + 3
    a, b = rng.integers(0, 256, (2, count, 24, 24, 3)).astype(np.uint8)
    return a, b, (rng.random((count, 24, 24)) > 0.4).astype(float)


def test_figures_of_a_film_are_those_of_its_images(film):
    a, b, masks = film
    series = image.image_series(a, b, masks)
    np.testing.assert_allclose(series["ssim"], image.ssim(a / 255, b / 255), atol=1e-9)
    np.testing.assert_allclose(
        series["ssim_head"], image.ssim_over(a / 255, b / 255, masks), atol=1e-9
    )
    np.testing.assert_allclose(series["psnr"], image.psnr(a / 255, b / 255), atol=1e-9)
    error = ((a / 255.0 - b / 255.0) ** 2).mean(-1)
    expected = [-10 * np.log10(e[m > 0].mean()) for e, m in zip(error, masks)]
    np.testing.assert_allclose(series["psnr_head"], expected, atol=1e-9)


def test_an_image_that_is_the_truth_has_endless_psnr_and_one_without_a_head_no_figure(film):
    a, b, masks = (x[:4].copy() for x in film)
    a[1], masks[2] = b[1], 0
    series = image.image_series(a, b, masks)
    assert np.isinf(series["psnr"]).tolist() == [False, True, False, False]
    assert np.isinf(series["psnr_head"]).tolist() == [False, True, False, False]
    assert series["ssim"][1] == pytest.approx(1.0)
    for name in ("ssim_head", "psnr_head"):
        assert np.isnan(series[name]).tolist() == [False, False, True, False]


def test_sharpness_is_scipys_laplacian_of_the_luminance(film):
    images, masks = film[0][:3], film[2][:3]
    grey = images / 255 @ [0.299, 0.587, 0.114]
    cross = ndimage.generate_binary_structure(2, 1)
    for found, picture, mask in zip(image.sharpness(images, masks), grey, masks):
        inside = ndimage.binary_erosion(mask > 0, cross)
        expected = np.square(ndimage.laplace(picture))[inside].mean()
        assert found == pytest.approx(expected)


def test_blur_lowers_sharpness_and_the_masks_outline_does_not_count():
    y, x = np.mgrid[:64, :64]
    head = np.hypot(x - 32, y - 32) < 20
    fine = 128 + 60 * np.sin(x) * np.sin(1.3 * y)
    soft = ndimage.gaussian_filter(fine, 1.5)
    pictures = [np.where(head, inside, 255) for inside in (fine, soft, np.full(x.shape, 128))]
    films = np.repeat(np.stack(pictures)[..., None], 3, -1).astype(np.uint8)
    sharp, blurred, flat = image.sharpness(films, np.broadcast_to(head, (3, 64, 64)))
    assert sharp > 3 * blurred > 0 and flat == 0.0
    assert np.isnan(image.sharpness(films, np.zeros((3, 64, 64)))).all()
