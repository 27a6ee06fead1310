# SPDX-License-Identifier: Apache-2.0
"""Drafts, kept prompts, batches and our own SAM give the answers of transformers' plain path.

LISA_ROS_PLAIN_QUESTIONS sets the number of questions of the bundled test set (default: 24).
"""

import itertools
import os

import numpy as np
import pytest
import torch
from transformers import DynamicCache

from lisa_ros.evaluation.tabletop import read_test_set
from lisa_ros.files.text import read_bytes
from lisa_ros.images.image_file import decode_rgb
from lisa_ros.model.image_processing import clip_pixels, sam_input
from lisa_ros.perception.backend import InferenceOptions
from lisa_ros.perception.masks import iou
from lisa_ros.perception.prompts import prompt_ids
from lisa_ros.resources import TEST_SETS
from lisa_ros.segmenter import Segmenter

QUESTIONS = int(os.environ.get('LISA_ROS_PLAIN_QUESTIONS', '24'))
BATCH = 6
OPTIONS = InferenceOptions(refine=False, confidence_threshold=0.0)


@torch.inference_mode()
def plain_answer(backend, image, text):
    """Return token ids and masks: transformers' cache, a token at a time, transformers' SAM."""
    model = backend.model
    ids = prompt_ids(backend.tokenizer, backend.template, text)
    pixels = torch.from_numpy(clip_pixels(image, backend.clip_preprocessing))[None]
    states = model.embed(torch.tensor(ids), model.encode_clip(pixels)[0])[None]
    padded = sam_input(image, model.config.sam_size)
    grid = model.sam.vision_encoder(torch.from_numpy(padded.pixels)[None]).last_hidden_state
    cache, answer, masks = DynamicCache(config=model.llm.config), [], []
    while not answer or answer[-1] != backend.tokenizer.eos_token_id:
        # by position: transformers 5.24 renamed past_key_values to cache
        states = model.llm.model(None, None, None, cache, states, use_cache=True)
        state = states.last_hidden_state[0, -1:]
        answer.append(int(model.llm.lm_head(state).argmax()))
        if answer[-1] == backend.tokenizer.seg_token_id:
            low_res, _ = model.decode_masks(grid, model.project_seg(state))
            full = model.postprocess(low_res, padded.resized, padded.original)[0]
            masks.append((full > 0).numpy())
        states = model.llm.get_input_embeddings()(torch.tensor([answer[-1:]]))
    return answer, masks


@pytest.fixture(scope='module')
def segmenter():
    return Segmenter.load(device='cpu', options=OPTIONS)


@pytest.fixture(scope='module')
def questions(segmenter):
    """Image, text, and the plain answer to each; some are about one image."""
    usable = [query for query in read_test_set(TEST_SETS / 'test.zip') if not query.history]
    step = max(1, len(usable) // QUESTIONS)
    chosen = itertools.islice((q for n, q in enumerate(usable) if n // 3 % step == 0), QUESTIONS)
    rows = []
    for query in chosen:
        image = decode_rgb(read_bytes(query.image), str(query.image))
        rows.append((image, query.text, *plain_answer(segmenter.backend, image, query.text)))
    return rows


def check(results, questions):
    for result, (_, text, ids, masks) in zip(results, questions, strict=True):
        assert list(result.token_ids) == ids, text
        assert len(result.masks) == len(masks), text
        for own, expected in zip(result.masks, masks, strict=True):
            assert iou(own, expected) >= 0.999 or np.count_nonzero(own ^ expected) <= 2, text


def test_one_after_the_other(segmenter, questions):
    segmenter.clear_cache()
    check([segmenter.segment(image, text) for image, text, *_ in questions], questions)


def test_again_with_all_that_is_known(segmenter, questions):
    check([segmenter.segment(image, text) for image, text, *_ in questions], questions)


def test_in_batches(segmenter, questions):
    segmenter.clear_cache()
    results = []
    for start in range(0, len(questions), BATCH):
        batch = questions[start : start + BATCH]
        results += segmenter.segment_batch([(image, text) for image, text, *_ in batch])
    check(results, questions)
