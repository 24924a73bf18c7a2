"""Cutting the head out: person by DeepLab and GrabCut, then the neck and torso by the jaw line."""

import functools
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

from t3d import assets
from t3d.data import video
from t3d.data.mediapipe_tasks import open_task, to_image
from t3d.data.threads import in_order
from t3d.prior import gaps

_SIDE = 256  # pixels; where persons are segmented
_PERSON = 15  # of DeepLab's 21 classes (PASCAL VOC)
_JAW = slice(4, 13)  # of the 68: from one corner of the jaw over the chin to the other
_CORNERS = ((3, 3, 4), (13, 13, 12))  # of the 68: their mean is where the jaw line is left
_NOSE_TIP = 30
_SLACK = 10  # pixels of 256 that GrabCut may move DeepLab's border by
_OUTSIDE = 0.02  # the cut runs this far outside the jaw line, in face heights


def head_masks(
    frames: Iterable, points68, every: int = 5, shot: np.ndarray | None = None
) -> Iterator[np.ndarray]:
    """The head's mask in each of T consecutive frames, hair included: `head_mask` of the person.

    Every `every`th frame is segmented by DeepLab v3, refined by GrabCut (Rother et al. 2004) and
    cleared of what its two segmented neighbours deny; a frame between blends its neighbours' masks,
    carried to it by optical flow (DIS, Kroeger et al. 2016). Nothing is carried across a cut, nor
    between frames with a face and frames without. About 15 to 25 ms of a core a frame.

    frames: uint8 [H, W, 3] RGB; points68: [T, 68, 2] pixels, NaN where no face was found (there the
    nearest found frame's are used); shot: [T] the shot of each frame (None: one). Yields float32
    [H, W] in [0, 1]. Raises UserError when the model file or MediaPipe's system libraries are
    missing.
    """
    points68 = np.asarray(points68, np.float32)
    found = np.isfinite(points68).all((1, 2))
    points68 = points68[gaps.nearest(found)] if found.any() else points68
    cuts = np.zeros(len(found) - 1, bool) if shot is None else np.diff(shot) != 0
    number, is_key = _numbers(cuts | np.diff(found), every)
    with _open_segmenter() as segmenter:

        def look(seen: tuple) -> _Frame:
            image, index, key, points = seen
            small, shape = _shrunk(image), image.shape[:2]
            scaled = points * _SIDE / np.array(shape[::-1])
            mask = _segment(segmenter, small, scaled) if key else None
            return _Frame(int(index), _grey(small), mask, points, shape)

        seen = in_order(look, zip(frames, number, is_key, points68, strict=True), ahead=3 * every)
        yield from in_order(_finish, _jobs(seen))


def head_mask(person: np.ndarray, points68: np.ndarray) -> np.ndarray:
    """Face and hair of a person's mask, without what lies below the jaw.

    The cut follows the jaw line a little outside it; beyond the jaw's corners it goes on straight
    at their height, along the head's own horizontal.

    person: [H, W] in [0, 1]; points68: [68, 2] pixels. Returns float32 [H, W] in [0, 1], its cut
    soft over about a pixel; all zero where points are NaN.
    """
    height, width = person.shape
    if not np.isfinite(points68).all():
        return np.zeros((height, width), np.float32)
    right, down, size = _head_axes(points68)
    ends = points68[np.array(_CORNERS)].mean(1, keepdims=True)
    jaw = np.concatenate([ends[0], points68[_JAW], ends[1]])
    outwards = jaw - points68[_NOSE_TIP]
    jaw = jaw + _OUTSIDE * size * outwards / np.linalg.norm(outwards, axis=-1, keepdims=True)
    x, y = np.arange(width) + 0.5, np.arange(height)[:, None] + 0.5
    along, depth = x * right[0] + y * right[1], x * down[0] + y * down[1]
    floor = np.interp(along, jaw @ right, jaw @ down)
    return (person * np.clip(floor - depth + 0.5, 0, 1)).astype(np.float32)


def _head_axes(points68: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Unit vectors to the head's image right and downwards, and the height from brows to chin."""
    eyes = points68[45] - points68[36]
    right = eyes / np.linalg.norm(eyes)
    down = np.array([-right[1], right[0]])
    return right, down, float((points68[8] - points68[[19, 24]].mean(0)) @ down)


@dataclass(frozen=True)
class _Frame:
    """A frame: its number in its stretch, its grey picture uint8 [256, 256], its person's mask
    float32 [256, 256] if it was segmented (a key), its landmarks [68, 2] in pixels, its shape."""

    index: int
    grey: np.ndarray
    mask: np.ndarray | None
    points: np.ndarray
    shape: tuple[int, int]


def _numbers(breaks: np.ndarray, every: int) -> tuple[np.ndarray, np.ndarray]:
    """The number of each frame in its stretch [T], and whether it is a key [T]: every `every`th
    and the last one. breaks: [T - 1] whether a stretch ends."""
    starts = np.concatenate([[True], breaks])
    first = np.flatnonzero(starts)[np.cumsum(starts) - 1]
    number = np.arange(len(starts)) - first
    return number, (number % every == 0) | np.concatenate([breaks, [True]])


def _jobs(frames: Iterable[_Frame]) -> Iterator[tuple[_Frame, _Frame, _Frame]]:
    """Each frame with the keys before and after it, which their neighbours have steadied."""
    keys, waiting = [], deque()
    for frame in frames:
        if frame.index == 0:
            yield from _until(keys[0], keys[-1], waiting) if keys else ()
            keys = []
        waiting.append(frame)
        if frame.mask is None:
            continue
        keys.append(frame)
        if len(keys) == 3:
            keys[1] = _steady(*keys)
            yield from _until(keys[0], keys[1], waiting)
            del keys[0]
    yield from _until(keys[0], keys[-1], waiting)


def _until(first: _Frame, last: _Frame, waiting: deque) -> Iterator[tuple[_Frame, _Frame, _Frame]]:
    while waiting and waiting[0].index <= last.index:
        yield waiting.popleft(), first, last


def _finish(job: tuple[_Frame, _Frame, _Frame]) -> np.ndarray:
    """The head's mask of a frame, from its keys' masks, at the frame's own size."""
    frame, first, last = job
    share = (frame.index - first.index) / max(1, last.index - first.index)
    masks = [_carry(key, frame.grey) for key in (first, last)]
    person = _enlarge((1 - share) * masks[0] + share * masks[1], frame.shape)
    return head_mask(person, frame.points)


def _open_segmenter():
    options = {"output_confidence_masks": True, "output_category_mask": False}
    return open_task("ImageSegmenter", assets.find("deeplab_v3"), **options)


def _shrunk(image: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3] -> [256, 256, 3], by means of areas: a quarter of a bicubic filter's time."""
    import cv2

    if min(image.shape[:2]) < _SIDE:
        return video.resize(image, _SIDE)
    return cv2.resize(image, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)


def _grey(image: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(image).convert("L"))


def _segment(segmenter, image: np.ndarray, points: np.ndarray) -> np.ndarray:
    """The person's mask [256, 256] of a picture of that size, and landmarks [68, 2] in it."""
    masks = segmenter.segment(to_image(image)).confidence_masks  # own what the views look at
    maps = [m.numpy_view()[..., 0] for m in masks]
    person = maps.pop(_PERSON) > functools.reduce(np.maximum, maps)
    cut = _grab_cut(image, person, _face_region(points))
    return ndimage.gaussian_filter(cut.astype(np.float32), 0.8)


def _grab_cut(image: np.ndarray, person: np.ndarray, face: np.ndarray) -> np.ndarray:
    """Moves the border of a rough mask to the border in the image; one piece without holes."""
    import cv2

    inside, outside = (
        cv2.distanceTransform(side.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        for side in (person, ~person)
    )
    seeds = np.where(person, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
    seeds[outside > _SLACK] = cv2.GC_BGD
    seeds[(inside > _SLACK) | face] = cv2.GC_FGD
    head = (seeds == cv2.GC_FGD) | (seeds == cv2.GC_PR_FGD)
    if head.any() and not head.all():  # else there is no border, nor colours beyond it
        background, foreground = np.zeros((1, 65)), np.zeros((1, 65))
        cv2.setRNGSeed(0)
        cv2.grabCut(image, seeds, None, background, foreground, 2, cv2.GC_INIT_WITH_MASK)
    cut = ndimage.binary_opening((seeds == cv2.GC_FGD) | (seeds == cv2.GC_PR_FGD), iterations=2)
    pieces, _ = ndimage.label(cut | face)
    main = np.bincount(pieces[face]).argmax() if face.any() else 0
    return ndimage.binary_fill_holes(pieces == main) if main else cut


def _face_region(points: np.ndarray) -> np.ndarray:
    """[256, 256] bool: inside the jaw line and the brows."""
    picture = Image.new("1", (_SIDE, _SIDE))
    if np.isfinite(points).all():
        outline = points[[*range(17), *range(26, 16, -1)]]
        ImageDraw.Draw(picture).polygon([tuple(p) for p in outline.tolist()], fill=1)
    return np.asarray(picture)


def _steady(before: _Frame, key: _Frame, after: _Frame) -> _Frame:
    """A key whose mask is the median of three keys', so that no single slip stays."""
    one, two, three = key.mask, *[_carry(other, key.grey) for other in (before, after)]
    median = np.maximum(np.minimum(one, two), np.minimum(np.maximum(one, two), three))
    return replace(key, mask=median)


def _carry(key: _Frame, grey: np.ndarray) -> np.ndarray:
    """A key's mask moved to where its things are in another grey picture [256, 256]."""
    import cv2

    if grey is key.grey:
        return key.mask
    flow = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_FAST).calc(grey, key.grey, None)
    there = flow + np.stack(np.meshgrid(*[np.arange(_SIDE, dtype=np.float32)] * 2), -1)
    return cv2.remap(key.mask, there, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def _enlarge(mask: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """A mask [256, 256] at the frame's size, its border as sharp as at the small one."""
    large = Image.fromarray(mask).resize(shape[::-1], Image.Resampling.BICUBIC)
    return np.clip((np.asarray(large) - 0.5) * 1.6 + 0.5, 0, 1)
