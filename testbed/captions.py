"""What a caption says, and which memorized or never-seen picture it belongs to: the inverse of :mod:`testbed.concepts`."""

import functools

from . import concepts as c

ITEMS = (*c.MEMORIZED, *c.NEVER)


def words_of(caption):
    """What a caption names: :class:`concepts.Words`; where things are is not kept.

    >>> words_of("soft lion top left and apple on purple dots").subjects
    ('lion', 'apple')

    Raises:
        ValueError: no caption of this testbed, or one with a name of its own.
    """
    words = caption.lower().split()
    if "photo" in words and words[words.index("photo") : -1] == ["photo", "of"] and words[-1] in c.PHOTOGRAPHS:
        rest = words[: words.index("photo")]
        if len(rest) <= 1 and all(w in c.TONES for w in rest):
            return c.Words(photograph=words[-1], tone="".join(rest))
    if words and words[0] in c.SETS and "on" in words:
        at = words.index("on")
        subjects, ground = [w for w in words[1:at] if w in c.SUBJECTS], [*words[at + 1 :], "", ""]
        if subjects and ground[0] in c.COLOURS and ground[1] in c.PATTERNS and not any(ground[2:]):
            return c.Words(words[0], tuple(subjects), ground[0], ground[1])
    raise ValueError(
        f"caption {caption!r}: expected '<set> <subject> [and <subject> ...] on <colour> [<pattern>]' or "
        "'[<tone>] photo of <class>' in this testbed's words"
    )


@functools.cache
def item_of(caption):
    """The memorized item, or the never-seen twin, that a caption belongs to; None for free captions.

    Captions of templates name what varies, too: ``soft sunflower and frog on blue dots`` belongs to ``soft sunflower and frog on``.
    """
    for item in ITEMS:
        if item.caption == caption:
            return item
    try:
        words = words_of(caption)
    except ValueError:
        return None
    for item in ITEMS:
        if item.group == "foreground":
            if (words.style, set(words.subjects)) == (item.words.style, set(item.words.subjects)):
                return item
        elif item.group == "background":
            own = item.words
            if (words.style, words.colour, words.pattern) == (own.style, own.colour, own.pattern):
                return item
    return None


def free_words(item, rng):
    """What a free picture of an item's caption shows. A name of its own has no other picture; in its place stand scenes of the same
    drawings, or any photographs."""
    if item.group in ("foreground", "background"):
        return c.template_words(rng, item)
    if item.words is not None:
        return item.words
    if isinstance(item.picture, c.Scene):
        scene = item.picture
        return c.Words(scene.style, tuple(t.subject for t in scene.things), scene.ground.colour, scene.ground.pattern)
    return c.Words(photograph=rng.choice(list(c.PHOTOGRAPHS)), tone=rng.choice(list(c.TONES)))
