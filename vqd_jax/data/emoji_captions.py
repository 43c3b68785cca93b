"""English captions of emoji: names with articles, in several wordings."""

import re

_BARE = frozenset(
    """
    bacon beans bread broccoli butter coral curry custard dango falafel flatbread fondue garlic
    honey milk money oden popcorn rice sake salad salt spaghetti sushi tea water food ice fire fog
    foggy snow soap wood yarn thread luggage
    claim polish hair mate badminton baseball basketball bowling camping cooking cricket fencing
    hockey lacrosse racing softball tennis volleyball pong
    aquarius aries cancer capricorn gemini leo libra ophiuchus pisces sagittarius scorpio taurus
    virgo
    claus fuji kaaba liberty om zzz dna infinity information construction control customs selfie
    bald breast-feeding crossing divide dizzy locked minus multiply plus prohibited radioactive
    registered unlocked warning wireless
    away down littering no rolling smoking star-struck together up voltage vomiting entry
    """.split()
)  # last words of names without an article
_SINGULAR_S = frozenset(
    "abacus bus cactus compass fleur-de-lis hibiscus hippopotamus lotus minibus octopus rhinoceros "
    "trolleybus".split()
)
_JOINTS = re.compile(
    r" (?:with|of|in|on|over|behind|at|and|facing|holding|without|curving|tilted|pointed|pointing|"
    r"showing|blowing|not|done|for|to|from|under|off|savoring)\b"
)
_BARE_STARTS = re.compile(
    r"(?:man|woman|person|people|men|women|no|deaf|pregnant|kiss (?:man|woman)|input|keycap|"
    r"hundred)[ ,]|family|(?:man|woman|person|kiss)$|\S+ o'clock|\S+-thirty"
)


def caption(name: str, style: str) -> str:
    """The canonical caption: ("red apple", "google") → "a google style emoji of a red apple"."""
    return f"{article(style)} {style} style emoji of {phrase(name)}"


def phrase(name: str) -> str:
    """The name, with an article if it is a countable singular; people keep the short form ("woman
    mechanic").
    """
    head = _JOINTS.split(name.split(",")[0])[0]
    last = head.split()[-1]
    plural = last.endswith("s") and not last.endswith(("ss", "'s")) and last not in _SINGULAR_S
    if plural or last in _BARE or _BARE_STARTS.match(name):
        return name
    return f"{article(name)} {name}"


def captions(name: str, style: str, aliases: tuple[str, ...] = ()) -> tuple[str, ...]:
    """The canonical caption, three other wordings, and the canonical caption of two aliases."""
    before = article(style)
    return (
        caption(name, style),
        f"{before} {style} drawing of {phrase(name)}",
        f"{name}, {style} style",
        f"{style} emoji: {name}",
        *(caption(alias, style) for alias in aliases[:2]),
    )


def article(text: str) -> str:
    """The indefinite article before the text."""
    if re.match(r"uni|eu|ewe|one", text):
        return "a"
    return "an" if re.match(r"[aeiou]|hour|x-|sos |ng ", text) else "a"
