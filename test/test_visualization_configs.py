# SPDX-License-Identifier: Apache-2.0
"""What we give to RViz, Foxglove and Nav2 names topics that the node has, in their own format."""

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

CARRIED = {  # of an answer, and of what the tracker makes of it
    'segmentation', 'mask', 'confidence', 'overlay', 'scene_points', 'object_points', 'target',
}  # fmt: skip
OFFERED = {
    '/diagnostics',
    *(f'/lisa/{name}' for name in (*CARRIED, 'label_info', 'detections', 'detections_3d')),
    '/lisa/explanation',
    *(f'/lisa/tracked/{name}' for name in CARRIED),
}
HEARD = {'/image', '/lisa/command'}

# Panels of Lichtblick and Foxglove that we use, and what each must be told
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
def layer():
    whole = yaml.safe_load((CONFIG / 'nav2_semantic_layer.yaml').read_text(encoding='utf-8'))
    return whole['local_costmap']['local_costmap']['ros__parameters']


def panels(tree):
    """The ids in a layout, each half checked."""
    if isinstance(tree, str):
        return [tree]
    assert set(tree) == {'direction', 'first', 'second', 'splitPercentage'}
    assert tree['direction'] in ('row', 'column')
    assert 0 < tree['splitPercentage'] < 100
    return panels(tree['first']) + panels(tree['second'])


def named(kind, config):
    """The topics that a panel names."""
    return {
        '3D': lambda: list(config['topics']),
        'Image': lambda: [config['imageMode']['imageTopic']],
        'RawMessages': lambda: [config['topicPath'].partition('.')[0]],
        'DiagnosticSummary': lambda: [config['topicToRender']],
        'Publish': lambda: [config['topicName']],
    }[kind]()


def test_the_topics_here_are_those_of_the_readme():
    listed = re.findall(r'^\| out \| `([^`]+)`', README, re.MULTILINE)
    assert listed
    assert {name.replace('~/', '/lisa/') for name in listed} <= OFFERED


def test_every_panel_is_laid_out_once_and_has_its_settings(foxglove):
    ids = panels(foxglove['layout'])
    assert sorted(ids) == sorted(foxglove['configById'])
    assert {'configById', 'globalVariables', 'userNodes', 'playbackConfig', 'layout'} == set(
        foxglove
    )
    for name, config in foxglove['configById'].items():
        kind, mark, label = name.partition('!')
        assert mark, name
        assert label, name
        assert PANELS[kind] <= set(config), name


def test_every_panel_shows_topics_of_the_node(foxglove):
    shown = set()
    for name, config in foxglove['configById'].items():
        topics = named(name.partition('!')[0], config)
        assert topics, name
        shown.update(topics)
    assert shown <= OFFERED | HEARD
    assert {
        '/lisa/overlay', '/lisa/object_points', '/lisa/target', '/lisa/explanation',
        '/lisa/segmentation', '/diagnostics', '/lisa/command',
    } <= shown  # fmt: skip


def test_the_command_that_the_panel_publishes_is_a_string(foxglove):
    (config,) = (c for n, c in foxglove['configById'].items() if n.startswith('Publish!'))
    assert config['topicName'] == '/lisa/command'
    assert config['datatype'] == 'std_msgs/String'
    assert isinstance(json.loads(config['value'])['data'], str)


def test_the_scene_is_looked_at_from_behind_the_camera(foxglove, rviz):
    # the frame that both show is the optical one: z forward, y down
    view = rviz['Visualization Manager']
    assert view['Global Options']['Fixed Frame'] == foxglove['configById']['3D!lisa']['followTf']
    assert view['Views']['Current']['Pitch'] < 0
    assert foxglove['configById']['3D!lisa']['cameraState']['phi'] > 90


def test_every_display_of_rviz_is_whole_and_shows_a_topic_of_the_node(rviz):
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
        assert topic['Value'] in OFFERED | HEARD, display
        assert topic['Reliability Policy'] in ('Reliable', 'Best Effort')
        assert topic['Durability Policy'] in ('Volatile', 'Transient Local')
        assert topic['History Policy'] in ('Keep Last', 'Keep All')
        assert topic['Depth'] > 0
    assert kinds == {'Image', 'PointCloud2', 'Pose', 'TF'}


def test_what_is_carried_is_hidden_until_it_is_asked_for(foxglove, rviz):
    # the tracker runs while somebody listens
    for display in rviz['Visualization Manager']['Displays']:
        if '/tracked/' in display.get('Topic', {}).get('Value', ''):
            assert display['Enabled'] is False
    for name, shown in foxglove['configById']['3D!lisa']['topics'].items():
        assert shown['visible'] == ('/tracked/' not in name), name


def test_the_layer_of_nav2_takes_outputs_of_one_set(layer):
    ours = layer['lisa_layer']
    assert ours['plugin'] == 'semantic_segmentation_layer::SemanticSegmentationLayer'
    assert layer['plugins'].index('lisa_layer') < layer['plugins'].index('inflation_layer')
    for source in ours['observation_sources'].split():
        topics = {key: value for key, value in ours[source].items() if key.endswith('_topic')}
        assert topics == {
            'segmentation_topic': '/lisa/tracked/mask',
            'confidence_topic': '/lisa/tracked/confidence',
            'pointcloud_topic': '/lisa/tracked/scene_points',
            'labels_topic': '/lisa/label_info',
        }
        assert set(topics.values()) <= OFFERED


def test_the_classes_of_the_layer_are_labels_of_the_node(layer):
    source = layer['lisa_layer']['lisa']
    named = [name for kind in source['class_types'] for name in source[kind]['classes']]
    assert len(set(named)) == len(named)  # the layer keeps one id for a name
    assert len(set(LABELS)) == len(LABELS)
    assert LABELS[0] == 'background'
    assert set(named) == set(LABELS[: len(named)])
    # without the background nothing would free a cell
    assert 'background' in named


def test_numbers_of_the_layer_have_the_types_that_it_declares(layer):
    source = layer['lisa_layer']['lisa']
    for name in ('min_obstacle_distance', 'max_obstacle_distance', 'tile_map_decay_time'):
        assert type(source[name]) is float, name
    for kind in source['class_types']:
        for name in ('base_cost', 'max_cost', 'mark_confidence'):
            assert type(source[kind][name]) is int, name
            assert 0 <= source[kind][name] <= 255, name
        assert type(source[kind]['samples_to_max_cost']) is int
        assert type(source[kind]['dominant_priority']) is bool


@pytest.mark.parametrize('name', ['navigation.md', 'grasping.md'])
def test_a_guide_names_topics_files_and_options_that_exist(name):
    text = (ROOT / 'docs' / name).read_text(encoding='utf-8')
    for topic in re.findall(r'(?:~|/lisa)/[a-z_0-9/]*[a-z_0-9]', text):
        whole = topic.replace('~', '/lisa').replace('/front', '')
        assert whole in OFFERED | {'/lisa/tracked'}, topic
    for link in re.findall(r'\]\(([^)#:]+)[)#]', text):
        assert (ROOT / 'docs' / link).exists(), link
    for line in re.findall(r'^lisa-ros (.+)$', text, re.MULTILINE):
        parsed = cli._parser().parse_args(shlex.split(line))
        assert parsed.run.__name__ == 'export'


def test_the_short_layer_in_the_guide_is_the_one_of_the_file(layer):
    text = (ROOT / 'docs' / 'navigation.md').read_text(encoding='utf-8')
    (block,) = re.findall(r'```yaml\n(.*?)```', text, re.DOTALL)
    shown = yaml.safe_load(block)['lisa_layer']
    whole = layer['lisa_layer']
    for key, value in shown.items():
        if key != 'lisa':
            assert whole[key] == value
    for key, value in shown['lisa'].items():
        if isinstance(value, dict):
            real = whole['lisa'][key]
            assert value.pop('classes') == real['classes'][:2]
            assert value.items() <= real.items()
        else:
            assert whole['lisa'][key] == value
