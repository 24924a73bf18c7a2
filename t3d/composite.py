"""A rendered head put back into its recording: torso, hair's edge and background as filmed."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

SOLID = (0.5, 0.95)  # opacity at which the head begins to count, and counts fully
FEATHER = 0.012  # of the picture's side: width over which it fades into the recording
SPREAD = 0.06  # of the side: how far inwards colours are matched to the recording's
CRUMB = 0.012  # of the side: half the width of what is none of the head if it hangs by no more
RIM = 0.05  # of the side: where they are compared, along the head's edge


def composite(
    rendered: np.ndarray, alpha: np.ndarray, filmed: np.ndarray, mask: np.ndarray, face: np.ndarray
) -> np.ndarray:
    """The filmed picture with the rendered head in the place of its own.

    The head fades out just inside its silhouette, where the recording has the same head in the same
    pose, and takes on the recording's light there. Where the filmed jaw hangs lower than the
    rendered one the neck is painted over it.

    Args:
        rendered: uint8 [S, S, 3] on white; alpha: [F, F] in [0, 1] its opacity, of any resolution.
        filmed: uint8 [S, S, 3]; mask: uint8 [S, S] of its head (0 … 255).
        face: [P, 2] pixels (x, y) of the filmed face; a jaw may show within their hull.

    Returns:
        uint8 [S, S, 3].
    """
    import cv2

    side = len(filmed)
    solid = np.clip(
        cv2.resize(np.float32(alpha), (side, side), interpolation=cv2.INTER_CUBIC), 0, 1
    )
    solid = _one_piece(np.clip((solid - SOLID[0]) / (SOLID[1] - SOLID[0]), 0, 1))
    if not solid.any():
        return filmed
    weight = _faded(solid, FEATHER * side)[..., None]
    base = _without_jaw(filmed, solid > 0, face)
    shown = rendered.astype(np.float32)
    shown += _difference(shown, base.astype(np.float32), solid, mask, side)
    mixed = weight * np.clip(shown, 0, 255) + (1 - weight) * base
    return np.round(mixed).astype(np.uint8)


def _one_piece(solid: np.ndarray) -> np.ndarray:
    """The head alone, without holes: an open mouth that the field sees through shows no recording,
    and crumbs beside the ears hang in no air."""
    import cv2

    width = 2 * round(CRUMB * len(solid)) + 1
    brush = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (width, width))
    head = np.uint8(solid > 0.5)
    pieces, count = ndimage.label(cv2.morphologyEx(head, cv2.MORPH_OPEN, brush))
    if not count:
        return np.zeros_like(solid)
    main = pieces == 1 + np.argmax(np.bincount(pieces.ravel())[1:])
    # What the opening took off its outline, and the faint rim around that.
    reach = cv2.dilate(cv2.dilate(np.uint8(main), brush), np.ones((5, 5), np.uint8)) > 0
    kept = np.where(reach, solid, 0)
    return np.where(ndimage.binary_fill_holes(kept > 0.5) & (kept <= 0.5), 1, kept)


def _faded(solid: np.ndarray, width: float) -> np.ndarray:
    """[S, S] in [0, 1]: 0 at the edge of what is solid, 1 from twice the width inwards on."""
    import cv2

    inside = cv2.distanceTransform(np.uint8(solid > 0.5), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    way = np.clip(inside / (2 * width), 0, 1)
    return way * way * (3 - 2 * way)


def _without_jaw(filmed: np.ndarray, solid: np.ndarray, face: np.ndarray) -> np.ndarray:
    """The filmed picture, its face painted over from around it below the rendered head."""
    import cv2

    hull = np.zeros(solid.shape, np.uint8)
    cv2.fillConvexPoly(hull, cv2.convexHull(np.round(face).astype(np.int32)), 1)
    side = len(filmed)
    grow = np.ones((max(3, side // 64),) * 2, np.uint8)
    below = np.cumsum(solid, 0) > 0  # in each column
    shows = cv2.dilate(np.uint8((hull > 0) & ~solid), grow) & np.uint8(~solid & below)
    if not shows.any():
        return filmed
    # What the head covers must not bleed into the neck.
    hidden = shows | cv2.dilate(np.uint8(solid), grow)
    painted = cv2.inpaint(filmed, hidden & _near(shows, side), 3, cv2.INPAINT_TELEA)
    return np.where(shows[..., None] > 0, painted, filmed)


def _near(region: np.ndarray, side: int) -> np.ndarray:
    import cv2

    return cv2.dilate(region, np.ones((side // 16 | 1,) * 2, np.uint8))


def _difference(
    shown: np.ndarray, base: np.ndarray, solid: np.ndarray, mask: np.ndarray, side: int
) -> np.ndarray:
    """How the recording's colours differ along the edge, smooth and fading inwards: [S, S, 3]."""
    import cv2

    both = np.uint8((solid > 0.5) & (mask > 127))
    inside = cv2.distanceTransform(both, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    rim = np.float32((inside > 0) & (inside < RIM * side))
    deviation = SPREAD * side
    total = cv2.GaussianBlur((base - shown) * rim[..., None], (0, 0), deviation)
    count = cv2.GaussianBlur(rim, (0, 0), deviation)
    near = np.clip(1 - inside / (3 * deviation), 0, 1)
    return total / np.maximum(count, 1e-3)[..., None] * (near * near)[..., None]
