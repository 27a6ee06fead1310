# SPDX-License-Identifier: Apache-2.0
"""Masks that are decoded together are those of each alone."""

import numpy as np
import pytest
import torch

from lisa_ros.errors import ModelError
from lisa_ros.model import lisa
from lisa_ros.model.point_prompts import PointRule
from lisa_ros.perception import mask_decoder
from lisa_ros.perception.image_encoder import StageTimer
from lisa_ros.perception.mask_decoder import MaskOptions, MaskRequest, SegToken
from lisa_ros.perception.masks import iou
from lisa_ros.segmenter import Segmenter

SHAPES = [(480, 640), (300, 200), (480, 640)]
PLAIN = MaskOptions(refine=False, point_rule=None)
POINTS = MaskOptions(refine=True, point_rule=PointRule())
MANY = MaskOptions(refine=False, point_rule=PointRule(count=60, inside=0.6))


@pytest.fixture(scope='module')
def backend():
    return Segmenter.load(device='cpu').backend


@pytest.fixture(scope='module')
def images(backend):
    """Three images of two sizes, with states of their image tokens."""
    random, encoded = np.random.default_rng(4), []
    generator = torch.Generator().manual_seed(4)
    config = backend.model.config
    for height, width in SHAPES:
        cells = random.integers(0, 256, (height // 20, width // 20, 3), np.uint8)
        image = np.kron(cells, np.ones((20, 20, 1), np.uint8))
        encoded.append(backend.encoder.encode(image, StageTimer(torch.device('cpu'))))
        states = torch.randn(config.image_tokens, config.llama.hidden_size, generator=generator)
        encoded[-1].image_states = states
    return encoded


@pytest.fixture(scope='module')
def requests(backend, images):
    """Seven masks of three images, with and without points."""
    generator = torch.Generator().manual_seed(5)
    width = backend.model.config.llama.hidden_size
    options = (PLAIN, POINTS, PLAIN, PLAIN, MANY, POINTS, PLAIN)
    return [
        MaskRequest(
            SegToken(torch.randn(width, generator=generator), 0.9, 0.8),
            images[image],
            own,
            StageTimer(torch.device('cpu')),
        )
        for image, own in zip((0, 1, 2, 1, 0, 2, 0), options, strict=True)
    ]


@pytest.mark.parametrize(('at_once', 'kernels'), [(16, 'cpu'), (2, 'cpu'), (16, 'gpu')])
def test_masks_of_several_images_are_those_of_each_alone(
    backend, requests, at_once, kernels, monkeypatch
):
    decoder = backend._mask_decoder
    monkeypatch.setattr(lisa, '_is_inference_on_cpu', lambda weight: kernels == 'cpu')
    expected = [decoder.decode(request) for request in requests]
    sizes, decode = [], backend.model.decode_masks

    def count(features, prompts, points=None):
        sizes.append(len(prompts))
        return decode(features, prompts, points)

    monkeypatch.setattr(backend.model, 'decode_masks', count)
    monkeypatch.setattr(mask_decoder, 'MASKS_AT_ONCE', at_once)
    masks = decoder.decode_batch(requests)
    assert max(sizes) == min(at_once, 4)  # those without points
    assert sum(sizes) == len(requests)
    for own, other, request in zip(masks, expected, requests, strict=True):
        assert own.logits.shape == request.encoded.image.shape[:2]
        np.testing.assert_allclose(own.logits, other.logits, atol=5e-3)
        assert iou(own.logits > 0, other.logits > 0) >= 0.999
        assert own.score == pytest.approx(other.score, abs=1e-4)
        assert own.features.predicted_iou == pytest.approx(other.features.predicted_iou, abs=1e-4)


def test_points_change_a_mask(backend, requests):
    """Otherwise the test above would not see points that are lost or exchanged."""
    decoder, request = backend._mask_decoder, requests[1]
    plain = MaskRequest(request.seg, request.encoded, PLAIN, request.timer)
    with_points, without = decoder.decode_batch([request, plain])
    assert np.abs(with_points.logits - without.logits).max() > 0.1


def test_a_mask_that_is_not_finite_is_an_error_of_its_own(backend, requests):
    broken = MaskRequest(
        SegToken(torch.full_like(requests[0].seg.state, torch.nan)),
        requests[0].encoded,
        PLAIN,
        StageTimer(torch.device('cpu')),
    )
    decoder = backend._mask_decoder
    first, error, second = decoder.decode_batch([requests[0], broken, requests[2]])
    assert isinstance(error, ModelError)
    assert 'hidden state of [SEG]' in str(error)
    for own, request in ((first, requests[0]), (second, requests[2])):
        np.testing.assert_allclose(own.logits, decoder.decode(request).logits, atol=5e-3)
    with pytest.raises(ModelError, match='hidden state'):
        decoder.decode(broken)
    assert decoder.decode_batch([]) == []
