"""How well the outlines of a mask follow the true ones: the boundary F-score (BF).

Csurka, Larlus and Perronnin, "What is a good evaluation measure for semantic segmentation?", BMVC
2013, section 2.2: of every class, the share of its predicted boundary that has true boundary of
that class within a tolerance (precision), the share of its true boundary that has predicted
boundary within it (recall), and their harmonic mean. An image has the mean over the classes that
its truth or its prediction outlines, a list the mean over its images.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from trainer.data.dataset import IGNORE
from trainer.errors import ConfigError

Points = npt.NDArray[np.intp]

CSURKA = 0.0075
"""The paper's tolerance: 0.75 % of the diagonal, 4.7 pixels at 375x500. DAVIS (Perazzi et al. 2016)
has 0.8 %.
"""


def tolerance_pixels(tolerance: float, size: tuple[int, int]) -> float:
    """A tolerance in pixels; below 1 it is a fraction of the diagonal of an image of ``(H, W)``.

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
    """Pixels ``bool [H,W]`` with another label to the left, right, above or below; the frame of the
    image is no border.

    Gives what ``skimage.segmentation.find_boundaries`` gives, in a hundredth of its time.
    """
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

    The boundary of a class are its pixels with another label to the left, right, above or below;
    the frame of the image is none. Two boundary pixels match within ``tolerance`` between their
    centres. VOC draws a band of unknown pixels over every outline: it is first filled with the
    nearest known label, so that the true outline runs in its middle; boundary that lies deeper than
    the tolerance in the unknown is not judged, neither way.

    Args:
        pred_HW: labels 0..C-1; 255 counts as background.
        truth_HW: the same size; 255 and what is not below C is unknown.
        num_classes: C, background included.
        tolerance: see ``tolerance_pixels``.

    Returns:
        ``[C]``; nan for a class without boundary in both.
    """
    reach = tolerance_pixels(tolerance, (truth_HW.shape[0], truth_HW.shape[1]))
    truth, judged = _filled(truth_HW, num_classes, reach)
    pred = np.where(pred_HW == IGNORE, 0, pred_HW)
    true_edge, found_edge = contour(truth) & judged, contour(pred) & judged
    true_points, found_points = np.argwhere(true_edge), np.argwhere(found_edge)
    true_labels, found_labels = truth[true_edge], pred[found_edge]
    values = np.full(num_classes, np.nan, np.float32)
    for label in np.union1d(true_labels, found_labels):
        true, found = true_points[true_labels == label], found_points[found_labels == label]
        precision, recall = _near(found, true, reach), _near(true, found, reach)
        values[label] = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    return values


def _filled(
    truth: npt.NDArray[np.uint8], num_classes: int, reach: float
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
    """Labels with the unknown ones replaced by the nearest known, and the pixels within ``reach``
    of the known.
    """
    unknown = truth >= num_classes
    if unknown.all() or not unknown.any():
        return np.where(unknown, np.uint8(0), truth), ~unknown
    from scipy.ndimage import distance_transform_edt

    depth, nearest = distance_transform_edt(unknown, return_indices=True)
    return truth[tuple(nearest)], depth <= reach


def _near(points: Points, others: Points, reach: float) -> float:
    """The share of ``points [n,2]`` with one of ``others`` within ``reach``; 0 where one of them is
    empty.
    """
    if not len(points) or not len(others):
        return 0.0
    from scipy.spatial import cKDTree

    # The tree's own bound is exclusive. bench/evaluation.py has it beside distance transforms of
    # the image.
    distance, _ = cKDTree(others).query(points, distance_upper_bound=np.nextafter(reach, np.inf))
    return float((distance <= reach).mean())


def describe_tolerance(tolerance: float) -> str:
    """``0.75 % of the diagonal`` or ``3 pixels``."""
    return f"{tolerance:g} pixels" if tolerance >= 1 else f"{100 * tolerance:g} % of the diagonal"
