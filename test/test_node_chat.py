# SPDX-License-Identifier: Apache-2.0
"""`lisa-ros chat` with a running node: its cameras, and a node that is lost."""

import json
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PillowImage

pytest.importorskip('rclpy', reason='needs ROS 2: make setup')
pytest.importorskip('lisa_ros.srv', reason='needs the built interfaces: make setup')

from goal_server import GoalServer, replaced
from ros_graph import START, NodeProcess, Peer, environment, image
from test_chat import INTERRUPTIBLE

pytestmark = pytest.mark.ros
SLOW_NODE = [sys.executable, str(Path(__file__).with_name('slow_node.py'))]
LINES = 'the box\n' * 4  # of the first answers the overlay may be lost: discovery takes a while


def chat(folder, *arguments):
    """Type lines into a chat; return its exit status and output."""
    ended = subprocess.run(
        [sys.executable, '-m', 'lisa_ros', 'chat', '--out', str(folder), *arguments],
        input=LINES, capture_output=True, text=True, timeout=2 * START, check=False,
        env={**environment(), 'XDG_CACHE_HOME': str(folder)},
    )  # fmt: skip
    assert 'Traceback' not in ended.stderr
    return ended.returncode, ended.stdout + ended.stderr


@pytest.mark.parametrize('names', [('front',), ('front', 'rear')], ids=len)
def test_answers_of_a_named_camera_have_its_image(names, tmp_path):
    (tmp_path / 'replies.json').write_text(json.dumps({'': {'masks': 'bright'}}))
    parameters = {'model': f'scripted:{tmp_path}/replies.json', 'cameras': f'[{",".join(names)}]'}
    node = NodeProcess(tmp_path / 'node.log', parameters, program=SLOW_NODE)
    peer = Peer(cameras=names)
    pixels = np.full((48, 64, 3), 40, np.uint8)
    pixels[10:20, 30:50] = 255
    try:
        peer.wait_until_active(node)
        peer.cameras[names[-1]].images.publish(image(pixels))
        peer.settle()
        out = tmp_path / 'out'
        status, output = chat(out, *(['--camera', names[-1]] if len(names) > 1 else []))
        assert status == 0, output
        assert f'node lisa, camera {names[-1]}.' in output
        assert output.count('1 found') == 4
        assert PillowImage.open(out / '004.png').size[0] >= 64
        status, output = chat(out, '--camera', 'left')
        cure = 'choose one: --camera front'
        known = ', '.join(names)
        assert (status, f"node lisa has no camera 'left', but {known}; {cure}" in output) == (1, 1)
        if len(names) > 1:
            status, output = chat(out)
            assert (status, f'has several cameras: {known}; {cure}' in output) == (1, True)
    finally:
        peer.close()
        assert node.stop() == 0, node.output()


def test_a_node_that_is_lost_or_does_not_stop_ends_the_line_not_the_chat(tmp_path):
    first, output = GoalServer(), []
    with subprocess.Popen(
        [sys.executable, '-uc', INTERRUPTIBLE, 'chat'],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=tmp_path,
        env={**environment(), 'XDG_CACHE_HOME': str(tmp_path)},
    ) as process:  # fmt: skip
        limit = threading.Timer(4 * START, process.kill)  # else a missing line is waited for
        limit.start()
        second = None

        def read_until(words):
            for line in process.stdout:
                output.append(line)
                if words in line:
                    return
            pytest.fail(f'no {words!r} in {output}')

        try:
            process.stdin.write('the mug\n')
            process.stdin.flush()
            second = replaced(first)
            read_until('! node lisa has left the ROS graph while it answered: start it again')
            process.stdin.write('the mug\n')
            process.stdin.flush()
            assert second.has_goal.wait(2 * START)
            process.send_signal(signal.SIGINT)
            read_until('! node lisa has not stopped within 3 s')
            first_output = len(output)
            process.stdin.write('the bowl\n')
            process.stdin.flush()
            second.wait_for_goals(2)
            process.send_signal(signal.SIGINT)
            read_until('! node lisa has not stopped within 3 s')
            shown = ''.join(output[first_output:])
            assert ('the bowl' in shown, 'the mug' in shown) == (True, False), shown
            process.stdin.write('/quit\n')
            process.stdin.flush()
            assert process.wait(START) == 0
        finally:
            limit.cancel()
            process.kill()
            first.close()
            if second is not None:
                second.close()
