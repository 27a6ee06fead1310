# SPDX-License-Identifier: Apache-2.0
"""The configurations for RViz, Foxglove and Nav2 are valid and name topics of the node."""

import json
import re
import shlex
from pathlib import Path

import pytest
import yaml

from lisa_ros import cli
from lisa_ros.messages.segmentation import LABELS

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / 'config'
README = (ROOT / 'README.md').read_text(encoding='utf-8')

ANSWER_OUTPUTS = {  # published for each answer, and for each tracked image
    'segmentation', 'mask', 'confidence', 'overlay', 'scene_points', 'object_points', 'target',
    'mask/compressed', 'overlay/compressed', 'markers',
}  # fmt: skip
PUBLISHED = {
    '/diagnostics',
    *(f'/lisa/{name}' for name in (*ANSWER_OUTPUTS, 'label_info', 'detections', 'detections_3d')),
    *('/lisa/explanation', '/lisa/state', '/lisa/places'),
    *(f'/lisa/tracked/{name}' for name in ANSWER_OUTPUTS),
}
SUBSCRIBED = {'/image', '/lisa/command'}

# The panels of Lichtblick and Foxglove in the layout, and the settings that each one needs
PANELS = {
    '3D': {'topics', 'cameraState', 'followTf'},
    'Image': {'imageMode'},
    'RawMessages': {'topicPath'},
    'DiagnosticSummary': {'topicToRender'},
    'Publish': {'topicName', 'datatype', 'value'},
}


@pytest.fixture(scope='module')
def foxglove():
    return json.loads((CONFIG / 'lisa.foxglove.json').read_text(encoding='utf-8'))


@pytest.fixture(scope='module')
def rviz():
    return yaml.safe_load((CONFIG / 'lisa.rviz').read_text(encoding='utf-8'))


@pytest.fixture(scope='module')
def nav2_costmap():
    document = yaml.safe_load((CONFIG / 'nav2_semantic_layer.yaml').read_text(encoding='utf-8'))
    return document['local_costmap']['local_costmap']['ros__parameters']


def panels(tree):
    """Check the splits of a layout; return the ids of its panels."""
    if isinstance(tree, str):
        return [tree]
    assert set(tree) == {'direction', 'first', 'second', 'splitPercentage'}
    assert tree['direction'] in ('row', 'column')
    assert 0 < tree['splitPercentage'] < 100
    return panels(tree['first']) + panels(tree['second'])


def panel_topics(kind, config):
    """Return the topics that a panel shows or publishes."""
    return {
        '3D': lambda: list(config['topics']),
        'Image': lambda: [config['imageMode']['imageTopic']],
        'RawMessages': lambda: [config['topicPath'].partition('.')[0]],
        'DiagnosticSummary': lambda: [config['topicToRender']],
        'Publish': lambda: [config['topicName']],
    }[kind]()


def test_the_topics_of_this_test_include_those_of_the_readme():
    readme_topics = re.findall(r'^\| out \| `([^`]+)`', README, re.MULTILINE)
    assert readme_topics
    assert {name.replace('~/', '/lisa/') for name in readme_topics} <= PUBLISHED


def test_every_panel_is_in_the_layout_once_and_has_its_settings(foxglove):
    ids = panels(foxglove['layout'])
    assert sorted(ids) == sorted(foxglove['configById'])
    assert {'configById', 'globalVariables', 'userNodes', 'playbackConfig', 'layout'} == set(
        foxglove
    )
    for name, config in foxglove['configById'].items():
        kind, separator, label = name.partition('!')
        assert separator, name
        assert label, name
        assert PANELS[kind] <= set(config), name


def test_every_panel_names_topics_of_the_node(foxglove):
    shown = set()
    for name, config in foxglove['configById'].items():
        topics = panel_topics(name.partition('!')[0], config)
        assert topics, name
        shown.update(topics)
    assert shown <= PUBLISHED | SUBSCRIBED
    assert {
        '/lisa/overlay', '/lisa/object_points', '/lisa/target', '/lisa/explanation',
        '/lisa/segmentation', '/diagnostics', '/lisa/command',
    } <= shown  # fmt: skip


def test_the_publish_panel_sends_a_string_command(foxglove):
    (config,) = (c for n, c in foxglove['configById'].items() if n.startswith('Publish!'))
    assert config['topicName'] == '/lisa/command'
    assert config['datatype'] == 'std_msgs/String'
    assert isinstance(json.loads(config['value'])['data'], str)


def test_the_3d_views_are_from_behind_the_camera(foxglove, rviz):
    # the fixed frame of both is the optical frame: z forward, y down
    view = rviz['Visualization Manager']
    assert view['Global Options']['Fixed Frame'] == foxglove['configById']['3D!lisa']['followTf']
    assert view['Views']['Current']['Pitch'] < 0
    assert foxglove['configById']['3D!lisa']['cameraState']['phi'] > 90


def test_every_rviz_display_is_complete_and_shows_a_topic_of_the_node(rviz):
    displays = rviz['Visualization Manager']['Displays']
    names = [display['Name'] for display in displays]
    assert len(set(names)) == len(names)
    kinds = set()
    for display in displays:
        assert display['Class'].startswith('rviz_default_plugins/'), display
        assert isinstance(display['Enabled'], bool), display
        kinds.add(display['Class'].partition('/')[2])
        if display['Class'].endswith('/TF'):
            continue
        topic = display['Topic']
        assert topic['Value'] in PUBLISHED | SUBSCRIBED, display
        assert topic['Reliability Policy'] in ('Reliable', 'Best Effort')
        assert topic['Durability Policy'] in ('Volatile', 'Transient Local')
        assert topic['History Policy'] in ('Keep Last', 'Keep All')
        assert topic['Depth'] > 0
    assert kinds == {'Image', 'MarkerArray', 'PointCloud2', 'Pose', 'TF'}


def test_tracked_outputs_are_hidden_by_default(foxglove, rviz):
    # the tracker runs only while a tracked output has a subscriber
    for display in rviz['Visualization Manager']['Displays']:
        if '/tracked/' in display.get('Topic', {}).get('Value', ''):
            assert display['Enabled'] is False
    for name, settings in foxglove['configById']['3D!lisa']['topics'].items():
        assert settings['visible'] == ('/tracked/' not in name), name


def test_the_nav2_layer_uses_tracked_outputs_only(nav2_costmap):
    layer = nav2_costmap['lisa_layer']
    assert layer['plugin'] == 'semantic_segmentation_layer::SemanticSegmentationLayer'
    plugins = nav2_costmap['plugins']
    assert plugins.index('lisa_layer') < plugins.index('inflation_layer')
    for source in layer['observation_sources'].split():
        topics = {key: value for key, value in layer[source].items() if key.endswith('_topic')}
        assert topics == {
            'segmentation_topic': '/lisa/tracked/mask',
            'confidence_topic': '/lisa/tracked/confidence',
            'pointcloud_topic': '/lisa/tracked/scene_points',
            'labels_topic': '/lisa/label_info',
        }
        assert set(topics.values()) <= PUBLISHED


def test_the_classes_of_the_nav2_layer_are_labels_of_the_node(nav2_costmap):
    source = nav2_costmap['lisa_layer']['lisa']
    classes = [name for kind in source['class_types'] for name in source[kind]['classes']]
    assert len(set(classes)) == len(classes)  # the layer keeps one id for a name
    assert len(set(LABELS)) == len(LABELS)
    assert LABELS[0] == 'background'
    assert set(classes) == set(LABELS[: len(classes)])
    # without the background no cell would become free again
    assert 'background' in classes


def test_the_parameters_of_the_nav2_layer_have_its_declared_types(nav2_costmap):
    source = nav2_costmap['lisa_layer']['lisa']
    for name in ('min_obstacle_distance', 'max_obstacle_distance', 'tile_map_decay_time'):
        assert type(source[name]) is float, name
    for kind in source['class_types']:
        for name in ('base_cost', 'max_cost', 'mark_confidence'):
            assert type(source[kind][name]) is int, name
            assert 0 <= source[kind][name] <= 255, name
        assert type(source[kind]['samples_to_max_cost']) is int
        assert type(source[kind]['dominant_priority']) is bool


@pytest.mark.parametrize('name', ['navigation.md', 'grasping.md'])
def test_topics_files_and_options_in_the_guides_exist(name):
    text = (ROOT / 'docs' / name).read_text(encoding='utf-8')
    for topic in re.findall(r'(?:~|/lisa)/[a-z_0-9/]*[a-z_0-9]', text):
        full_name = topic.replace('~', '/lisa').replace('/front', '')
        assert full_name in PUBLISHED | {'/lisa/tracked'}, topic
    for link in re.findall(r'\]\(([^)#:]+)[)#]', text):
        assert (ROOT / 'docs' / link).exists(), link
    for line in re.findall(r'^lisa-ros (.+)$', text, re.MULTILINE):
        parsed = cli._parser().parse_args(shlex.split(line))
        assert parsed.run.__name__ == 'export'


def test_the_nav2_excerpt_in_the_guide_agrees_with_the_file(nav2_costmap):
    text = (ROOT / 'docs' / 'navigation.md').read_text(encoding='utf-8')
    blocks = map(yaml.safe_load, re.findall(r'```yaml\n(.*?)```', text, re.DOTALL))
    (excerpt,) = (block['lisa_layer'] for block in blocks if 'lisa_layer' in block)
    layer = nav2_costmap['lisa_layer']
    for key, value in excerpt.items():
        if key != 'lisa':
            assert layer[key] == value
    for key, value in excerpt['lisa'].items():
        if isinstance(value, dict):
            expected = layer['lisa'][key]
            assert value.pop('classes') == expected['classes'][:2]
            assert value.items() <= expected.items()
        else:
            assert layer['lisa'][key] == value
