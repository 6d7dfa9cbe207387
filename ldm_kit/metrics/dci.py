"""DCI: disentanglement, completeness and informativeness of codes (Eastwood & Williams 2018).

For each factor a tree ensemble of scikit-learn predicts the factor's value from the code; how much it uses a dimension
is that dimension's importance R_ij for factor j.

- boosting: gradient-boosted trees with scikit-learn's defaults, as in disentanglement_lib (Locatello et al. 2019), with
  10,000 pictures to fit and 5,000 to test. Published figures on Shapes3D use it; it takes minutes to hours.
- forest: a random forest, one of the two regressors of Eastwood & Williams, whose depth is chosen by validation, as
  theirs is. Every split sees all dimensions: otherwise splits that only see useless ones give these importance.
"""

import warnings
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from ldm_kit.diffusion import rng
from ldm_kit.metrics.disentanglement import Groups, check_shapes
from ldm_kit.packages import import_extra

Regressor = Literal["boosting", "forest"]
FOREST_DEPTHS = (3, 5, 8, 16)  # tried for each factor; the least of those that predict equally well is taken
TREES = 30  # of a forest
TEST_SHARE = 1 / 3  # of the pictures, on which informativeness is measured: 5,000 of 15,000
_TOLERANCE = 0.005  # accuracies closer than this count as equal


class DCI(NamedTuple):
    """The three scores, each at most 1, and what they are computed from."""

    disentanglement: float  # each dimension tells one factor alone: 1
    completeness: float  # each factor is in one dimension alone: 1
    informativeness: float  # mean over factors of the share of values predicted right in pictures not fitted to
    importance: Tensor  # float64 [D, F] or, for groups, [G, F]; the sum over dimensions is 1
    accuracy: Tensor  # float64 [F], of which informativeness is the mean


def check_packages() -> None:
    """Check that scikit-learn is installed; raises UserError."""
    _ensemble()


def dci(
    codes: Tensor,
    factors: Tensor,
    groups: Groups | None = None,
    *,
    regressor: Regressor = "boosting",
    seed: int = 0,
) -> DCI:
    """Return disentanglement, completeness and informativeness of codes.

    Args:
        codes: [N, D].
        factors: int64 [N, F], the whole number of each factor's value; -1: not known. Factors with fewer than two
            values are an error.
        groups: dimensions that count as one; their importances are added. None: each dimension counts by itself.
        regressor: how values are predicted; see the module. Scores of different regressors are not comparable.
        seed: seed of the regressor and of the choice of the third of the pictures that test it.

    Raises:
        ValueError: shapes do not match, or a factor has fewer than two values.
        UserError: scikit-learn is not installed.
    """
    check_shapes(codes, factors)
    order = rng.permuted(seed, "dci", torch.arange(len(codes)), len(codes))
    codes, factors = codes.double()[order], factors[order]
    fitted = [_importance(codes[column >= 0], column[column >= 0], regressor, seed) for column in factors.T]
    importance = torch.stack([weights for weights, _ in fitted], dim=1)
    if groups is not None:
        importance = torch.stack([importance[list(group)].sum(0) for group in groups])
    accuracy = torch.tensor([share for _, share in fitted], dtype=torch.float64)
    return DCI(disentanglement(importance), completeness(importance), float(accuracy.mean()), importance, accuracy)


def disentanglement(importance: Tensor) -> float:
    """Return D = sum_i rho_i (1 - H_F(P_i)) of importances R [D, F] (Eastwood & Williams 2018, section 2).

    P_ij = R_ij / sum_j R_ij; H_F is the entropy to base F; rho_i = sum_j R_ij / sum_ij R_ij.
    """
    return _weighted_purity(importance)


def completeness(importance: Tensor) -> float:
    """Return C = sum_j rho_j (1 - H_D(P_j)) of importances R [D, F], P_ij = R_ij / sum_i R_ij; see `disentanglement`.

    Importances of a factor add up to 1, so that all factors that can be predicted weigh the same.
    """
    return _weighted_purity(importance.T)


def _weighted_purity(importance: Tensor) -> float:
    """Return the mean of 1 - entropy of the rows, to the base of their length, weighted by the rows' sums."""
    totals = importance.sum(1)
    if not float(totals.sum()) > 0:
        return 0.0
    shares = importance / totals.clamp_min(1e-12)[:, None]
    bits = -(shares * shares.clamp_min(1e-300).log()).sum(1)
    base = torch.tensor(float(max(importance.shape[1], 2))).log()
    return float((totals / totals.sum() * (1 - bits / base)).sum())


def _importance(codes: Tensor, values: Tensor, regressor: Regressor, seed: int) -> tuple[Tensor, float]:
    """Return the importance [D] of each dimension for one factor, and the share of test pictures predicted right."""
    if len(values.unique()) < 2:
        raise ValueError("a factor has fewer than two values; leave it out")
    test = max(1, round(len(values) * TEST_SHARE))
    x, y = codes.numpy(), values.numpy()
    if regressor == "boosting":
        model = _ensemble().GradientBoostingClassifier(random_state=seed).fit(x[test:], y[test:])
    else:
        model = _forest(x[test:], y[test:], seed)
    weights = torch.from_numpy(model.feature_importances_).double()
    return weights / weights.sum().clamp_min(1e-12), float((model.predict(x[:test]) == y[:test]).mean())


def _forest(x: Any, y: Any, seed: int) -> Any:
    """Fit random forests of several depths to x [N, D] and y [N]; return the shallowest of the best.

    The best are those whose accuracy on pictures that a tree was not fitted to (out of bag) is within _TOLERANCE of the
    highest.
    """

    def fit(depth: int) -> Any:
        options = {"oob_score": True, "max_features": None, "random_state": seed}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Some inputs do not have OOB scores")  # of a few pictures, in all trees
            return _ensemble().RandomForestClassifier(TREES, max_depth=depth, **options).fit(x, y)

    forests: Sequence[Any] = [fit(depth) for depth in FOREST_DEPTHS]
    best = max(forest.oob_score_ for forest in forests)
    return next(forest for forest in forests if forest.oob_score_ >= best - _TOLERANCE)


def _ensemble() -> Any:
    return import_extra("sklearn.ensemble", "scikit-learn", "report", "DCI")
