"""Fully connected CRF (Krähenbühl and Koltun, NIPS 2011) over one image, in two back ends with the
same results.

``pydensecrf`` is the authors' C++ behind its usual wrapper. ``torch`` is the permutohedral lattice
(Adams, Baek and Davis, Eurographics 2010) in tensor operations, which also runs on a GPU and where
no C++ wheel exists. Both filter with the lattice because published masks do: exact Gaussians give
other masks.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from trainer.errors import ConfigError, nearest

if TYPE_CHECKING:
    from trainer.refine.lattice import Lattice

BACKENDS = ("auto", "pydensecrf", "torch")

Float = npt.NDArray[np.float32]


@dataclass(frozen=True)
class CrfParameters:
    """One published set of parameters.

    Attributes:
        gaussian: weight and pixel deviation of the smoothness kernel, ``(w, sxy)``.
        bilateral: weight, pixel deviation and colour deviation of the appearance kernel, ``(w, sxy,
            srgb)``.
        iterations: mean-field updates.
        gt_prob: the probability that a hard label is right (``unary_from_labels``); None for a
            unary from scores.
        used_by: who publishes or uses these numbers.
    """

    gaussian: tuple[float, float]
    bilateral: tuple[float, float, float]
    iterations: int
    gt_prob: float | None
    used_by: str


PRESETS: dict[str, CrfParameters] = {
    "P1": CrfParameters(
        (3, 3), (10, 80, 13), 10, None, "AffinityNet labels and final masks: psa, SEAM, SC-CAM, MVA"
    ),
    "P1-seam": CrfParameters((3, 3), (10, 80, 13), 1, None, "SEAM after the random walk"),
    "P2": CrfParameters((3, 3), (10, 50, 5), 10, 0.7, "IR labels: IRN, VWE, CPN"),
    "P3": CrfParameters((3, 1), (4, 67, 3), 10, None, "DeepLab-v2 ResNet-101, after the softmax"),
    "P4": CrfParameters(
        (3, 3), (10, 32, 13), 1, None, "DeepLab-LargeFOV ResNet-38, after the softmax"
    ),
    "P5": CrfParameters((3, 3), (10, 50, 13), 5, None, "CPN's copy of psa's function"),
    "P6": CrfParameters((3, 1), (4, 64, 3), 10, None, "VWE v2 seeds"),
    "P7": CrfParameters((3, 3), (4, 64, 5), 10, None, "AFA-type, after the softmax"),
}


def preset(name: str) -> CrfParameters:
    """The parameters of a preset.

    Raises:
        ConfigError: there is no such preset.
    """
    if name not in PRESETS:
        raise ConfigError(f"unknown CRF preset {name!r}", nearest(name, PRESETS))
    return PRESETS[name]


def choose_backend(name: str) -> str:
    """``pydensecrf`` or ``torch``; ``auto`` is pydensecrf where it is installed.

    Raises:
        ConfigError: unknown name, or pydensecrf is not installed.
    """
    if name not in BACKENDS:
        raise ConfigError(f"unknown CRF back end {name!r}", nearest(name, BACKENDS))
    has_wrapper = importlib.util.find_spec("pydensecrf") is not None
    if name == "pydensecrf" and not has_wrapper:
        raise ConfigError(
            "the CRF back end 'pydensecrf' is not installed",
            "the package pydensecrf2 (Python below 3.13)",
            "use the back end 'torch', which gives the same masks, or pip install pydensecrf2",
        )
    return name if name != "auto" else "pydensecrf" if has_wrapper else "torch"


def unary_from_softmax(scores: npt.ArrayLike) -> Float:
    """``-log(clip(p, 1e-5, 1))`` as float32, for scores ``[C,H,W]`` that need not sum to one."""
    # The floor of pydensecrf's own helper: an impossible label would have infinite energy.
    p = np.clip(np.asarray(scores, np.float32), np.float32(1e-5), np.float32(1))
    energies: Float = -np.log(p)
    return energies


def unary_from_labels(labels_HW: npt.ArrayLike, num_labels: int, gt_prob: float) -> Float:
    """Energies ``float32 [C,H,W]`` of hard labels ``0..C-1`` that are right with ``gt_prob``.

    The other labels share the rest of the probability evenly.

    Raises:
        ConfigError: ``gt_prob`` outside (0, 1), or a label outside 0..C-1.
    """
    labels = np.asarray(labels_HW)
    if not 0 < gt_prob < 1:
        raise ConfigError(f"gt_prob is {gt_prob}", "a probability between 0 and 1")
    if labels.min(initial=0) < 0 or labels.max(initial=0) >= num_labels:
        raise ConfigError(
            f"labels run from {labels.min()} to {labels.max()}",
            f"0 to {num_labels - 1}, without ignored pixels",
        )
    # With one label there is no other to share the rest.
    other = (1 - gt_prob) / max(num_labels - 1, 1)
    is_label = np.arange(num_labels).reshape(-1, 1, 1) == labels
    right, wrong = np.float32(-np.log(gt_prob)), np.float32(-np.log(other))
    energies: Float = np.where(is_label, right, wrong)
    return energies


class DenseCrf:
    """The kernels of one image, built once for any number of unaries, with identical results.

    Args:
        image_HW3: ``uint8 [H,W,3]``; the order of the channels does not matter.
        gaussian: ``(w, sxy)``.
        bilateral: ``(w, sxy, srgb)``.
        backend: ``auto``, ``pydensecrf`` or ``torch``.
        device: of the torch back end; pydensecrf computes on the CPU.

    Raises:
        ConfigError: an image of another type or shape, or impossible parameters.
    """

    def __init__(
        self,
        image_HW3: npt.NDArray[np.uint8],
        gaussian: tuple[float, float],
        bilateral: tuple[float, float, float],
        backend: str = "auto",
        device: str = "cpu",
    ) -> None:
        # The wrapper refuses read-only memory, and Pillow's arrays are read-only.
        image = np.require(image_HW3, requirements=["C", "W"])
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
            raise ConfigError(
                f"the CRF got a {image.dtype} image of shape {image.shape}", "uint8 [H,W,3] RGB"
            )
        if min(gaussian[0], bilateral[0]) < 0 or min(*gaussian[1:], *bilateral[1:]) <= 0:
            raise ConfigError(
                f"CRF kernels gaussian={gaussian} bilateral={bilateral}",
                "weights >= 0 and deviations > 0",
            )
        self.image, self.gaussian, self.bilateral = image, gaussian, bilateral
        self.backend, self.device = choose_backend(backend), device
        self._wrapper: tuple[int, Any] | None = None
        self._lattices: list[tuple[float, Lattice]] | None = None

    def infer(self, unary_CHW: npt.ArrayLike, iterations: int) -> Float:
        """Probabilities ``float32 [C,H,W]`` after ``iterations`` parallel mean-field updates.

        Raises:
            ConfigError: the unary does not fit the image, or is not finite.
        """
        unary = np.require(unary_CHW, np.float32, ["C", "W"])
        size = self.image.shape[:2]
        if unary.ndim != 3 or unary.shape[1:] != size or unary.shape[0] == 0:
            raise ConfigError(
                f"the CRF got a unary of shape {unary.shape}",
                f"[C,{size[0]},{size[1]}] as the image",
            )
        if not np.isfinite(unary).all() or iterations < 0:
            raise ConfigError(
                f"unary not finite, or iterations = {iterations}",
                "finite energies and iterations >= 0",
            )
        # With one label there is nothing to decide.
        if unary.shape[0] == 1:
            return np.ones_like(unary)
        infer = self._infer_wrapper if self.backend == "pydensecrf" else self._infer_torch
        return infer(unary.reshape(unary.shape[0], -1), iterations).reshape(unary.shape)

    def _infer_wrapper(self, unary_CN: Float, iterations: int) -> Float:
        from pydensecrf.densecrf import DenseCRF2D

        height, width = self.image.shape[:2]
        labels = unary_CN.shape[0]
        # pydensecrf fixes the number of labels when it builds the kernels.
        if self._wrapper is None or self._wrapper[0] != labels:
            crf = DenseCRF2D(width, height, labels)
            (w, sxy), (wb, sxy_b, srgb) = self.gaussian, self.bilateral
            crf.addPairwiseGaussian(sxy=sxy, compat=w)
            crf.addPairwiseBilateral(sxy=sxy_b, srgb=srgb, rgbim=self.image, compat=wb)
            self._wrapper = (labels, crf)
        crf = self._wrapper[1]
        crf.setUnaryEnergy(unary_CN)
        return np.array(crf.inference(iterations), dtype=np.float32)

    def _infer_torch(self, unary_CN: Float, iterations: int) -> Float:
        import torch

        from trainer.refine.lattice import image_lattices, mean_field

        with torch.inference_mode():
            if self._lattices is None:
                self._lattices = image_lattices(
                    self.image, self.gaussian, self.bilateral, self.device
                )
            unary_NC = torch.from_numpy(unary_CN).to(self.device).T.contiguous()
            q_NC = mean_field(unary_NC, self._lattices, iterations)
            q: Float = q_NC.T.contiguous().cpu().numpy()
        return q


def dense_crf(
    image_HW3: npt.NDArray[np.uint8],
    unary_CHW: npt.ArrayLike,
    iterations: int,
    gaussian: tuple[float, float],
    bilateral: tuple[float, float, float],
    backend: str = "pydensecrf",
    device: str = "cpu",
) -> Float:
    """Mean-field probabilities ``float32 [C,H,W]`` of one image and one unary.

    The arguments are those of ``DenseCrf``. With pairwise weights ``w_m`` and kernels ``K_m``
    normalised on both sides, one update is
    ``Q(l,i) <- softmax_l(-U(l,i) + sum_m w_m n_m(i) sum_j K_m(i,j) n_m(j) Q(l,j))``.

    Raises:
        ConfigError: shapes, types, parameters or back end are not usable.
    """
    return DenseCrf(image_HW3, gaussian, bilateral, backend, device).infer(unary_CHW, iterations)
