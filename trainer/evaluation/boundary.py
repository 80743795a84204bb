"""How well the outlines of a mask follow the true ones: the boundary F-score (BF).

Csurka, Larlus and Perronnin, "What is a good evaluation measure for semantic segmentation?", BMVC
2013, section 2.2. Precision of a class is the share of its predicted boundary with true boundary of
the class within a tolerance; recall is the share of its true boundary with predicted boundary
within it; BF is their harmonic mean. The BF of an image is the mean over the classes that its truth
or its prediction outlines, the BF of a list the mean over its images.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from trainer.data.dataset import IGNORE
from trainer.errors import ConfigError

Points = npt.NDArray[np.intp]

# The paper's tolerance, 0.75 % of the diagonal: 4.7 pixels at 375x500. DAVIS (Perazzi et al., CVPR
# 2016) uses 0.8 %.
CSURKA = 0.0075


def tolerance_pixels(tolerance: float, size: tuple[int, int]) -> float:
    """A tolerance in pixels; a value below 1 is a fraction of the diagonal of an ``(H, W)`` image.

    Raises:
        ConfigError: it is not positive.
    """
    if not 0 < tolerance < np.inf:
        raise ConfigError(
            f"a boundary tolerance of {tolerance}",
            "pixels (1 or more) or a fraction of the diagonal (below 1)",
        )
    return tolerance if tolerance >= 1 else tolerance * float(np.hypot(*size))


def contour(labels_HW: npt.NDArray[np.generic]) -> npt.NDArray[np.bool_]:
    """Pixels ``bool [H,W]`` with another label to the left, right, above or below.

    The frame of the image is no boundary.
    """
    # skimage.segmentation.find_boundaries gives the same pixels in 20 times the time, which makes
    # the boundary F-score 3 to 8 times as slow (bench/evaluation.py).
    edge = np.zeros(labels_HW.shape, bool)
    down = labels_HW[1:] != labels_HW[:-1]
    across = labels_HW[:, 1:] != labels_HW[:, :-1]
    edge[1:] |= down
    edge[:-1] |= down
    edge[:, 1:] |= across
    edge[:, :-1] |= across
    return edge


def boundary_f(
    pred_HW: npt.NDArray[np.uint8],
    truth_HW: npt.NDArray[np.uint8],
    num_classes: int,
    tolerance: float = CSURKA,
) -> npt.NDArray[np.float32]:
    """BF of every class of one image.

    The boundary of a class is ``contour`` within the class. Two boundary pixels match where their
    centres are within ``tolerance``. VOC draws a band of unknown pixels over every outline. The
    band is first filled with the nearest known labels, so that the true outline runs in its middle.
    Boundary deeper than the tolerance in the unknown counts neither for nor against.

    Args:
        pred_HW: labels 0..C-1; 255 counts as background.
        truth_HW: the same size; labels of C and above, 255 among them, are unknown.
        num_classes: C, background included.
        tolerance: see ``tolerance_pixels``.

    Returns:
        ``[C]``; nan for a class without boundary in both.
    """
    reach = tolerance_pixels(tolerance, (truth_HW.shape[0], truth_HW.shape[1]))
    truth, valid = _fill_unknown(truth_HW, num_classes, reach)
    # As in the default convention of the mean IoU.
    guess = np.where(pred_HW == IGNORE, 0, pred_HW)
    true_edge, guess_edge = contour(truth) & valid, contour(guess) & valid
    true_points, guess_points = np.argwhere(true_edge), np.argwhere(guess_edge)
    true_labels, guess_labels = truth[true_edge], guess[guess_edge]
    values = np.full(num_classes, np.nan, np.float32)
    for label in np.union1d(true_labels, guess_labels):
        own, other = guess_points[guess_labels == label], true_points[true_labels == label]
        precision, recall = _near(own, other, reach), _near(other, own, reach)
        values[label] = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    return values


def _fill_unknown(
    truth: npt.NDArray[np.uint8], num_classes: int, reach: float
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
    """The truth with the nearest known label everywhere, and the pixels within ``reach`` of one."""
    unknown = truth >= num_classes
    if unknown.all() or not unknown.any():
        return np.where(unknown, np.uint8(0), truth), ~unknown
    from scipy.ndimage import distance_transform_edt

    depth, nearest = distance_transform_edt(unknown, return_indices=True)
    # Further inside, nobody knows on which side of the outline a pixel lies.
    return truth[tuple(nearest)], depth <= reach


def _near(points: Points, others: Points, reach: float) -> float:
    """The share of ``points [n,2]`` with one of ``others`` within ``reach``; 0 without points."""
    if not len(points) or not len(others):
        return 0.0
    from scipy.spatial import cKDTree

    # The tree's bound is exclusive. bench/evaluation.py compares it with distance transforms.
    distance, _ = cKDTree(others).query(points, distance_upper_bound=np.nextafter(reach, np.inf))
    return float((distance <= reach).mean())


def describe_tolerance(tolerance: float) -> str:
    """``0.75 % of the diagonal`` or ``3 pixels``."""
    return f"{tolerance:g} pixels" if tolerance >= 1 else f"{100 * tolerance:g} % of the diagonal"
