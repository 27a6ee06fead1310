# SPDX-License-Identifier: Apache-2.0
"""The arguments of the launch files, without ROS 2's launch."""

import pytest

from lisa_ros.errors import SettingsError
from lisa_ros.launch_arguments import (
    cameras_in_file,
    choice,
    existing_file,
    full_name,
    input_remappings,
    is_on,
    items,
    output_qos,
)

NONE = {'image': '', 'depth': '', 'camera_info': ''}


@pytest.mark.parametrize(
    ('read', 'words'),
    [
        (lambda: is_on('respawn', 'maybe'), "respawn is 'maybe'; expected true or false"),
        (lambda: choice('log_level', 'loud', ('debug', 'info')), 'expected one of debug, info'),
        (lambda: existing_file('params_file', 'none.yaml'), "'none.yaml': there is no such file"),
        (
            lambda: input_remappings({**NONE, 'image': '/a'}, ['front', 'wrist']),
            'image:=/a names 1 topics for 2 cameras',
        ),
    ],
    ids=['is_on', 'choice', 'existing_file', 'input_remappings'],
)
def test_a_wrong_argument_is_an_error_of_one_line(read, words):
    with pytest.raises(SettingsError, match=words) as error:
        read()
    assert '\n' not in str(error.value)


def test_values_as_people_write_them():
    assert [is_on('x', value) for value in ('1', 'True', 'off', 'NO')] == [
        True,
        True,
        False,
        False,
    ]
    assert choice('x', 'INFO', ('info',)) == 'info'
    assert items('[front, wrist]') == items('front,wrist') == ['front', 'wrist']
    assert items('') == []


def test_each_camera_has_its_topics():
    given = {**NONE, 'image': '/a,/b'}
    assert input_remappings(given, []) == [('image', '/a,/b')]
    assert input_remappings(given, ['l', 'r']) == [('l/image', '/a'), ('r/image', '/b')]
    assert input_remappings(NONE, ['l', 'r']) == []


def test_the_qos_of_large_outputs_is_set_by_their_full_names():
    parameters = output_qos('best_effort', '/arm/lisa', ['front'])
    assert parameters['qos_overrides./arm/lisa/front/mask.publisher.reliability'] == 'best_effort'
    assert 'qos_overrides./arm/lisa/front/tracked/overlay.publisher.reliability' in parameters
    assert 'qos_overrides./lisa/mask.publisher.reliability' in output_qos('reliable', '/lisa', [])


@pytest.mark.parametrize(
    ('parts', 'name'),
    [
        (('', '', 'lisa'), '/lisa'),
        (('', 'arm', 'lisa'), '/arm/lisa'),
        (('/robot', 'arm/left', 'lisa'), '/robot/arm/left/lisa'),
        (('/robot', '/arm/', 'lisa'), '/arm/lisa'),
    ],
)
def test_the_full_name_of_a_node_in_its_namespaces(parts, name):
    assert full_name(*parts) == name


@pytest.mark.parametrize(
    ('text', 'cameras'),
    [
        ('/**: {ros__parameters: {cameras: [front, wrist]}}', ['front', 'wrist']),
        ('/arm/lisa: {ros__parameters: {cameras: [front]}}', ['front']),
        ('/*/lisa: {ros__parameters: {cameras: [front]}}', ['front']),
        ('arm: {lisa: {ros__parameters: {cameras: [front]}}}', ['front']),
        ('/**: {ros__parameters: {cameras: front}}', ['front']),
        ('lisa: {ros__parameters: {cameras: [front]}}', []),  # this is /lisa
        ('/other/lisa: {ros__parameters: {cameras: [front]}}', []),
        ('detector: {ros__parameters: {cameras: [front]}}', []),
        ("/**: {ros__parameters: {cameras: ['']}}", []),
        ('/**: {ros__parameters: {cameras: []}}', []),
        ("/**: {ros__parameters: {cameras: ''}}", []),
        ('a: &a {b: *a}', []),
        ('[', []),
        ('3', []),
    ],
)
def test_cameras_are_read_from_the_sections_of_the_node(text, cameras, tmp_path):
    file = tmp_path / 'parameters.yaml'
    file.write_text(text)
    assert cameras_in_file(str(file), '/arm/lisa') == cameras


def test_each_robot_of_a_file_has_its_own_cameras_and_the_last_section_counts(tmp_path):
    file = tmp_path / 'robots.yaml'
    file.write_text(
        '/r1/lisa: {ros__parameters: {cameras: [front, rear]}}\n'
        '/r2/lisa: {ros__parameters: {cameras: [left, right]}}\n'
        '/r3/lisa: {ros__parameters: {cameras: [top]}}\n'
        "/r3/**: {ros__parameters: {cameras: ['']}}\n"
    )
    names = [cameras_in_file(str(file), f'/{robot}/lisa') for robot in ('r1', 'r2', 'r3', 'r4')]
    assert names == [['front', 'rear'], ['left', 'right'], [], []]
