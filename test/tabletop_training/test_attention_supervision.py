# SPDX-License-Identifier: Apache-2.0
"""Attention supervision: its targets in answers, and its losses."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from lisa_ros.model.packing import IMAGE_TOKEN_INDEX
from lisa_ros.results import SEG, Turn
from lisa_ros.tabletop.answer_text import ListedName
from lisa_ros.tabletop.queries import TabletopQuery
from lisa_ros.training.tabletop.attention_supervision import (
    SUPERVISED_HEADS,
    attention_losses,
    supervised_attention,
    supervised_layer,
)
from lisa_ros.training.tabletop.attention_targets import AttentionTargetFinder
from lisa_ros.training.tabletop.batches import make_query_batch
from lisa_ros.training.tabletop.dataset import to_sam_square
from lisa_ros.training.trainer import Trainer

ANSWERS = [  # an answer; the objects of its [SEG], sizes and lists; "token @x y" of each target
    (
        'The milk 42 56, left of it 22 58. It is the red mug, [SEG].',
        ((1,),),
        (),
        (),
        '42 @43 57; 56 @43 57; 22 @23 59; 58 @23 59; red @20 38; mug @20 38; [SEG] @20 38',
    ),
    # in a comparison the name depends on the numbers, not on the image
    (
        'The mug 42 56, the book 22 58. It is the mug, [SEG].',
        ((1,),),
        (),
        (),
        '42 @43 57; 56 @43 57; 22 @23 59; 58 @23 59; [SEG] @20 38',
    ),
    (
        'The pan 6 cm, the bowl 8 cm. It is the pan, [SEG].',
        ((2,),),
        ((2,), (1,)),
        (),
        '6 @75 75; 8 @20 38; [SEG] @75 75',
    ),
    ('It is the pan, [SEG].', ((2,),), (), (), 'pan @75 75; [SEG] @75 75'),
    ('It is the pan, [SEG].', ((3,),), (), (), ''),  # hidden
    ('Sure, [SEG].', ((1,),), (), (), '[SEG] @20 38'),
    (
        'The red mug, the pan and the milk are dishes, [SEG].',
        ((1, 2),),
        (),
        (('red mug', 1), ('pan', 2), ('milk', 3)),  # the milk is hidden
        'The @20 38; red @20 38; mug @20 38; , @75 75; the @75 75; pan @75 75; [SEG] @68 70',
    ),
    (
        'I see the pan and the red mug.',
        (),
        (),
        (('pan', 2), ('red mug', 1)),
        'the @75 75; pan @75 75; and @20 38; the @20 38; red @20 38; mug @20 38',
    ),
    # two names behind one "It is" have no target
    ('It is the pan and the mug, [SEG].', ((1, 2),), (), (), '[SEG] @68 70'),
    ('It is the pan, the mug and the milk, [SEG].', ((1, 2),), (), (), '[SEG] @68 70'),
]
SIDE = 14  # image tokens along a side


@pytest.fixture(scope='module')
def answer_batch(trained):
    """All ANSWERS about one image, behind a query whose tokens are not supervised."""
    config = trained.task.lisa.config
    ids = np.zeros((120, 160), np.uint8)
    ids[30:60, 16:48] = 1  # centre at 20 37.5, in hundredths
    ids[60:120, 80:160] = 2  # centre at 75 75
    # [SEG] of an earlier turn, and of the query without supervised tokens, count as masks, too
    first = Turn('segment the milk', 'Sure, [SEG].')
    forced = TabletopQuery('explicit', (first,), ((),), forced_mask=True)
    queries = [
        TabletopQuery(
            'relations',
            (first, Turn('and?', answer)),
            ((3,), *targets),
            measured_targets=measured,
            listed_names=tuple(ListedName(1, name, (number,)) for name, number in listed),
        )
        for answer, targets, measured, listed, _ in ANSWERS
    ]
    square = to_sam_square(ids, config.sam_size)
    return make_query_batch(
        config, trained.task.tokenizer, ids.shape, [square], [[forced, *queries]]
    )


@pytest.fixture(scope='module')
def targets(trained, answer_batch):
    """The attention targets of `answer_batch`."""
    return AttentionTargetFinder(trained.task.tokenizer).find(answer_batch, SIDE)


def test_targets_sum_to_one(targets):
    assert torch.allclose(targets.attention.sum(1), torch.ones(len(targets.query_index)))


@pytest.mark.parametrize('row', range(1, len(ANSWERS) + 1))
def test_tokens_have_targets_at_their_position_or_object(trained, answer_batch, targets, row):
    tokenizer = trained.task.tokenizer
    *_, expected = ANSWERS[row - 1]
    expected = [target.split(' @') for target in expected.split('; ') if target]
    in_row = targets.query_index == row
    order = targets.token_index[in_row].argsort()
    columns = targets.token_index[in_row][order]
    tokens = [
        tokenizer.decode([token]).strip()
        for token in answer_batch.inputs.input_ids[row, columns].tolist()
    ]
    assert tokens == [token for token, _ in expected]
    if expected:
        centres = (torch.arange(SIDE) + 0.5) / SIDE * 100
        grids = targets.attention[in_row][order].unflatten(1, (SIDE, SIDE))
        means = torch.stack([(grids.sum(1) * centres).sum(1), (grids.sum(2) * centres).sum(1)], 1)
        positions = [[float(n) for n in position.split()] for _, position in expected]
        assert np.allclose(means, positions, atol=1.5)
    is_name = targets.is_name[in_row][order].tolist()
    assert is_name == [not (token.isdigit() or token == SEG) for token in tokens]


def test_name_tokens_is_the_loss_of_a_plain_run_of_the_language_model(trained):
    task = trained.task
    lisa, layer = task.lisa.eval(), supervised_layer(task.lisa)
    first = task.config.vision_warmup_steps
    batches = (task.draw(step, 0) for step in range(first, 20))
    batch = next(batch for batch in batches if batch.attention_targets.is_name.any())
    inputs, targets = batch.inputs, batch.attention_targets
    with torch.no_grad():
        output = lisa(inputs, packed=True, input_of_layer=layer)
        loss = attention_losses(lisa, output, inputs, targets)['name_tokens']
        token_losses = []
        rows, columns = targets.query_index[targets.is_name], targets.token_index[targets.is_name]
        for row, column in zip(rows, columns, strict=True):
            image = output.clip_tokens[inputs.image_index[row]]
            embeddings = lisa.embed(inputs.input_ids[row, :column], image)[None]
            state = lisa.llm.model(inputs_embeds=embeddings).last_hidden_state[0, -1]
            log_probs = lisa.llm.lm_head(state).log_softmax(-1)
            token_losses.append(-log_probs[inputs.labels[row, column]])
    assert torch.allclose(loss, torch.stack(token_losses).mean(), rtol=1e-4)


def test_supervised_attention_is_that_of_the_language_model(make_task):
    task = make_task(number_warmup_steps=9)
    lisa, layer = task.lisa.eval(), supervised_layer(task.lisa)
    batch = task.draw(3, 0)
    inputs, targets = batch.inputs, batch.attention_targets
    assert len(targets.query_index) >= 2
    image_start = (inputs.input_ids == IMAGE_TOKEN_INDEX).long().argmax(1)
    with torch.no_grad():
        output = lisa(inputs, packed=True, input_of_layer=layer)
        attention = supervised_attention(lisa, output, targets, image_start[targets.query_index])
        lisa.llm.set_attn_implementation('eager')  # which can return its attention
        for row in targets.query_index.unique().tolist():
            start = int(image_start[row])
            image = output.clip_tokens[inputs.image_index[row]]
            embeddings = lisa.embed(inputs.input_ids[row], image)[None]
            attentions = lisa.llm.model(
                inputs_embeds=embeddings, output_attentions=True
            ).attentions
            for number in (targets.query_index == row).nonzero()[:, 0].tolist():
                position = int(targets.token_index[number]) + len(image) - 2
                heads = attentions[layer][
                    0, :SUPERVISED_HEADS, position, start : start + len(image)
                ]
                assert torch.allclose(heads.mean(0), attention[number], atol=1e-5)


def test_the_attention_loss_falls_within_steps(make_task, tmp_path):
    task = make_task(vision_warmup_steps=0, number_warmup_steps=99)
    batch = task.draw(3, 0)
    trainer = Trainer(tmp_path / 'run', replace(task.config.trainer, steps=20), task)
    first = trainer.train_step([batch])['attention']
    for _ in range(4):
        last = trainer.train_step([batch])['attention']
    assert last < first
