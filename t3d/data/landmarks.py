"""Faces in pictures: 68 + 79 landmarks and blendshape weights, by MediaPipe's FaceLandmarker."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from t3d import assets
from t3d.data.mediapipe_tasks import open_task, to_image

# iBUG's 68 points among MediaPipe's 478, by what lies nearest.
# fmt: off
MEDIAPIPE_68 = (
    127, 234, 93, 132, 172, 150, 149, 148, 152, 377, 378, 379, 397, 361, 323, 454, 356,
    70, 63, 105, 66, 107, 336, 296, 334, 293, 300,
    168, 197, 195, 4, 98, 97, 2, 326, 327,
    33, 160, 158, 133, 153, 144, 362, 385, 387, 263, 373, 380,
    61, 39, 37, 0, 267, 269, 291, 321, 314, 17, 84, 91,
    78, 81, 13, 311, 308, 402, 14, 178,
)
# Where iBUG's points lie between two of MediaPipe's: the second, and how far on the way to it.
# Chosen so that ICT-FaceKit's landmarks, fitted to two real clips, are met in the median frame; the
# jaw's stay on the contour. On rendered heads, which that did not see, they are nearer, too.
BETWEEN = {
    0: (162, 0.35), 2: (132, 0.2), 3: (58, 0.3), 4: (58, 0.3), 5: (136, 0.4), 7: (176, 0.3),
    9: (400, 0.3), 11: (365, 0.4), 12: (288, 0.3), 13: (288, 0.3), 14: (361, 0.2), 16: (389, 0.35),
    20: (107, 0.15), 21: (9, 0.1), 22: (9, 0.1), 23: (336, 0.15), 27: (6, 0.35), 28: (6, 0.35),
    31: (167, 0.15), 35: (393, 0.15), 49: (40, 0.65), 53: (270, 0.65), 55: (405, 0.25),
    56: (405, 0.4), 58: (181, 0.4), 59: (181, 0.25), 61: (82, 0.25), 63: (312, 0.25),
    65: (317, 0.3), 67: (87, 0.3),
}
# Four rings of 20 from the outer to the inner lip contour, each from the corner at image left along
# the lower lip to the other corner and back along the upper lip.
MEDIAPIPE_LIPS = (
    61, 146, 91, 181, 84, 17, 314, 405, 321, 375, 291, 409, 270, 269, 267, 0, 37, 39, 40, 185,
    76, 77, 90, 180, 85, 16, 315, 404, 320, 307, 306, 408, 304, 303, 302, 11, 72, 73, 74, 184,
    62, 96, 89, 179, 86, 15, 316, 403, 319, 325, 292, 407, 272, 271, 268, 12, 38, 41, 42, 183,
    78, 95, 88, 178, 87, 14, 317, 402, 318, 324, 308, 415, 310, 311, 312, 13, 82, 81, 80, 191,
)
# fmt: on
FINDER_SIZE = 256  # pixels: callers enlarge smaller images, in which MediaPipe finds less
LIPS79 = MEDIAPIPE_LIPS[:79]  # all but 191, beside the inner corner at image left

# ICT-FaceKit's expression names, in its order, and MediaPipe's name for each.
BLENDSHAPES = {
    "browDown_L": "browDownLeft",
    "browDown_R": "browDownRight",
    "browInnerUp_L": "browInnerUp",
    "browInnerUp_R": "browInnerUp",
    "browOuterUp_L": "browOuterUpLeft",
    "browOuterUp_R": "browOuterUpRight",
    "cheekPuff_L": "cheekPuff",
    "cheekPuff_R": "cheekPuff",
    "cheekSquint_L": "cheekSquintLeft",
    "cheekSquint_R": "cheekSquintRight",
    "eyeBlink_L": "eyeBlinkLeft",
    "eyeBlink_R": "eyeBlinkRight",
    "eyeLookDown_L": "eyeLookDownLeft",
    "eyeLookDown_R": "eyeLookDownRight",
    "eyeLookIn_L": "eyeLookInLeft",
    "eyeLookIn_R": "eyeLookInRight",
    "eyeLookOut_L": "eyeLookOutLeft",
    "eyeLookOut_R": "eyeLookOutRight",
    "eyeLookUp_L": "eyeLookUpLeft",
    "eyeLookUp_R": "eyeLookUpRight",
    "eyeSquint_L": "eyeSquintLeft",
    "eyeSquint_R": "eyeSquintRight",
    "eyeWide_L": "eyeWideLeft",
    "eyeWide_R": "eyeWideRight",
    "jawForward": "jawForward",
    "jawLeft": "jawLeft",
    "jawOpen": "jawOpen",
    "jawRight": "jawRight",
    "mouthClose": "mouthClose",
    "mouthDimple_L": "mouthDimpleLeft",
    "mouthDimple_R": "mouthDimpleRight",
    "mouthFrown_L": "mouthFrownLeft",
    "mouthFrown_R": "mouthFrownRight",
    "mouthFunnel": "mouthFunnel",
    "mouthLeft": "mouthLeft",
    "mouthLowerDown_L": "mouthLowerDownLeft",
    "mouthLowerDown_R": "mouthLowerDownRight",
    "mouthPress_L": "mouthPressLeft",
    "mouthPress_R": "mouthPressRight",
    "mouthPucker": "mouthPucker",
    "mouthRight": "mouthRight",
    "mouthRollLower": "mouthRollLower",
    "mouthRollUpper": "mouthRollUpper",
    "mouthShrugLower": "mouthShrugLower",
    "mouthShrugUpper": "mouthShrugUpper",
    "mouthSmile_L": "mouthSmileLeft",
    "mouthSmile_R": "mouthSmileRight",
    "mouthStretch_L": "mouthStretchLeft",
    "mouthStretch_R": "mouthStretchRight",
    "mouthUpperUp_L": "mouthUpperUpLeft",
    "mouthUpperUp_R": "mouthUpperUpRight",
    "noseSneer_L": "noseSneerLeft",
    "noseSneer_R": "noseSneerRight",
}

DETECTOR = "mediapipe-face-landmarker"
_LOOK_AROUND = 25  # frames between two searches of the whole picture for other faces
_IN_COMPANY = 5  # the same while another face was seen in the last 50 frames
_MOST_FACES = 4
_LARGER = 1.3  # how much larger another face must be to be followed instead


_KEPT = np.array(MEDIAPIPE_68 + LIPS79)
_TOWARDS, _SHARE = _KEPT.copy(), np.zeros((len(_KEPT), 1))
for _mark, (_other, _way) in BETWEEN.items():
    _TOWARDS[_mark], _SHARE[_mark] = _other, _way
_NO_POINTS = np.full((len(_KEPT), 2), np.nan, np.float32)
_NO_WEIGHTS = np.full(len(BLENDSHAPES), np.nan, np.float32)


@dataclass(frozen=True)
class Landmarks:
    """The speaker's face in each of T pictures.

    found: [T] bool; points68: [T, 68, 2] and lips79: [T, 79, 2] pixels (x, y), NaN where not found;
    blendshapes: [T, 53] in [0, 1], named by BLENDSHAPES' keys, NaN where not found; others: share
    of the searched pictures that hold a second face; detector: what found them.
    """

    found: np.ndarray
    points68: np.ndarray
    lips79: np.ndarray
    blendshapes: np.ndarray
    others: float
    detector: str = DETECTOR


@dataclass(frozen=True)
class _Face:
    points: np.ndarray  # [478, 2] pixels
    weights: np.ndarray  # [53]

    @property
    def marks(self) -> np.ndarray:
        """[147, 2] the 68 landmarks and the 79 of the lips."""
        marks = self.points[_KEPT] + _SHARE * (self.points[_TOWARDS] - self.points[_KEPT])
        return marks.astype(np.float32)

    @property
    def centre(self) -> np.ndarray:
        return self.points.mean(0)

    @property
    def size(self) -> float:
        return float(np.ptp(self.points, axis=0).max())


def detect(
    frames: Iterable,
    fps: int = 25,
    video: bool = True,
    watch: Callable[[np.ndarray, np.ndarray | None], None] | None = None,
) -> Landmarks:
    """Finds the face of the speaker, the larger one where there are several.

    frames: uint8 [H, W, 3] RGB, T of them. video=True: consecutive frames at `fps`, one face is
    followed and its points are smoothed in time; video=False: each frame on its own; watch: called
    with each frame and its points68 [68, 2] (None without a face). About 11 ms a frame. Raises
    UserError when the model file or MediaPipe's system libraries are missing.
    """
    points, weights, several = [], [], []
    for frame, face, crowd in _follow(frames, fps) if video else _search_each(frames):
        points.append(_NO_POINTS if face is None else face.marks)
        weights.append(_NO_WEIGHTS if face is None else face.weights.astype(np.float32))
        several += [] if crowd is None else [crowd]
        if watch:
            watch(frame, None if face is None else points[-1][:68])
    points = np.array(points, np.float32).reshape(-1, len(_KEPT), 2)
    weights = np.array(weights, np.float32).reshape(-1, len(BLENDSHAPES))
    found = np.isfinite(points).all((1, 2))
    others = float(np.mean(several)) if several else 0.0
    return Landmarks(found, points[:, :68], points[:, 68:], weights, others)


def _open(mode: str, most: int):
    model = assets.find("face_landmarker")
    return open_task("FaceLandmarker", model, mode, num_faces=most, output_face_blendshapes=True)


def _search_each(frames: Iterable) -> Iterator[tuple[np.ndarray, _Face | None, bool]]:
    with _open("IMAGE", _MOST_FACES) as finder:
        for frame in frames:
            faces = _faces(finder.detect(to_image(frame)), frame)
            yield frame, max(faces, key=lambda f: f.size, default=None), len(faces) > 1


def _follow(frames: Iterable, fps: int) -> Iterator[tuple[np.ndarray, _Face | None, bool | None]]:
    """Each frame, its followed face, and whether there are others (None: not searched)."""
    tracker, face, company = _open("VIDEO", 1), None, -50
    try:
        with _open("IMAGE", _MOST_FACES) as finder:
            for index, frame in enumerate(frames):
                crowd, seen = None, frame
                every = _IN_COMPANY if index - company < 50 else _LOOK_AROUND
                if index % every == 0 or face is None:
                    faces = _faces(finder.detect(to_image(frame)), frame)
                    crowd = len(faces) > 1
                    company = index if crowd else company
                    larger = _better(faces, face) if crowd else None
                    if larger is not None:
                        tracker.close()
                        tracker, seen = _open("VIDEO", 1), _only(frame, larger)
                result = tracker.detect_for_video(to_image(seen), round(index * 1000 / fps))
                face = next(iter(_faces(result, frame)), None)
                yield frame, face, crowd if index % _LOOK_AROUND == 0 else None
    finally:
        tracker.close()


def _faces(result, frame: np.ndarray) -> list[_Face]:
    scale = np.array(frame.shape[1::-1])
    return [
        _Face(np.array([(p.x, p.y) for p in points]) * scale, _ict_weights(scores))
        for points, scores in zip(result.face_landmarks, result.face_blendshapes, strict=True)
    ]


def _ict_weights(scores) -> np.ndarray:
    by_name = {score.category_name: score.score for score in scores}
    return np.array([by_name[name] for name in BLENDSHAPES.values()])


def _better(faces: list[_Face], followed: _Face | None) -> _Face | None:
    """The largest face, if it is another than the followed one and clearly larger."""
    largest = max(faces, key=lambda f: f.size)
    if followed is None:
        return largest
    same = np.linalg.norm(largest.centre - followed.centre) < followed.size / 2
    return None if same or largest.size < _LARGER * followed.size else largest


def _only(frame: np.ndarray, face: _Face) -> np.ndarray:
    """The frame with all but the surroundings of one face painted grey."""
    low = np.maximum(face.centre - face.size, 0).astype(int)
    high = (face.centre + face.size).astype(int)
    masked = np.full_like(frame, 127)
    masked[low[1] : high[1], low[0] : high[0]] = frame[low[1] : high[1], low[0] : high[0]]
    return masked
