# SPDX-License-Identifier: Apache-2.0
"""Settings are written once: ranges hold, and the YAML file says the same."""

import dataclasses
from pathlib import Path

import pytest
import yaml

from lisa_ros.errors import SettingsError
from lisa_ros.settings import Settings
from lisa_ros.settings_schema import as_yaml, parameter_info
from lisa_ros.voice.settings import VoiceSettings

CONFIG = Path(__file__).parents[1] / 'config'
NODES = [(Settings, 'lisa_node', 'lisa.yaml'), (VoiceSettings, 'voice_node', 'voice.yaml')]
FIELDS = [field for kind, *_ in NODES for field in dataclasses.fields(kind)]


@pytest.mark.parametrize('kind', [Settings, VoiceSettings])
def test_the_defaults_are_in_their_own_ranges(kind):
    kind()


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'precision': 'fp8'}, r"precision is 'fp8'; expected one of 'auto', 'fp32'"),
        ({'max_new_tokens': 0}, r'max_new_tokens is 0; expected 1 to 2048'),
        (
            {'confidence_threshold': float('nan')},
            r'confidence_threshold is nan; expected 0.0 to 1',
        ),
        ({'threads': True}, r'threads is True; expected a int'),
        ({'model': 7}, r'model is 7; expected a str'),
        ({'cameras': 5}, r'cameras is 5; expected names that differ'),
        ({'cameras': ['a', 'a']}, r'expected names that differ'),
        ({'cameras': ['front camera']}, r'of letters, digits and _'),
        ({'cameras': ['tracked']}, r'none of them "tracked"'),
    ],
)
def test_a_wrong_value_is_named_with_what_was_expected(change, message):
    with pytest.raises(SettingsError, match=message):
        Settings(**change)


def test_an_integer_does_where_a_float_is_asked_for():
    assert Settings(depth_tolerance=1).depth_tolerance == 1


@pytest.mark.parametrize('field', FIELDS, ids=lambda field: field.name)
def test_every_setting_has_a_sentence_and_numbers_a_range(field):
    known = parameter_info(field)
    assert len(known.sentence) > 15
    if type(field.default) in (int, float):
        assert known.low < known.high
        assert '[' in known.sentence or '0:' in known.sentence


@pytest.mark.parametrize(('kind', 'node', 'file'), NODES)
def test_the_yaml_file_is_the_one_made_from_the_settings(kind, node, file):
    assert (CONFIG / file).read_text() == as_yaml(kind, node), 'python -m lisa_ros.settings config'


@pytest.mark.parametrize(('kind', 'node', 'file'), NODES)
def test_the_yaml_file_has_every_parameter_with_its_default(kind, node, file):
    parameters = yaml.safe_load((CONFIG / file).read_text())['/**']['ros__parameters']
    defaults = {field.name: field.default for field in dataclasses.fields(kind)}
    none = {'cameras': ['']} if kind is Settings else {}  # ROS knows no empty list
    assert parameters == {**defaults, **none}
    assert kind(**parameters) == kind()
