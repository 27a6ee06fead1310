# SPDX-License-Identifier: Apache-2.0
"""Parameter files: which file sets what, and names in them that have no effect."""

from dataclasses import replace

import pytest

pytest.importorskip('rclpy', reason='needs ROS 2: make setup')
pytest.importorskip('lisa_ros.msg', reason='needs the built interfaces: make setup')

import rclpy
from rcl_interfaces.srv import GetParameters
from rclpy.parameter import parameter_value_to_python
from ros_graph import DOMAIN, NodeProcess, Peer

from lisa_ros.files.parameter_sections import read_parameter_file, value_for
from lisa_ros.ros import fastdds
from lisa_ros.ros.parameter_files import ineffective_names, read_sections, source_of

pytestmark = pytest.mark.ros

OWN_NAMES = ('target_frame', 'watch_rate', 'tracker')
FILE = """
/**:
  ros__parameters:
    target_fame: base_link
    exposure: 5
    use_sim_time: true
    qos_overrides:
      /camera_info:
        subscription: {durabilty: transient_local, depth: 1}
      /lisa/mask:
        publisher: {reliabilty: best_effort}
lisa_node:
  ros__parameters:
    watch_rate: 5.0
detector:
  ros__parameters:
    tracker: off
arm:
  lisa:
    ros__parameters:
      tracker: off
"""


@pytest.fixture
def sections(tmp_path):
    path = tmp_path / 'robot.yaml'
    path.write_text(FILE)
    return read_sections(['lisa_node', '--ros-args', '--params-file', str(path), '-p', 'a:=1'])


def test_a_file_of_another_encoding_that_ros_reads_is_named(tmp_path):
    for encoding in ('utf-8-sig', 'utf-16'):
        path = tmp_path / f'{encoding}.yaml'
        path.write_text(FILE, encoding=encoding)
        sections = read_sections(['x', '--params-file', str(path)])
        assert source_of('watch_rate', '/lisa_node', sections) == f'{path}: '


def test_misspelt_names_and_sections_of_other_nodes_are_reported(sections):
    warnings = ineffective_names('/lisa', OWN_NAMES, sections)
    assert [warning.partition('robot.yaml: ')[2] for warning in warnings] == [
        'there is no parameter target_fame; did you mean target_frame?',
        'there is no parameter qos_overrides./camera_info.subscription.durabilty; did you mean '
        'durability?',
        'there is no parameter qos_overrides./lisa/mask.publisher.reliabilty; did you mean '
        'reliability?',
        'the parameters of lisa_node are not for this node: name the section /lisa or /**',
        'the parameters of arm/lisa are not for this node: name the section /lisa or /**',
    ]


def test_a_file_without_a_section_for_the_node_is_reported(sections, tmp_path):
    """Nav2's file, if a launch file includes that of Nav2 and then ours, as `params_file`."""
    path = tmp_path / 'nav2.yaml'
    path.write_text('amcl: {ros__parameters: {a: 1}}\nbt_navigator: {ros__parameters: {b: 1}}')
    both = ['x', '--params-file', str(path), '--params-file', str(tmp_path / 'robot.yaml')]
    *others, warning = ineffective_names('/lisa', OWN_NAMES, read_sections(both))
    assert others == ineffective_names('/lisa', OWN_NAMES, sections)
    assert warning.startswith(f'{path} has no parameters for this node: name a section /lisa')


def test_a_section_counts_for_the_nodes_that_ros_gives_it_to(sections):
    everyone, lisa_node, _, in_arm = sections
    for node in ('/lisa', '/arm/lisa', '/a/b/lisa'):
        assert everyone.is_for(node)
    for pattern, node, is_for in (
        ('/**/lisa', '/lisa', True),
        ('/**/lisa', '/a/b/lisa', True),
        ('/**/lisa', '/a/b/lisa2', False),
        ('/*/lisa', '/lisa', False),
        ('/*/lisa', '/a/lisa', True),
        ('/arm/**', '/arm/lisa', True),
        ('/arm/**', '/arm2/lisa', False),
    ):
        assert replace(in_arm, node=pattern).is_for(node) == is_for, (pattern, node)
    assert in_arm.is_for('/arm/lisa')
    assert not in_arm.is_for('/lisa')
    assert lisa_node.is_for('/lisa_node')
    assert not lisa_node.is_for('/arm/lisa_node')
    assert source_of('tracker', '/arm/lisa', sections).endswith('robot.yaml: ')
    assert source_of('tracker', '/lisa', sections) == ''


@pytest.mark.parametrize(
    ('content', 'cameras'),
    [
        (
            '/arm/lisa: {ros__parameters: {cameras: [one]}}\n'
            '/**: {ros__parameters: {cameras: [all]}}',
            ['all'],
        ),
        (
            '/**: {ros__parameters: {cameras: [all]}}\n'
            '/arm/lisa: {ros__parameters: {cameras: [one]}}',
            ['one'],
        ),
        (
            'arm: {lisa: {ros__parameters: {cameras: [nested]}}}\n'
            '/*/lisa: {ros__parameters: {cameras: front}}',
            'front',
        ),
        ('arm: {lisa: {ros__parameters: {cameras: [nested]}}}', ['nested']),
        ('lisa: {ros__parameters: {cameras: [bare]}}', None),
        (
            '/**: {ros__parameters: {cameras: [first]}}\n'
            '/**: {ros__parameters: {watch_rate: 5.0}}',
            ['first'],
        ),
        (
            '/**: {ros__parameters: {cameras: [first]}}\n---\n'
            '/**: {ros__parameters: {cameras: [second]}}',
            ['second'],
        ),
        (
            '/arm/lisa: {ros__parameters: {cameras: [one]}}\n'
            '/**: {ros__parameters: {cameras: [all]}}\n'
            'arm: {lisa: {ros__parameters: {cameras: [bare]}}}\n'
            '/arm/lisa: {ros__parameters: {cameras: [again]}}',
            ['bare'],
        ),
        (
            '/arm/lisa: {ros__parameters: {cameras: [one]}}\n'
            '/**: {ros__parameters: {cameras: [all]}}\n'
            '/arm/lisa: {ros__parameters: {cameras: [again]}}',
            ['all'],
        ),
    ],
)
def test_a_node_gets_the_value_that_rclpy_gives_it(content, cameras, tmp_path):
    path = tmp_path / 'robot.yaml'
    path.write_text(content)
    assert value_for('cameras', '/arm/lisa', read_parameter_file(path)) == cameras
    fastdds.configure_shared_memory()
    context = rclpy.Context()
    context.init(['x', '--ros-args', '--params-file', str(path)], domain_id=int(DOMAIN))
    node = rclpy.create_node(
        'lisa',
        context=context,
        namespace='arm',
        automatically_declare_parameters_from_overrides=True,
    )
    try:
        given = node.has_parameter('cameras') and node.get_parameter('cameras').value
        assert (given or None) == cameras
    finally:
        node.destroy_node()
        context.shutdown()


@pytest.mark.parametrize(
    'content', ['', '- 1', 'a: [', '\t', '/**: 5', 'lisa: {ros__parameters: }']
)
def test_an_odd_file_has_no_sections_with_names(tmp_path, content):
    path = tmp_path / 'odd.yaml'
    path.write_text(content)
    sections = read_sections(['x', '--params-file', str(path), '--params-file', '/no/such'])
    assert ineffective_names('/lisa', OWN_NAMES, sections) == []


YAML_VALUES = """
/**:
  ros__parameters:
    autostart: off
    tracker: off
    refine: on
    requery: no
    cameras: []
    tracker_model: ~
    depth_tolerance: 1
    threads: 1.0
    image_is_rectified: 1
    confidence_threshold: "0.25"
    target_fame: base_link
"""
EXPECTED = {
    'autostart': False,
    'tracker': 'off',
    'refine': 'on',
    'requery': 'never',
    'cameras': [''],  # ROS has no empty list
    'tracker_model': '',
    'depth_tolerance': 1.0,
    'threads': 1,
    'image_is_rectified': True,
    'confidence_threshold': 0.25,
}


def test_a_node_understands_what_yaml_makes_of_documented_values(tmp_path):
    path = tmp_path / 'robot.yaml'
    path.write_text(YAML_VALUES)
    node, peer = NodeProcess(tmp_path / 'log', {}, '--params-file', str(path)), Peer()

    def values():
        response = peer.call(GetParameters, 'get_parameters', names=list(EXPECTED))
        return [parameter_value_to_python(value) for value in response.values]

    try:
        assert values() == list(EXPECTED.values())
        assert 'robot.yaml: there is no parameter target_fame; did you mean' in node.output()
        results = peer.set_parameters(
            refine=False, tracker=False, depth_tolerance=2, image_is_rectified='no', threads=2.0
        )
        assert [result.reason for result in results] == [''] * 5
        changed = dict(zip(EXPECTED, values(), strict=True))
        assert changed['refine'] == changed['tracker'] == 'off'
        assert (changed['depth_tolerance'], changed['threads']) == (2.0, 2)
        assert changed['image_is_rectified'] is False
        (result,) = peer.set_parameters(tracker=True)
        assert 'put it in quotes' in result.reason
        assert node.stop() == 0
    finally:
        node.stop()
        peer.close()
