# SPDX-License-Identifier: Apache-2.0
"""Images are prepared for a GPU with the pixels of Pillow."""

import numpy as np
import pytest
import torch
from golden import load_image
from PIL import Image

from lisa_ros.errors import ImageError
from lisa_ros.model.image_preparation import (
    GpuPreparation,
    PillowPreparation,
    image_preparation,
)
from lisa_ros.model.image_processing import ClipPreprocessing

CPU = torch.device('cpu')
CLIPS = {
    'LISA': ClipPreprocessing.of_size(224),
    'LLaVA-1.5': ClipPreprocessing.of_size(336),
    'bilinear': ClipPreprocessing(size=48, crop=(48, 48), resample=Image.Resampling.BILINEAR),
    'a larger crop than image': ClipPreprocessing(size=40, crop=(64, 52)),
}
SHAPES = [(480, 640), (640, 480), (1080, 1920), (100, 37), (224, 224), (3, 300), (1, 1)]


def image(height: int, width: int) -> np.ndarray:
    """Return a photo with sharp edges, (H, W, 3) uint8."""
    photo = np.array(Image.fromarray(load_image('astronaut')).resize((width, height)))
    photo[height // 3 : height // 2, ::2] = 255
    photo[:, width // 2 :] //= 3
    return photo


@pytest.mark.parametrize('shape', SHAPES)
@pytest.mark.parametrize('clip', CLIPS.values(), ids=CLIPS)
def test_pixels_are_those_of_pillow(clip, shape):
    expected = PillowPreparation(clip, 128, CPU).prepare(image(*shape))
    prepared = GpuPreparation(clip, 128, CPU).prepare(image(*shape))
    assert torch.equal(prepared.clip, expected.clip)
    assert torch.equal(prepared.sam, expected.sam)


@pytest.mark.parametrize('bad', [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32)])
def test_other_arrays_are_refused(bad):
    with pytest.raises(ImageError, match='expected'):
        GpuPreparation(CLIPS['LISA'], 128, CPU).prepare(bad)


def test_what_the_gpu_cannot_prepare_is_prepared_by_pillow():
    lanczos = ClipPreprocessing(size=48, crop=(48, 48), resample=Image.Resampling.LANCZOS)
    cuda = torch.device('cuda')
    squashed = ClipPreprocessing(size=(60, 90), crop=(56, 80))
    assert not GpuPreparation.can_prepare(squashed)
    assert not GpuPreparation.can_prepare(lanczos)
    assert isinstance(image_preparation(lanczos, 128, cuda), PillowPreparation)
    assert isinstance(image_preparation(CLIPS['LISA'], 128, CPU), PillowPreparation)
