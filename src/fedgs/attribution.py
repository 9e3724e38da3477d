"""Where a network looks: what in an image speaks for the lesion that it marks there."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedgs.errors import ConfigError, MissingExtraError
from fedgs.models import segment
from fedgs.models.outputs import Segments, log_probabilities

__all__ = ["Attribution", "attribute", "layer_of"]

_COARSER = 4
_PATCHES = 8
_STEPS = 32
_AT_ONCE = 4
_SMALLEST = 1e-30


class Attribution(NamedTuple):
    """What speaks for a lesion, by two methods that fail in different ways.

    Attributes:
        grad_cam: Layer Grad-CAM, (H, W), 0 or above: where features stand that raise the score; coarse.
        gradients: Integrated gradients, summed over the colours, (H, W), signed: how much each pixel raises the score
            beyond that of the same image blurred; they add up to the difference of the two scores.
        layer: Name of the layer that Grad-CAM looks at, and the size of its maps.
        score: Mean logarithm of the odds of lesion over the region.
        gap: What integrated gradients miss of the difference of the scores, as a share of it.
    """

    grad_cam: Tensor
    gradients: Tensor
    layer: str
    score: float
    gap: float


def attribute(model: nn.Module, image: Tensor, region: Tensor) -> Attribution:
    """Asks a network what speaks for the lesion in a region of an image.

    Args:
        model: A network with two classes; put into evaluation mode.
        image: (C, H, W), float.
        region: Pixels whose odds of lesion are explained, (H, W), bool, at least one.

    Raises:
        ConfigError: The network has no layer with maps of features, or the region is empty.
        MissingExtraError: captum is not installed.

    Source: Selvaraju et al., Grad-CAM, ICCV 2017; Sundararajan et al., Axiomatic attribution for deep networks, ICML
    2017; both as implemented in Captum.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from captum.attr import IntegratedGradients, LayerGradCam
    except ImportError as error:
        raise MissingExtraError("explain", "'fedgs explain'") from error
    if not region.any():
        raise ConfigError("attribution needs a region of at least one pixel, got none")
    model.eval()
    inside = region.to(image.device)

    def score(images: Tensor) -> Tensor:
        logarithms = _log_probabilities(model, images)
        return (logarithms[:, 1] - logarithms[:, 0])[:, inside].mean(1)

    images = image[None]
    name, layer = layer_of(model, images)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of captum, over what it does to the hooks of layers
        coarse = LayerGradCam(score, layer).attribute(images, relu_attributions=True)
        blurred = _blurred(images)
        gradients, gap = IntegratedGradients(score).attribute(
            images, blurred, n_steps=_STEPS, internal_batch_size=_AT_ONCE, return_convergence_delta=True
        )
    with torch.no_grad():
        reached, start = (score(each).item() for each in (images, blurred))
    fine = functional.interpolate(coarse, images.shape[-2:], mode="bilinear", align_corners=False)
    return Attribution(
        grad_cam=fine[0, 0].detach().cpu(),
        gradients=gradients[0].sum(0).detach().cpu(),
        layer=f"{name} ({coarse.shape[-2]} x {coarse.shape[-1]})",
        score=reached,
        gap=abs(gap.item()) / max(abs(reached - start), 1e-6),
    )


def _log_probabilities(model: nn.Module, images: Tensor) -> Tensor:
    """From logits where a network gives them: a sure network's probability may be rounded to 0, which has no slope."""
    if isinstance(model, Segments):
        return model.segment(images).clamp_min(_SMALLEST).log()
    return log_probabilities(model(images))


def _blurred(images: Tensor) -> Tensor:
    """No small lesion is left in it, yet unlike a plain colour it has something to normalise by."""
    patches = functional.adaptive_avg_pool2d(images, _PATCHES)
    return functional.interpolate(patches, images.shape[-2:], mode="bilinear", align_corners=False)


def layer_of(model: nn.Module, images: Tensor) -> tuple[str, nn.Module]:
    """Finds the layer that Grad-CAM looks at, by what the network does and not by what it is called.

    That is the last one, in the order of the forward pass, whose maps are at least four times coarser than the image:
    late enough to know what a lesion is, coarse enough not to be the segmentation itself. A network that never gets so
    coarse gives the last of its coarsest ones that is not shaped like the segmentation.

    Args:
        model: A network in evaluation mode.
        images: (B, C, H, W), of the size that is to be explained.

    Returns:
        Name and module.

    Raises:
        ConfigError: No layer gives maps of features.
    """
    height = images.shape[-2]
    seen: list[tuple[torch.Size, str, nn.Module]] = []

    def look(name: str, module: nn.Module, output: object) -> None:
        if isinstance(output, Tensor) and output.ndim == 4 and output.shape[-2] > 1:
            seen.append((output.shape, name, module))

    watches = [
        module.register_forward_hook(lambda module, given, output, name=name: look(name, module, output))
        for name, module in model.named_modules()
        if name
    ]
    try:
        with torch.no_grad():
            segmentation = segment(model, images)
    finally:
        for watch in watches:
            watch.remove()
    seen = [(shape, name, module) for shape, name, module in seen if shape != segmentation.shape]
    if not seen:
        raise ConfigError(f"{type(model).__name__}: none of its layers gives maps of features that could be shown")
    coarsest = min(shape[-2] for shape, _, _ in seen)
    enough = max(coarsest, height // _COARSER)
    return next((name, module) for shape, name, module in reversed(seen) if shape[-2] <= enough)
