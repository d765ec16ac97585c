"""Pairs of tokens with known maps between them, and short ways to fit and apply closed forms."""

import numpy as np
from scipy.stats import ortho_group

from flowkit.evaluation.baselines import fit_baselines
from flowkit.evaluation.projection import fit_principal_inputs
from flowkit.evaluation.ridge import ridge_problem
from flowkit.evaluation.tokens import mean_over_images


class Stored:
    """Tokens as a store gives them: float32 copies of the rows that are asked for; remembers how many at once."""

    def __init__(self, array):
        self.array, self.most_rows, self.rows_read = array, 0, 0

    @property
    def shape(self):
        return self.array.shape

    def __len__(self):
        return len(self.array)

    def __getitem__(self, rows):
        found = self.array[rows].astype(np.float32)
        self.most_rows, self.rows_read = max(self.most_rows, len(found)), self.rows_read + len(found)
        return found


def pairs(images=60, *, noise=0.3, seed=0, tokens=3, source_width=4, target_width=5):
    """A linear map of all tokens at once, with offset and noise."""
    weights = np.random.default_rng(99).normal(size=(tokens * source_width, tokens * target_width))
    generator = np.random.default_rng(seed)
    source = generator.normal(size=(images, tokens, source_width))
    flat = source.reshape(images, -1) @ weights + 2.0
    flat += noise * generator.normal(size=flat.shape)
    return source.astype(np.float32), flat.reshape(images, tokens, target_width).astype(np.float32)


def steep_pairs(images=300, *, seed=0, tokens=6, width=20, noise=0.1):
    """Source tokens whose variance falls steeply over 120 directions, as that of encoders does."""
    basis = ortho_group.rvs(tokens * width, random_state=5) * (0.95 ** np.arange(tokens * width))[:, None]
    weights = np.random.default_rng(6).normal(size=(tokens * width, 12))
    generator = np.random.default_rng(seed)
    flat = generator.normal(size=(images, tokens * width)) @ basis
    target = flat @ weights + noise * generator.normal(size=(images, 12)) + 1.0
    return (flat + 3.0).reshape(images, tokens, width).astype(np.float32), target.reshape(
        images, 3, 4
    ).astype(np.float32)


def principal(source, *, inputs=4096):
    return fit_principal_inputs(source, mean_over_images(source), inputs=inputs)


def problem_of(source, target, *, inputs=4096, scratch=None):
    return ridge_problem(principal(source, inputs=inputs), target, mean_over_images(target), scratch)


def fitted(name, source, target, **options):
    return fit_baselines(source, target, [name], **options)[name]


def predicted(baseline, source):
    return np.concatenate(list(baseline.predict(source)))


def flat(array):
    return array.reshape(len(array), -1).astype(float)


def explained(prediction, target):
    return 1 - np.sum((prediction - target) ** 2) / np.sum((target - target.mean(axis=0)) ** 2)


def left_out_of(problem, penalty, images=None):
    images = np.arange(len(problem.target)) if images is None else images
    return [np.concatenate(parts) for parts in zip(*problem.left_out(penalty, images), strict=True)]
