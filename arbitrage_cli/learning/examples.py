"""Labelled examples of several problems, and their division into folds."""

import hashlib
from dataclasses import dataclass

import numpy as np

from arbitrage_cli.inference.backend import Floats
from arbitrage_cli.learning.fitting import Weighted
from arbitrage_cli.learning.quality import Truth
from arbitrage_cli.numbers.intervals import Indices, Mask, Numbers

FOLDS = 5  # parts of the problems


@dataclass(frozen=True, slots=True, eq=False)
class Examples:
    """n examples. The examples of a problem are in the same fold, and all groups count the same.

    `inputs` has shape (n, d). The other arrays have shape (n,): the labels, the indices of the problem and of the group, and
    the fold (from 0 to FOLDS - 1).
    """

    inputs: Floats
    labels: Mask
    problem: Indices
    group: Indices
    fold: Indices

    def balanced(self, chosen: Mask) -> Weighted:
        """Return the chosen examples with the same total weight for each class in each group."""
        labels = self.labels[chosen]
        return Weighted(self.inputs[chosen], labels, balanced(labels, self.group[chosen]))

    @property
    def truth(self) -> Truth:
        return Truth(self.labels, self.problem, self.weight)

    @property
    def weight(self) -> Numbers:
        """The examples' weights, an array of shape (n,). Their mean is 1, and all groups have the same total weight."""
        groups, index, counts = np.unique(self.group, return_inverse=True, return_counts=True)
        weight: Numbers = len(self.group) / (len(groups) * counts[index])
        return weight


def balanced(labels: Mask, groups: Indices) -> Numbers:
    """Return weights with the same sum for each class in each group.

    Their mean is 1 if every group contains both classes.
    """
    weights = np.ones(len(labels))
    classes = [(groups == number) & members for number in np.unique(groups) for members in (labels, ~labels)]
    for members in classes:
        weights[members] = len(labels) / len(classes) / max(members.sum(), 1)
    return weights


def fold_of(question: str) -> int:
    """Return the fold of a problem, which depends only on its text."""
    digest = hashlib.sha256(question.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") % FOLDS
