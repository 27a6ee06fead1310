# SPDX-License-Identifier: Apache-2.0
"""The model equals the original: every golden case, both sizes, both templates, and training."""

import numpy as np
import pytest
import torch
from golden import (
    DATA,
    SIZES,
    arrays,
    case_id,
    cases,
    new_ids,
    of_case,
    picture,
    segmenter,
    texts,
    unpack_runs,
    view,
)

from lisa_ros.model.checkpoint import Checkpoint
from lisa_ros.model.image_processing import clip_pixels, sam_input
from lisa_ros.model.lisa import LisaBatch
from lisa_ros.training.finetune import parity_check

pytestmark = pytest.mark.parity


@pytest.mark.parametrize(('size', 'case'), cases(), ids=case_id)
def test_answers_and_masks_are_the_originals(size, case):
    lisa = view(
        size,
        template=case['template'],
        max_new_tokens=case['max_new_tokens'],
        typed_specials=True,
    )
    result = lisa.segment(picture(case['image']), case['prompt'])
    segmenter(size)._picture = lisa._picture  # the next case may ask about the same picture

    assert list(result.token_ids) == new_ids(size, case)
    assert lisa.tokenizer.decode(result.token_ids) == case['decoded_new_raw']
    assert result.masks.shape == (case['n_seg'], *case['original_size'])
    full = of_case(size, case, 'full_s32')
    np.testing.assert_allclose(result.mask_logits[:, ::32, ::32], full, atol=5e-3)
    for index, mask in enumerate(result.masks):
        wanted = unpack_runs(of_case(size, case, f'mask_rle_{index}'), *mask.shape)
        assert (mask & wanted).sum() / (mask | wanted).sum() >= 0.999


@pytest.mark.parametrize('size', SIZES)
def test_the_state_before_each_seg_becomes_the_originals_prompt(size):
    lisa = segmenter(size)
    model, recipe = lisa.model, lisa.clip_recipe
    for _, case in cases(size):
        image = torch.from_numpy(clip_pixels(picture(case['image']), recipe))
        ids = torch.from_numpy(of_case(size, case, 'output_ids')).long()
        with torch.inference_mode():
            places = model.embed(ids, model.encode_clip(image[None])[0])
            states = model.llm.model(inputs_embeds=places[None]).last_hidden_state[0]
            before = of_case(size, case, 'seg_positions') + model.config.image_tokens - 2
            hidden = states[torch.from_numpy(before).long()]
            prompts = model.project_seg(hidden)
        assert len(places) == len(ids) - 1 + model.config.image_tokens
        np.testing.assert_allclose(hidden, of_case(size, case, 'seg_hidden'), atol=1e-5)
        np.testing.assert_allclose(prompts, of_case(size, case, 'seg_embeds'), atol=1e-4)


@pytest.mark.parametrize('name', texts(256)['images'])
def test_sam_sees_what_the_originals_sam_sees(name):
    model = segmenter(256).model
    pixels = torch.from_numpy(sam_input(picture(name), model.config.sam_size).pixels)
    with torch.inference_mode():
        grid = model.encode_sam(pixels[None])[0]
    np.testing.assert_allclose(grid[:, ::4, ::4], arrays(256)[f'img_{name}_sam_emb_s4'], atol=1e-4)


def whole(size: int) -> Checkpoint:
    lisa = segmenter(size)
    return Checkpoint(lisa.model, lisa.tokenizer, lisa.clip_recipe)


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('index', range(3))
def test_losses_and_gradients_are_the_originals(size, index):
    train = texts(size)['train'][index]
    report = parity_check.check_case(
        DATA, train, parity_check.arrays_of(train, arrays(size)), whole(size)
    )
    assert report['tokens']
    for group in ('losses', 'gradient_norms'):
        wrong = {name: row for name, row in report[group].items() if not row['ok']}
        assert not wrong
    assert report['losses'].keys() == train['losses'].keys()
    assert report['gradient_norms'].keys() == train['grad_norm'].keys()
    model = segmenter(size).model
    assert all(weight.grad is None for weight in model.parameters())
    assert all(weight.requires_grad for weight in model.clip.parameters())


@pytest.mark.parametrize('index', range(3))
def test_each_conversation_has_the_prompts_of_its_own_segs(index):
    train = texts(256)['train'][index]
    model = segmenter(256).model
    batch = training_batch(256, train)
    with torch.no_grad():
        out = model(batch)
    assert [len(prompts) for prompts in out.seg_prompts] == [
        (row == model.config.seg_token_id).sum() for row in batch.input_ids
    ]


def training_batch(size: int, train: dict) -> LisaBatch:
    own = parity_check.arrays_of(train, arrays(size))
    return parity_check.golden_lesson(DATA / 'images', train, own, whole(size)).batch


def test_a_conversation_may_have_no_seg():
    size, train = 256, texts(256)['train'][2]
    model = segmenter(size).model
    batch = training_batch(size, train)
    seg = model.config.seg_token_id
    quiet = LisaBatch(
        **{**vars(batch), 'input_ids': batch.input_ids.masked_fill(batch.input_ids == seg, 5)}
    )
    with torch.no_grad():
        out = model(quiet)
    assert out.mask_logits.shape == (0, 64, 64)
    assert out.mask_iou.shape == (0,)
    assert [len(prompts) for prompts in out.seg_prompts] == [0, 0, 0]
    assert model.postprocess(out.mask_logits, (256, 192), (512, 384)).shape == (0, 512, 384)
