# SPDX-License-Identifier: Apache-2.0
"""SAM 2 for images: a box and points in, the mask of one object out.

Image and prompts are prepared as the `sam2` package does (test/test_sam2.py compares the masks
with those of its `SAM2ImagePredictor`); the network is transformers' `Sam2Model`, whose processor
needs torchvision and is not used. Always float32: 0.9 GB for Hiera-L, and half precision moves
the boundaries of masks.

Paper: arxiv.org/abs/2408.00714. Letters: H x W the image [px], S the side of the network's input.
Threads: one thread at a time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Sam2Model

from lisa_ros.errors import CheckpointError
from lisa_ros.model.finite import check_finite
from lisa_ros.model.image_processing import check_rgb
from lisa_ros.model.limits import Limits
from lisa_ros.model.transformers_folder import check_claims, load_model, read_model_type
from lisa_ros.model.weight_files import Shapes, WeightFiles

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, RGB 0..1
_STRIDES = (4, 8, 16)  # of the feature maps [px of the network's input]


@dataclass(frozen=True)
class Sam2Features:
    """An image as SAM 2 sees it; usable for any number of prompts."""

    maps: list[Tensor]  # (1, C, S / stride, S / stride) for each of _STRIDES
    shape: tuple[int, int]  # (H, W)


@dataclass(frozen=True)
class Sam2Mask:
    """The mask of one object."""

    logits: np.ndarray  # (H, W) float32
    predicted_iou: float  # IoU with the ground truth, as SAM 2 predicts it, 0..1
    presence: float  # probability that the object is in the image, 0..1


def sam2_bytes(shapes: Shapes) -> int:
    """Return the memory of the weights, which are float32 whatever the file has [bytes]."""
    return 4 * sum(map(math.prod, shapes.values()))


class Sam2:
    """A loaded SAM 2."""

    def __init__(self, model: Sam2Model):
        """Wrap a model in eval mode; it runs on the device where its weights are.

        Raises:
            CheckpointError: its feature maps do not have the strides of SAM 2.
        """
        self._model = model
        self.side = model.config.prompt_encoder_config.image_size  # S
        sizes = [[self.side // stride] * 2 for stride in _STRIDES]
        if [list(size) for size in model.backbone_feature_sizes] != sizes:
            raise CheckpointError(
                f'a SAM 2 with feature maps of {model.backbone_feature_sizes}; expected {sizes} '
                f'for an input of {self.side} pixels'
            )

    @classmethod
    def load(cls, folder: Path, device: torch.device, limits: Limits | None = None) -> Sam2:
        """Load the weights of SAM 2 or 2.1 in the format of transformers, from safetensors.

        Args:
            folder: such as a download of facebook/sam2.1-hiera-large. Its weights may be those of
                the video model, which contains the image model.
            device: of the model.
            limits: of the input and the memory.

        Raises:
            CheckpointError: a model of another type, or one whose files are damaged or too large.
        """
        limits = limits or Limits()
        model_type = read_model_type(folder)
        if model_type not in ('sam2', 'sam2_video'):
            raise CheckpointError(
                f'{folder}: config.json names the type {model_type!r}; expected sam2 or '
                'sam2_video: use weights in the format of transformers, such as '
                'facebook/sam2.1-hiera-large'
            )
        check_claims(folder)
        shapes = WeightFiles.of_folder(folder).shapes()
        limits.check_memory(sam2_bytes(shapes), str(device), folder)
        model = load_model(Sam2Model, folder, 'SAM 2', torch.float32)
        side = model.config.prompt_encoder_config.image_size
        if side > limits.input_side:
            raise CheckpointError(
                f'{folder}/config.json: image_size is {side}; expected at most '
                f'{limits.input_side} pixels; if you trust this model, set max_input_side'
            )
        return cls(model.to(device).eval())

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return self._model.device

    @torch.inference_mode()
    def encode(self, image: np.ndarray) -> Sam2Features:
        """Return the features of an image, (H, W, 3) uint8 RGB.

        Raises:
            ImageError: the image has another shape or type.
            ModelError: the features are not finite.
        """
        (features,) = self.encode_batch([image])
        return features

    @torch.inference_mode()
    def encode_batch(self, images: Sequence[np.ndarray]) -> list[Sam2Features]:
        """Return the features of images, (H, W, 3) uint8 RGB each, of any size; at least one.

        Raises:
            ImageError: an image has another shape or type.
            ModelError: the features are not finite.
        """
        maps = self._model.get_image_embeddings(torch.cat(list(map(self._pixels, images))))
        for features in maps:
            check_finite(features, "SAM 2's features of the image")
        # copies: a view would keep the features of all images in memory
        return [
            Sam2Features([own[i : i + 1].clone() for own in maps], image.shape[:2])
            for i, image in enumerate(images)
        ]

    def _pixels(self, image: np.ndarray) -> Tensor:
        """Return an image as the network gets it, (1, 3, S, S) float32."""
        pixels = torch.from_numpy(np.array(check_rgb(image))).to(self.device)
        pixels = pixels.permute(2, 0, 1)[None].float() / 255
        square = (self.side, self.side)
        pixels = F.interpolate(pixels, square, mode='bilinear', antialias=True)
        mean, std = (pixels.new_tensor(values)[:, None, None] for values in (_MEAN, _STD))
        return (pixels - mean) / std

    @torch.inference_mode()
    def decode(
        self,
        features: Sam2Features,
        box: Sequence[float] | None = None,
        points: Sequence[tuple[float, float]] = (),
    ) -> Sam2Mask:
        """Return the mask of one object: of three proposals, the one that is rated best.

        Args:
            features: of the image.
            box: left, top, right, bottom of the object in the image [px]; None: points alone.
            points: (x, y) on the object [px].

        Raises:
            ModelError: the mask or its scores are not finite.
        """
        height, width = features.shape
        scale = torch.tensor([self.side / width, self.side / height], device=self.device)
        prompts = {}
        if points:
            prompts['input_points'] = torch.tensor([[points]], device=self.device) * scale
            prompts['input_labels'] = torch.ones(
                (1, 1, len(points)), dtype=torch.int32, device=self.device
            )
        if box is not None:
            prompts['input_boxes'] = torch.tensor([[box]], device=self.device) * scale.tile(2)
        output = self._model(
            image_embeddings=list(features.maps), multimask_output=True, **prompts
        )
        proposals, ious = output.pred_masks[0, 0], output.iou_scores[0, 0]
        check_finite(proposals, 'the mask of SAM 2')
        check_finite(ious, 'the predicted IoU of a mask')
        check_finite(output.object_score_logits, "SAM 2's object score")
        best = int(ious.argmax())
        logits = F.interpolate(proposals[None, best, None], features.shape, mode='bilinear')[0, 0]
        return Sam2Mask(
            logits.cpu().numpy(),
            float(ious[best].clamp(0, 1)),
            float(output.object_score_logits.sigmoid()),
        )
