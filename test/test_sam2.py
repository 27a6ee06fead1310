# SPDX-License-Identifier: Apache-2.0
"""SAM 2 for images: masks equal those of the `sam2` package, and files are checked."""

import json

import numpy as np
import pytest
import torch
from toy_sam2 import GOLDEN, IMAGES, PROMPTS, SIDE, SPACING, toy_config, toy_image, toy_model
from transformers import Sam2Model, Sam2VideoConfig, Sam2VideoModel

from lisa_ros.errors import CheckpointError, ImageError, ModelError
from lisa_ros.model.limits import Limits
from lisa_ros.model.sam2 import Sam2
from lisa_ros.perception.masks import iou

CPU = torch.device('cpu')


@pytest.fixture(scope='module')
def sam2():
    return Sam2(toy_model())


@pytest.fixture(scope='module')
def golden():
    with np.load(GOLDEN) as file:
        return dict(file)


@pytest.fixture
def folder(tmp_path):
    toy_model().save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize('name', IMAGES)
def test_masks_are_those_of_the_sam2_package(name, sam2, golden):
    image = toy_image(name)
    features = sam2.encode(image)
    for prompt, where in PROMPTS.items():
        expected = np.unpackbits(golden[f'{name}/{prompt}/mask'])[: image[..., 0].size]
        expected = expected.reshape(image.shape[:2]).astype(bool)
        mask = sam2.decode(features, *where)
        assert 0.02 < expected.mean() < 0.98, prompt  # neither empty nor all
        assert iou(mask.logits > 0, expected) >= 0.999, prompt
        logits = golden[f'{name}/{prompt}/logits']
        difference = np.abs(mask.logits[::SPACING, ::SPACING] - logits).max()
        assert difference < 1e-4 * np.abs(logits).max(), prompt
        assert mask.predicted_iou == pytest.approx(float(golden[f'{name}/{prompt}/iou']), abs=1e-4)


def test_prompts_change_the_mask_and_images_the_features(sam2):
    features = [sam2.encode(toy_image(name)) for name in IMAGES]
    box, _ = PROMPTS['box']
    masks = [sam2.decode(each, box).logits for each in features]
    assert not np.allclose(*masks)
    with_point = sam2.decode(features[0], *PROMPTS['box and point']).logits
    assert not np.allclose(with_point, masks[0])
    again = sam2.decode(features[0], box).logits
    assert np.array_equal(again, masks[0])  # the features are unchanged


def test_presence_is_the_object_score(sam2):
    model = toy_model()
    with torch.no_grad():
        model.mask_decoder.pred_obj_score_head.proj_out.bias += 20
    features = sam2.encode(toy_image('coffee'))
    prompt = PROMPTS['box']
    assert 0 < sam2.decode(features, *prompt).presence < 1
    assert Sam2(model).decode(features, *prompt).presence > 0.999


@pytest.mark.parametrize('shape', [(1, 1), (7, 300), (2000, 3)])
def test_masks_have_the_size_of_the_image(shape, sam2):
    features = sam2.encode(np.zeros((*shape, 3), np.uint8))
    height, width = shape
    mask = sam2.decode(features, (0.0, 0.0, float(width), float(height)))
    assert (mask.logits.shape, mask.logits.dtype) == (shape, np.float32)


def test_an_image_of_another_type_is_refused(sam2):
    with pytest.raises(ImageError, match=r'expected \(H, W, 3\)'):
        sam2.encode(np.zeros((4, 4), np.uint8))


def test_a_model_that_computes_nan_is_an_error():
    model = toy_model()
    with torch.no_grad():
        model.mask_decoder.iou_token.weight.fill_(torch.nan)
    broken = Sam2(model)
    with pytest.raises(ModelError, match='NaN'):
        broken.decode(broken.encode(toy_image('coffee')), *PROMPTS['box'])


def test_a_saved_model_makes_the_same_masks(folder, sam2):
    loaded = Sam2.load(folder, CPU)
    prompt, image = PROMPTS['box and point'], toy_image('chelsea')
    masks = [each.decode(each.encode(image), *prompt).logits for each in (sam2, loaded)]
    assert np.allclose(*masks, atol=1e-2)  # of 100; attention may be computed in another order


def test_weights_of_the_video_model_contain_the_image_model(tmp_path, sam2):
    """The released facebook/sam2.1-hiera-* are video models."""
    config = toy_config().to_dict()
    parts = ('vision_config', 'prompt_encoder_config', 'mask_decoder_config')
    video = Sam2VideoModel(
        Sam2VideoConfig(
            **{
                part: {k: v for k, v in config[part].items() if k != 'model_type'}
                for part in parts
            },
            image_size=SIDE,
            memory_attention_hidden_size=32,
            memory_attention_num_layers=1,
            memory_attention_feed_forward_hidden_size=32,
            memory_attention_rope_feat_sizes=[SIDE // 16] * 2,
            memory_encoder_hidden_size=32,
            memory_encoder_output_channels=16,
            mask_downsampler_embed_dim=32,
            memory_fuser_embed_dim=32,
            memory_fuser_intermediate_dim=32,
        )
    )
    _, unexpected = video.load_state_dict(toy_model().state_dict(), strict=False)
    assert not unexpected
    video.save_pretrained(tmp_path)
    loaded = Sam2.load(tmp_path, CPU)
    prompt, image = PROMPTS['box and point'], toy_image('chelsea')
    masks = [each.decode(each.encode(image), *prompt).logits for each in (sam2, loaded)]
    assert np.allclose(*masks, atol=1e-2)  # of 100; attention may be computed in another order


def change_config(folder, change):
    path = folder / 'config.json'
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda config: config.update(model_type='sam3'), "names the type 'sam3'; expected sam2"),
        (
            lambda config: config['mask_decoder_config'].update(num_hidden_layers=10**9),
            'num_hidden_layers is 1000000000; the weights have',
        ),
        (
            lambda config: config['prompt_encoder_config'].update(image_size=128),
            'expected .* for an input of 128 pixels',
        ),
        (
            lambda config: config['prompt_encoder_config'].update(image_size=4096),
            'image_size is 4096; expected at most 1024 pixels',
        ),
    ],
)
def test_a_config_that_claims_something_else_is_refused(change, message, folder):
    change_config(folder, change)
    with pytest.raises(CheckpointError, match=message):
        Sam2.load(folder, CPU)


def test_weights_that_do_not_fit_into_the_memory_are_refused(folder):
    with pytest.raises(CheckpointError, match='more than the limit'):
        Sam2.load(folder, CPU, Limits(memory=1e-6))


def test_missing_weights_are_an_error(folder):
    state = toy_model().state_dict()
    del state['mask_decoder.iou_token.weight']
    Sam2Model(toy_config()).save_pretrained(folder, state_dict=state)
    with pytest.raises(CheckpointError, match=r'missing.*iou_token'):
        Sam2.load(folder, CPU)
