# SPDX-License-Identifier: Apache-2.0
"""`transformers serve` with a toy Qwen2.5-VL as the server of vlm_url: the answers are the same.

It needs torchvision and the packages of `transformers[serving]`, which the package itself does
not: without them the tests are skipped.
"""

import dataclasses
import importlib.util
import json
import os
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from test_vlm_backend import IMAGE, SCRIPTS, answer
from toy_qwen import SPECIAL, save_scripted, save_toy
from toy_sam2 import toy_model

from lisa_ros.perception.backend import LoadOptions
from lisa_ros.perception.registry import load_backend
from lisa_ros.results import Status
from lisa_ros.vlm.chat_completions import ChatServer
from lisa_ros.vlm.pointing_model import NeverStop
from lisa_ros.vlm.profiles import PROFILES
from lisa_ros.vlm.qwen_vl import QwenVL
from lisa_ros.vlm.remote_vlm import RemoteVlm

PACKAGES = ('torchvision', 'accelerate', 'fastapi', 'uvicorn', 'openai')
MISSING = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f'not installed: {", ".join(MISSING)}')
START = 180.0  # until the server listens [s]
TEMPLATE = (  # as Qwen2.5-VL's
    '{% for message in messages %}<|im_start|>{{ message.role }}\n'
    '{% if message.content is string %}{{ message.content }}{% else %}'
    "{% for part in message.content %}{% if part.type == 'image' %}"
    '<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}'
    '{% endfor %}{% endif %}<|im_end|>\n{% endfor %}'
    '{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}'
)


def with_processor(folder):
    """Write what the library's processor reads, beside a toy model."""
    tokenizer = {
        'tokenizer_class': 'PreTrainedTokenizerFast',
        'eos_token': '<|im_end|>',
        'pad_token': '<|endoftext|>',
        'additional_special_tokens': SPECIAL,
        'clean_up_tokenization_spaces': False,
    }
    images = {
        'image_processor_type': 'Qwen2VLImageProcessor',
        'processor_class': 'Qwen2_5_VLProcessor',
        'patch_size': 14,
        'temporal_patch_size': 2,
        'merge_size': 2,
        'size': {'shortest_edge': 56 * 56, 'longest_edge': 12845056},
        'image_mean': [0.48145466, 0.4578275, 0.40821073],
        'image_std': [0.26862954, 0.26130258, 0.27577711],
    }
    (folder / 'tokenizer_config.json').write_text(json.dumps(tokenizer))
    (folder / 'preprocessor_config.json').write_text(json.dumps(images))
    (folder / 'chat_template.jinja').write_text(TEMPLATE)
    path = folder / 'generation_config.json'
    ends = json.loads((folder / 'tokenizer.json').read_text())['added_tokens']
    end = next(token['id'] for token in ends if token['content'] == '<|im_end|>')
    path.write_text(json.dumps({**json.loads(path.read_text()), 'eos_token_id': end}))
    return folder


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp('models')
    toy_model().save_pretrained(root / 'sam2')
    scripted, random = root / 'VisionReasoner-toy', root / 'random' / 'Qwen2.5-VL-toy'
    for folder in (scripted, random):
        folder.mkdir(parents=True)
    with_processor(save_scripted(scripted, *SCRIPTS['found']))
    with_processor(save_toy(random, 'qwen2_5_vl'))
    return {'sam2': root / 'sam2', 'scripted': scripted, 'random': random}


@pytest.fixture(scope='module')
def url(tmp_path_factory):
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    log = (tmp_path_factory.mktemp('serve') / 'log').open('w')
    command = [sys.executable, '-m', 'transformers.cli.transformers', 'serve']
    command += ['--host', '127.0.0.1', '--port', str(port), '--device', 'cpu']
    environment = {**os.environ, 'HF_HUB_OFFLINE': '1', 'OMP_NUM_THREADS': '1'}
    process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    end = time.monotonic() + START
    while time.monotonic() < end and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(('127.0.0.1', port)) == 0:
                break
        time.sleep(0.2)
    yield f'http://127.0.0.1:{port}/v1'
    process.terminate()
    process.wait(30)
    log.close()


def test_masks_are_those_of_the_model_here(url, folders):
    options = {'device': 'cpu', 'segmenter_model': folders['sam2'], 'threads': 1}
    name = f'vlm+sam:{folders["scripted"]}'
    here = load_backend(name, LoadOptions(**options))
    there = load_backend(name, LoadOptions(vlm_url=url, **options))
    assert 'gives no probabilities of tokens' in there.notices[-1]
    results = [answer(backend)[-1].result for backend in (here, there)]
    assert [result.status for result in results] == [Status.FOUND] * 2
    # the server takes the reasoning out of its tags
    assert results[0].answer == results[1].answer == 'The mug is red, the bowl is blue.'
    assert np.array_equal(results[0].mask_logits, results[1].mask_logits)


def test_words_about_an_image_are_those_of_the_model_here(url, folders):
    """The toy's words depend on each pixel, so the image is sent without loss."""
    profile = dataclasses.replace(PROFILES['qwen2_5_vl'], lossless=True)
    here = QwenVL.load(folders['random'], profile, torch.device('cpu'), 'fp32')
    there = RemoteVlm(ChatServer(url), str(folders['random']), profile)
    for query in ('the mug', 'a blue bowl?'):
        words, streamed = (
            ''.join(
                token.text for token in vlm.generate(vlm.prepare(IMAGE, query), 24, NeverStop())
            )
            for vlm in (here, there)
        )
        assert len(words) > 3
        # bytes that are no text may be shown in another way at the end of an answer
        assert streamed.rstrip('\ufffd') == words.rstrip('\ufffd')
