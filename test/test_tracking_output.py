# SPDX-License-Identifier: Apache-2.0
"""Why a tracked object has no 3D position: it is lost, or another reason."""

import math
import re
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='needs ROS 2: make setup')
pytest.importorskip('lisa_ros.msg', reason='needs the built interfaces: make setup')

import rclpy
from lisa_ros.msg import Segmentation
from rclpy.lifecycle import LifecycleNode
from ros_graph import DOMAIN, Peer, image
from sensor_msgs.msg import CameraInfo
from test_scheduler import found_result

from lisa_ros.ros.context import NodeContext
from lisa_ros.ros.parameter_declaration import CurrentSettings
from lisa_ros.ros.publishers import AnswerPublishers
from lisa_ros.ros.throttled_log import ThrottledLog
from lisa_ros.ros.tracking_output import TrackingOutput
from lisa_ros.ros.transforms import Transforms
from lisa_ros.session.frame_buffer import SyncedMessages
from lisa_ros.settings import Settings
from lisa_ros.tracking.tracker import TrackingState

pytestmark = pytest.mark.ros

H, W = 48, 64
PIXELS = np.zeros((H, W, 3), np.uint8)
DEPTH = np.full((H, W), 1000, np.uint16)
HALF = np.where(np.arange(W) < W // 2, DEPTH, 0).astype(np.uint16)  # none at the right
K = [60.0, 0, 31.5, 0, 60, 23.5, 0, 0, 1]
SCATTERED = np.zeros((H, W), np.uint16)  # a valid pixel in 36, neighbours 0.6 m apart or more
SCATTERED[::6, ::6] = 600 + 600 * (np.arange(88) % 9).reshape(8, 11)
LEFT, RIGHT, LOST = np.zeros((3, H, W), bool)
LEFT[10:30, 5:25] = RIGHT[10:30, 40:60] = True


@pytest.fixture(scope='module')
def tracking():
    """Yield a function that publishes tracked masks, and returns the message that comes."""
    context = rclpy.Context()
    context.init(domain_id=int(DOMAIN))
    node = LifecycleNode('lisa', context=context)
    settings = CurrentSettings(Settings(target_frame='base_link', transform_timeout=0.05))
    log = ThrottledLog(node.get_logger())
    publishers = AnswerPublishers(
        NodeContext(node, settings, Transforms(node, settings), log, None), '~/tracked/'
    )
    output = TrackingOutput(NodeContext(node, settings, None, log, None), publishers)
    peer = Peer()
    peer.subscribe('/lisa/tracked/segmentation', Segmentation, 'tracked')
    node.trigger_configure()
    node.trigger_activate()
    peer.wait(output.has_subscribers, 60, 'a subscriber')

    def publish(masks, depth=DEPTH, focal_length=K[0], gap=None):
        peer.received['tracked'].clear()
        info = CameraInfo(width=W, height=H, k=[focal_length, *K[1:]])
        depth_message = None if depth is None else image(depth, '16UC1')
        frame = SyncedMessages(7, image(PIXELS), depth_message, info, depth_gap=gap)
        masks = np.stack(masks)
        logits = np.where(masks, 2.0, -2.0).astype(np.float32)
        scores = np.ones(len(masks), np.float32)
        result = replace(found_result('it'), masks=masks, mask_logits=logits, scores=scores)
        tracked = masks.any(axis=(1, 2))
        state = TrackingState(7, masks, tracked, (~tracked).astype(np.float32), 0.5)
        output.publish(frame, output.convert(frame), result, state)
        peer.wait(lambda: peer.received['tracked'], 60, 'a tracked message')
        return peer.received['tracked'][0]

    yield publish
    peer.close()
    node.destroy_node()
    context.shutdown()


NO_TARGET = 'no target: .*base_link.*'  # it is not in TF


@pytest.mark.parametrize(
    ('masks', 'inputs', 'reason'),
    [
        ([LEFT, LOST], {}, f'instance 2 is lost; {NO_TARGET}'),
        ([LOST, LEFT], {}, 'instance 1 is lost'),  # a target is the first instance
        (
            [LOST, RIGHT, LOST],
            {'depth': HALF},
            'instance 1, 3 is lost; no valid .* 2',
        ),
        ([LEFT, LOST], {'focal_length': 0.0}, 'instance 2 is lost; .*camera_info.*'),
        (
            [LEFT, LOST],
            {'depth': None, 'gap': 0.2},
            'instance 2 is lost; no depth .* 0.200 s .*',
        ),
        ([LOST], {'depth': HALF}, 'instance 1 is lost'),
        ([RIGHT], {'depth': HALF}, 'no valid depth on instance 1'),
        (
            [RIGHT],
            {'depth': SCATTERED, 'focal_length': 600.0},
            'valid depth on instance 1 only at scattered pixels.*fill_upsampling_holes: true.*',
        ),
        ([LEFT], {}, NO_TARGET),
    ],
)
def test_each_reason_is_told(tracking, masks, inputs, reason):
    message = tracking(masks, **inputs)
    assert re.fullmatch(reason, message.place_reason), message.place_reason
    for mask, instance in zip(masks, message.instances, strict=True):
        assert instance.tracked == mask.any()
        assert mask.any() or math.isnan(instance.centroid.x)
