"""The claims of the field's founding papers as data: ways of getting figures, and which is said to be better."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.claims.paper_runs import FACTORS
from benchmarks.claims.paper_stages import Cost, Prompted, Restored, Shown
from benchmarks.claims.paper_ways import Figures, Likely, Reconstructed, Sampled, SampledLarge, Way
from benchmarks.claims.verdict import Comparison

CLOSE = 1.25  # "comparable" is a distance of at most so many times the other's
NEAR_EXACT = 0.1  # near-exact is an error of at most so much of that from a random x_T


@dataclass(frozen=True)
class Test:
    __test__ = False
    """A claim that the row or measure A is better than B; see `Comparison`."""

    claim: str
    source: str
    a: str
    b: str
    measure: str
    higher: bool = False
    factor: float = 1.0
    other: str = ""  # measure of B; "": the same as that of A

    def comparison(self, figures: Mapping[str, Sequence[Figures]]) -> Comparison:
        """Return the comparison for the figures of each row, by its name, one for each seed."""
        pairs = [
            (one[self.measure], two[self.other or self.measure])
            for one, two in zip(figures[self.a], figures[self.b], strict=True)
        ]
        named = self.measure + (f" against {self.other}" if self.other else "")
        return Comparison(self.claim, self.source, self.a, self.b, named, self.higher, pairs, self.factor)


@dataclass(frozen=True)
class Claim:
    """Rows of a table by name, and what a paper says of them."""

    rows: Mapping[str, Way]
    tests: Sequence[Test]
    sheet: bool = False  # whether its pictures are worth a look
    count: int | None = None  # pictures of a row; None: as many as of other claims


def sampled(model: str, solver: str, steps: int, classifier: str = "", **options: float) -> Sampled:
    """Return a way that samples with a solver in so many steps; `options` are further sampling options."""
    return Sampled(model, {"solver": solver, "steps": steps, **options}, classifier)


_SONG, _IDDPM, _HO = "Song et al. 2021, table 1", "Nichol & Dhariwal 2021", "Ho et al. 2020, table 2"
_CFG, _ADM = "Ho & Salimans 2022, section 4", "Dhariwal & Nichol 2021, figure 4"
_DIFFAE, _PDAE = "Preechakul et al. 2022", "Zhang et al. 2022"
_LDM, _IMAGEN = "Rombach et al. 2022", "Saharia et al. 2022, ablation of text conditioning"


def _ddim() -> Claim:
    rows = {f"{name}, {n} steps": sampled("eps", name, n) for n in (10, 20, 50) for name in ("ddim", "ddpm")}
    better = "with few steps DDIM is better than DDPM"
    tests = [Test(better, _SONG, f"ddim, {n} steps", f"ddpm, {n} steps", "distance") for n in (10, 20, 50)]
    return Claim(rows, tests, sheet=True)


def _long_chain() -> Claim:
    chain = "ddpm, 1000 steps"
    rows = {f"ddim, {n} steps": sampled("eps", "ddim", n) for n in (10, 20, 50)}
    comparable = f"with few steps DDIM is comparable (at most {CLOSE} times the distance) to DDPM with the whole chain"
    tests = [Test(comparable, _SONG, row, chain, "distance", factor=CLOSE) for row in rows]
    return Claim({**rows, chain: sampled("eps", "ddpm", 1000)}, tests, count=128)


def _prediction() -> Claim:
    rows = {f"{name}, ddpm, 50 steps": sampled(name, "ddpm", 50) for name in ("eps", "x0")}
    claim = "predicting eps gives better pictures than predicting x_0"
    return Claim(rows, [Test(claim, _HO, *rows, measure="distance")])


def _schedule() -> Claim:
    names = {"cosine": "eps", "linear": "linear"}
    rows: dict[str, Way] = {f"{k}, ddpm, 50 steps": sampled(v, "ddpm", 50) for k, v in names.items()}
    rows |= {f"{k}, likelihood": Likely(v) for k, v in names.items()}
    picture, bits, source = (
        "the cosine schedule gives better pictures",
        "... and likelihood",
        f"{_IDDPM}, tables 1 and 2",
    )
    a, b, c, d = rows
    return Claim(rows, [Test(picture, source, a, b, "distance"), Test(bits, source, c, d, "bits")])


def _variance() -> Claim:
    rows: dict[str, Way] = {}
    tests: list[Test] = []
    claim, source = "a learned variance gives better pictures with few steps", f"{_IDDPM}, section 4"
    for n in (25, 50):
        learned, fixed, large = (f"{kind} variance, {n} steps" for kind in ("learned", "the posterior's", "beta as"))
        rows[learned], rows[fixed] = sampled("learned", "ddpm", n), sampled("eps", "ddpm", n)
        rows[large] = SampledLarge("eps", {"solver": "ddpm", "steps": n})
        tests += [Test(claim, source, learned, other, "distance") for other in (fixed, large)]
    likely = {"learned variance, likelihood": Likely("learned"), "the posterior's, likelihood": Likely("eps")}
    tests.append(Test("... and a better likelihood", f"{_IDDPM}, tables 1 and 2", *likely, measure="bits"))
    return Claim({**rows, **likely}, tests)


def _importance() -> Claim:
    rows = {"importance-sampled times": Likely("bound-importance"), "uniform times": Likely("bound")}
    claim = "sampling times by their loss lets the bound (L_vlb) be trained to a better likelihood"
    return Claim(rows, [Test(claim, f"{_IDDPM}, section 3.3", *rows, measure="bits")])


def _traded(name: str, source: str, strong: str, weak: str) -> list[Test]:
    raises = Test(f"{name} raises precision", source, strong, weak, "precision", True)
    return [raises, Test("... and lowers recall", source, strong, weak, "recall")]


def _classifier_free() -> Claim:
    rows = {f"guidance {w:g}": sampled("eps", "ddim", 20, guidance_scale=w) for w in (1.0, 2.0, 4.0, 8.0)}
    return Claim(rows, _traded("classifier-free guidance", _CFG, "guidance 4", "guidance 1"), True)


def _classifier() -> Claim:
    rows = {"unconditional (the null class)": sampled("eps", "ddim", 20, guidance_scale=0.0)}
    for w in (1.0, 4.0, 8.0):
        rows[f"classifier {w:g}"] = sampled("eps", "ddim", 20, "classifier", guidance_scale=0.0, classifier_scale=w)
    tests = _traded("a larger scale of a noisy classifier", _ADM, "classifier 8", "classifier 1")
    claim = "a noisy classifier makes an unconditional model show the class asked for"
    return Claim(
        rows, [*tests, Test(claim, _ADM, "classifier 8", "unconditional (the null class)", "right", True)], sheet=True
    )


def _codes() -> Claim:
    noises = ("inferred", "random", "exchanged")
    rows = {f"DiffAE, {noise} x_T": Reconstructed("diffae", noise) for noise in noises}
    inferred, random, exchanged = rows
    near = "from the inferred x_T reconstruction is near-exact (here: less than a tenth of a random x_T's error)"
    meaning = "z carries the meaning, x_T the rest: with another picture's x_T, the class that is read is that of z"
    return Claim(
        rows,
        [
            Test(near, f"{_DIFFAE}, autoencoding table", inferred, random, "mse", factor=NEAR_EXACT),
            Test(meaning, _DIFFAE, exchanged, exchanged, "class of z", True, other="class of x_T"),
        ],
        sheet=True,
    )


def _half() -> Claim:
    noises = ("inferred", "random")
    rows: dict[str, Way] = {
        f"{name}, {noise} x_T": Reconstructed(model, noise)
        for noise in noises
        for name, model in (("PDAE, half the steps", "pdae"), ("DiffAE", "diffae-long"))
    }
    a, b, c, d = rows
    costs = {
        "PDAE, half the steps": Cost(("pdae",)),
        "PDAE and its base": Cost(("pdae", "unconditional")),
        "DiffAE": Cost(("diffae-long",)),
    }
    e, f, g = costs
    claim, cost, source = "PDAE on a frozen model", "... which costs less, ", f"{_PDAE}, table 1 and section 5"
    better = f"{claim} reconstructs better than DiffAE after half the training"
    tests = [
        Test(f"{better}, x_T inferred", source, a, b, "mse"),
        Test(f"{better}, x_T random", source, c, d, "mse"),
        Test(f"{cost}the base not counted", source, e, g, "seconds"),
        Test(f"{cost}the base counted", source, f, g, "seconds"),
    ]
    return Claim({**rows, **costs}, tests, sheet=True)


def _attention() -> Claim:
    models = {"cross-attention to all states": "cross-attention", "the mean of the states as one token": "pooled"}
    rows: dict[str, Way] = {}
    tests: list[Test] = []
    claims = {"colours": "cross-attention follows captions better than a pooled text", "shape": "... and in the shape"}
    claims["all colours"] = "... with each of three colours in its place"
    for guided, more in (("", {}), (", guidance 4", {"guidance_scale": 4.0})):
        pair = {f"{name}{guided}": model for name, model in models.items()}
        rows |= {name: Prompted(model, {"solver": "ddim", "steps": 20, **more}) for name, model in pair.items()}
        tests += [Test(claim, _IMAGEN, *pair, measure=measure, higher=True) for measure, claim in claims.items()]
    return Claim(rows, tests, sheet=True)


def _shown(model: str, *more: str) -> Shown:
    return Shown(model, (model, *more), {"solver": "ddim", "steps": 20})


def _latent() -> Claim:
    rows = {
        "latents (KL, f = 4)": _shown("kl-f4-latents"),
        "pixels": _shown("pixels"),
        "latents and their first stage": _shown("kl-f4-latents", "kl-f4"),
        "pixels, trained longer": _shown("pixels-long"),
    }
    a, b, c, d = rows
    claim, source = "latents are better than pixels after equal training, the first stage's ", f"{_LDM}, section 4.1"
    tests = [Test(claim + "not counted", source, a, b, "distance"), Test(claim + "counted", source, c, d, "distance")]
    return Claim(rows, tests, sheet=True)


def _first_stages() -> Claim:
    rows, tests = _stages([*((f, "KL") for f in FACTORS), (4, "VQ")]), _against_vq(4)
    for f, other in ((2, 4), (4, 16)):
        restores, pair = f"f = {f} restores better than f = {other}", _pair(f, "KL", other, "KL", "restored")
        tests.append(Test(restores, f"{_LDM}, table 8", *pair, measure="psnr", higher=True))
    for f, amount in ((2, "little"), (16, "much")):
        better = f"after equal training f = 4 generates better than f = {f}, which reduces too {amount}"
        tests.append(Test(better, f"{_LDM}, figure 6", *_pair(4, "KL", f, "KL", "generated"), measure="distance"))
    return Claim(rows, tests, sheet=True)


def _quantised() -> Claim:
    rest = [f for f in FACTORS if f != 4]
    return Claim(_stages([(f, kind) for f in rest for kind in ("KL", "VQ")]), [t for f in rest for t in _against_vq(f)])


def _stages(kinds: Sequence[tuple[int, str]]) -> dict[str, Way]:
    """Return two rows for each reduction factor and kind of a first stage: what it restores, what its latents do."""
    variants = {f"{kind}, f = {f}": f"{kind.lower()}-f{f}" for f, kind in kinds}
    rows: dict[str, Way] = {f"{name}, restored": Restored(variant) for name, variant in variants.items()}
    return rows | {f"{name}, generated": _shown(f"{variant}-latents") for name, variant in variants.items()}


def _against_vq(f: int) -> list[Test]:
    restores, generates = (
        "a first stage with KL restores better than one with VQ",
        'latents of VQ "sometimes" generate better',
    )
    a, b = _pair(f, "KL", f, "VQ", "restored"), _pair(f, "VQ", f, "KL", "generated")
    first = Test(f"{restores}, f = {f}", f"{_LDM}, table 8", *a, measure="psnr", higher=True)
    return [first, Test(f"... but {generates}", f"{_LDM}, section 4", *b, measure="distance")]


def _pair(f: int, kind: str, other: int, other_kind: str, what: str) -> tuple[str, str]:
    return f"{kind}, f = {f}, {what}", f"{other_kind}, f = {other}, {what}"


CLAIMS = {
    "ddim": _ddim,
    "prediction": _prediction,
    "schedule": _schedule,
    "variance": _variance,
    "classifier-free": _classifier_free,
    "codes": _codes,
    "classifier": _classifier,
    "half": _half,
    "importance": _importance,
    "long-chain": _long_chain,
    "attention": _attention,
    "latent": _latent,
    "first-stages": _first_stages,
    "quantised": _quantised,
}
