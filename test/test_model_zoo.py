# SPDX-License-Identifier: Apache-2.0
"""The table of known checkpoints: sizes as released, memory by the rule that refuses models."""

import gzip
import json
import math

import pytest
from golden import DATA, weight_shapes

from lisa_ros import cli
from lisa_ros.errors import CheckpointError
from lisa_ros.evaluation.cases import Mode
from lisa_ros.model.key_mapping import map_key
from lisa_ros.model.limits import GB, Limits
from lisa_ros.model_zoo import tables
from lisa_ros.model_zoo.architectures import Architecture, size_of
from lisa_ros.model_zoo.known_models import KNOWN_MODELS, VLM_SAM, Split
from lisa_ros.perception import prompts
from lisa_ros.perception.segmenter import Segmenter
from lisa_ros.vlm.profiles import PROFILES, choose_profile

CLIP_L_224, CLIP_L_336 = 303_179_776, 303_507_456  # the vision half of openai/clip-vit-large-*
SAM2_HIERA_L = 216_924_865  # without the memory of the video model


def key_list(name):
    with gzip.open(DATA / f'{name}.json.gz', 'rt', encoding='utf-8') as file:
        return {key: tuple(shape) for key, shape in json.load(file).items()}


@pytest.mark.parametrize(
    ('architecture', 'keys', 'clip'),
    [
        (Architecture.LISA_7B, weight_shapes('7b'), CLIP_L_224),
        (Architecture.LISA_13B, weight_shapes('13b'), CLIP_L_224),
        (Architecture.LLAVA15_7B_224, key_list('sesame/keys_sesame_7b'), CLIP_L_224),
        (Architecture.LLAVA15_7B_336, key_list('read/keys_read_7b'), CLIP_L_336),
        (Architecture.LLAVA15_13B_336, key_list('read/keys_read_13b'), CLIP_L_336),
    ],
)
def test_sizes_are_those_of_the_released_checkpoints(architecture, keys, clip):
    released = sum(math.prod(shape) for key, shape in keys.items() if map_key(key) is not None)
    assert size_of(architecture).parameters == released + clip


@pytest.mark.parametrize(
    ('architecture', 'parameters'),
    [
        (Architecture.QWEN25_VL_3B, 3_754_622_976),
        (Architecture.QWEN25_VL_7B, 8_292_166_656),
        (Architecture.QWEN3_VL_4B, 4_437_815_808),
        (Architecture.QWEN3_VL_8B, 8_767_123_696),
    ],
)
def test_sizes_of_vision_language_models_are_those_of_the_hub(architecture, parameters):
    """The sizes that the safetensors files of the hub declare."""
    assert size_of(architecture).parameters - SAM2_HIERA_L == parameters


def test_the_memory_is_that_of_the_rule_that_refuses_a_model():
    size = size_of(Architecture.TABLETOP)
    needed = size.memory['fp32']
    assert needed == 4 * size.parameters
    limit = Limits(memory=(needed - 1) / GB)
    with pytest.raises(CheckpointError, match='more than the limit'):
        Segmenter.load(
            'lisa-tabletop', device='cpu', precision='fp32', max_model_size=limit.memory
        )
    Segmenter.load('lisa-tabletop', device='cpu', precision='fp32', max_model_size=needed / GB)


@pytest.mark.parametrize('architecture', Architecture)
def test_a_smaller_precision_needs_less_memory(architecture):
    memory = size_of(architecture).memory
    assert memory['fp32'] > memory['bf16'] == memory['fp16'] > memory['int8'] > memory['nf4']


def test_each_checkpoint_is_listed_once_with_a_template_that_exists():
    names = [name for model in KNOWN_MODELS for name in model.names]
    assert len(names) == len(set(names))
    for model in KNOWN_MODELS:
        for name in model.names:
            if name.startswith(VLM_SAM):
                hub_id = name.removeprefix(VLM_SAM)
                kind = 'qwen3_vl' if 'Qwen3' in hub_id else 'qwen2_5_vl'
                assert choose_profile(hub_id, kind) == choose_profile(hub_id, kind, model.template)
            elif name != 'lisa-tabletop':
                assert model.template in prompts.TEMPLATES


def test_each_published_figure_says_how_it_was_obtained():
    figures = [figure for model in KNOWN_MODELS for figure in model.figures]
    assert len(figures) > 5
    for figure in figures:
        assert figure.method in (Mode.GENERATE, Mode.TEACHER_FORCED)
        assert figure.split in Split
        assert figure.source
        assert 0 < figure.giou < 100


def test_abilities_of_vision_language_models_are_those_of_their_profiles():
    served = [model for model in KNOWN_MODELS if model.name.startswith(VLM_SAM)]
    assert {model.abilities.dialogue for model in served} == {True, False}
    for model in served:
        profile, abilities = PROFILES[model.template], model.abilities
        assert (abilities.explains, abilities.denies) == (profile.explains, profile.denies)
        assert abilities.dialogue == profile.dialogue


def test_models_are_listed(capsys):
    assert cli.main(['models']) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for model in KNOWN_MODELS for name in model.names)
    assert '63.6 / - generated' in printed


def test_models_are_chosen_by_memory_and_abilities(capsys):
    command = ['models', '--fits', '12', '--precision', 'int8', '--can', 'denies', 'explains']
    assert cli.main([*command, '--json']) == 0
    chosen = json.loads(capsys.readouterr().out)
    assert [model['name'] for model in chosen] == [
        'lisa-tabletop',
        'vlm+sam:Ricky06662/Visurf-7B-Best-on-gRefCOCO',
    ]
    assert all(model['weight_bytes']['int8'] <= 12 * 2**30 for model in chosen)
    assert all(model['abilities']['denies'] is True for model in chosen)
    assert chosen[1]['licence'] is None
    assert cli.main(['models', '--fits', '0.001', '--json']) == 0
    assert json.loads(capsys.readouterr().out) == []


def test_what_is_unknown_is_shown_as_unknown():
    (visurf,) = (model for model in KNOWN_MODELS if model.template == 'visurf')
    assert tables.figure_on_test(visurf) == 'unknown'
    row = tables.ability_rows([visurf])[0]
    assert row[1] == 'unknown'
