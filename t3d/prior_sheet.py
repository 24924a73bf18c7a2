"""`t3d prior show`: one picture of what a morphable model can do."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from t3d import camera as cameras
from t3d import plots
from t3d.data.parts import write_atomically
from t3d.errors import UserError
from t3d.prior import basis, morphable, raster, shading
from t3d.prior.morphable import ALBEDO_DIM, EXPRESSION_DIM, IDENTITY_DIM, MorphableModel

COLUMNS = 9
SIDE = 2 * plots.CELL  # pixels: drawn larger, the sheet smooths
DISTANCE = 70.0  # cm
HEAD, FACE = 0.27, 0.42  # the eye distance in the picture
BACKGROUND = 0.93
STEP = 2.0  # σ at which modes are shown
BAND = 0.25  # added to a band of the light
BANDS = ("even", "below", "front", "left", "x y", "y z", "z z", "x z", "x x - y y")
VIEWS = {"front": 0.0, "3/4 left": 40.0, "side": 90.0, "3/4 right": -40.0, "back": 180.0}
_ON_OPEN_JAW = "mouthClose"  # it is made to close the lips of an open jaw
_WIDTHS = {"identity": IDENTITY_DIM, "expression": EXPRESSION_DIM, "albedo": ALBEDO_DIM}


@dataclass(frozen=True)
class Look:
    """The head to draw.

    identity: [100]; expression: [79]; albedo: [100]; light: [27]; yaw: degrees, positive turns the
    face to the left of the picture; share: of the picture's side that the eye distance takes.
    """

    identity: np.ndarray
    expression: np.ndarray
    albedo: np.ndarray
    light: np.ndarray
    yaw: float = 0.0
    share: float = FACE


def show_command(args) -> None:
    """`t3d prior show`: writes the sheet of args.model to args.out."""
    model = basis.load(args.model)
    looks = parse(model, args.coefficients) if args.coefficients else None
    picture = sheet(model, looks)
    write_atomically(Path(args.out), lambda path: picture.save(path, "PNG"))
    print(f"{args.out}: {model.name}, {len(model.mean)} vertices, {len(model.triangles)} triangles")


def parse(model: MorphableModel, text: str) -> dict[str, np.ndarray]:
    """Codes identity [100], expression [79] and albedo [100] of `jawOpen=0.7,identity0=-2`.

    An expression's name takes a weight (1 is the whole shape), a code's name with a number takes σ.
    Raises UserError naming the part that is neither.
    """
    codes = {name: np.zeros(width, np.float32) for name, width in _WIDTHS.items()}
    slots = {
        f"{name}{k}": (name, k, 1.0) for name, width in _WIDTHS.items() for k in range(width)
    } | {
        name: ("expression", k, 1 / morphable.EXPRESSION_STD)
        for k, name in enumerate(model.expression_names)
    }
    for part in text.split(","):
        name, _, value = part.strip().partition("=")
        code, k, scale = slots[_known(model, name, slots)]
        codes[code][k] = scale * _number(part, value)
    return codes


def _known(model: MorphableModel, name: str, slots: dict) -> str:
    if name in slots:
        return name
    close = difflib.get_close_matches(name, slots, 1, 0.5)
    hint = f", did you mean {close[0]}?" if close else ""
    named = "an expression's name, " if model.expression_names else ""
    raise UserError(
        f"--coefficients: {model.name} has no {name!r}{hint}; give {named}"
        "identity0 to identity99, expression0 to expression78 or albedo0 to albedo99"
    )


def _number(part: str, value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise UserError(f"--coefficients: {part!r}: give NAME=NUMBER, as in jawOpen=0.7")
    return number


def sheet(model: MorphableModel, chosen: dict[str, np.ndarray] | None = None) -> Image.Image:
    """The picture: views, modes of shape, expressions, modes of albedo, bands of light.

    Args:
        chosen: codes (as `parse` gives) of a head to show first, or none.
    """
    neutral = mean_head()
    rows = _views(model, replace(neutral, **chosen), "chosen") if chosen else []
    rows += _views(model, neutral, "mean head")
    rows += _modes(model, neutral, "identity", model.identity_basis)
    rows += _expressions(model, neutral)
    rows += _modes(model, neutral, "albedo", model.albedo_basis)
    rows += _bands(model, neutral)
    return plots.sheet(rows)


def mean_head() -> Look:
    """The mean head at rest, by daylight."""
    return Look(*(np.zeros(width, np.float32) for width in _WIDTHS.values()), _daylight())


def _daylight() -> np.ndarray:
    """Light [27] from the front and above, a little from the left of the picture."""
    code = shading.ambient(0.72).reshape(9, 3)
    code[1:4] += np.array([[-0.1], [0.12], [0.05]], np.float32)
    return code.reshape(-1)


def draw(model: MorphableModel, look: Look) -> raster.Images:
    """The head's images at SIDE × SIDE, turned about the axis between its ears."""
    points = morphable.vertices(model, look.identity, look.expression)
    marks = model.mean[model.landmarks68]
    pivot = np.array([0.0, marks[[28, 30], 1].mean(), marks[[0, 16], 2].mean()])
    turn = cameras.head_pose(np.array([0.0, np.deg2rad(look.yaw), 0.0]), np.zeros(3))
    turn[:3, 3] = [0.0, 0.0, DISTANCE] - turn[:3, :3] @ pivot
    world = cameras.transform(turn, points).astype(np.float32)
    focal = look.share * DISTANCE / np.linalg.norm(marks[36] - marks[45])
    uv, depth = cameras.project(cameras.recorded(np.array([focal, focal, 0.5, 0.5])), world)
    normals = morphable.vertex_normals(world, model.triangles)
    albedo = np.clip(morphable.albedo(model, look.albedo), 0.0, 1.0)
    colours = shading.shade(albedo, normals, look.light)
    return raster.render(uv * SIDE, depth, model.triangles, normals, colours, SIDE)


def _shown(colour: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """uint8 picture of colours in [0, 1] on the sheet's ground."""
    return np.uint8(255 * np.clip(np.where(mask[..., None], colour, BACKGROUND), 0, 1) + 0.5)


def _pictures(model: MorphableModel, looks: Sequence[Look]) -> np.ndarray:
    drawn = (draw(model, look) for look in looks)
    return np.stack([_shown(images.colour, images.mask) for images in drawn])


def _views(model: MorphableModel, look: Look, title: str) -> list[plots.Row]:
    """The head from all sides, and its normals, depth and barycentric weights from the front."""
    looks = [replace(look, yaw=yaw, share=HEAD) for yaw in VIEWS.values()]
    front = draw(model, looks[0])
    seen = np.where(front.mask, front.depth, np.nan)
    near, far = np.nanmin(seen), np.nanmax(seen)
    grey = np.repeat(((far - seen) / (far - near))[..., None], 3, -1)
    maps = {"normal": 0.5 + 0.5 * front.normal * [1, -1, -1], "depth": grey}
    maps |= {"barycentric": front.barycentric}
    shown = [_shown(image, front.mask) for image in maps.values()]
    return [(title, np.concatenate([_pictures(model, looks), shown]), [*VIEWS, *maps])]


def _modes(model: MorphableModel, look: Look, name: str, vectors: np.ndarray) -> list[plots.Row]:
    """The first vectors of a code that are not zero, above at +STEP and below at -STEP."""
    some = np.flatnonzero(vectors[:COLUMNS].any((1, 2)))
    rows = []
    for sign in (1, -1):
        looks = [replace(look, **{name: sign * STEP * _unit(name, k)}) for k in some]
        labels = [f"{name}{k}" for k in some] if sign > 0 else []
        rows.append((f"{name} {sign * STEP:+.0f} sd", _pictures(model, looks), labels))
    return rows


def _unit(name: str, k: int) -> np.ndarray:
    code = np.zeros(_WIDTHS[name], np.float32)
    code[k] = 1.0
    return code


def _expressions(model: MorphableModel, look: Look) -> list[plots.Row]:
    """Each named expression in full; without names the first vectors."""
    if not model.expression_names:
        return _modes(model, look, "expression", model.expression_basis)
    rows = []
    for names in _in_rows(model.expression_names):
        looks = [replace(look, expression=_in_full(model, name)) for name in names]
        labels = [name + " + jaw" * (name == _ON_OPEN_JAW) for name in names]
        rows.append(("expressions", _pictures(model, looks), labels))
    return rows


def _in_full(model: MorphableModel, name: str) -> np.ndarray:
    """Code [79] of a whole expression."""
    jaw = ",jawOpen=1" if name == _ON_OPEN_JAW else ""
    return parse(model, f"{name}=1{jaw}")["expression"]


def _in_rows(items: Sequence) -> Iterator[Sequence]:
    return (items[k : k + COLUMNS] for k in range(0, len(items), COLUMNS))


def _bands(model: MorphableModel, look: Look) -> list[plots.Row]:
    """Each band of the light, more of it above and less below."""
    rows = []
    for sign in (1, -1):
        lights = np.tile(shading.ambient(0.6).reshape(9, 3), (len(BANDS), 1, 1))
        lights[np.arange(9), np.arange(9)] += sign * BAND
        looks = [replace(look, light=light.reshape(-1)) for light in lights]
        labels = list(BANDS) if sign > 0 else []
        rows.append((f"illumination {sign * BAND:+.2f}", _pictures(model, looks), labels))
    return rows
