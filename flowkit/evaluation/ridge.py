"""Ridge regression from all source tokens of an image, flattened, to all its target tokens; leave-one-out.

One row per image: X [N, I] and Y [N, O], columns centred. With X'X = V S V', Z = X V, C = Z'Y and a penalty
p
    map          W = V (S + p)^-1 C
    fitted       F = Z (S + p)^-1 C,      leverage  h_n = 1/N + sum_k Z_nk^2 / (S_k + p)
    left out     Y_n - (Y_n - F_n) / (1 - h_n)    exactly what a fit without image n would predict for image n
so one eigendecomposition serves the choice of the penalty, the map and honest training predictions. float64
throughout. At full size (257 x 4096 source values per image) X must be projected first: I is meant to be a
few thousand.
"""

from dataclasses import dataclass

import numpy as np
from scipy import linalg

from flowkit.evaluation.bootstrap import Array
from flowkit.evaluation.tokens import Floats, chunks

# Penalties tried, as shares of the mean eigenvalue of X'X.
PENALTIES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0, 3.0)
# The choice of the penalty judges about this many images, evenly spaced, each by the fit on all others.
JUDGED_IMAGES = 1500


@dataclass(frozen=True)
class RidgeMap:
    """A fitted linear map with offset."""

    weights_IO: Array
    source_mean_I: Array
    target_mean_O: Array
    target_shape: tuple[int, int]
    penalty: float  # share of the mean eigenvalue

    def predict(self, source_NTD: Floats) -> Floats:
        """Target-shaped prediction [N, T, D] in float32."""
        flat = source_NTD.reshape(len(source_NTD), -1)
        predicted = np.empty((len(flat), len(self.target_mean_O)), np.float32)
        for rows in chunks(len(flat)):
            predicted[rows] = (flat[rows] - self.source_mean_I) @ self.weights_IO + self.target_mean_O
        return predicted.reshape(-1, *self.target_shape)


@dataclass(frozen=True)
class RidgeProblem:
    """The training set in the basis where every penalty is cheap."""

    values_K: Array  # S
    basis_IK: Array  # V
    scores_NK: Array  # Z
    products_KO: Array  # C
    targets_NO: Array  # centred
    source_mean_I: Array
    target_mean_O: Array
    target_shape: tuple[int, int]

    def solve(self, penalty: float) -> RidgeMap:
        """The map for a penalty given as a share of the mean eigenvalue."""
        weights = self.basis_IK @ (self._shrinkage(penalty)[:, None] * self.products_KO)
        return RidgeMap(weights, self.source_mean_I, self.target_mean_O, self.target_shape, penalty)

    def left_out(self, penalty: float) -> Floats:
        """For every training image, the prediction of the fit without it [N, T, D] in float32."""
        predicted = np.empty(self.targets_NO.shape, np.float32)
        for rows in chunks(len(predicted)):
            residual = self._left_out_residual(penalty, self.scores_NK[rows], self.targets_NO[rows])
            predicted[rows] = self.targets_NO[rows] - residual + self.target_mean_O
        return predicted.reshape(-1, *self.target_shape)

    def left_out_error(self, penalty: float) -> float:
        """Mean squared error per image of the left-out predictions, on evenly spaced images."""
        step = -(-len(self.targets_NO) // JUDGED_IMAGES)
        residual = self._left_out_residual(penalty, self.scores_NK[::step], self.targets_NO[::step])
        return float(np.einsum("no,no->", residual, residual) / len(residual))

    def best_penalty(self) -> float:
        """The penalty of PENALTIES with the smallest left-out error."""
        return min(PENALTIES, key=self.left_out_error)

    def _shrinkage(self, penalty: float) -> Array:
        return 1.0 / (self.values_K + penalty * self.values_K.mean())

    def _left_out_residual(self, penalty: float, scores: Array, targets: Array) -> Array:
        shrinkage = self._shrinkage(penalty)
        leverage = 1.0 / len(self.targets_NO) + scores**2 @ shrinkage
        fitted = (scores * shrinkage) @ self.products_KO
        return (targets - fitted) / (1.0 - leverage)[:, None]


def ridge_problem(source_NTD: Floats, target_NTD: Floats) -> RidgeProblem:
    """Decompose a training set of tokens, once for all penalties."""
    x = np.asarray(source_NTD, np.float64).reshape(len(source_NTD), -1)
    y = np.asarray(target_NTD, np.float64).reshape(len(target_NTD), -1)
    x_mean, y_mean = x.mean(axis=0), y.mean(axis=0)
    x, y = x - x_mean, y - y_mean
    values, basis = linalg.eigh(x.T @ x, driver="evd", overwrite_a=True)
    scores = x @ basis
    return RidgeProblem(
        values_K=np.clip(values, 0, None),
        basis_IK=basis,
        scores_NK=scores,
        products_KO=scores.T @ y,
        targets_NO=y,
        source_mean_I=x_mean,
        target_mean_O=y_mean,
        target_shape=(target_NTD.shape[1], target_NTD.shape[2]),
    )
