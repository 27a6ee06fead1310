# SPDX-License-Identifier: Apache-2.0
"""SAM's mask decoder with the projections moved to the tokens: the masks of transformers."""

import pytest
import torch
from transformers.models.sam.configuration_sam import SamMaskDecoderConfig
from transformers.models.sam.modeling_sam import SamMaskDecoder

from lisa_ros.model import sam_decoder


def decoder(**sizes):
    torch.manual_seed(0)
    defaults = {
        'hidden_size': 32,
        'num_hidden_layers': 2,
        'num_attention_heads': 4,
        'mlp_dim': 48,
        'iou_head_hidden_dim': 24,
    }
    config = SamMaskDecoderConfig(**{**defaults, **sizes})
    config._attn_implementation = 'sdpa'
    model = SamMaskDecoder(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith('bias'):
                weight.normal_(0, 0.3)
    return model


@pytest.mark.parametrize(
    'sizes',
    [
        {},
        {'num_hidden_layers': 1},
        {'num_hidden_layers': 3},
        {'attention_downsample_rate': 1},
        {'num_multimask_outputs': 1},
        {'hidden_size': 256, 'num_attention_heads': 8},
    ],
    ids=str,
)
@pytest.mark.parametrize('images', ['one image', 'an image for each prompt'])
@pytest.mark.parametrize(('height', 'width'), [(9, 9), (5, 7), (30, 24)])
@torch.inference_mode()
def test_the_masks_are_those_of_transformers(sizes, images, height, width):
    model = decoder(**sizes)
    channels, count = model.hidden_size, 3
    shape = (channels, height, width)
    embedding = torch.randn(1 if images == 'one image' else count, *shape)
    dense = torch.randn(1, channels)
    positions, prompts = torch.randn(1, *shape), torch.randn(count, channels)
    expected, expected_iou = model(
        image_embeddings=embedding.expand(count, -1, -1, -1),
        image_positional_embeddings=positions,
        sparse_prompt_embeddings=prompts[:, None, None],
        dense_prompt_embeddings=dense[:, :, None, None],
        multimask_output=False,
    )
    masks, iou = sam_decoder.decode(model, embedding, dense, positions, prompts)
    torch.testing.assert_close(masks, expected[:, 0, 0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(iou, expected_iou[:, 0, 0], atol=1e-5, rtol=1e-4)
