# SPDX-License-Identifier: Apache-2.0
"""On a CUDA GPU: the answers of the CPU, alone and in batches. `benchmarks/gpu.sh` runs it."""

import numpy as np
import pytest
import torch
from golden import DATA, backend, cases, generated_ids, load_image
from test_sam_encoder import encoder

from lisa_ros.model import sam_encoder
from lisa_ros.model.captured_decoding import captured_decoder
from lisa_ros.model.generation import generate, prefill
from lisa_ros.model.image_preparation import GpuPreparation, PillowPreparation
from lisa_ros.model.language_model import LanguageModel
from lisa_ros.perception.backend import InferenceOptions
from lisa_ros.perception.masks import iou
from lisa_ros.perception.segmenter import Segmenter

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA GPU')
CASES = [case for _, case in cases(256)]


@pytest.fixture(scope='module')
def exact_arithmetic():
    """Matrix products in float32, not in TF32."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False


@pytest.fixture(scope='module')
def on_gpu(exact_arithmetic):
    return Segmenter.load(
        DATA / 'ckpt_256', vision_tower=DATA / 'clip_256', device='cuda', precision='fp32'
    )


@torch.inference_mode()
def test_sam_has_the_features_of_transformers(exact_arithmetic):
    model = encoder().cuda()
    pixels = torch.randn(2, 3, 160, 160, device='cuda')
    expected = model(pixels).last_hidden_state
    torch.testing.assert_close(sam_encoder.encode(model, pixels), expected, atol=5e-4, rtol=1e-3)


def test_answers_are_those_of_the_cpu(on_gpu):
    on_cpu = Segmenter(backend(256))
    for case in CASES:
        image = load_image(case['image'])
        own, other = (s.segment(image, case['prompt']) for s in (on_gpu, on_cpu))
        assert own.token_ids == other.token_ids, case['prompt']
        for mask, expected in zip(own.masks, other.masks, strict=True):
            assert iou(mask, expected) >= 0.999
        np.testing.assert_allclose(own.scores, other.scores, atol=1e-3)


def test_a_batch_has_the_answers_of_its_requests(on_gpu):
    requests = [(load_image(case['image']), case['prompt']) for case in CASES[:8]]
    expected = [on_gpu.segment(*request).token_ids for request in requests]
    on_gpu.clear_cache()
    results = on_gpu.segment_batch(requests)
    assert [result.token_ids for result in results] == expected


def test_tokens_are_those_of_the_step_that_is_not_captured(on_gpu):
    lisa = on_gpu.backend
    model = LanguageModel(lisa.model.llm)
    decoder = captured_decoder(model)
    assert decoder is not None, 'no CUDA graphs on this GPU'
    ids = torch.arange(3, 40, device='cuda')
    results = []
    for own in (None, decoder):
        prompt = prefill(model, model.embed(ids).detach(), max_new_tokens=100)
        steps = generate(model, prompt, stop_id=-1, max_new_tokens=100, decoder=own)
        results.append([step.token_id for step in steps])
    assert results[0] == results[1]


@pytest.mark.parametrize('name', ['astronaut', 'chelsea', 'coffee'])
def test_images_are_prepared_as_by_pillow(name, on_gpu):
    clip, device = on_gpu.backend.clip_preprocessing, torch.device('cuda')
    expected = PillowPreparation(clip, 1024, device).prepare(load_image(name))
    prepared = GpuPreparation(clip, 1024, device).prepare(load_image(name))
    assert torch.equal(prepared.clip, expected.clip)
    assert torch.equal(prepared.sam, expected.sam)


def test_bf16_has_the_golden_ids():
    case = CASES[0]
    segmenter = Segmenter.load(
        DATA / 'ckpt_256',
        vision_tower=DATA / 'clip_256',
        device='cuda',
        precision='bf16',
        template=case['template'],
        options=InferenceOptions(),
    )
    result = segmenter.segment(load_image(case['image']), case['prompt'])
    assert list(result.token_ids) == generated_ids(256, case)
