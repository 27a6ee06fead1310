# SPDX-License-Identifier: Apache-2.0
"""The bond with a lifecycle manager; bondpy comes with a ROS distribution only."""

import sys

import pytest

pytest.importorskip('rclpy', reason='needs ROS 2: make setup')
pytest.importorskip('lisa_ros.msg', reason='needs the built interfaces: make setup')

from ros_graph import MODEL, START, NodeProcess, Peer

from lisa_ros.ros.bond import ManagerBond

pytestmark = pytest.mark.ros


def test_without_bondpy_there_is_no_bond(monkeypatch):
    monkeypatch.setitem(sys.modules, 'bondpy.bondpy', None)
    bond = ManagerBond(None)
    assert not bond.start()
    bond.stop()


def test_a_manager_sees_the_node_come_and_go(tmp_path):
    """As Nav2's lifecycle manager: one bond on the topic `bond`, with the node's name as id."""
    bondpy = pytest.importorskip('bondpy.bondpy', reason='bondpy comes with a ROS install only')
    process = NodeProcess(tmp_path / 'node.log', MODEL)
    peer = Peer()
    try:
        peer.wait_until_active(process)
        bond = bondpy.Bond(peer.node, 'bond', 'lisa')
        bond.set_connect_timeout(START)
        bond.start()
        peer.wait(lambda: bond.sm.getState().getName() == 'SM.Alive', what='the bond')
        assert peer.change_state('deactivate')
        peer.wait(bond.is_broken, what='the end of the bond')
        assert peer.change_state('activate')  # with a bond that nobody answers
        assert process.stop() == 0, process.output()
        assert 'Traceback' not in process.output()
    finally:
        process.stop()
        peer.close()
