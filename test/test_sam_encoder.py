# SPDX-License-Identifier: Apache-2.0
"""SAM's vision encoder without tensors of relative positions: the features of transformers."""

import pytest
import torch
from transformers.models.sam.configuration_sam import SamVisionConfig
from transformers.models.sam.modeling_sam import SamVisionEncoder

from lisa_ros.model import sam_encoder


def encoder(**sizes):
    torch.manual_seed(0)
    defaults = {
        'hidden_size': 48,
        'num_hidden_layers': 3,
        'num_attention_heads': 3,
        'output_channels': 16,
        'image_size': 160,
        'window_size': 4,
        'global_attn_indexes': [1],
    }
    config = SamVisionConfig(**{**defaults, **sizes})
    config._attn_implementation = 'sdpa'
    model = SamVisionEncoder(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if 'rel_pos' in name or 'pos_embed' in name or name.endswith('bias'):
                weight.normal_(0, 0.3)
    return model


@pytest.mark.parametrize(
    'sizes',
    [
        {},  # 10 x 10 cells: windows of 4 are padded
        {'image_size': 128},
        {'window_size': 7},
        {'window_size': 14},
        {'use_rel_pos': False},
        {'use_abs_pos': False},
        {'qkv_bias': False},
        {'global_attn_indexes': []},
    ],
    ids=str,
)
@pytest.mark.parametrize('wide', [False, True], ids=['in blocks', 'wide'])
@torch.inference_mode()
def test_the_features_are_those_of_transformers(sizes, wide, monkeypatch):
    if wide:  # the way of a GPU
        monkeypatch.setattr(sam_encoder, '_attend_in_blocks', sam_encoder._attend_wide)
    model = encoder(**sizes)
    side = model.config.image_size
    pixels = torch.randn(2, 3, side, side)
    expected = model(pixels).last_hidden_state
    features = sam_encoder.encode(model, pixels)
    assert features.shape == expected.shape
    torch.testing.assert_close(features, expected, atol=2e-5, rtol=1e-4)
