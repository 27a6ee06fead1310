# SPDX-License-Identifier: Apache-2.0
"""Auxiliary losses and their targets."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tabletop_graph import BANANA, PLATE, RED, TABLE, WHITE

from lisa_ros.model.packing import IGNORE_INDEX
from lisa_ros.results import SEG, Turn
from lisa_ros.tabletop import attribute_queries
from lisa_ros.tabletop.queries import TabletopQuery
from lisa_ros.tabletop.scene_graph import RELATIONS, SUPERLATIVES
from lisa_ros.tabletop.templates import PhraseSampler
from lisa_ros.training.tabletop.auxiliary_targets import (
    CATEGORY_INDEX,
    COLOUR_INDEX,
    object_targets,
)
from lisa_ros.training.tabletop.batches import make_batch
from lisa_ros.training.tabletop.initialization import clip_preprocessing


def test_targets_have_presence_measures_and_neighbours():
    targets = object_targets(TABLE)
    present = targets.category_present
    assert present[CATEGORY_INDEX['mug'] - 1] == present[CATEGORY_INDEX['plate'] - 1] == 1
    assert np.isnan(present[CATEGORY_INDEX['book'] - 1])  # too little of it is visible
    assert present[CATEGORY_INDEX['pan'] - 1] == 0
    assert targets.measures[PLATE.id] == pytest.approx([-0.01, 0.8, 0.02, 0.24])

    def neighbour(anchor, relation):
        return tuple(targets.neighbours[anchor.id, RELATIONS.index(relation)])

    banana = (CATEGORY_INDEX['banana'], COLOUR_INDEX['yellow'])
    white_mug = (CATEGORY_INDEX['mug'], COLOUR_INDEX['white'])
    assert neighbour(RED, 'right of') == banana
    assert neighbour(BANANA, 'right of') == white_mug
    assert neighbour(RED, 'left of') == (0, 0)  # nothing is there
    # the book, which is hardly visible
    assert neighbour(PLATE, 'behind') == (IGNORE_INDEX, IGNORE_INDEX)


def test_targets_say_which_superlatives_apply():
    targets = object_targets(TABLE)

    def applies(scene_object, superlative):
        """Whether it does among all objects, and among those of its category."""
        values = targets.is_superlative[scene_object.id].reshape(2, -1)
        return tuple(values[:, list(SUPERLATIVES).index(superlative)])

    assert applies(RED, 'leftmost') == (1, 1)
    assert applies(WHITE, 'leftmost') == (0, 0)
    assert applies(PLATE, 'leftmost')[0] == 0
    assert np.isnan(applies(PLATE, 'leftmost')[1])  # the only one of its category
    assert np.isnan(applies(RED, 'nearest')).all()  # both mugs and the banana are as near
    assert np.isnan(applies(RED, 'tallest')[0])  # the book is taller, and hardly visible
    assert applies(RED, 'tallest')[1] == 1
    assert applies(BANANA, 'tallest')[0] == 0


def test_object_layout_counts_patches_with_an_object_and_known_targets(trained, train_set):
    task, config, view = trained.task, trained.task.lisa.config, train_set.view(0)
    sampler = PhraseSampler(np.random.default_rng(0))
    query = attribute_queries.explicit(sampler, view.scene_graph, present=True)
    batch = make_batch(config, task.tokenizer, clip_preprocessing(config), [view], [[query]])
    tokens = torch.zeros(1, config.image_tokens, config.llama.hidden_size)
    tokens[..., 0] = 1.0
    loss = task.heads.object_layout_loss(tokens, batch)
    assert torch.isfinite(loss)
    assert loss > 0
    no_objects = replace(batch, object_map=torch.zeros_like(batch.object_map))
    assert task.heads.object_layout_loss(tokens, no_objects) == 0
    measures_only = replace(
        batch,
        neighbours=torch.full_like(batch.neighbours, IGNORE_INDEX),
        is_superlative=torch.full_like(batch.is_superlative, torch.nan),
    )
    assert 0 < task.heads.object_layout_loss(tokens, measures_only) < loss


def test_presence_is_the_mean_of_first_tokens_plus_the_mean_of_reason_tokens(trained, train_set):
    """First tokens of the answers; and [SEG], or "but" behind a reason."""
    task, tokenizer, config = trained.task, trained.task.tokenizer, trained.task.lisa.config
    answers = {
        'Sure, [SEG].': ((1,),),
        'There is no mug here.': (),
        'The pan fries food, [SEG].': ((2,),),
        'The pan fries food, but there is no pan here.': (),
    }
    queries = [
        TabletopQuery('use', (Turn('find it', answer),), targets)
        for answer, targets in answers.items()
    ]
    batch = make_batch(
        config, tokenizer, clip_preprocessing(config), [train_set.view(0)], [queries]
    )
    with torch.no_grad():
        output = task.lisa(batch.inputs, packed=True)
        loss, accuracy = task.heads.presence_loss(task.lisa, output, batch)
        logits = task.lisa.llm.lm_head(output.llm_states)
    expected_loss, is_right = 0.0, []
    for words in (('Sure', 'There', 'The'), (SEG, 'but')):
        token_losses = []
        for row, labels in enumerate(batch.inputs.labels.tolist()):
            supervised = [i for i, label in enumerate(labels) if label != IGNORE_INDEX]
            texts = [tokenizer.decode([labels[i]]).strip() for i in supervised]
            if words[0] == 'Sure':
                assert texts[0] in words
                columns = supervised[:1]
            else:
                columns = [i for i, text in zip(supervised, texts, strict=True) if text in words]
            for column in columns:
                scores = logits[row, output.predicting_positions(torch.tensor(column))]
                token_losses.append(-scores.log_softmax(-1)[labels[column]])
                is_right.append(float(scores.argmax() == labels[column]))
        expected_loss = expected_loss + torch.stack(token_losses).mean()
    assert len(is_right) == 4 + 3
    assert torch.allclose(loss, expected_loss, rtol=1e-5)
    assert float(accuracy) == pytest.approx(np.mean(is_right))


def test_parameter_names_are_those_of_saved_runs(trained):
    """A run is resumed by them."""
    assert [name for name, _ in trained.task.heads.named_parameters()] == [
        'point_scale', 'point_bias', 'word_scale', 'word_bias', 'there_scale', 'there_bias',
        'pixel_head.weight', 'pixel_head.bias', 'patch_head.weight', 'patch_head.bias',
        'place_head.weight', 'place_head.bias',
    ]  # fmt: skip
