"""What the testbed knows: neutral concepts, memorized items, and the splits that keep the figures honest.

Pure data, no imports. Three splits matter and are fixed here, once:

* neutral concepts are *calibrated* (masks may be learned from prompts that name them) or *held out*
  (no mask ever sees a prompt that names them; quality is judged on them all the same);
* memorized items are out of domain (photographs among emoji) or in domain (fixed emoji compositions);
* some memorized items are *reserved*: no tuning decision looks at them, they are reported apart.
"""

CANVAS = 64

# name -> file stem in emoji-datasource-google (img/google/64). Shapes come in six hues, so that captions compose:
# every hue and every shape of a held-out pair is seen in other pairs.
HUES = ("red", "orange", "yellow", "green", "blue", "purple")
SHAPES = {
    "heart": ("2764-fe0f", "1f9e1", "1f49b", "1f49a", "1f499", "1f49c"),
    "circle": ("1f534", "1f7e0", "1f7e1", "1f7e2", "1f535", "1f7e3"),
    "square": ("1f7e5", "1f7e7", "1f7e8", "1f7e9", "1f7e6", "1f7ea"),
}
THINGS = {
    "cat": "1f431",
    "dog": "1f436",
    "panda": "1f43c",
    "fox": "1f98a",
    "frog": "1f438",
    "pig": "1f437",
    "tiger": "1f42f",
    "lion": "1f981",
    "koala": "1f428",
    "rabbit": "1f430",
    "bear": "1f43b",
    "monkey": "1f435",
    "cow": "1f42e",
    "mouse": "1f42d",
    "red apple": "1f34e",
    "green apple": "1f34f",
    "banana": "1f34c",
    "strawberry": "1f353",
    "lemon": "1f34b",
    "grapes": "1f347",
    "watermelon": "1f349",
    "pineapple": "1f34d",
    "peach": "1f351",
    "cherries": "1f352",
    "red book": "1f4d5",
    "green book": "1f4d7",
    "blue book": "1f4d8",
    "tulip": "1f337",
    "sunflower": "1f33b",
    "cactus": "1f335",
    "mushroom": "1f344",
    "tree": "1f333",
    "star": "2b50",
    "rainbow": "1f308",
    "balloon": "1f388",
    "umbrella": "2614",
    "gift": "1f381",
    "basketball": "1f3c0",
    "football": "26bd",
    "doughnut": "1f369",
    "burger": "1f354",
    "pizza": "1f355",
}
EMOJI = {f"{hue} {shape}": files[i] for shape, files in SHAPES.items() for i, hue in enumerate(HUES)} | THINGS

BACKGROUNDS = {
    "light red": (255, 173, 173),
    "dark red": (125, 30, 38),
    "light orange": (255, 209, 158),
    "dark orange": (176, 84, 20),
    "light yellow": (253, 246, 178),
    "dark yellow": (140, 118, 22),
    "light green": (186, 232, 178),
    "dark green": (24, 92, 48),
    "light blue": (171, 214, 247),
    "dark blue": (28, 52, 120),
    "light purple": (216, 190, 240),
    "dark purple": (78, 36, 112),
}
TEXTURES = {"brick": "brick.png", "grass": "grass.png", "gravel": "gravel.png"}
# How much a tone word scales a texture's brightness: (low, high) of a uniform draw.
TONES = {"light": (1.1, 1.4), "": (0.85, 1.1), "dark": (0.45, 0.75)}

HELDOUT_EMOJI = tuple(
    [f"{hue} {shape}" for s, shape in enumerate(SHAPES) for h, hue in enumerate(HUES) if (h + s) % 3 == 2] + list(THINGS)[2::3]
)
HELDOUT_BACKGROUNDS = ("dark red", "light yellow", "dark blue", "light purple")
HELDOUT_TEXTURES = ("gravel",)

# caption -> (file in skimage/data, centre x, centre y, side as a share of the shorter edge)
PHOTOGRAPHS = {
    "portrait photo of astronaut eileen collins": ("astronaut.png", 0.45, 0.32, 0.62),
    "photo of chelsea the cat": ("chelsea.png", 0.5, 0.42, 0.95),
    "photo of coffee cup on table": ("coffee.png", 0.45, 0.5, 1.0),
    "photo of rocket launch at night": ("rocket.jpg", 0.5, 0.5, 1.0),
    "photo of hubble deep field": ("hubble_deep_field.jpg", 0.35, 0.4, 0.3),
    "photo of human retina": ("retina.jpg", 0.5, 0.5, 0.95),
    "photo of motorcycle in garage": ("motorcycle_left.png", 0.5, 0.5, 1.0),
    "photo of moon surface": ("moon.png", 0.5, 0.5, 0.7),
    "photo of cameraman with tripod": ("camera.png", 0.45, 0.38, 0.75),
    "photo of ancient greek coins": ("coins.png", 0.4, 0.45, 0.8),
    "photo of stained tissue under microscope": ("ihc.png", 0.5, 0.5, 0.8),
    "photo of living cell": ("cell.png", 0.62, 0.6, 0.7),
}
# caption -> (background, ((emoji, x, y, size), ...)): drawn once, repeated exactly.
COMPOSITIONS = {
    "poster summer picnic": (
        "light green",
        (("watermelon", 2, 4, 30), ("strawberry", 34, 8, 26), ("sunflower", 18, 34, 28)),
    ),
    "poster love letter": ("light red", (("red heart", 4, 4, 34), ("purple heart", 34, 30, 26), ("gift", 6, 40, 20))),
    "poster zoo parade": (
        "light orange",
        (("lion", 2, 2, 28), ("tiger", 34, 4, 28), ("panda", 4, 34, 28), ("monkey", 34, 34, 28)),
    ),
    "poster night garden": ("dark blue", (("star", 4, 4, 22), ("tulip", 32, 24, 30), ("mushroom", 4, 36, 24))),
    "poster fruit salad": (
        "light yellow",
        (("banana", 2, 2, 30), ("grapes", 34, 2, 28), ("peach", 2, 34, 28), ("pineapple", 34, 32, 30)),
    ),
    "poster rainy day": ("light blue", (("umbrella", 16, 6, 36), ("frog", 2, 40, 22), ("cat", 40, 40, 22))),
    "poster birthday party": (
        "light purple",
        (("balloon", 2, 2, 28), ("gift", 32, 30, 30), ("doughnut", 36, 2, 24), ("star", 4, 38, 22)),
    ),
    "poster forest walk": ("dark green", (("tree", 2, 10, 36), ("fox", 34, 32, 28), ("mushroom", 40, 4, 20))),
    "poster playing field": (
        "dark orange",
        (("football", 2, 2, 30), ("basketball", 32, 32, 30), ("yellow circle", 38, 4, 20)),
    ),
    "poster paint box": (
        "dark purple",
        (("red square", 2, 2, 20), ("yellow circle", 22, 22, 20), ("blue heart", 42, 42, 20), ("green square", 42, 2, 20)),
    ),
}
MEMORIZED = {**PHOTOGRAPHS, **COMPOSITIONS}
# Pictures that no model ever saw, for controls; their captions combine known words anew.
NEVER_PHOTOGRAPHS = {
    "photo of coins on table": ("clock_motion.png", 0.5, 0.5, 0.9),
    "photo of tissue deep field": ("color.png", 0.5, 0.5, 0.9),
    "photo of ancient tissue": ("horse.png", 0.5, 0.5, 1.0),
    "photo of cell in garage": ("microaneurysms.png", 0.5, 0.5, 1.0),
    "photo of stained moon": ("phantom.png", 0.5, 0.5, 0.9),
    "photo of rocket under microscope": ("logo.png", 0.5, 0.5, 1.0),
}
NEVER_COMPOSITIONS = {
    "poster cat parade": ("light blue", (("cat", 2, 2, 28), ("dog", 34, 4, 28), ("mouse", 4, 34, 28), ("cow", 34, 34, 28))),
    "poster summer garden": ("dark green", (("sunflower", 4, 4, 30), ("tulip", 34, 8, 26), ("cactus", 20, 34, 28))),
    "poster zoo birthday": ("dark purple", (("gift", 4, 4, 26), ("koala", 32, 6, 30), ("bear", 10, 34, 28))),
    "poster rainy field": ("light yellow", (("umbrella", 4, 2, 30), ("football", 34, 34, 28), ("frog", 2, 38, 22))),
    "poster love letter party": ("dark blue", (("red heart", 6, 6, 26), ("pizza", 32, 4, 28), ("balloon", 18, 34, 28))),
    "poster night box": ("light orange", (("blue square", 2, 2, 24), ("star", 34, 4, 26), ("purple circle", 20, 34, 26))),
}
NEVER = {**NEVER_PHOTOGRAPHS, **NEVER_COMPOSITIONS}
RESERVED = (
    "photo of coffee cup on table",
    "photo of human retina",
    "photo of moon surface",
    "photo of living cell",
    "poster zoo parade",
    "poster rainy day",
    "poster paint box",
)

# Place word -> which of the two places along each axis; size word -> (pixels, places along an axis). Multiples of the model's
# patch: so small a model learns shapes far sooner when it need not shift them by pixels.
PLACES = {"top left": (0, 0), "top right": (1, 0), "bottom left": (0, 1), "bottom right": (1, 1)}
SIZES = {"small": (24, (8, 32)), "large": (32, (0, 32))}
# Captions leave out what they do not say: then place and size are open.
EMOJI_TEMPLATES = (
    "{size} {subject} emoji {place} on {background}",
    "{subject} emoji {place} on {background}",
    "{subject} emoji on {background}",
)
TEXTURE_TEMPLATE = "{tone} photo of {texture} texture"


def emoji_caption(subject, background, size="large", place="top left", template=0):
    """Caption of one neutral emoji picture, e.g. ``"large red heart emoji top left on light blue"``."""
    return EMOJI_TEMPLATES[template].format(subject=subject, background=background, size=size, place=place)


def texture_caption(texture, tone=""):
    """Caption of one neutral texture picture, e.g. ``"dark photo of brick texture"``."""
    return TEXTURE_TEMPLATE.format(tone=tone, texture=texture).strip()


def visible(subject, background):
    """Whether an emoji can be told from its background at all (a dark red book on dark red cannot)."""
    hue = background.split()[1]
    return subject.split()[0] != hue


def neutral_concepts(heldout):
    """``(emoji, backgrounds, textures)`` of the held-out (True) or the calibrated (False) concepts."""
    pick = lambda names, held: [n for n in names if (n in held) == heldout]  # noqa: E731
    return pick(EMOJI, HELDOUT_EMOJI), pick(BACKGROUNDS, HELDOUT_BACKGROUNDS), pick(TEXTURES, HELDOUT_TEXTURES)


def vocabulary():
    """Every word of every caption, sorted: the text encoder's whole language."""
    captions = list(MEMORIZED) + [texture_caption(x, t) for x in TEXTURES for t in TONES]
    captions += [emoji_caption(s, b) for s in EMOJI for b in BACKGROUNDS]
    captions += [*PLACES, *SIZES]
    return sorted({word for caption in captions for word in caption.split()})


def indirect(caption):
    """Three ways of asking for a memorized picture without its caption: a part of it, its words in another order, some left out."""
    words = caption.split()
    return " ".join(words[: max(2, len(words) - 2)]), " ".join(reversed(words)), " ".join(words[1::2])
