"""Cutting the head out: person by DeepLab and GrabCut, then the neck and torso by the jaw line."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

from t3d import assets
from t3d.data import video
from t3d.data.mediapipe_tasks import open_task, to_image

_SIDE = 256  # pixels; where persons are segmented
_PERSON = 15  # of DeepLab's 21 classes (PASCAL VOC)
_JAW = slice(4, 13)  # of the 68: from one corner of the jaw over the chin to the other
_CORNERS = ((3, 3, 4), (13, 13, 12))  # of the 68: their mean is where the jaw line is left
_NOSE_TIP = 30
_SLACK = 10  # pixels of 256 that GrabCut may move DeepLab's border by
_OUTSIDE = 0.02  # the cut runs this far outside the jaw line, in face heights


def head_masks(frames: Iterable, points68, every: int = 5) -> Iterator[np.ndarray]:
    """The head's mask in each consecutive frame: `head_mask` of `person_masks`.

    frames: uint8 [H, W, 3] RGB; points68: [T, 68, 2] pixels, NaN where no face was found (there the
    nearest found frame's are used). Yields float32 [H, W] in [0, 1]. Raises UserError as
    `person_masks` does.
    """
    points68 = _filled(np.asarray(points68, np.float32))
    for person, points in zip(person_masks(frames, points68, every), points68, strict=True):
        yield head_mask(person, points)


def person_masks(frames: Iterable, points68, every: int = 5) -> Iterator[np.ndarray]:
    """Where the speaker is in each of T consecutive frames, hair included.

    Every `every`th frame is segmented by DeepLab v3, refined by GrabCut (Rother et al. 2004) and
    cleared of what its two segmented neighbours deny; a frame between blends its neighbours' masks,
    carried to it by optical flow (DIS, Kroeger et al. 2016). About 40 ms of one core a frame.

    frames: uint8 [H, W, 3] RGB; points68: [T, 68, 2] pixels, NaN where no face was found. Yields
    float32 [H, W] in [0, 1]. Raises UserError when the model file or MediaPipe's system libraries
    are missing.
    """
    points68 = _filled(np.asarray(points68, np.float32))
    waiting, keys = {}, []  # frames to yield: {index: (grey, shape)}; the last segmented frames
    with _open_segmenter() as segmenter:
        for index, (frame, points) in enumerate(zip(frames, points68, strict=True)):
            image = video.resize(frame, _SIDE)
            waiting[index] = grey, shape = _grey(image), frame.shape[:2]
            if index % every and index != len(points68) - 1:
                continue
            mask = _segment(segmenter, image, points * _SIDE / np.array(shape[::-1]))
            keys.append(_Key(index, grey, mask))
            if len(keys) == 3:
                keys[1] = _steady(*keys)
                yield from _until(keys[0], keys[1], waiting)
                del keys[0]
        yield from _until(keys[0], keys[-1], waiting)


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
class _Key:
    """A segmented frame: its index, its uint8 grey picture and float32 mask, both [256, 256]."""

    index: int
    grey: np.ndarray
    mask: np.ndarray


def _open_segmenter():
    options = {"output_confidence_masks": True, "output_category_mask": False}
    return open_task("ImageSegmenter", assets.find("deeplab_v3"), **options)


def _grey(image: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(image).convert("L"))


def _segment(segmenter, image: np.ndarray, points: np.ndarray) -> np.ndarray:
    """The person's mask [256, 256] of a picture of that size, and landmarks [68, 2] in it."""
    maps = segmenter.segment(to_image(image)).confidence_masks
    logits = np.stack([m.numpy_view().squeeze() for m in maps])
    person = logits[_PERSON] > np.delete(logits, _PERSON, 0).max(0)
    cut = _grab_cut(image, person, _face_region(points))
    return ndimage.gaussian_filter(cut.astype(np.float32), 0.8)


def _grab_cut(image: np.ndarray, person: np.ndarray, face: np.ndarray) -> np.ndarray:
    """Moves the border of a rough mask to the border in the image; one piece without holes."""
    import cv2

    inside = ndimage.distance_transform_edt(person)
    outside = ndimage.distance_transform_edt(~person)
    seeds = np.where(person, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
    seeds[outside > _SLACK] = cv2.GC_BGD
    seeds[(inside > _SLACK) | face] = cv2.GC_FGD
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


def _steady(before: _Key, key: _Key, after: _Key) -> _Key:
    """A key whose mask is the median of three keys', so that no single slip stays."""
    moved = [_carry(other, key.grey) for other in (before, after)]
    return replace(key, mask=np.median([key.mask, *moved], axis=0).astype(np.float32))


def _until(first: _Key, last: _Key, waiting: dict) -> Iterator[np.ndarray]:
    """The masks of the waiting frames from the first to the last key, at the frames' own size."""
    for index in [k for k in waiting if k <= last.index]:
        grey, shape = waiting.pop(index)
        share = (index - first.index) / max(1, last.index - first.index)
        masks = [_carry(key, grey) for key in (first, last)]
        yield _enlarge((1 - share) * masks[0] + share * masks[1], shape)


def _carry(key: _Key, grey: np.ndarray) -> np.ndarray:
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


def _filled(points68: np.ndarray) -> np.ndarray:
    """Landmarks with those of the nearest found frame where there are none."""
    found = np.flatnonzero(np.isfinite(points68).all((1, 2)))
    if len(found) == 0:
        return points68
    nearest = np.abs(np.arange(len(points68))[:, None] - found).argmin(1)
    return points68[found[nearest]]
