# SPDX-License-Identifier: Apache-2.0
"""The LISA family: recognized, checked, asked in its own words, and written back."""

import gzip
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from golden import DATA
from golden_family import (
    SETS,
    backend,
    cases,
    generated_ids,
    load_image,
    path,
    segmenter,
    texts,
)
from safetensors.torch import save_file
from torch.nn import functional
from transformers import CLIPVisionConfig

from lisa_ros.errors import CheckpointError
from lisa_ros.model import checkpoint, export, from_llava
from lisa_ros.model.checkpoint_checks import check_keys
from lisa_ros.model.config_inference import infer_config
from lisa_ros.model.json_file import JsonFields
from lisa_ros.model.key_mapping import map_key, unmap_key
from lisa_ros.model.lisa import LISA
from lisa_ros.model.point_prompts import PointRule
from lisa_ros.perception.backend import AnswerStyle
from lisa_ros.results import Status

KEYS = {
    'sesame': DATA / 'sesame' / 'keys_sesame_7b.json.gz',
    'lisa_plus_56': DATA / 'lisa_plus' / 'keys_lisa_plus_7b.json.gz',
    'read': DATA / 'read' / 'keys_read_7b.json.gz',
    'read-13b': DATA / 'read' / 'keys_read_13b.json.gz',
}
CLIP_L_336 = CLIPVisionConfig(
    hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16,
    image_size=336, patch_size=14,
)  # fmt: skip


@pytest.mark.parametrize('model', KEYS)
def test_every_weight_of_the_released_sizes_maps_to_one_of_the_model(model):
    with gzip.open(KEYS[model], 'rt', encoding='utf-8') as file:
        shapes = {key: tuple(shape) for key, shape in json.load(file).items()}
    layers = 40 if '13b' in model else 32
    config = {
        'num_attention_heads': layers,
        'rms_norm_eps': 1e-5,
        'mm_projector_type': 'mlp2x_gelu',
    }
    sizes = infer_config(shapes, config, CLIP_L_336, 32000, 'vicuna_v1')
    with torch.device('meta'):
        lisa = LISA(sizes)
    mapped = {map_key(key): shape for key, shape in shapes.items()}
    assert all(map_key(key) is None or unmap_key(map_key(key)) == key for key in shapes)
    del mapped[None]
    clip = {f'clip.{name}': tuple(w.shape) for name, w in lisa.clip.state_dict().items()}
    check_keys(lisa, mapped | clip, model)
    assert (sizes.llama.num_hidden_layers, sizes.image_tokens) == (layers, 576)
    assert sizes.mm_projector_type == 'mlp2x_gelu'


# ---- recognized by weights and tokenizer


def copy_of(name: str, target: Path, state: dict | None = None, **config: object) -> Path:
    """Copy the toy checkpoint of a set; `state` replaces its weights, None removes a key."""
    shutil.copytree(path(name, 'ckpt'), target)
    if state is not None:
        for file in target.glob('*.bin*'):
            file.unlink()
        save_file({key: tensor.contiguous() for key, tensor in state.items()},
                  target / 'model.safetensors')  # fmt: skip
    values = {**json.loads((target / 'config.json').read_text()), **config}
    values = {key: value for key, value in values.items() if value is not None}
    (target / 'config.json').write_text(json.dumps(values))
    return target


def weights(name: str) -> dict[str, torch.Tensor]:
    files = sorted(path(name, 'ckpt').glob('*.bin'))
    states = [torch.load(file, weights_only=True) for file in files]
    return {key: tensor.clone() for state in states for key, tensor in state.items()}


def load(folder: Path, name: str) -> checkpoint.Checkpoint:
    return checkpoint.load(folder, vision_tower=path(name, 'clip'))


@pytest.mark.parametrize(
    ('name', 'template', 'marks', 'legacy', 'rule'),
    [
        ('sesame', 'vicuna_v1', True, True, None),
        ('read', 'vicuna_v1', True, True, PointRule()),
        ('lisa_plus_56', 'llava_v1', False, False, None),
        ('lisa_plus_84', 'llava_v1', False, False, None),
    ],
)
def test_each_member_is_asked_as_it_was_trained(name, template, marks, legacy, rule):
    lisa = backend(name)
    config = lisa.model.config
    assert (config.template, config.point_rule) == (template, rule)
    assert bool(lisa.tokenizer.image_marks) == config.image_marks == marks
    assert lisa.tokenizer.legacy == legacy
    assert config.image_tokens == texts(name)['image_tokens']
    assert lisa.tokenizer.seg_token_id == texts(name)['seg_token_idx']
    assert lisa.capabilities.instances == name.startswith('lisa_plus')


@pytest.mark.parametrize('name', ['sesame', 'lisa_plus_56', 'lisa_plus_84'])
def test_architectures_decide_nothing(name, tmp_path):
    folder = copy_of(name, tmp_path / 'other', architectures=['LlavaForCausalLM'])
    assert load(folder, name).model.config.to_dict() == backend(name).model.config.to_dict()


@pytest.mark.parametrize('claimed', [True, False])
def test_lisa_plus_has_no_image_marks_whatever_its_config_says(claimed, tmp_path):
    folder = copy_of('lisa_plus_56', tmp_path / 'lisa', mm_use_im_start_end=claimed)
    assert load(folder, 'lisa_plus_56').tokenizer.image_marks == ()


def test_sesame_without_its_image_marks_is_an_error(tmp_path):
    folder = copy_of('sesame', tmp_path / 'sesame')
    seg = texts('sesame')['seg_token_idx']
    (folder / 'added_tokens.json').write_text(json.dumps({'[SEG]': seg}))
    with pytest.raises(CheckpointError, match='lacks <im_start> and <im_end>'):
        load(folder, 'sesame')


@pytest.mark.parametrize(
    'named', [{'architectures': ['READForCausalLM']}, {'_name_or_path': 'rui-qian/READ-LLaVA-7B'}]
)
def test_a_sesame_that_is_named_read_has_its_points(named, tmp_path):
    assert load(copy_of('sesame', tmp_path / 'a', **named), 'sesame').model.config.point_rule
    plain = copy_of('sesame', tmp_path / 'b', _name_or_path='ready/bread')
    assert load(plain, 'sesame').model.config.point_rule is None
    assert load(plain.rename(tmp_path / 'READ-7B'), 'sesame').model.config.point_rule


# ---- the projector


@pytest.mark.parametrize('depth', [1, 3])
def test_a_projector_of_another_depth_is_loaded_if_config_and_weights_agree(depth, tmp_path):
    state = {k: t for k, t in weights('sesame').items() if 'mm_projector.2' not in k}
    for layer in range(1, depth):
        state[f'model.mm_projector.{2 * layer}.weight'] = torch.randn(64, 64)
        state[f'model.mm_projector.{2 * layer}.bias'] = torch.randn(64)
    folder = copy_of('sesame', tmp_path / 'x', state, mm_projector_type=f'mlp{depth}x_gelu')
    model = load(folder, 'sesame').model
    layers = [
        [state[f'model.mm_projector.{2 * layer}.{part}'].float() for part in ('weight', 'bias')]
        for layer in range(depth)
    ]
    states = torch.randn(1, 5, 32)
    expected = functional.linear(states, *layers[0])
    for layer in layers[1:]:
        expected = functional.linear(functional.gelu(expected), *layer)
    with torch.no_grad():
        torch.testing.assert_close(model.project_clip(states), expected)


@pytest.mark.parametrize(
    ('change', 'config', 'message'),
    [
        ({'0.weight': None, '0.bias': None, '2.weight': None, '2.bias': None}, {},
         r'no weights model\.mm_projector\.\*'),
        ({'2.weight': None, '2.bias': None}, {}, r'mm_projector_type is .?mlp2x_gelu.*mlp1x_gelu'),
        ({'2.bias': None}, {}, r'1 missing: model\.mm_projector\.2\.bias'),
        ({'weight': (64, 32), 'bias': (64,)}, {}, r'two projectors, model\.mm_projector\.weight'),
        ({'4.weight': (64, 64), '4.bias': (64,)}, {},
         r'mm_projector_type is .?mlp2x_gelu.*mlp3x_gelu'),
        ({'4.weight': (64, 64), '4.bias': (64,)}, {'mm_projector_type': None}, None),
        ({'3.weight': (64, 64)}, {}, r'expected 0, 2, 4'),
        ({}, {'mm_projector_type': 'linear'}, r'mm_projector_type is .?linear.*mlp2x_gelu'),
        ({}, {'mm_projector_type': 'resampler'}, r'mm_projector_type is .?resampler'),
        ({'2.weight': (64, 32)}, {}, r'model\.mm_projector\.2\.weight \(64, 32\) instead of'),
    ],
)  # fmt: skip
def test_a_projector_that_would_stay_random_is_an_error(change, config, message, tmp_path):
    state = weights('sesame')
    for key, shape in change.items():
        state.pop(f'model.mm_projector.{key}', None)
        if shape is not None:
            state[f'model.mm_projector.{key}'] = torch.zeros(shape)
    folder = copy_of('sesame', tmp_path / 'x', state, **config)
    if message is None:
        assert load(folder, 'sesame').model.config.mm_projector_type == 'mlp3x_gelu'
        return
    with pytest.raises(CheckpointError, match=message) as caught:
        load(folder, 'sesame')
    assert str(folder) in str(caught.value)


def test_in_our_layout_the_config_names_the_projector_of_the_weights(tmp_path):
    lisa = backend('sesame')
    export.save(lisa.model, lisa.tokenizer, lisa.clip_preprocessing, tmp_path)
    config = json.loads((tmp_path / 'config.json').read_text())
    for wrong in ('linear', 'mlp3x_gelu', 'mlp999999999x_gelu', 'resampler'):
        (tmp_path / 'config.json').write_text(json.dumps({**config, 'mm_projector_type': wrong}))
        with pytest.raises(CheckpointError, match=r'mm_projector_type.*mlp2x_gelu'):
            checkpoint.load(tmp_path)


# ---- written back


@pytest.mark.parametrize('name', SETS)
def test_each_layout_is_written_back(name, tmp_path):
    lisa = backend(name)
    export.save_original(lisa.model, lisa.tokenizer, tmp_path / 'x', dtype=torch.bfloat16)
    written = torch.load(tmp_path / 'x' / 'pytorch_model.bin', weights_only=True)
    original = weights(name)
    assert written.keys() == original.keys()
    assert all(torch.equal(written[key], tensor) for key, tensor in original.items())
    config, before = (
        JsonFields.read(folder / 'config.json').values
        for folder in (tmp_path / 'x', path(name, 'ckpt'))
    )
    names = ('architectures', 'mm_projector_type', 'vocab_size', 'model_type', 'pad_token_id')
    assert {key: config[key] for key in names} == {key: before[key] for key in names}
    again = load(tmp_path / 'x', name)
    assert again.model.config.to_dict() == lisa.model.config.to_dict()
    assert again.tokenizer.legacy == lisa.tokenizer.legacy
    assert again.tokenizer.image_marks == lisa.tokenizer.image_marks


@pytest.mark.parametrize('name', SETS)
def test_our_own_layout_keeps_the_family(name, tmp_path):
    lisa = backend(name)
    export.save(lisa.model, lisa.tokenizer, lisa.clip_preprocessing, tmp_path, torch.float32)
    again = checkpoint.load(tmp_path)
    assert again.model.config.to_dict() == lisa.model.config.to_dict()
    assert again.tokenizer.image_marks == lisa.tokenizer.image_marks
    text = 'Sure, [SEG]. <im_end>\nWhere?'
    ids = lisa.tokenizer.encode(text, parse_special=True)
    assert again.tokenizer.encode(text, parse_special=True) == ids


def test_words_and_points_that_differ_from_the_family_are_written_too(tmp_path):
    lisa = load(path('read', 'ckpt'), 'read')
    lisa.model.config = replace(
        lisa.model.config,
        point_rule=PointRule(count=10),
        explain='Why?',
        answer_styles={'text': 'In words.'},
    )
    export.save_original(lisa.model, lisa.tokenizer, tmp_path / 'x')
    assert load(tmp_path / 'x', 'read').model.config.to_dict() == lisa.model.config.to_dict()


# ---- a new LISA from LLaVA-1.5


def test_a_lisa_is_made_from_llava_15(tmp_path):
    state = {
        key: tensor[:660] if key in ('model.embed_tokens.weight', 'lm_head.weight') else tensor
        for key, tensor in weights('lisa_plus_56').items()
    }
    llava = {k: t for k, t in state.items() if 'visual_model' not in k and 'text_hidden' not in k}
    sam = {
        key.removeprefix('model.visual_model.'): tensor
        for key, tensor in state.items()
        if key.startswith('model.visual_model.')
    }
    torch.save(sam, tmp_path / 'sam.pth')
    folder = copy_of('lisa_plus_56', tmp_path / 'llava', llava, vocab_size=660)
    (folder / 'added_tokens.json').unlink()
    tower = path('lisa_plus_56', 'clip')
    new = from_llava.load_llava(folder, sam=tmp_path / 'sam.pth', vision_tower=tower)
    assert new.tokenizer.seg_token_id == 660
    assert len(new.tokenizer) == new.model.config.llama.vocab_size == 661
    assert not new.tokenizer.legacy
    assert new.tokenizer.image_marks == ()
    config = new.model.config
    assert (config.template, config.mm_projector_type) == ('llava_v1', 'mlp2x_gelu')
    # it is trained with LISA's questions, not those of LISA++
    assert config.explain == 'Please output segmentation mask and explain why.'
    source = backend('lisa_plus_56').model.state_dict()
    for key in ('mm_projector.0.weight', 'mm_projector.2.bias', 'llm.model.norm.weight'):
        assert torch.equal(new.model.state_dict()[key], source[key])
    export.save_original(new.model, new.tokenizer, tmp_path / 'x')
    assert load(tmp_path / 'x', 'lisa_plus_56').model.config.to_dict() == config.to_dict()

    for key in [key for key in llava if 'mm_projector' in key]:
        del llava[key]
    without = copy_of('lisa_plus_56', tmp_path / 'without', llava)
    with pytest.raises(CheckpointError, match=r'not a LLaVA.*no model\.mm_projector'):
        from_llava.load_llava(without, sam=tmp_path / 'sam.pth', vision_tower=tower)


# ---- asked in its own words


STYLES = ('semantic', 'instances', 'text')
PRESET = [
    case
    for _, case in cases(['lisa_plus_56'])
    if case.get('preset') in STYLES and case['kind'].startswith('chat')
]


@pytest.mark.parametrize('case', PRESET, ids=lambda case: f'{case["case"]}-{case["preset"]}')
def test_a_style_adds_the_words_of_the_training(case):
    image = load_image(case['image'])
    whole = segmenter('lisa_plus_56').segment(image, case['prompt'])
    asked = segmenter('lisa_plus_56', answer_style=AnswerStyle(case['preset']))
    result = asked.segment(image, case['question'])
    assert result.token_ids == whole.token_ids
    assert result.query == case['question']
    assert len(result.masks) == case['n_seg']


def test_explain_asks_lisa_plus_for_words_and_a_mask():
    presets = texts('lisa_plus_56')['presets']
    case = next(c for _, c in cases(['lisa_plus_56']) if c.get('preset') == 'text_semantic')
    config = backend('lisa_plus_56').model.config
    assert f' {config.explain}' == presets['text_semantic']
    assert {f' {words}' for words in config.answer_styles.values()} == {
        presets[style] for style in STYLES
    }
    by_style = segmenter('lisa_plus_56', answer_style=AnswerStyle.EXPLAIN)
    image = load_image(case['image'])
    results = [
        by_style.segment(image, case['question']),
        segmenter('lisa_plus_56').segment(image, case['question'], explain=True),
    ]
    assert [result.answer_raw for result in results] == [results[0].answer_raw] * 2
    assert len(results[0].masks) == case['n_seg']


def test_a_style_without_words_adds_nothing():
    case = next(case for _, case in cases(['sesame']) if case['n_seg'] == 2)
    lisa = segmenter('sesame', answer_style=AnswerStyle.INSTANCES)
    result = lisa.segment(load_image(case['image']), case['prompt'])
    assert list(result.token_ids) == generated_ids('sesame', case)


# ---- absent in words


ABSENT = [case for _, case in cases(['sesame']) if re.search(r'\bno\b', case['decoded_new_raw'])]


@pytest.mark.parametrize('case', ABSENT, ids=lambda case: case['decoded_new_raw'])
def test_sesame_says_in_words_that_a_thing_is_absent(case):
    result = segmenter('sesame').segment(load_image(case['image']), case['prompt'])
    assert result.status is (Status.FOUND if case['object_presence'] else Status.NOT_FOUND)
    assert re.search(r'\bno\b', result.answer)
    assert len(result.masks) == case['n_seg']
    assert result.reason == ''


# ---- version 0 of LISA


def test_version_0_has_its_parts_in_files_of_their_own(tmp_path):
    folder = tmp_path / 'v0'
    shutil.copytree(DATA / 'ckpt_256', folder)
    state = torch.load(folder / 'pytorch_model.bin', weights_only=True)
    for part in ('visual_model', 'text_hidden_fcs'):
        own = {key: tensor for key, tensor in state.items() if key.startswith(f'model.{part}.')}
        torch.save(
            {key.removeprefix('model.'): tensor for key, tensor in own.items()},
            folder / f'pytorch_model-{part}.bin',
        )
        state = {key: tensor for key, tensor in state.items() if key not in own}
    torch.save(state, folder / 'pytorch_model.bin')
    version_0, version_1 = (
        checkpoint.load(each, vision_tower=DATA / 'clip_256')
        for each in (folder, DATA / 'ckpt_256')
    )
    expected = version_1.model.state_dict()
    assert all(torch.equal(w, expected[key]) for key, w in version_0.model.state_dict().items())
    config = version_1.model.config.to_dict()
    assert version_0.model.config.to_dict() == {**config, 'template': 'vicuna_v1'}
    (folder / 'pytorch_model-text_hidden_fcs.bin').unlink()
    with pytest.raises(CheckpointError, match=r'none of them named model\.text_hidden_fcs'):
        checkpoint.load(folder, vision_tower=DATA / 'clip_256')
