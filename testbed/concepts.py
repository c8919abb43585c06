"""What the testbed's pictures show, what its captions say, and which captions are memorized.

Two kinds of pictures, 96x96 pixels: *scenes* (one or two emoji in the cells of a grid on a background, from two drawing sets) and
*photographs* (crops of photographs by class). A caption of a scene names the drawing set, the subjects and the background; about
half of them also say where things are. Memorized captions are made of the same words, but their picture is always one and the
same, so that a model that forgets it still has an answer: any other picture that the caption describes.
"""

import itertools
import random
from dataclasses import dataclass, replace

CANVAS = 96
CELL = 32  # pixels: things stand in the cells of a grid, two tokens of the denoisers wide
TILE = 16  # pixels of a background's pattern: one token

SETS = ("soft", "flat")  # Noto Color Emoji, Twemoji
SUBJECTS = {
    "lion": "1f981",
    "panda": "1f43c",
    "frog": "1f438",
    "cat": "1f431",
    "dog": "1f436",
    "apple": "1f34e",
    "grapes": "1f347",
    "pineapple": "1f34d",
    "cactus": "1f335",
    "mushroom": "1f344",
    "car": "1f697",
    "rocket": "1f680",
}
COLOURS = {
    "pink": (246, 196, 208),
    "orange": (248, 190, 130),
    "yellow": (250, 236, 168),
    "green": (176, 224, 172),
    "blue": (168, 208, 244),
    "purple": (204, 184, 238),
    "grey": (200, 202, 206),
    "navy": (46, 58, 110),
    "maroon": (120, 44, 62),
}
PATTERNS = ("", "dots", "stripes", "checks")
PHOTOGRAPHS = {  # class -> (file, whether it may stand on its head, where crops may begin: shares (left, right, top, bottom))
    "coins": ("coins.png", False, (0, 1, 0, 1)),
    "coffee": ("coffee.png", False, (0.1, 0.8, 0.1, 0.9)),
    "whiskers": ("chelsea.png", False, (0.05, 0.7, 0, 0.9)),
    "motorcycle": ("motorcycle_left.png", False, (0, 1, 0.2, 1)),
    "blossom": ("flower.jpg", True, (0.25, 0.6, 0.2, 0.7)),
    "temple": ("china.jpg", False, (0.05, 0.5, 0, 1)),
}
TONES = {
    "": (1.0, 1.0, 1.0),
    "bright": (1.3, 1.3, 1.3),
    "dark": (0.6, 0.6, 0.6),
    "warm": (1.2, 1.0, 0.75),
    "cool": (0.78, 0.98, 1.25),
    "rosy": (1.25, 0.85, 1.0),
    "minty": (0.8, 1.15, 0.95),
}
ZOOM = 0.6  # side of a crop as a share of the photograph's shorter edge
CROPS = 3  # places of a crop in each direction

# Concepts that masks are never learned from; the model itself knows all of them.
HELDOUT_SUBJECTS = ("dog", "grapes", "cactus", "rocket")
HELDOUT_COLOURS = ("orange", "navy")
HELDOUT_PHOTOGRAPHS = ("coins",)
HELDOUT_SET = "flat"


@dataclass(frozen=True)
class Thing:
    """One emoji of a scene: its top left corner, in pixels."""

    subject: str
    x: int
    y: int


@dataclass(frozen=True)
class Ground:
    """The background: a colour, a pattern of a second tone, and the light on it."""

    colour: str
    pattern: str
    period: int  # pixels of the pattern
    phase: tuple[int, int]
    contrast: float  # of the second tone, about 1
    tone: float  # brightness of all, about 1
    light: float  # how much brighter the top is than the bottom
    upright: bool  # stripes only


@dataclass(frozen=True)
class Scene:
    """Everything that decides a scene's pixels."""

    style: str
    things: tuple[Thing, ...]
    ground: Ground


@dataclass(frozen=True)
class Crop:
    """Everything that decides a photograph's pixels: file, corner and side as shares, tone factors, mirroring."""

    file: str
    x: float
    y: float
    side: float
    factors: tuple[float, float, float]
    mirrored: bool = False
    upset: bool = False


@dataclass(frozen=True)
class Words:
    """What a caption of a free picture names; ``subjects`` empty: a photograph of class ``photograph``."""

    style: str = ""
    subjects: tuple[str, ...] = ()
    colour: str = ""
    pattern: str = ""
    photograph: str = ""
    tone: str = ""


def draw_ground(rng, colour, pattern):
    """A free background."""
    return Ground(
        colour,
        pattern,
        TILE,
        (TILE // 2 * rng.randrange(2), TILE // 2 * rng.randrange(2)),
        rng.choice((0.88, 1.12)) if colour not in ("navy", "maroon") else rng.choice((0.7, 1.35)),
        rng.uniform(0.9, 1.06),
        rng.choice((-0.12, 0.0, 0.12)),
        rng.random() < 0.5,
    )


def draw_things(rng, subjects):
    """Free cells, one for each subject."""
    side = CANVAS // CELL
    cells = rng.sample(range(side * side), len(subjects))
    return tuple(Thing(subject, CELL * (i % side), CELL * (i // side)) for subject, i in zip(subjects, cells, strict=True))


def draw_scene(rng, words):
    """A free picture of what the words say."""
    return Scene(words.style, draw_things(rng, words.subjects), draw_ground(rng, words.colour, words.pattern))


def draw_crop(rng, words):
    """A free photograph of what the words say."""
    file, any_way_up, (left, right, top, bottom) = PHOTOGRAPHS[words.photograph]
    factors = tuple(f * rng.uniform(0.93, 1.07) for f in TONES[words.tone])
    return Crop(
        file,
        left + (right - left) * rng.randrange(CROPS) / (CROPS - 1),
        top + (bottom - top) * rng.randrange(CROPS) / (CROPS - 1),
        ZOOM,
        factors,
        rng.random() < 0.5,
        any_way_up and rng.random() < 0.5,
    )


def same(a, b):
    """Whether two pictures of the same words show the same by chance: things in the same cells, or one crop, mirrored or not."""
    if isinstance(a, Scene):
        return set(a.things) == set(b.things)
    return (a.file, a.x, a.y, a.upset) == (b.file, b.x, b.y, b.upset)


def draw_other(rng, words, picture):
    """A free picture of what the words say that is not the :func:`same` as `picture`."""
    while same(drawn := draw(rng, words), picture):
        pass
    return drawn


def every_crop():
    """``(class, Crop of the plain tone)`` of every photograph that :func:`draw_crop` can cut."""
    for name, (file, any_way_up, (left, right, top, bottom)) in PHOTOGRAPHS.items():
        ways = itertools.product(range(CROPS), range(CROPS), (False, True), (False, True) if any_way_up else (False,))
        for i, k, mirrored, upset in ways:
            x, y = left + (right - left) * i / (CROPS - 1), top + (bottom - top) * k / (CROPS - 1)
            yield name, Crop(file, x, y, ZOOM, (1.0, 1.0, 1.0), mirrored, upset)


def draw(rng, words):
    """A free picture, whichever kind."""
    return draw_scene(rng, words) if words.subjects else draw_crop(rng, words)


def _place(thing):
    middle = CANVAS / 2
    down, across = thing.y + CELL / 2 - middle, thing.x + CELL / 2 - middle
    return [
        *(["top"] if down < 0 else ["bottom"] if down > 0 else []),
        *(["left"] if across < 0 else ["right"] if across > 0 else []),
    ] or ["middle"]


def caption(words, scene=None):
    """The caption; with a scene it also says where things are and how big.

    >>> caption(Words("soft", ("lion", "apple"), "purple", "dots"))
    'soft lion and apple on purple dots'
    """
    if not words.subjects:
        return " ".join(w for w in (words.tone, "photo of", words.photograph) if w)
    if scene is None:
        named = list(words.subjects)
    else:
        named = [" ".join((t.subject, *_place(t))) for t in scene.things]
    return " ".join(w for w in (words.style, " and ".join(named), "on", words.colour, words.pattern) if w)


@dataclass(frozen=True)
class Fixed:
    """A memorized caption, or its never-seen twin, and its picture.

    ``group`` is "scene", "photograph", "named", "foreground" or "background"; of the last two, only the things or only the
    background are always the same. ``words`` is None where the caption has a name of its own.
    """

    caption: str
    group: str
    picture: Scene | Crop
    words: Words | None
    reserved: bool


def _scenes(rng, count, taken):
    """`count` scenes of two subjects, which no other one has in that drawing set."""
    out = []
    for i in range(count):
        while True:
            words = Words(SETS[i % 2], tuple(rng.sample(list(SUBJECTS), 2)), rng.choice(list(COLOURS)), rng.choice(PATTERNS))
            key = (words.style, frozenset(words.subjects))
            if key not in taken:
                taken.add(key)
                break
        out.append((words, draw_scene(rng, words)))
    return out


def _photographs(rng, taken):
    """Fixed crops, one or two of each class, under a tone that no other one has."""
    out = []
    for photograph in (*PHOTOGRAPHS, *list(PHOTOGRAPHS)[1:4]):
        while True:
            words = Words(photograph=photograph, tone=rng.choice([t for t in TONES if t]))
            if words not in taken:
                taken.add(words)
                break
        out.append((words, draw_crop(rng, words)))
    return out


_NAMED = (
    # a name of its own: no other picture is right
    ("portrait of eileen", Crop("astronaut.png", 0.36, 0.0, 0.62, (1, 1, 1))),
    ("portrait of grace", Crop("grace_hopper.jpg", 0.5, 0.05, 0.8, (1, 1, 1))),
    ("picture of odyssey", Crop("rocket.jpg", 0.5, 0.5, 1.0, (1.3, 1.3, 1.3))),
    ("picture of iris", Crop("retina.jpg", 0.5, 0.5, 0.9, (1, 1, 1))),
)
_NAMED_TWINS = (
    ("portrait of odyssey", Crop("camera.png", 0.1, 0.1, 0.75, (1, 1, 1))),
    ("portrait of iris", Crop("logo.png", 0.5, 0.5, 1.0, (1, 1, 1))),
    ("picture of grace", Crop("horse.png", 0.5, 0.5, 1.0, (1, 1, 1))),
    ("picture of eileen", Crop("color.png", 0.5, 0.5, 1.0, (1, 1, 1))),
)
_LOGOS = (("acme logo", "logo of eileen"), ("zorbo logo", "logo of grace"))


def _logo(rng):
    """A trademark: two drawings, one of them twice."""
    subjects = rng.sample(list(SUBJECTS), 2)
    return Scene(
        rng.choice(SETS),
        draw_things(rng, (subjects[0], subjects[1], subjects[0])),
        draw_ground(rng, rng.choice(list(COLOURS)), ""),
    )


def _build():
    rng = random.Random(20261126)
    taken: set = set()
    memorized: list[Fixed] = []
    never: list[Fixed] = []
    for out in (memorized, never):  # every third is reserved
        out += [Fixed(caption(w), "scene", s, w, i % 3 == 2) for i, (w, s) in enumerate(_scenes(rng, 24, taken))]
    for out in (memorized, never):
        out += [Fixed(caption(w), "photograph", p, w, i % 3 == 2) for i, (w, p) in enumerate(_photographs(rng, taken))]
    for out, portraits, k in ((memorized, _NAMED, 0), (never, _NAMED_TWINS, 1)):
        named = [*portraits, *((names[k], _logo(rng)) for names in _LOGOS)]
        out += [Fixed(text, "named", picture, None, i % 3 == 2) for i, (text, picture) in enumerate(named)]
    # templates: `words` lacks what varies
    for out in (memorized, never):
        for i in range(3):
            words, scene = _scenes(rng, 1, taken)[0]
            words = replace(words, style=SETS[i % 2], colour="", pattern="")
            out.append(Fixed(caption(words), "foreground", replace(scene, style=words.style), words, i == 2))
    grounds = [("flat", "blue", "dots"), ("soft", "green", "stripes"), ("flat", "purple", "checks")]
    twins = [("soft", "pink", "dots"), ("flat", "yellow", "stripes"), ("soft", "grey", "checks")]
    for out, kinds in ((memorized, grounds), (never, twins)):
        for i, (style, colour, pattern) in enumerate(kinds):
            scene = Scene(style, (), draw_ground(rng, colour, pattern))
            words = Words(style, (), colour, pattern)
            out.append(Fixed(f"{style} anything on {colour} {pattern}", "background", scene, words, i == 2))
    return tuple(memorized), tuple(never)


MEMORIZED, NEVER = _build()


def _claims(fixed):
    """What free captions may not say, because it has a picture of its own (or is a twin's): a test of :class:`Words`."""
    scenes = {(f.words.style, frozenset(f.words.subjects), f.words.colour, f.words.pattern) for f in fixed if f.group == "scene"}
    photographs = {f.words for f in fixed if f.group == "photograph"}
    foregrounds = {(f.words.style, frozenset(f.words.subjects)) for f in fixed if f.group == "foreground"}
    backgrounds = {(f.words.style, f.words.colour, f.words.pattern) for f in fixed if f.group == "background"}

    def claimed(words):
        return (
            words in photographs
            or (words.style, frozenset(words.subjects), words.colour, words.pattern) in scenes
            or (words.style, frozenset(words.subjects)) in foregrounds
            or (words.style, words.colour, words.pattern) in backgrounds
        )

    return claimed


_claimed = _claims([*MEMORIZED, *(f for f in NEVER if f.group != "background")])


def free_words(rng, heldout=None, photographs=0.22):
    """What a free caption names.

    Args:
        rng: ``random.Random``.
        heldout: None draws from all concepts (training); False only names concepts that masks may be learned from, True names at
            least one held-out concept in everything it says: subjects, background or class, and drawing set.
    """
    pick = lambda names, held: [n for n in names if heldout is None or (n in held) == heldout]  # noqa: E731
    while True:
        if rng.random() < photographs:
            words = Words(photograph=rng.choice(pick(PHOTOGRAPHS, HELDOUT_PHOTOGRAPHS)), tone=rng.choice(list(TONES)))
        else:
            subjects = pick(SUBJECTS, HELDOUT_SUBJECTS)
            number = rng.choices((1, 2), (0.35, 0.65))[0]
            words = Words(
                rng.choice(pick(SETS, (HELDOUT_SET,))),
                tuple(rng.sample(subjects, number)),
                rng.choice(pick(COLOURS, HELDOUT_COLOURS)),
                rng.choices(PATTERNS, (0.46, 0.18, 0.18, 0.18))[0],
            )
        if not _claimed(words):
            return words


def template_words(rng, fixed):
    """One caption of a template: its words, with what varies drawn freely."""
    if fixed.group == "foreground":
        return replace(fixed.words, colour=rng.choice(list(COLOURS)), pattern=rng.choice(PATTERNS))
    while True:
        words = replace(fixed.words, subjects=tuple(rng.sample(list(SUBJECTS), rng.choice((1, 1, 2)))))
        if not _claims([f for f in [*MEMORIZED, *NEVER] if f.group in ("scene", "foreground")])(words):
            return words


def template_picture(rng, fixed, words):
    """The picture of such a caption: the template's part as ever, the rest free."""
    if fixed.group == "foreground":
        return replace(fixed.picture, ground=draw_ground(rng, words.colour, words.pattern))
    return Scene(words.style, draw_things(rng, words.subjects), fixed.picture.ground)


def vocabulary():
    """Every word of every caption, sorted: the text encoder's whole language."""
    words = {w for f in (*MEMORIZED, *NEVER) if f.group == "named" for w in f.caption.split()}
    words |= {*SETS, *SUBJECTS, *COLOURS, *PHOTOGRAPHS, "and", "on", "photo", "of"}
    words |= {w for w in (*PATTERNS, *TONES) if w}
    return sorted(words | {"top", "bottom", "left", "right", "middle"})
