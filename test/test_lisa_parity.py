# SPDX-License-Identifier: Apache-2.0
"""The model equals the original: every golden case, both sizes, both templates, and training."""

import numpy as np
import pytest
import torch
from golden import (
    DATA,
    SIZES,
    arrays,
    backend,
    case_array,
    case_id,
    cases,
    generated_ids,
    load_image,
    segmenter,
    texts,
    unpack_runs,
)

from lisa_ros.model.checkpoint import Checkpoint
from lisa_ros.model.image_processing import clip_pixels, sam_input
from lisa_ros.model.lisa import LisaBatch
from lisa_ros.training.finetune import parity_check

pytestmark = pytest.mark.parity


@pytest.mark.parametrize(('size', 'case'), cases(), ids=case_id)
def test_answers_and_masks_are_the_originals(size, case):
    lisa = segmenter(
        size,
        template=case['template'],
        max_new_tokens=case['max_new_tokens'],
        typed_specials=True,
    )
    result = lisa.segment(load_image(case['image']), case['prompt'])

    assert list(result.token_ids) == generated_ids(size, case)
    assert backend(size).tokenizer.decode(result.token_ids) == case['decoded_new_raw']
    assert result.masks.shape == (case['n_seg'], *case['original_size'])
    full = case_array(size, case, 'full_s32')
    np.testing.assert_allclose(result.mask_logits[:, ::32, ::32], full, atol=5e-3)
    for index, mask in enumerate(result.masks):
        expected = unpack_runs(case_array(size, case, f'mask_rle_{index}'), *mask.shape)
        assert (mask & expected).sum() / (mask | expected).sum() >= 0.999


@pytest.mark.parametrize('size', SIZES)
def test_the_state_before_each_seg_gives_the_originals_prompt_embedding(size):
    lisa = backend(size)
    model = lisa.model
    for _, case in cases(size):
        image = torch.from_numpy(clip_pixels(load_image(case['image']), lisa.clip_preprocessing))
        ids = torch.from_numpy(case_array(size, case, 'output_ids')).long()
        with torch.inference_mode():
            embeddings = model.embed(ids, model.encode_clip(image[None])[0])
            states = model.llm.model(inputs_embeds=embeddings[None]).last_hidden_state[0]
            before = case_array(size, case, 'seg_positions') + model.config.image_tokens - 2
            hidden = states[torch.from_numpy(before).long()]
            prompts = model.project_seg(hidden)
        assert len(embeddings) == len(ids) - 1 + model.config.image_tokens
        np.testing.assert_allclose(hidden, case_array(size, case, 'seg_hidden'), atol=1e-5)
        np.testing.assert_allclose(prompts, case_array(size, case, 'seg_embeds'), atol=1e-4)


@pytest.mark.parametrize('name', texts(256)['images'])
def test_sam_features_are_the_originals(name):
    model = backend(256).model
    pixels = torch.from_numpy(sam_input(load_image(name), model.config.sam_size).pixels)
    with torch.inference_mode():
        features = model.encode_sam(pixels[None])[0]
    np.testing.assert_allclose(
        features[:, ::4, ::4], arrays(256)[f'img_{name}_sam_emb_s4'], atol=1e-4
    )


def loaded(size: int) -> Checkpoint:
    lisa = backend(size)
    return Checkpoint(lisa.model, lisa.tokenizer, lisa.clip_preprocessing)


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('index', range(3))
def test_losses_and_gradients_are_the_originals(size, index):
    train = texts(size)['train'][index]
    report = parity_check.compare_case(
        DATA, train, parity_check.batch_arrays(train, arrays(size)), loaded(size)
    )
    assert report['tokens']
    for group in ('losses', 'gradient_norms'):
        wrong = {name: row for name, row in report[group].items() if not row['ok']}
        assert not wrong
    assert report['losses'].keys() == train['losses'].keys()
    assert report['gradient_norms'].keys() == train['grad_norm'].keys()
    model = backend(size).model
    assert all(weight.grad is None for weight in model.parameters())
    assert all(weight.requires_grad for weight in model.clip.parameters())


@pytest.mark.parametrize('index', range(3))
def test_each_conversation_has_the_prompts_of_its_segs(index):
    train = texts(256)['train'][index]
    model = backend(256).model
    batch = training_batch(256, train)
    with torch.no_grad():
        out = model(batch)
    assert [len(prompts) for prompts in out.seg_prompts] == [
        (row == model.config.seg_token_id).sum() for row in batch.input_ids
    ]


def training_batch(size: int, train: dict) -> LisaBatch:
    own = parity_check.batch_arrays(train, arrays(size))
    return parity_check.golden_batch(DATA / 'images', train, own, loaded(size)).inputs


def test_a_conversation_may_have_no_seg():
    size, train = 256, texts(256)['train'][2]
    model = backend(size).model
    batch = training_batch(size, train)
    seg = model.config.seg_token_id
    without_seg = LisaBatch(
        **{**vars(batch), 'input_ids': batch.input_ids.masked_fill(batch.input_ids == seg, 5)}
    )
    with torch.no_grad():
        out = model(without_seg)
    assert out.mask_logits.shape == (0, 64, 64)
    assert out.mask_iou.shape == (0,)
    assert [len(prompts) for prompts in out.seg_prompts] == [0, 0, 0]
    assert model.postprocess(out.mask_logits, (256, 192), (512, 384)).shape == (0, 512, 384)
