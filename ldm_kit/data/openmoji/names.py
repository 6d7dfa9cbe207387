"""Captions of emoji from their CLDR short names (`:woman_astronaut_dark_skin_tone:`), with gender, skin tone and role.

All functions are pure. Captions are plain ASCII: accents are dropped ("Curacao"), underscores become spaces,
typographic apostrophes become straight ones. Attributes follow the noun after commas, always in the same order: hair,
then skin tone ("woman, red hair, medium-dark skin tone"). Couples name both people and both tones from left to right
as OpenMoji draws them ("kiss, man and woman, light and dark skin tone").
"""

import re
import unicodedata
from collections.abc import Iterable
from typing import NamedTuple

TONES = ("light", "medium-light", "medium", "medium-dark", "dark")
_TONE = re.compile(r"(?:^|(?<= ))(medium-light|medium-dark|light|medium|dark) skin tone(?= |$)")
_HAIR = re.compile(r"(man|woman|person) (red hair|curly hair|white hair|blond hair|bald|beard)")
_GROUP = re.compile(r"(couple with heart|kiss|family) ((?:man|woman|person|boy|girl|adult|child)(?: .+)?)")
_WHO = re.compile(r"(man|woman|person|men|women|people) (.+)")
_GENDER = {"men": "man", "women": "woman", "people": "person"}
_TITLES = {  # names whose gender does not follow from their first word: (gender, role)
    "man": ("man", "person"),
    "woman": ("woman", "person"),
    "person": ("person", "person"),
    "boy": ("man", "child"),
    "girl": ("woman", "child"),
    "child": ("person", "child"),
    "old man": ("man", "old person"),
    "old woman": ("woman", "old person"),
    "older person": ("person", "old person"),
    "prince": ("man", "royal"),
    "princess": ("woman", "royal"),
    "merman": ("man", "merperson"),
    "mermaid": ("woman", "merperson"),
    "merperson": ("person", "merperson"),
    "Santa Claus": ("man", "Claus"),
    "Mrs. Claus": ("woman", "Claus"),
    "Mx Claus": ("person", "Claus"),
    "deaf man": ("man", "deaf"),
    "deaf woman": ("woman", "deaf"),
    "deaf person": ("person", "deaf"),
    "pregnant man": ("man", "pregnant"),
    "pregnant woman": ("woman", "pregnant"),
    "pregnant person": ("person", "pregnant"),
    "woman and man holding hands": ("mixed", "holding hands"),
}
_KEYCAPS = {"keycap #": "keycap number sign", "keycap *": "keycap asterisk"}
_ARTICLE = re.compile(r"United |.*(Islands|Republic|Territory|Territories|Union|Lands|Netherlands|Isle of Man)$")
_THE = {"Bahamas", "Comoros", "Gambia", "Maldives", "Philippines"}


class Description(NamedTuple):
    """An emoji's caption and attributes."""

    text: str  # caption, such as "woman astronaut, dark skin tone"
    gender: str  # man, woman, person, mixed, or "" if the emoji has none
    skin_tone: str  # one of TONES, mixed, or "" if the emoji has none
    role: str  # the caption without gender and skin tone, such as astronaut


def describe(name: str, emoji: str = "") -> Description:
    """Return the caption, gender, skin tone and role of an emoji.

    A swatch of a skin tone or of hair (such as "dark skin tone") has neither gender nor skin tone.

    Args:
        name: the emoji's CLDR short name, with or without colons and underscores.
        emoji: the emoji itself, by which flags are recognised.
    """
    plain = readable(name)
    tones = _TONE.findall(plain)
    rest = " ".join(_TONE.sub(" ", plain).split())
    if not rest:
        return Description(plain, "", "", plain)
    if is_flag(emoji):
        rest = _flag(rest)
    body, gender, role = _parts(_KEYCAPS.get(rest, rest))
    text = f"{body}, {' and '.join(tones)} skin tone" if tones else body
    return Description(text, gender, tones[0] if len(tones) == 1 else "mixed" if tones else "", role)


def infer_genders(descriptions: Iterable[Description]) -> list[Description]:
    """Return descriptions with gender "person" for an emoji without gender, if another emoji of the role has a gender.

    So "astronaut" has gender "person" if there is a "woman astronaut".
    """
    listed = list(descriptions)
    gendered = {d.role for d in listed if d.gender}
    return [d._replace(gender="person") if not d.gender and d.role in gendered else d for d in listed]


def readable(name: str) -> str:
    """Return a short name as ASCII words: `:man’s_shoe:` -> "man's shoe", `:Curaçao:` -> "Curacao"; & -> "and"."""
    words = name.strip(":").replace("_", " ").replace("’", "'").replace("&", "and")  # noqa: RUF001
    return unicodedata.normalize("NFKD", words).encode("ascii", "ignore").decode()


def is_flag(emoji: str) -> bool:
    """Return whether an emoji is the flag of a country (two regional indicators) or of a region (a tag sequence)."""
    regional = len(emoji) == 2 and all("\U0001f1e6" <= c <= "\U0001f1ff" for c in emoji)
    return regional or (emoji.startswith("\U0001f3f4") and emoji.endswith("\U000e007f"))


def _flag(country: str) -> str:
    country = country.replace(" SAR China", "")
    return f"flag of the {country}" if _ARTICLE.match(country) or country in _THE else f"flag of {country}"


def _parts(rest: str) -> tuple[str, str, str]:
    """Return (caption, gender, role) of an emoji; `rest` is its readable name without skin tones."""
    if rest in _TITLES:
        return rest, *_TITLES[rest]
    if hair := _HAIR.fullmatch(rest):
        return f"{hair[1]}, {hair[2]}", hair[1], hair[2]
    if group := _GROUP.fullmatch(rest):
        return _together(group[1], group[2].split())
    if who := _WHO.fullmatch(rest):
        return rest, _GENDER.get(who[1], who[1]), who[2]
    return rest, "", rest


def _together(kind: str, people: list[str]) -> tuple[str, str, str]:
    if kind != "family" and people == ["woman", "man"]:
        people = ["man", "woman"]  # OpenMoji draws the man at the left, in the first of the two tones
    listed = " and ".join(filter(None, [", ".join(people[:-1]), people[-1]]))
    body = f"{kind}, {listed}"
    if kind == "family":
        return body, "", body
    return body, people[0] if len(set(people)) == 1 else "mixed", kind
