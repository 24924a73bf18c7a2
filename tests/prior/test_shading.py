import jax
import jax.numpy as jnp
import numpy as np
import scipy.special

from t3d.prior import shading


def _directions(count, seed=0):
    normals = np.random.default_rng(seed).normal(size=(count, 3))
    return (normals / np.linalg.norm(normals, axis=-1, keepdims=True)).astype(np.float32)


def test_basis_equals_the_peers_numbers_in_their_axes(golden):
    data = golden("adnerf_face_small")
    opencv = data["in_sh_normals"][0] * [1, -1, -1]
    np.testing.assert_allclose(shading.sh_basis(opencv), data["out_sh_basis"], atol=1e-5)


def test_bands_are_orthogonal_over_the_sphere_in_their_order():
    polar, weight = np.polynomial.legendre.leggauss(12)
    turn = 2 * np.pi * np.arange(24) / 24
    z, phi = np.meshgrid(polar, turn, indexing="ij")
    r = np.sqrt(1 - z * z)
    bands = shading.sh_basis(np.stack([r * np.cos(phi), r * np.sin(phi), z], -1))
    gram = np.einsum("ijk,ijl,i->kl", bands, bands, weight) * 2 * np.pi / 24
    np.testing.assert_allclose(gram, np.diag(np.diag(gram)), atol=1e-4)
    # each is the cosine lobe's strength in its degree (up to √3, √8 in the peers' units) times an
    # orthonormal harmonic, so the norm depends on the degree alone
    norm = np.sqrt(np.diag(gram))
    np.testing.assert_allclose(norm, np.repeat(norm[[0, 1, 4]], [1, 3, 5]), rtol=1e-5)
    np.testing.assert_allclose(norm[0], np.pi, rtol=1e-5)


def test_bands_are_the_real_spherical_harmonics_of_their_degree():
    normals = _directions(50)
    x, y, z = normals[:, 0], -normals[:, 1], -normals[:, 2]
    theta, phi = np.arccos(z), np.arctan2(y, x)
    bands = shading.sh_basis(normals)
    for column, degree in enumerate([0, 1, 1, 1, 2, 2, 2, 2, 2]):
        own = np.stack(
            [scipy.special.sph_harm_y(degree, m, theta, phi) for m in range(-degree, degree + 1)],
            -1,
        )
        fit = np.linalg.lstsq(own, bands[:, column], rcond=None)[0]
        np.testing.assert_allclose((own @ fit).real, bands[:, column], atol=1e-4)


def test_even_light_shows_the_albedo_everywhere():
    albedo = np.random.default_rng(1).uniform(size=(20, 3)).astype(np.float32)
    colours = shading.shade(albedo, _directions(20), shading.ambient(0.7))
    np.testing.assert_allclose(colours, 0.7 * albedo, rtol=1e-5)


def test_light_from_the_camera_brightens_what_faces_it():
    code = shading.ambient().reshape(9, 3)
    code[2] += 0.3
    towards, away = np.array([[0, 0, -1.0]]), np.array([[0, 0, 1.0]])
    white = np.ones((1, 3), np.float32)
    assert (shading.shade(white, towards, code.ravel()) > 1).all()
    assert (shading.shade(white, away, code.ravel()) < 1).all()


def test_shade_is_linear_in_light_batched_and_equal_in_jax():
    rng = np.random.default_rng(2)
    albedo = rng.uniform(size=(4, 10, 3)).astype(np.float32)
    normals = _directions(40).reshape(4, 10, 3)
    one, two = rng.normal(size=(2, 4, 27)).astype(np.float32)
    both = shading.shade(albedo, normals, one + two)
    apart = shading.shade(albedo, normals, one) + shading.shade(albedo, normals, two)
    np.testing.assert_allclose(both, apart, atol=1e-5)
    device = shading.shade(jnp.asarray(albedo), jnp.asarray(normals), jnp.asarray(one))
    assert isinstance(device, jax.Array)
    np.testing.assert_allclose(device, shading.shade(albedo, normals, one), atol=1e-5)
