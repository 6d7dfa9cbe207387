import pytest

from ldm_kit.data.openmoji.groups import GROUPS, _table, group_of
from ldm_kit.data.openmoji.names import Description, describe, infer_genders, is_flag, readable

TABLE = [  # name, emoji, text, gender, skin tone, role
    (":woman_astronaut_dark_skin_tone:", "", "woman astronaut, dark skin tone", "woman", "dark", "astronaut"),
    (":man_running_facing_right:", "", "man running facing right", "man", "", "running facing right"),
    (":person_in_bed_light_skin_tone:", "", "person in bed, light skin tone", "person", "light", "in bed"),
    (":woman_medium-dark_skin_tone_red_hair:", "", "woman, red hair, medium-dark skin tone", "woman", "medium-dark", "red hair"),  # noqa: E501
    (":man_bald:", "", "man, bald", "man", "", "bald"),
    (":person_medium_skin_tone_beard:", "", "person, beard, medium skin tone", "person", "medium", "beard"),
    (":woman:", "", "woman", "woman", "", "person"),
    (":boy_medium-light_skin_tone:", "", "boy, medium-light skin tone", "man", "medium-light", "child"),
    (":old_woman:", "", "old woman", "woman", "", "old person"),
    (":older_person:", "", "older person", "person", "", "old person"),
    (":deaf_man_dark_skin_tone:", "", "deaf man, dark skin tone", "man", "dark", "deaf"),
    (":mermaid:", "", "mermaid", "woman", "", "merperson"),
    (":Mrs._Claus:", "", "Mrs. Claus", "woman", "", "Claus"),
    (":women_wrestling:", "", "women wrestling", "woman", "", "wrestling"),
    (":men_holding_hands_dark_skin_tone_light_skin_tone:", "", "men holding hands, dark and light skin tone", "man", "mixed", "holding hands"),  # noqa: E501
    (":woman_and_man_holding_hands:", "", "woman and man holding hands", "mixed", "", "holding hands"),
    (":kiss_woman_man_light_skin_tone_dark_skin_tone:", "", "kiss, man and woman, light and dark skin tone", "mixed", "mixed", "kiss"),  # noqa: E501
    (":kiss_person_person_medium_skin_tone_medium-dark_skin_tone:", "", "kiss, person and person, medium and medium-dark skin tone", "person", "mixed", "kiss"),  # noqa: E501
    (":couple_with_heart_man_man:", "", "couple with heart, man and man", "man", "", "couple with heart"),
    (":kiss_mark:", "", "kiss mark", "", "", "kiss mark"),
    (":family_man_woman_girl_boy:", "", "family, man, woman, girl and boy", "", "", "family, man, woman, girl and boy"),
    (":handshake_light_skin_tone_dark_skin_tone:", "", "handshake, light and dark skin tone", "", "mixed", "handshake"),
    (":thumbs_up_medium_skin_tone:", "", "thumbs up, medium skin tone", "", "medium", "thumbs up"),
    (":dark_skin_tone:", "", "dark skin tone", "", "", "dark skin tone"),
    (":red_hair:", "", "red hair", "", "", "red hair"),
    (":man’s_shoe:", "", "man's shoe", "", "", "man's shoe"),  # noqa: RUF001
    (":manual_wheelchair:", "", "manual wheelchair", "", "", "manual wheelchair"),
    (":keycap_5:", "", "keycap 5", "", "", "keycap 5"),
    (":keycap_#:", "", "keycap number sign", "", "", "keycap number sign"),
    (":piñata:", "", "pinata", "", "", "pinata"),
    (":Germany:", "🇩🇪", "flag of Germany", "", "", "flag of Germany"),
    (":Türkiye:", "🇹🇷", "flag of Turkiye", "", "", "flag of Turkiye"),
    (":United_States:", "🇺🇸", "flag of the United States", "", "", "flag of the United States"),
    (":Trinidad_&_Tobago:", "🇹🇹", "flag of Trinidad and Tobago", "", "", "flag of Trinidad and Tobago"),
    (":Hong_Kong_SAR_China:", "🇭🇰", "flag of Hong Kong", "", "", "flag of Hong Kong"),
    (":pirate_flag:", "🏴‍☠️", "pirate flag", "", "", "pirate flag"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "emoji", "text", "gender", "tone", "role"), TABLE)
def test_a_name_becomes_a_caption_and_its_parts(name, emoji, text, gender, tone, role):
    assert describe(name, emoji) == Description(text, gender, tone, role)


def test_bare_roles_that_occur_with_a_gender_are_persons():
    told = infer_genders([describe(":astronaut:"), describe(":woman_astronaut:"), describe(":rocket:")])
    assert [d.gender for d in told] == ["person", "woman", ""]


def test_captions_hold_no_underscore_and_nothing_but_ascii():
    assert readable(":St._Barthélemy:") == "St. Barthelemy"
    assert readable(":one_o’clock:") == "one o'clock"  # noqa: RUF001


@pytest.mark.parametrize(("emoji", "flag"), [("🇩🇪", True), ("🏴󠁧󠁢󠁥󠁮󠁧󠁿", True), ("🏴‍☠️", False), ("🚩", False), ("", False)])
def test_flags_of_places_are_told_from_other_flags(emoji, flag):
    assert is_flag(emoji) is flag


def test_groups_follow_the_first_code_point():
    heads = {
        "😀": "smileys",
        "🧑🏽‍🚀": "people",
        "👍🏿": "body",
        "🦊": "animals",
        "🌹": "plants",
        "🍕": "food",
        "🚀": "travel",
    }
    rest = {"🌧": "sky", "⚽": "activities", "💡": "objects", "5️⃣": "symbols", "🇩🇪": "flags", "中": ""}
    for emoji, group in (heads | rest).items():
        assert group_of(emoji) == group, emoji


def test_group_ranges_are_whole_and_do_not_overlap():
    starts, ends, groups = _table()
    assert all(start <= end for start, end in zip(starts, ends, strict=True))
    assert all(end < start for end, start in zip(ends, starts[1:], strict=False))
    assert set(groups) == set(GROUPS)
