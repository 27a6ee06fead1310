# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from original_sam import SIZES, build, masks
from transformers import CLIPVisionConfig, LlamaConfig

from lisa_ros.errors import CheckpointError
from lisa_ros.model.checkpoint_checks import check_keys
from lisa_ros.model.key_mapping import map_sam_key, unmap_sam_key
from lisa_ros.model.lisa import LISA
from lisa_ros.model.lisa_config import LisaConfig, sam_config
from lisa_ros.model.sam_file import load_sam_pth

pytestmark = pytest.mark.parity


def lisa_around(sam_config) -> LISA:
    """Return a LISA with this SAM and minimal other parts."""
    small = {'hidden_size': 8, 'intermediate_size': 8, 'num_hidden_layers': 1}
    width = sam_config.prompt_encoder_config.hidden_size
    return LISA(
        LisaConfig(
            clip=CLIPVisionConfig(**small, num_attention_heads=1, image_size=28, patch_size=14),
            llama=LlamaConfig(**small, num_attention_heads=1, vocab_size=8, pad_token_id=None),
            sam=sam_config,
            seg_token_id=7,
            out_dim=width,
        )
    ).eval()


def build_config():
    return sam_config(
        image_size=128, width=32, depth=1, heads=2, global_layers=(0,), prompt_width=32
    )


@pytest.mark.parametrize('name', SIZES)
def test_a_loaded_sam_file_gives_the_outputs_of_segment_anything(name, tmp_path):
    size = SIZES[name]
    original = build(size)
    torch.save(original.state_dict(), tmp_path / 'sam.pth')
    config, state = load_sam_pth(tmp_path / 'sam.pth')
    ours = lisa_around(config)
    ours.sam.load_state_dict(state)  # strict: none missing, none unexpected

    pixels, prompts = torch.randn(1, 3, size.image, size.image), torch.randn(3, size.prompt)
    grid, low_res, iou = masks(original, pixels, prompts)
    with torch.no_grad():
        our_grid = ours.encode_sam(pixels)
        our_low_res, our_iou = ours.decode_masks(grid, prompts)
    torch.testing.assert_close(our_grid, grid, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(our_low_res, low_res, atol=2e-4, rtol=1e-4)
    torch.testing.assert_close(our_iou, iou, atol=2e-5, rtol=1e-4)


def test_the_grid_position_encoding_is_segment_anythings(tmp_path):
    original = build(SIZES['other patch and ratio'])
    torch.save(original.state_dict(), tmp_path / 'sam.pth')
    config, state = load_sam_pth(tmp_path / 'sam.pth')
    ours = lisa_around(config)
    ours.sam.load_state_dict(state)
    expected = original.prompt_encoder.get_dense_pe()
    torch.testing.assert_close(ours.sam.grid_positions(), expected, atol=1e-5, rtol=0)


def test_no_prompt_gives_no_mask():
    ours = lisa_around(build_config())
    low_res, iou = ours.decode_masks(torch.zeros(1, 32, 8, 8), torch.zeros(0, 32))
    assert (low_res.shape, iou.shape) == ((0, 32, 32), (0,))


def test_an_untrained_sam_has_varied_features():
    ours = lisa_around(build_config())
    frequencies = ours.sam.prompt_encoder.shared_embedding.positional_embedding
    assert not frequencies.requires_grad
    assert 0.5 < frequencies.std() < 1.5
    assert ours.encode_sam(torch.randn(1, 3, 128, 128)).std() > 0.1


@pytest.mark.parametrize('name', SIZES)
def test_every_key_maps_back_to_segment_anythings(name):
    for key in build(SIZES[name]).state_dict():
        ours = map_sam_key(key)
        assert ours is None or unmap_sam_key(ours) == key


def test_a_sam_with_another_head_or_rank_is_refused(tmp_path):
    state = build(SIZES['as ViT-H in small']).state_dict()
    head = 'mask_decoder.iou_prediction_head.layers'
    torch.save(state | {f'{head}.3.weight': torch.zeros(4, 4)}, tmp_path / 'deep.pth')
    config, deep = load_sam_pth(tmp_path / 'deep.pth')
    with pytest.raises(CheckpointError, match=r'1 unexpected: .*iou_prediction_head\.layers\.3'):
        check_keys(
            lisa_around(config).sam, {key: tuple(w.shape) for key, w in deep.items()}, 'deep'
        )
    torch.save(state | {'image_encoder.pos_embed': torch.zeros(4)}, tmp_path / 'flat.pth')
    with pytest.raises(CheckpointError, match='impossible sizes'):
        load_sam_pth(tmp_path / 'flat.pth')


def test_a_file_that_is_not_a_sam_is_refused(tmp_path):
    torch.save({'weight': torch.zeros(3)}, tmp_path / 'other.pth')
    with pytest.raises(CheckpointError, match=r'lacks image_encoder\.pos_embed'):
        load_sam_pth(tmp_path / 'other.pth')
    with pytest.raises(CheckpointError, match='no such file'):
        load_sam_pth(tmp_path / 'none.pth')
