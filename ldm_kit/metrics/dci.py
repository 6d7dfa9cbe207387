"""DCI: disentanglement, completeness and informativeness of latent codes (Eastwood & Williams 2018).

For each known factor of the pictures, such as hair colour, a tree ensemble of scikit-learn predicts the factor's value
from a picture's code. How much the ensemble for factor j uses dimension i of the codes is the importance R_ij. There
are two kinds of ensemble:

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
    """The three scores of D-dimensional codes for F factors, each at most 1, and what they are computed from."""

    disentanglement: float  # 1 if each dimension is important for one factor only
    completeness: float  # 1 if each factor is predicted from one dimension only
    informativeness: float  # mean of `accuracy` over factors
    importance: Tensor  # float64 [D, F], of each dimension for each factor; [G, F] for G groups of dimensions
    accuracy: Tensor  # float64 [F], share of test pictures whose value of the factor is predicted right


def check_packages() -> None:
    """Check that scikit-learn, which `dci` uses, is installed; raises UserError if it is not."""
    _ensemble()


def dci(
    codes: Tensor,
    factors: Tensor,
    groups: Groups | None = None,
    *,
    regressor: Regressor = "boosting",
    seed: int = 0,
) -> DCI:
    """Return disentanglement, completeness and informativeness of the latent codes of N pictures.

    Args:
        codes: latent codes of D dimensions, [N, D].
        factors: int64 [N, F], the index of each factor's value in each picture; -1: not known.
        groups: lists of dimensions; those of one list count as one dimension, with the sum of their importances.
            None: each dimension counts by itself.
        regressor: kind of tree ensemble, "boosting" or "forest". Their scores are not comparable.
        seed: seed of the ensemble, and of the choice of a third of the pictures as test pictures.

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

    R_ij is the importance of dimension i of the codes for factor j, P_ij = R_ij / sum_j R_ij, H_F the entropy to base
    F, and rho_i = sum_j R_ij / sum_ij R_ij.
    """
    return _weighted_purity(importance)


def completeness(importance: Tensor) -> float:
    """Return C = sum_j rho_j (1 - H_D(P_j)) of importances R [D, F] (Eastwood & Williams 2018, section 2).

    R_ij is the importance of dimension i of the codes for factor j, P_ij = R_ij / sum_i R_ij, H_D the entropy to base
    D, and rho_j = sum_i R_ij / sum_ij R_ij. `dci` scales each factor's importances to the sum 1 (before it drops
    dimensions outside `groups`), so that all factors that can be predicted weigh the same.
    """
    return _weighted_purity(importance.T)


def _weighted_purity(importance: Tensor) -> float:
    """Return the mean over rows of 1 - H, weighted by the rows' sums; 0 if all importances are 0.

    H is the entropy of a row of `importance` [I, J] divided by its sum, to the base J.
    """
    totals = importance.sum(1)
    if not float(totals.sum()) > 0:
        return 0.0
    shares = importance / totals.clamp_min(1e-12)[:, None]
    bits = -(shares * shares.clamp_min(1e-300).log()).sum(1)
    base = torch.tensor(float(max(importance.shape[1], 2))).log()
    return float((totals / totals.sum() * (1 - bits / base)).sum())


def _importance(codes: Tensor, values: Tensor, regressor: Regressor, seed: int) -> tuple[Tensor, float]:
    """Fit a tree ensemble for one factor; return each dimension's importance [D] and the accuracy on test pictures.

    Args:
        codes: latent codes [N, D]; the first third are the test pictures'.
        values: int64 [N], the index of the factor's value in each picture.
        regressor: kind of tree ensemble.
        seed: seed of the ensemble.
    """
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
    """Fit random forests of several depths, and return the shallowest of those with about the highest accuracy.

    A forest predicts a factor's value y [N] from codes x [N, D]. Its accuracy is measured on pictures that a tree was
    not fitted to (out of bag), and must be within _TOLERANCE of the highest.
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
