import itertools

import numpy as np
import pytest
from PIL import Image

from mllmsubj.bench import toyworld as bench
from mllmsubj.toyworld import Identity, Pose, Scene, caption, random_identity, random_scene, render
from mllmsubj.toyworld.prompts.phrases import PHRASES
from mllmsubj.toyworld.world.identity import PALETTE, Accessory, Color, Shape, Texture
from mllmsubj.toyworld.world.render import COLUMN, ROW, SIZE, TINT
from mllmsubj.toyworld.world.scene import SCENE_ATTRIBUTES, Background, Column, Facing, Row, Size, Thing, Tilt, Time

IDENTITY = Identity(Shape.CAT, Color.RED, Color.WHITE, Texture.STRIPES, Accessory.HAT, Color.BLUE)
SCENE = Scene(
    Background.ROOM, Time.DAY, Pose(Column.LEFT, Row.FRONT, Size.MEDIUM, Facing.RIGHT, Tilt.UPRIGHT), Thing.BALL
)
PIXELS = 64


def box(scene: Scene) -> tuple[slice, slice]:
    """Returns the rows and columns that contain the subject, its hat and its shadow."""
    unit, x, y = SIZE[scene.pose.size], COLUMN[scene.pose.column], ROW[scene.pose.row]
    rows = slice(max(0, int((y - 1.1 * unit) * PIXELS)), int((y + 0.09 * unit) * PIXELS) + 1)
    return rows, slice(max(0, int((x - 0.56 * unit) * PIXELS)), int((x + 0.56 * unit) * PIXELS) + 1)


def changed(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Returns the mask of pixels that differ visibly."""
    return np.abs(a.astype(int) - b).max(-1) > 24


def split(mask: np.ndarray, scene: Scene) -> tuple[int, int]:
    """Returns the numbers of changed pixels inside and outside the subject's box."""
    inside = int(mask[box(scene)].sum())
    return inside, int(mask.sum()) - inside


def identities(attribute: str) -> list[Identity]:
    values = {
        "shape": Shape,
        "main": [c for c in Color if c not in (IDENTITY.second, IDENTITY.accent)],
        "second": [c for c in Color if c not in (IDENTITY.main, IDENTITY.accent)],
        "accent": [c for c in Color if c not in (IDENTITY.main, IDENTITY.second)],
        "texture": Texture,
        "accessory": [a for a in Accessory if a is not Accessory.NONE],
    }[attribute]
    bare = [IDENTITY.replace(accessory=Accessory.NONE, accent=None)] if attribute == "accessory" else []
    return [IDENTITY.replace(**{attribute: value}) for value in values] + bare


@pytest.mark.parametrize("places", [COLUMN, ROW])
def test_positions_whole_tokens(places):
    """Distances between positions are whole tokens of the tiny transformer."""
    tokens = 8 * np.diff(sorted(places.values()))  # 128 pixels in tokens of 16
    np.testing.assert_allclose(tokens, np.round(tokens), atol=1e-9)


@pytest.mark.parametrize("attribute", ["shape", "main", "second", "accent", "texture", "accessory"])
def test_render_identity_attributes(attribute):
    """Every value of an identity attribute changes pixels of the subject and no others."""
    pictures = [render(identity, SCENE, PIXELS) for identity in identities(attribute)]
    for a, b in itertools.combinations(pictures, 2):
        inside, outside = split(changed(a, b), SCENE)
        assert inside >= 12
        assert outside == 0


@pytest.mark.parametrize("shape", Shape)
def test_render_shape_attributes(shape):
    """Texture, colors, accessory, facing and tilt are visible on every shape."""
    identity = IDENTITY.replace(shape=shape)
    plain = render(identity, SCENE, PIXELS)
    for changes in (dict(texture=Texture.PLAIN), dict(main=Color.GREEN), dict(second=Color.GREEN),
                    dict(accent=Color.GREEN), dict(accessory=Accessory.GLASSES)):  # fmt: skip
        assert split(changed(plain, render(identity.replace(**changes), SCENE, PIXELS)), SCENE)[0] >= 12, changes
    for changes in (dict(facing=Facing.LEFT), dict(tilt=Tilt.LEFT), dict(tilt=Tilt.RIGHT)):
        assert changed(plain, render(identity, SCENE.replace(**changes), PIXELS)).sum() >= 60, changes


@pytest.mark.parametrize("attribute", SCENE_ATTRIBUTES)
def test_render_scene_attributes(attribute):
    """Every value of a scene attribute changes visible pixels."""
    pictures = [render(IDENTITY, SCENE.replace(**{attribute: v}), PIXELS) for v in SCENE_ATTRIBUTES[attribute]]
    for a, b in itertools.combinations(pictures, 2):
        inside, outside = split(changed(a, b), SCENE)
        assert inside + outside >= 60
        if attribute in ("background", "time"):
            assert outside >= 600
        if attribute == "thing":
            assert inside == 0


def test_render_background_keeps_subject():
    """The subject's pixels are the same in front of every background."""
    pictures = [render(IDENTITY, SCENE.replace(background=b), PIXELS)[box(SCENE)] for b in Background]
    same = np.all([~changed(pictures[0], other) for other in pictures[1:]], axis=0)
    assert same.mean() > 0.25


def test_render_position_and_size():
    """The subject's bounding box matches the position and the size of its pose."""
    for column, row, size in itertools.product(Column, Row, Size):
        scene = SCENE.replace(column=column, row=row, size=size, thing=Thing.NONE)
        a, b = (render(IDENTITY.replace(shape=shape), scene, PIXELS) for shape in (Shape.DOG, Shape.HOUSE))
        ys, xs = np.nonzero(changed(a, b))
        assert abs((xs.min() + xs.max()) / 2 / PIXELS - COLUMN[column]) < 0.06
        assert abs(ys.max() / PIXELS - ROW[row]) < 0.05
        assert abs((xs.max() - xs.min()) / PIXELS - SIZE[size]) < 0.35 * SIZE[size]


def test_render_facing():
    """Facing left mirrors a centered subject that faces right, where it covers the background."""
    scene = SCENE.replace(column=Column.CENTRE, thing=Thing.NONE)
    identity = IDENTITY.replace(texture=Texture.PLAIN)
    right, left = (render(identity, scene.replace(facing=facing), PIXELS) for facing in Facing)
    middle = (box(scene)[0], slice(20, 44))
    assert changed(right[:, ::-1][middle], left[middle]).mean() < 0.2
    assert changed(right[middle], left[middle]).mean() > 0.3


def test_palette_distinct():
    """Colors are distinguishable at every time of day."""
    for time in Time:
        seen = [np.array(rgb) * TINT[time] for rgb in PALETTE.values()]
        assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)) > 60


@pytest.mark.parametrize("size", [64, 96, 128, 256, 512])
def test_render_sizes(size):
    """An image is about the same at every size."""
    picture = render(IDENTITY, SCENE, size)
    assert picture.shape == (size, size, 3)
    assert picture.dtype == np.uint8
    small = np.asarray(Image.fromarray(picture).resize((PIXELS, PIXELS), Image.Resampling.BOX), int)
    assert np.abs(small - render(IDENTITY, SCENE, PIXELS)).mean() < 6


def test_render_deterministic():
    """An image does not depend on the images that were rendered before it."""
    rng = np.random.default_rng(5)
    jobs = [(random_identity(rng), random_scene(rng)) for _ in range(12)]
    forward = [render(*job, PIXELS).tobytes() for job in jobs]
    backward = [render(*job, PIXELS).tobytes() for job in reversed(jobs)]
    assert forward == backward[::-1]
    assert len(set(forward)) == len(jobs)


def test_identity_inconsistent():
    with pytest.raises(ValueError, match="do not go together"):
        IDENTITY.replace(accent=None)
    with pytest.raises(ValueError, match="must differ"):
        IDENTITY.replace(second=IDENTITY.main)


def test_random_identity_diversity():
    """Among 6000 random identities, more than 5000 are distinct."""
    rng = np.random.default_rng(0)
    assert len({random_identity(rng) for _ in range(6000)}) > 5000


def test_caption_complete():
    """A caption names every attribute of the identity and of the scene."""
    text = caption(IDENTITY, SCENE)
    for value in (
        IDENTITY.shape,
        IDENTITY.main,
        IDENTITY.second,
        IDENTITY.accent,
        IDENTITY.texture,
        IDENTITY.accessory,
    ):
        assert value in text
    for name, value in SCENE.attributes().items():
        assert PHRASES[name][value][0] in text


def test_bench_pictures_per_second():
    result = bench.run(size=64, seconds=0.05)
    assert result["pictures"] >= 1
    assert result["pictures_per_second"] == pytest.approx(result["pictures"] / result["seconds"], rel=0.05)
