# SPDX-License-Identifier: Apache-2.0
"""The model equals the original: every golden case, both sizes, both templates, and training."""

import numpy as np
import pytest
import torch
from golden import (
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

from lisa_ros.images import clip_pixels, sam_input
from lisa_ros.model.checkpoint import map_key
from lisa_ros.model.lisa import Batch
from lisa_ros.training.losses import (
    BCE_WEIGHT,
    CE_WEIGHT,
    DICE_WEIGHT,
    dice_loss,
    sigmoid_ce_loss,
)

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


def training_batch(size: int, train: dict) -> tuple[Batch, list, list[torch.Tensor]]:
    """The original's batch, each picture's geometry, and the truth of its masks."""
    lisa, golden = segmenter(size), arrays(size)

    def of_train(name: str) -> np.ndarray:
        return golden[f'train_{train["tag"]}_{name}']

    pictures = [picture(name) for name in train['images']]
    sams = [sam_input(image, lisa.model.config.sam_size) for image in pictures]
    truths = []
    for index in range(len(pictures)):
        shape = of_train(f'gt_masks_{index}_shape')
        bits = np.unpackbits(of_train(f'gt_masks_{index}_packbits'))[: shape.prod()]
        truths.append(torch.from_numpy(bits.reshape(shape)).float())
    turns = np.diff(of_train('offset'))
    batch = Batch(
        clip_pixels=torch.from_numpy(
            np.stack([clip_pixels(image, lisa.clip_recipe) for image in pictures])
        ),
        sam_pixels=torch.from_numpy(np.stack([sam.pixels for sam in sams])),
        input_ids=torch.from_numpy(of_train('input_ids')).long(),
        labels=torch.from_numpy(of_train('labels')).long(),
        attention_mask=torch.from_numpy(of_train('attention_masks')),
        image_index=torch.repeat_interleave(torch.arange(len(pictures)), torch.tensor(turns)),
    )
    return batch, sams, truths


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('index', range(3))
def test_losses_and_gradients_are_the_originals(size, index):
    train = texts(size)['train'][index]
    model = segmenter(size).model
    batch, sams, truths = training_batch(size, train)
    frozen = [*model.clip.parameters(), *model.sam.vision_encoder.parameters()]
    try:
        for weight in frozen:  # as the original does it, by no_grad
            weight.requires_grad_(False)
        model.zero_grad()
        out = model(batch)
        bce = dice = torch.zeros(())
        for number, (sam, truth) in enumerate(zip(sams, truths, strict=True)):
            own = batch.image_index[out.seg_query] == number
            logits = model.postprocess(out.mask_logits[own], sam.resized, sam.original)
            assert logits.shape == truth.shape
            bce = bce + BCE_WEIGHT * sigmoid_ce_loss(logits, truth, num_masks=1)
            dice = dice + DICE_WEIGHT * dice_loss(logits, truth, num_masks=1)
        count = len(out.mask_logits)
        loss = CE_WEIGHT * out.ce_loss + (bce + dice) / count
        loss.backward()
        norms = {name: gradient_norm(model, name) for name in train['grad_norm']}
    finally:
        model.zero_grad()
        for weight in frozen:
            weight.requires_grad_(True)

    wanted = train['losses']
    for ours, name in (
        (out.ce_loss, 'ce_loss'),
        (bce / count, 'mask_bce_loss'),
        (dice / count, 'mask_dice_loss'),
        (loss, 'loss'),
    ):
        assert ours.item() == pytest.approx(wanted[name], rel=1e-4, abs=1e-7), name
    for name, norm in norms.items():
        assert norm == pytest.approx(train['grad_norm'][name], rel=1e-3, abs=1e-7), name
    assert [len(prompts) for prompts in out.seg_prompts] == [
        (row == model.config.seg_token_id).sum() for row in batch.input_ids
    ]


def gradient_norm(model: torch.nn.Module, old_name: str) -> float:
    """The L2 norm of the gradients of one weight, or of all below an old name."""
    ours = map_key(old_name + ('' if old_name.endswith(('weight', 'bias')) else '.'))
    found = [
        weight.grad.norm()
        for name, weight in model.named_parameters()
        if name.startswith(ours) and weight.grad is not None
    ]
    assert found, ours
    return torch.stack(found).norm().item()


def test_a_conversation_may_have_no_seg():
    size, train = 256, texts(256)['train'][2]
    model = segmenter(size).model
    batch, _, _ = training_batch(size, train)
    seg = model.config.seg_token_id
    quiet = Batch(
        **{**vars(batch), 'input_ids': batch.input_ids.masked_fill(batch.input_ids == seg, 5)}
    )
    with torch.no_grad():
        out = model(quiet)
    assert out.mask_logits.shape == (0, 64, 64)
    assert out.mask_iou.shape == (0,)
    assert [len(prompts) for prompts in out.seg_prompts] == [0, 0, 0]
    assert model.postprocess(out.mask_logits, (256, 192), (512, 384)).shape == (0, 512, 384)
