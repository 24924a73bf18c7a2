import numpy as np
import pytest
import scipy.spatial

from t3d import camera
from t3d.prior import basis, raster


def _soup(rng, count):
    """Random triangles in front of a camera: points [V, 3], triangles, intrinsics."""
    centre = rng.uniform([-1.2, -1.2, 4.0], [1.2, 1.2, 8.0], (count, 1, 3))
    points = (centre + rng.normal(size=(count, 3, 3)) * 0.6).reshape(-1, 3).astype(np.float32)
    triangles = np.arange(3 * count).reshape(-1, 3).astype(np.int32)
    return points, triangles, camera.recorded(np.array([1.3, 1.3, 0.5, 0.5], np.float32))


def _cast(points, triangles, view, size, farthest):
    """Möller–Trumbore in float64 over every ray and triangle: depth, triangle, barycentric."""
    origin, direction = camera.rays(view, size)
    corner = points.astype(np.float64)[triangles]
    one, two = corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0]
    ray = direction.astype(np.float64)[:, None]
    p = np.cross(ray, two)
    det = np.sum(p * one, -1)
    offset = origin - corner[:, 0]
    u = np.sum(p * offset, -1) / det
    q = np.cross(offset, one)
    v = np.sum(ray * q, -1) / det
    t = np.sum(two * q, -1) / det
    hit = (u >= 0) & (v >= 0) & (u + v <= 1) & (t > 0)
    depth = np.where(hit, t, -np.inf if farthest else np.inf)
    best = depth.argmax(-1) if farthest else depth.argmin(-1)
    row = np.arange(len(best))
    weights = np.stack([1 - u - v, u, v], -1)[row, best]
    # how far the ray passes from the nearest edge: pixels that graze one may go either way
    edge = np.min(np.abs(np.stack([u, v, 1 - u - v], -1)), -1).min(-1)
    return depth[row, best], np.where(hit.any(-1), best, -1), weights, edge < 1e-4


@pytest.mark.parametrize("farthest", [False, True])
def test_depth_triangle_and_weights_equal_brute_force_ray_casting(farthest):
    points, triangles, view = _soup(np.random.default_rng(3), 60)
    size = 40
    uv, depth = camera.project(view, points)
    drawn = raster.rasterize(uv * size, depth, triangles, size, size, farthest)
    z, index, weights, grazing = _cast(points, triangles, view, size, farthest)
    sure = ~grazing
    assert sure.mean() > 0.9 and 0.1 < (index >= 0).mean() < 1.0
    np.testing.assert_array_equal(drawn.triangle.reshape(-1)[sure], index[sure])
    seen = sure & (index >= 0)
    np.testing.assert_allclose(drawn.depth.reshape(-1)[seen], z[seen], rtol=1e-4)
    np.testing.assert_allclose(drawn.barycentric.reshape(-1, 3)[seen], weights[seen], atol=2e-3)


def test_normals_and_colours_equal_the_brute_force_blend_of_the_corners():
    rng = np.random.default_rng(7)
    points, triangles, view = _soup(rng, 60)
    size = 40
    uv, depth = camera.project(view, points)
    normals, colours = rng.normal(size=points.shape), rng.uniform(size=points.shape)
    drawn = raster.render(uv * size, depth, triangles, normals, colours, size)
    z, index, weights, grazing = _cast(points, triangles, view, size, False)
    np.testing.assert_array_equal(drawn.mask.reshape(-1)[~grazing], index[~grazing] >= 0)
    seen = ~grazing & (index >= 0)
    blended = [
        np.einsum("nk,nkc->nc", weights[seen], a[triangles[index[seen]]])
        for a in (normals, colours)
    ]
    unit = blended[0] / np.linalg.norm(blended[0], axis=-1, keepdims=True)
    steady = np.linalg.norm(blended[0], axis=-1) > 0.3  # a short vector's direction is all rounding
    np.testing.assert_allclose(drawn.normal.reshape(-1, 3)[seen][steady], unit[steady], atol=0.01)
    np.testing.assert_allclose(drawn.colour.reshape(-1, 3)[seen], blended[1], atol=4e-3)
    np.testing.assert_allclose(drawn.depth.reshape(-1)[seen], z[seen], rtol=1e-4)
    np.testing.assert_allclose(drawn.barycentric.reshape(-1, 3)[seen], weights[seen], atol=2e-3)
    for image in (drawn.normal, drawn.colour, drawn.barycentric):
        assert (image[~drawn.mask] == 0).all()


def test_rendered_sphere_has_the_normals_of_a_sphere():
    rng = np.random.default_rng(8)
    outwards = rng.normal(size=(4000, 3))
    outwards /= np.linalg.norm(outwards, axis=-1, keepdims=True)
    triangles = scipy.spatial.ConvexHull(outwards).simplices
    centre = np.array([0.0, 0.0, 5.0])
    view = camera.recorded(np.array([2.0, 2.0, 0.5, 0.5], np.float32))
    uv, depth = camera.project(view, outwards + centre)
    drawn = raster.render(uv * 64, depth, triangles, outwards, np.ones((4000, 3)), 64)
    origin, direction = camera.rays(view, 64)
    hit = (origin + direction * np.where(drawn.mask, drawn.depth, 1).reshape(-1, 1)) - centre
    np.testing.assert_allclose(drawn.normal[drawn.mask], hit[drawn.mask.reshape(-1)], atol=0.03)
    np.testing.assert_allclose(np.linalg.norm(drawn.normal[drawn.mask], axis=-1), 1, atol=1e-5)
    np.testing.assert_allclose(drawn.colour[drawn.mask], 1, atol=1e-5)


def test_empty_pixels_are_inf_minus_one_and_zero():
    points, triangles, view = _soup(np.random.default_rng(4), 3)
    uv, depth = camera.project(view, points)
    drawn = raster.rasterize(uv * 32, depth, triangles, 32, 32)
    empty = drawn.triangle < 0
    assert empty.any() and np.isinf(drawn.depth[empty]).all()
    assert (drawn.barycentric[empty] == 0).all()
    assert (raster.interpolate(drawn, triangles, points)[empty] == 0).all()


def test_interpolated_positions_lie_on_the_pixels_rays():
    points, triangles, view = _soup(np.random.default_rng(5), 40)
    size = 48
    uv, depth = camera.project(view, points)
    drawn = raster.rasterize(uv * size, depth, triangles, size, size)
    seen = drawn.triangle >= 0
    position = raster.interpolate(drawn, triangles, points)[seen]
    back, z = camera.project(view, position)
    row, column = np.nonzero(seen)
    np.testing.assert_allclose(back * size, np.stack([column, row], -1) + 0.5, atol=2e-3)
    np.testing.assert_allclose(z, drawn.depth[seen], rtol=1e-4)


def test_neighbouring_triangles_leave_no_crack():
    rng = np.random.default_rng(6)
    grid = np.stack(np.meshgrid(np.linspace(-4, 68, 30), np.linspace(-4, 68, 30)), -1)
    grid[1:-1, 1:-1] += rng.uniform(-0.8, 0.8, (28, 28, 2))
    i, j = np.meshgrid(np.arange(29), np.arange(29), indexing="ij")
    a = (30 * i + j).ravel()
    triangles = np.concatenate(
        [np.stack([a, a + 1, a + 31], -1), np.stack([a, a + 31, a + 30], -1)]
    )
    drawn = raster.rasterize(grid.reshape(-1, 2), np.full(900, 2.0), triangles, 64, 64)
    assert (drawn.triangle >= 0).all()
    np.testing.assert_allclose(drawn.depth, 2.0, rtol=1e-6)


def test_triangles_behind_the_eye_or_not_finite_are_left_out():
    uv = np.array([[0, 0], [32, 0], [0, 32], [np.nan, 3]], np.float32)
    triangles = np.array([[0, 1, 2], [0, 1, 3]], np.int32)
    behind = raster.rasterize(uv, np.array([1.0, -1.0, 1.0, 1.0]), triangles, 16, 16)
    assert (behind.triangle < 0).all()
    front = raster.rasterize(uv, np.ones(4), triangles, 16, 16)
    assert (front.triangle <= 0).all() and (front.triangle == 0).any()


def test_the_head_is_thicker_from_the_front_than_nothing():
    model = basis.load("procedural")
    world = camera.transform(camera.head_pose(np.zeros(3), np.array([0.0, 0.0, 70.0])), model.mean)
    uv, depth = camera.project(camera.recorded(np.array([2.0, 2.0, 0.5, 0.5])), world)
    near = raster.rasterize(uv * 32, depth, model.triangles, 32, 32)
    far = raster.rasterize(uv * 32, depth, model.triangles, 32, 32, farthest=True)
    np.testing.assert_array_equal(near.triangle >= 0, far.triangle >= 0)
    assert far.depth[12, 16] - near.depth[12, 16] > 12.0
