"""The ten factors of faces: their values, the options that draw each in the style ToonHead, and captions."""

from collections.abc import Mapping

OPTIONS: Mapping[str, Mapping[str, str | None]] = {  # factor -> value -> ToonHead's name or colour; None: not drawn
    "hair": {"bun": "bun", "side-swept": "sideComed", "spiky": "spiky", "undercut": "undercut"},
    "rear hair": {
        "short": None,
        "neck-length": "neckHigh",
        "shoulder-length": "shoulderHigh",
        "long and straight": "longStraight",
        "long and wavy": "longWavy",
    },
    "beard": {
        "no beard": None,
        "chin beard": "chin",
        "moustache and chin beard": "chinMoustache",
        "twirled moustache": "moustacheTwirl",
        "full beard": "fullBeard",
        "long beard": "longBeard",
    },
    "clothes": {
        "T-shirt": "tShirt",
        "V-neck sweater": "shirt",
        "open jacket": "openJacket",
        "sleeveless top": "dress",
        "turtleneck": "turtleNeck",
    },
    "clothes colour": {
        "black": "#151613",
        "grey": "#545454",
        "white": "#e8e9e6",
        "red": "#b11f1f",
        "orange": "#f97316",
        "yellow": "#eab308",
        "green": "#147f3c",
        "blue": "#0b3286",
        "purple": "#731ac3",
        "pink": "#ec4899",
    },
    "eyebrows": {"level": "neutral", "arched": "happy", "worried": "sad", "angry": "angry", "one raised": "raised"},
    "eyes": {
        "open eyes": "happy",
        "wide eyes": "wide",
        "closed eyes": "humble",
        "squinting": "bow",
        "winking": "wink",
    },
    "mouth": {
        "smiling": "smile",
        "laughing": "laugh",
        "frowning": "sad",
        "grimacing": "angry",
        "gasping": "agape",
    },
    "hair colour": {
        "black": "#2c1b18",
        "dark brown": "#724133",
        "ginger": "#a55728",
        "light brown": "#b58143",
        "blond": "#d6b370",
    },
    "skin": {
        "light": "#f1c3a5",
        "rosy": "#c68e7a",
        "tan": "#b98e6a",
        "medium-dark": "#a36b4f",
        "dark": "#5c3829",
    },
}
FACTORS: Mapping[str, tuple[str, ...]] = {factor: tuple(options) for factor, options in OPTIONS.items()}
UNSEEN: tuple[Mapping[str, str], ...] = (  # pairs that training never shows; together they try every factor once
    {"hair": "bun", "beard": "full beard"},
    {"rear hair": "long and wavy", "clothes": "open jacket"},
    {"clothes colour": "green", "hair colour": "ginger"},
    {"eyebrows": "worried", "mouth": "laughing"},
    {"eyes": "winking", "skin": "tan"},
)
HIDDEN: Mapping[str, frozenset[tuple[str, str]]] = {  # factor -> pairs (its value, the skin) that look alike
    "mouth": frozenset({("smiling", "dark"), ("frowning", "dark")})  # a thin translucent line, 7 of 255 levels darker
}
PHRASINGS = (
    "{hair}, {rear}, {beard}, {eyes}, {brows}, {mouth}, {skin} skin, {clothes}",
    "a person with {skin} skin, {hair}, {rear}, {beard}, {eyes}, {brows}, {mouth}, wearing {article} {clothes}",
    "portrait of someone in {article} {clothes}, {mouth}, {eyes}, {brows}, {beard}, {skin} skin, {hair}, {rear}",
)
_HAIR = {"bun": "{} hair in a bun", "undercut": "{} hair in an undercut"}
_PARTS = {"rear hair": "rearHair"}  # ToonHead's names of the parts that are not named as their factors
_COLOURS = {"clothes colour": "clothesColor", "hair colour": "hairColor", "skin": "skinColor"}


def options_of(values: Mapping[str, str]) -> dict[str, str | int]:
    """Return the options of the drawing style ToonHead for a face with the given values, {factor: value}."""
    options: dict[str, str | int] = {}
    for factor, value in values.items():
        component, option = _PARTS.get(factor, factor), OPTIONS[factor][value]
        if factor in _COLOURS:
            options[_COLOURS[factor]] = option or ""
        elif option is None:
            options[f"{component}Probability"] = 0
        else:
            options |= {f"{component}Variant": option, f"{component}Probability": 100}
    return options


def hidden(values: Mapping[str, str]) -> frozenset[str]:
    """Return the factors whose value cannot be seen in a face: "mouth" for a smile or a frown on dark skin, or none.

    Args:
        values: the value of each factor, by the factor's name.
    """
    return frozenset(
        factor for factor, pairs in HIDDEN.items() if (values.get(factor, ""), values.get("skin", "")) in pairs
    )


def caption(values: Mapping[str, str], phrasing: int) -> str:
    """Return a face's caption, such as "spiky ginger hair, short at the back, full beard, winking, ...".

    Args:
        values: the value of each factor.
        phrasing: which of the ways to phrase a caption: index into PHRASINGS.
    """
    hair, colour = values["hair"], values["hair colour"]
    eyebrows = "one eyebrow raised" if values["eyebrows"] == "one raised" else f"{values['eyebrows']} eyebrows"
    return PHRASINGS[phrasing].format(
        hair=_HAIR.get(hair, f"{hair} {{}} hair").format(colour),
        rear=f"{values['rear hair']} at the back",
        beard=values["beard"],
        eyes=values["eyes"],
        brows=eyebrows,
        mouth=values["mouth"],
        skin=values["skin"],
        article="an" if values["clothes colour"] == "orange" else "a",
        clothes=f"{values['clothes colour']} {values['clothes']}",
    )
