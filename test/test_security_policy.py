# SPDX-License-Identifier: Apache-2.0
"""The SROS2 policy allows each node what it really does, and nothing else."""

import re
from xml.etree import ElementTree

import pytest
from security_policy import FILE, ROLES, read_policy

# What the nodes have with other settings or packages than in this test.
SERVICES = '/lisa/segment/_action'  # their events need a later ROS 2 than Jazzy
OPTIONAL = {
    '/lisa_ros/lisa_node': {
        'publish': {
            *(
                f'/lisa/{name}'
                for name in ('label_info', 'detections', 'detections_3d', 'markers')
            ),
            *(f'/lisa/tracked/{name}' for name in ('detections', 'detections_3d', 'markers')),
            *(f'{SERVICES}/{name}/_service_event' for name in ('cancel_goal', 'get_result')),
            f'{SERVICES}/send_goal/_service_event',
            '/bond',
        },
        'subscribe': {
            *('/image/compressed', '/depth/compressed', '/depth/compressedDepth'),
            *('/tf', '/tf_static', '/clock', '/bond'),
            f'{SERVICES}/send_goal/_service_event',
        },
        'reply': {'/tf2_frames'},
    },
    '/lisa_ros/voice_node': {'subscribe': {'/clock'}},
}
PRIVATE = re.compile(r'/_service_event$')  # contents of goals and results
CHANGES = {'change_state', 'set_parameters', 'set_parameters_atomically'}


@pytest.fixture(scope='module')
def policy():
    return read_policy()


def test_the_policy_has_the_structure_that_sros2_reads():
    root = ElementTree.parse(FILE).getroot()  # noqa: S314
    assert (root.tag, root.attrib) == ('policy', {'version': '0.2.0'})
    (enclaves,) = root
    for enclave in enclaves:
        assert (enclave.tag, set(enclave.attrib)) == ('enclave', {'path'})
        (profiles,) = enclave
        assert profiles.tag == 'profiles'
        for profile in profiles:
            assert (profile.tag, set(profile.attrib)) == ('profile', {'ns', 'node'})
            for group in profile:
                (role,), (value,) = group.keys(), group.attrib.values()
                assert role in ROLES[group.tag]
                assert value == 'ALLOW'
                names = [entry.text for entry in group]
                assert {entry.tag for entry in group} == {group.tag.removesuffix('s')}
                assert len(set(names)) == len(names), f'{enclave.get("path")} repeats a name'
                assert all(
                    re.fullmatch(r'(~/|/)?\w[\w/]*', name) for name in names
                )  # no wildcards


def test_only_the_node_reads_the_contents_of_goals_and_results(policy):
    readers = {
        enclave
        for enclave, names in policy.items()
        if any(PRIVATE.search(name) for name in names['subscribe'])
    }
    assert readers == {'/lisa_ros/lisa_node'}


@pytest.mark.parametrize(
    ('role', 'name', 'allowed'),
    [
        ('publish', '/lisa/command', {'client', 'voice_node'}),
        ('call', '/lisa/segment', {'client'}),
        ('request', '/lisa/stop', {'client', 'operator'}),
        *(('request', f'/lisa/{service}', {'operator'}) for service in sorted(CHANGES)),
        *(('subscribe', f'/lisa/{topic}', {'client'}) for topic in ('mask', 'segmentation')),
        *(('subscribe', f'/lisa/tracked/{topic}', {'client'}) for topic in ('mask', 'overlay')),
        ('publish', '/image', {'camera'}),
        ('execute', '/lisa/segment', {'lisa_node'}),
    ],
)
def test_who_may_command_and_read(policy, role, name, allowed):
    enclaves = {enclave for enclave, names in policy.items() if name in names[role]}
    assert enclaves == {f'/lisa_ros/{enclave}' for enclave in allowed}


def test_what_one_enclave_reads_another_one_offers(policy):
    def all_names(role):
        return set().union(*(names[role] for names in policy.values()))

    from_outside = {'/audio', '/clock', '/tf', '/tf_static'}
    assert all_names('subscribe') - all_names('publish') == from_outside
    assert all_names('request') <= all_names('reply')
    assert all_names('call') == all_names('execute')


# ---- the running nodes


def graph_of(peer, node_name):
    """Return {role: names} of a running node; an action counts as one name."""

    def names(kind):
        get = getattr(peer.node, f'get_{kind}_names_and_types_by_node')
        return {name for name, _ in get(node_name, '/')}

    services = names('service')
    actions = {name.split('/_action/')[0] for name in services if '/_action/' in name}
    actions_topics = {f'{action}/_action/{part}' for action in actions for part in STREAMS}
    return {
        'publish': names('publisher') - actions_topics,
        'subscribe': names('subscriber'),
        'reply': {name for name in services if '/_action/' not in name},
        'request': names('client'),
        'execute': actions,
        'call': set(),
    }


STREAMS = ('feedback', 'status')


@pytest.fixture(scope='module')
def graphs(tmp_path_factory):
    """The real nodes, started as launch/lisa.launch.py does; {enclave: {role: names}}."""
    pytest.importorskip('rclpy', reason='needs ROS 2: make setup')
    import ros_graph

    folder = tmp_path_factory.mktemp('policy')
    voice_program = ros_graph.executable('voice_node', 'lisa_ros.ros.voice_node')
    voice_remaps = ['-r', 'command:=lisa/command', '-r', 'say:=lisa/explanation']
    node = ros_graph.NodeProcess(folder / 'node.log', ros_graph.MODEL)
    voice = ros_graph.NodeProcess(
        folder / 'voice.log',
        {'say': 'true', 'source': 'topic'},
        *voice_remaps,
        program=voice_program,
    )
    peer = ros_graph.Peer()
    try:
        peer.wait_until_active(node)
        voice.wait_for_output('sound: topic')
        peer.wait(lambda: peer.node.count_publishers('/voice/heard'), what='voice_node')
        peer.settle(1)
        yield {
            '/lisa_ros/lisa_node': graph_of(peer, 'lisa'),
            '/lisa_ros/voice_node': graph_of(peer, 'voice'),
        }
    finally:
        peer.close()
        node.stop()
        voice.stop()


@pytest.mark.ros
@pytest.mark.parametrize('enclave', ['/lisa_ros/lisa_node', '/lisa_ros/voice_node'])
def test_the_policy_is_what_the_node_does(policy, graphs, enclave):
    for role, real in graphs[enclave].items():
        allowed = policy[enclave][role]
        missing = real - allowed
        assert not missing, f'add to {FILE.name}, {enclave}, {role}: {missing}'
        unused = allowed - real - OPTIONAL[enclave].get(role, set())
        assert not unused, f'remove from {FILE.name}, {enclave}, {role}: {unused}'
