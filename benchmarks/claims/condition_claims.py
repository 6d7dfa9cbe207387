"""What is claimed of conditions, as data: ways of getting figures, and which is said to be better."""

from collections.abc import Mapping

from benchmarks.claims.condition_cascade import Cascaded, Enlarged, Faces, OneModel, Upscaled
from benchmarks.claims.condition_unclip import FromCaptions, Probed, Unclip
from benchmarks.claims.condition_variations import Itself, Known, Variations, Varied
from benchmarks.claims.condition_ways import Given, Inpainted, Restored, Scaled, Tuned
from benchmarks.claims.paper_claims import Claim, Test
from benchmarks.claims.paper_ways import Way
from ldm_kit.data.faces.values import FACTORS

_HU, _LESS = "Hu et al. 2022", 'Biderman et al. 2024, "LoRA Learns Less and Forgets Less"'
_TUNING, _LDM, _CHAIN = "expected of tuning", "Rombach et al. 2022, section 4.5", "Brooks et al. 2023, section 3.2"
_HO = 'Ho et al. 2022, "Cascaded Diffusion Models", section 4'
_UNCLIP = "Ramesh et al. 2022, section 3"
REPEATS = 4  # of a step with resampling
STRONG = 3.0  # a guidance scale at which a condition is followed more closely than at 1


def _tuning() -> Claim:
    rows = {
        "the base": Tuned("base"),
        "all weights": Tuned("init"),
        "LoRA": Tuned("lora"),
        "from nothing": Tuned("nothing"),
    }
    tests: list[Test] = []
    for row, source in (("all weights", _TUNING), ("LoRA", _HU)):
        better = f"{row}: after equal computing, better than from nothing: "
        measures = {"new hair colour": True, "new: other values": True, "new: distance": False}
        tests += [Test(better + name, source, row, "from nothing", name, up) for name, up in measures.items()]
    tests.append(
        Test("tuning all weights learns more than LoRA", _LESS, "all weights", "LoRA", "new hair colour", True)
    )
    tests += [Test("LoRA forgets less", _LESS, "LoRA", "all weights", f"old{name}", True) for name in _SHARES]
    tests.append(Test("tuning all weights forgets", _TUNING, "all weights", "the base", "old hair colour"))
    return Claim(rows, tests, sheet=True)


_SHARES = (" hair colour", ": other values")


def _inpainting() -> Claim:
    replaced, resampled = "the known part replaced", f"resampled {REPEATS} times"
    rows: dict[str, Way] = {
        "given": Given(),
        "trained": Inpainted("inpaint"),
        replaced: Inpainted("base", 1),
        resampled: Inpainted("base", REPEATS),
        "the truth through the first stage": Restored(),
    }
    measures = {"masked psnr": True, "border error": False, "covered values": True}
    claims = {
        "masked psnr": "nearer to the truth",
        "border error": "truer at the border",
        "covered values": "truer to captions",
    }
    tests = [
        Test(f"a model trained to inpaint is {claims[name]}", _LDM, "trained", row, name, up)
        for row in (replaced, resampled)
        for name, up in measures.items()
    ]
    return Claim(rows, tests, sheet=True, count=72)


def _two_scales() -> Claim:
    pairs = [(0.0, 1.0), (1.0, 0.0), (1.0, 1.0), (STRONG, 1.0), (1.0, STRONG), (STRONG, STRONG)]
    rows = {_scales(*pair): Scaled(pair) for pair in pairs}
    text, of_class = ("text", "head", (STRONG, 1.0), (0.0, 1.0)), ("class", "clothes colour", (1.0, STRONG), (1.0, 0.0))
    tests: list[Test] = []
    for (name, measure, strong, without), other in ((text, of_class), (of_class, text)):
        a, b = _scales(*strong), _scales(1, 1)
        tests += [
            Test(f"a larger scale of the {name} follows it more closely", _CHAIN, a, b, measure, True),
            Test(
                f"... and more than a larger scale of the {other[0]} does", _CHAIN, a, _scales(*other[2]), measure, True
            ),
            Test(f"the scale 0 of the {name} leaves it out", _CHAIN, _scales(*without), b, measure),
            Test(
                f"... more than the scale 0 of the {other[0]} does",
                _CHAIN,
                _scales(*without),
                _scales(*other[3]),
                measure,
            ),
        ]
    return Claim(rows, tests, sheet=True, count=96)


def _scales(text: float, of_class: float) -> str:
    return f"text {text:g}, class {of_class:g}"


def _cascade() -> Claim:
    one, two, small = "one model of 32 px", "cascade, 8 to 32 px", "its 8 px, enlarged"
    rows: dict[str, Way] = {
        one: OneModel(),
        two: Cascaded(),
        small: Enlarged(),
        "real 8 px, upscaled by the cascade": Upscaled(),
        "the faces themselves": Faces(),
    }
    better = "after equal computing a cascade is better than one model: "
    measures = {"caption values": True, "colours": True, "shapes": True, "distance": False}
    tests = [Test(better + name, _HO, two, one, name, up) for name, up in measures.items()]
    adds = "the second model of a cascade adds what the first lacks: "
    tests += [Test(adds + name, _HO, two, small, name, measures[name]) for name in ("distance", "caption values")]
    return Claim(rows, tests, sheet=True)


def _variations() -> Claim:
    related, others = "variations", "variations beside other faces"
    rows: dict[str, Way] = {
        "the given faces": Itself(),
        "linear probes of the embedding": Known(),
        related: Variations(),
        others: Varied(unrelated=True),
    }
    better = "variations have more of the factors that the embedding knows better (above chance)"
    tests = [
        Test("variations have factors of the given face", _UNCLIP, related, others, "all factors", True),
        Test(better, _UNCLIP, related, related, "known best", True, other="known least"),
    ]
    return Claim(rows, tests, sheet=True)


def _unclip() -> Claim:
    ours, others = "unCLIP, from captions", "unCLIP beside other captions"
    sampled = "linear probes of sampled embeddings"
    rows: dict[str, Way] = {
        "linear probes of real embeddings": Probed(sampled=False),
        sampled: Probed(sampled=True),
        ours: Unclip(),
        others: FromCaptions(unrelated=True),
    }
    source = "Ramesh et al. 2022, section 2.2"
    tests = [
        Test("sampled embeddings have the values of their captions", source, sampled, others, "caption values", True),
        Test("so have pictures decoded from them", source, ours, others, "caption values", True),
    ]
    return Claim(rows, tests, sheet=True)


CLAIMS = {
    "tuning": _tuning,
    "inpainting": _inpainting,
    "two-scales": _two_scales,
    "cascade": _cascade,
    "variations": _variations,
    "unclip": _unclip,
}
MEASURES: Mapping[str, str] = {  # name of a measure -> format
    "new hair colour": ".3f",
    "new: other values": ".3f",
    "new: distance": ".2f",
    "old hair colour": ".3f",
    "old: other values": ".3f",
    "old: distance": ".2f",
    "masked psnr": ".2f",
    "border contrast": ".3f",
    "border error": ".3f",
    "covered values": ".3f",
    "head": ".3f",
    "caption values": ".3f",
    "colours": ".3f",
    "shapes": ".3f",
    "all factors": ".3f",
    "known best": ".3f",
    "known least": ".3f",
    "correlation": ".3f",
    "clothes colour": ".3f",
    **{factor: ".3f" for factor in FACTORS if factor != "clothes colour"},
    "distance": ".2f",
    "seconds": ".0f",
}
