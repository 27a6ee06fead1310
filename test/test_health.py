# SPDX-License-Identifier: Apache-2.0
"""Judging the health: each fault has a level, its cause and its cure, and goes away again."""

import math
import subprocess
import sys
from dataclasses import replace

import pytest

from lisa_ros.health.depth import DepthReport, ImageReport, judge_depth
from lisa_ros.health.goals import Departure, GoalReport, OpenGoal, judge_goals
from lisa_ros.health.inputs import InputReport, judge_input
from lisa_ros.health.memory import MemoryReport, judge_memory
from lisa_ros.health.model import ModelReport, judge_model
from lisa_ros.health.node import Lifecycle, NodeReport, judge_node
from lisa_ros.health.outcomes import Outcome, Outcomes
from lisa_ros.health.requests import RequestReport, judge_requests
from lisa_ros.health.transforms import TransformReport, judge_transforms
from lisa_ros.health.verdict import Level
from lisa_ros.model.cache_use import CacheUse
from lisa_ros.perception.backend import GpuMemory
from lisa_ros.perception.health import HealthState, ModelFailure, ModelHealth
from lisa_ros.perception.process_memory import ProcessMemory, SystemMemory, process_memory
from lisa_ros.results import Status
from lisa_ros.session.inference_batch import BatchUse
from lisa_ros.session.request import RequestCounters
from lisa_ros.session.request_history import Rejection, RequestEnd, RequestHistory

NOW, MIB = 1000.0, 2**20


def ends(*statuses, at=NOW - 1, seconds=0.1, reason='the lens is dirty'):
    return tuple(RequestEnd(at, status, reason, seconds) for status in statuses)


FOUND, FAILED = Status.FOUND, Status.FAILED

# ---- requests

REQUESTS = RequestReport(
    now=NOW,
    counters=RequestCounters(images=1),
    ends=(),
    rejections=(),
    waiting_goals=0,
    goals_kept=10,
    seconds_waiting=0.0,
    seconds_running=0.0,
    undelivered=0,
    max_undelivered=8,
)


@pytest.mark.parametrize(
    ('change', 'level', 'text'),
    [
        ({}, Level.OK, 'ready'),
        ({'seconds_running': 1.0}, Level.OK, 'answering'),
        ({'ends': ends(FAILED)}, Level.WARN, 'the last request failed; 1 s ago FAILED: the lens'),
        ({'ends': ends(FOUND, FAILED, FAILED)}, Level.ERROR, '2 of the last 3 requests failed'),
        ({'ends': ends(FAILED, FAILED, FOUND)}, Level.WARN, '2 of the last 3 requests failed'),
        ({'ends': ends(*[FOUND] * 9, FAILED)}, Level.WARN, '1 of the last 10 requests'),
        ({'ends': ends(FAILED, *[FOUND] * 10)}, Level.OK, 'ready'),
        ({'ends': ends(FAILED, FAILED, at=NOW - 31)}, Level.OK, 'ready'),
        ({'ends': ends(Status.TIMED_OUT) * 2}, Level.ERROR, 'TIMED_OUT: the lens'),
        ({'ends': ends(Status.STALE_INPUT) * 2}, Level.ERROR, 'STALE_INPUT'),
        ({'ends': ends(Status.REPEATED)}, Level.WARN, 'REPEATED'),
        ({'ends': ends(Status.CANCELLED, Status.SUPERSEDED)}, Level.OK, 'ready'),
        ({'waiting_goals': 8}, Level.WARN, 'nearly full, 8 of 10 goals wait: send fewer'),
        ({'waiting_goals': 10}, Level.ERROR, 'the queue is full, 10 of 10'),
        ({'rejections': (Rejection(NOW - 2, 'it is full'),)}, Level.WARN, '1 goals of the last'),
        ({'rejections': (Rejection(NOW - 31, 'it is full'),)}, Level.OK, 'ready'),
        ({'seconds_waiting': 11.0}, Level.WARN, 'has waited for 11 s: the model is busy'),
        ({'undelivered': 8, 'seconds_waiting': 1.5}, Level.WARN, '8 answers wait to be published'),
        ({'undelivered': 8, 'seconds_waiting': 0.2}, Level.OK, 'ready'),
        (
            {'seconds_waiting': 3.0, 'awaits_first_image': True},
            Level.WARN,
            'waits for the first image: check the camera',
        ),
        ({'seconds_waiting': 3.0, 'counters': RequestCounters()}, Level.OK, 'ready'),
    ],
)
def test_requests(change, level, text):
    verdict = judge_requests(replace(REQUESTS, **change))
    assert verdict.level is level
    assert text in verdict.message


def test_the_worst_problem_comes_first():
    report = replace(REQUESTS, ends=ends(FAILED), waiting_goals=10)
    verdict = judge_requests(report)
    assert verdict.level is Level.ERROR
    assert verdict.message.index('queue') < verdict.message.index('failed')


def test_the_history_is_bounded():
    history = RequestHistory()
    for number in range(500):
        history.add_end(FOUND, str(number), 0.1)
    assert len(history.ends) == 200
    assert history.ends[-1].reason == '499'


def test_the_newest_outcome_of_each_subject_is_kept():
    outcomes = Outcomes()
    for number in range(200):
        outcomes.note(f'subject {number}', 'no')
    outcomes.note('subject 199')
    assert len(outcomes.newest) == 50
    assert outcomes.newest[-1].reason == ''


# ---- model

MODEL = ModelReport(
    now=NOW,
    model='lisa',
    device='cuda:0',
    precision='bf16',
    isolation='process',
    fallback='',
    health=ModelHealth(HealthState.OK, NOW - 100),
    loading_since=None,
    ends=(),
    answer_timeout=30.0,
    batch_use=BatchUse(8, 3, 5),
)
HUNG = ModelHealth(HealthState.HUNG, NOW - 40, 'it has not returned for 40 s: restart the node')
JUST_FAILED = ModelHealth(
    HealthState.OK, NOW - 3, failure=ModelFailure('it died of signal 9', NOW - 5)
)
USUAL = ends(*[FOUND] * 10)


@pytest.mark.parametrize(
    ('change', 'level', 'text'),
    [
        ({}, Level.OK, 'lisa is loaded'),
        ({'health': None}, Level.WARN, 'the node is not configured'),
        ({'health': None, 'loading_since': NOW - 7}, Level.WARN, 'is being loaded (for 7 s)'),
        ({'health': HUNG}, Level.ERROR, 'restart the node'),
        ({'health': replace(HUNG, state=HealthState.RELOADING)}, Level.WARN, 'for 40.0 s'),
        ({'health': JUST_FAILED}, Level.WARN, 'a moment ago: it died of signal 9'),
        ({'health': JUST_FAILED, 'now': NOW + 10}, Level.OK, 'is loaded'),
        ({'health': replace(HUNG, state=HealthState.BUSY)}, Level.WARN, 'it is slow or hangs'),
        ({'ends': USUAL + ends(*[FOUND] * 3, seconds=0.5)}, Level.OK, 'is loaded'),
        ({'ends': USUAL + ends(*[FOUND] * 3, seconds=2.0)}, Level.WARN, 'earlier ones took 0.10'),
        ({'ends': USUAL + ends(FOUND, seconds=2.0)}, Level.OK, 'is loaded'),
        ({'ends': USUAL + ends(*[FOUND] * 3, seconds=2.0, at=NOW - 70)}, Level.OK, 'is loaded'),
        ({'ends': ends(*[FOUND] * 3, seconds=16.0)}, Level.WARN, 'answer_timeout allows 30 s'),
        ({'batch_use': BatchUse(8, 4, 8, 8)}, Level.WARN, 'for 8 requests at once: 4 are the'),
    ],
)
def test_model(change, level, text):
    verdict = judge_model(replace(MODEL, **change))
    assert (verdict.level, text in verdict.message) == (level, True), verdict.message
    assert verdict.values['precision'] == 'bf16'


def test_the_sizes_of_batches_are_shown():
    values = judge_model(MODEL).values
    shown = [values[f'requests at once{rest}'] for rest in ('', ', most so far', ', limit')]
    assert shown == [3, 5, 8]


def test_longer_answers_are_no_slow_model():
    short = [replace(end, tokens=0) for end in ends(*[FOUND] * 10, seconds=0.15)]
    long = [replace(end, tokens=60) for end in ends(*[FOUND] * 9, seconds=0.9)]
    assert judge_model(replace(MODEL, ends=short + long)).level is Level.OK
    slow = [replace(end, tokens=50) for end in ends(*[FOUND] * 3, seconds=4.0)]
    assert judge_model(replace(MODEL, ends=short + long + slow)).level is Level.WARN


def test_a_model_that_stays_slow_does_not_become_usual():
    report = replace(MODEL, ends=USUAL * 6 + ends(*[FOUND] * 140, seconds=2.0))
    assert judge_model(report).level is Level.WARN


# ---- memory

MEMORY = MemoryReport(
    node=ProcessMemory(300 * MIB, 400 * MIB),
    model=ProcessMemory(2000 * MIB, 2500 * MIB),
    model_limit=0,
    gpu=GpuMemory(5 * MIB, 6 * MIB),
    system=SystemMemory(16000 * MIB, 8000 * MIB),
)


@pytest.mark.parametrize(
    ('change', 'level', 'text'),
    [
        ({}, Level.OK, '2300 MiB are used, 8000 MiB are free'),
        ({'model_limit': 2100 * MIB}, Level.WARN, 'uses 2000 MiB and is ended above 2100 MiB'),
        ({'model_limit': 4000 * MIB}, Level.OK, 'are used'),
        ({'system': SystemMemory(16000 * MIB, 700 * MIB)}, Level.WARN, '700 MiB of the memory'),
        ({'system': SystemMemory(), 'model': None}, Level.OK, '300 MiB are used'),
    ],
)
def test_memory(change, level, text):
    verdict = judge_memory(replace(MEMORY, **change))
    assert (verdict.level, text in verdict.message) == (level, True), verdict.message
    assert verdict.values['peak memory [MiB]'] == '400'


def test_the_prompts_that_are_kept_are_counted():
    assert 'cache [MiB]' not in judge_memory(MEMORY).values
    on_server = judge_memory(replace(MEMORY, model=ProcessMemory())).values
    assert not [name for name in on_server if name.startswith('model process')]
    values = judge_memory(replace(MEMORY, cache=CacheUse(3, 40 * MIB, 512 * MIB))).values
    assert values['prompts in cache'] == 3
    assert (values['cache [MiB]'], values['cache_memory [MiB]']) == ('40', 512)


MEASURE = """
from lisa_ros.perception.process_memory import process_memory
before = process_memory()
block = bytearray(64 << 20)
during = process_memory()
del block
print(during.now - before.now, process_memory().peak - before.now)
"""


def test_the_memory_of_a_process_has_a_peak():
    growth = subprocess.run(  # a new process: the heap of this one may have room for the block
        [sys.executable, '-c', MEASURE], capture_output=True, text=True, check=True
    )
    assert min(map(int, growth.stdout.split())) > 32 * MIB
    assert process_memory(2**22 + 1) == ProcessMemory()  # no such process


# ---- inputs

INPUT = InputReport(
    topic='/image',
    is_required=True,
    publishers=('/camera',),
    is_latched=False,
    silence=0.1,
    rate=30.0,
    stamp_age=0.02,
)
SILENT = {'silence': 5.0}


@pytest.mark.parametrize(
    ('change', 'level', 'text'),
    [
        ({}, Level.OK, '30.0 Hz'),
        ({'publishers': ()}, Level.ERROR, 'nobody publishes it: start the camera'),
        ({'publishers': (), 'is_required': False}, Level.OK, 'optional'),
        (SILENT, Level.ERROR, 'no message comes: check the camera and its cable (/camera)'),
        ({'silence': 1.1}, Level.ERROR, 'no message comes'),
        ({'silence': 0.9}, Level.OK, '30.0 Hz'),
        ({'silence': 4.0, 'rate': 1.0}, Level.OK, '1.0 Hz'),  # a slow camera
        ({'silence': 6.0, 'rate': 1.0}, Level.ERROR, 'no message comes'),
        ({'silence': 11.0, 'rate': 0.1}, Level.ERROR, 'no message comes'),
        ({'silence': 1.9, 'rate': 0.0}, Level.OK, '0.0 Hz'),  # one message so far
        ({**SILENT, 'is_required': False}, Level.WARN, 'no message comes'),
        ({**SILENT, 'is_latched': True}, Level.OK, 'latched'),
        ({'silence': math.inf, 'is_latched': True}, Level.ERROR, 'no message comes'),
        ({**SILENT, 'incompatible_qos': 'RELIABILITY'}, Level.ERROR, 'qos_overrides./image'),
        ({'incompatible_qos': 'RELIABILITY'}, Level.OK, 'Hz'),  # from another publisher
        ({'incompatible_qos': 'RELIABILITY', 'publishers': ()}, Level.ERROR, 'nobody'),
        ({'stamp_fault': 'its stamps are 0: stamp them'}, Level.WARN, 'its stamps are 0'),
        ({'type_fault': 'x sends y'}, Level.OK, 'Hz'),  # another one sends the right type
        ({**SILENT, 'type_fault': 'x sends y'}, Level.ERROR, 'x sends y'),
        ({'publishers': (), 'type_fault': 'x sends y'}, Level.ERROR, 'x sends y'),
        (
            {'publishers': (), 'type_fault': 'x sends y', 'is_required': False},
            Level.WARN,
            'x sends y',
        ),
        (
            {'publishers': ('/bag', '/camera')},
            Level.WARN,
            '2 publishers send on it (/bag, /camera)',
        ),
    ],
)
def test_input(change, level, text):
    verdict = judge_input(replace(INPUT, **change))
    assert (verdict.level, text in verdict.message) == (level, True), verdict.message


# ---- depth

DEPTH = DepthReport(
    now=NOW,
    image=ImageReport('optical', (640, 480)),
    depth=ImageReport('optical', (320, 240)),
    has_info=True,
    info_size=(640, 480),
    info_frame='optical',
    info_fault='',
    stamp_gap=0.01,
    tolerance=0.05,
    position=None,
)


@pytest.mark.parametrize(
    ('change', 'level', 'text'),
    [
        ({}, Level.OK, 'depth fits the image'),
        ({'depth': None}, Level.OK, 'no depth'),
        ({'depth': ImageReport('ir', (640, 480))}, Level.WARN, 'depth is in frame ir, the image'),
        ({'depth': ImageReport('optical', (640, 400))}, Level.WARN, 'not the same aspect ratio'),
        ({'image': ImageReport('optical', None)}, Level.OK, 'fits'),  # compressed
        ({'has_info': False, 'info_size': None}, Level.WARN, 'without camera_info'),
        ({'info_fault': 'camera_info is not calibrated: fx 0'}, Level.WARN, 'not calibrated'),
        ({'info_frame': ''}, Level.OK, 'fits'),  # the driver leaves it empty
        ({'info_frame': 'ir'}, Level.WARN, 'camera_info is that of frame ir, the image is in op'),
        ({'info_fault': 'camera_info is for images of'}, Level.WARN, 'is for images of'),
        ({'depth_doubt': 'mono16 has no unit'}, Level.WARN, 'mono16 has no unit'),
        ({'depth': None, 'depth_doubt': 'mono16'}, Level.OK, 'no depth'),
        ({'stamp_gap': 0.2}, Level.WARN, 'the nearest differ by 0.200 s, depth_tolerance allows'),
        ({'position': Outcome('3D', NOW - 1, 'JPEG')}, Level.WARN, 'no 3D position: JPEG'),
        ({'position': Outcome('3D', NOW - 31, 'JPEG')}, Level.OK, 'fits'),
        ({'position': Outcome('3D', NOW - 1)}, Level.OK, 'fits'),
    ],
)
def test_depth(change, level, text):
    verdict = judge_depth(replace(DEPTH, **change))
    assert (verdict.level, text in verdict.message) == (level, True), verdict.message


# ---- transforms

TRANSFORMS = TransformReport(
    now=NOW, target_frame='map', gravity_frame='', map_frame='', lookups=()
)
LOOKUP = Outcome('optical to map', NOW - 1, 'no transform from optical to map: start')


@pytest.mark.parametrize(
    ('change', 'level', 'text'),
    [
        ({}, Level.OK, 'all transforms are known'),
        ({'lookups': (LOOKUP,)}, Level.WARN, 'no transform from optical to map'),
        ({'lookups': (replace(LOOKUP, at=NOW - 31),)}, Level.OK, 'known'),
        ({'lookups': (replace(LOOKUP, reason=''),)}, Level.OK, 'known'),
        ({'lookups': (LOOKUP,), 'target_frame': 'odom'}, Level.OK, 'known'),  # it was corrected
        ({'missing': 'TF has no transform from optical to map: start'}, Level.WARN, 'has no'),
        ({'axis_doubt': 'the camera would look straight up'}, Level.WARN, 'straight up'),
        (
            {'axis_doubt': 'straight up', 'missing': 'TF has no transform'},
            Level.WARN,
            'TF has no transform; straight up',
        ),
    ],
)
def test_transforms(change, level, text):
    verdict = judge_transforms(replace(TRANSFORMS, **change))
    assert (verdict.level, text in verdict.message) == (level, True), verdict.message


# ---- the node and its clients

NODE = NodeReport(NOW, '/arm/lisa', Lifecycle('active', NOW - 9), 1, None)


@pytest.mark.parametrize(
    ('change', 'level', 'text'),
    [
        ({}, Level.OK, 'active'),
        ({'lifecycle': Lifecycle('inactive', NOW)}, Level.WARN, 'set /arm/lisa activate'),
        ({'lifecycle': Lifecycle('unconfigured', NOW)}, Level.WARN, 'configure, then activate'),
        ({'lifecycle': Lifecycle('finalized', NOW)}, Level.WARN, 'restart the node'),
        ({'lifecycle': Lifecycle('configuring', NOW - 8)}, Level.WARN, 'configuring (for 8 s)'),
        ({'lifecycle': Lifecycle('configuring', NOW, 'no such folder')}, Level.WARN, ': wait'),
        (
            {'lifecycle': Lifecycle('unconfigured', NOW, 'configure failed: no such folder')},
            Level.ERROR,
            'configure failed: no such folder; then ros2 lifecycle set',
        ),
        ({'same_name': 2, 'same_name_since': NOW - 5}, Level.WARN, 'is gone in 20 s'),
        ({'same_name': 2, 'same_name_since': NOW - 30}, Level.ERROR, '2 nodes have the name'),
    ],
)
def test_node(change, level, text):
    verdict = judge_node(replace(NODE, **change))
    assert (verdict.level, text in verdict.message) == (level, True), verdict.message


def test_goals_name_their_owners():
    goals = [OpenGoal('/planner', 'the mug', True, 60.0), OpenGoal('/gui', 'the bowl', False, 1.0)]
    verdict = judge_goals(GoalReport(NOW, goals, 32))
    assert verdict.level is Level.OK
    assert verdict.message == '2 goals; continuous: 1 of /planner'
    assert verdict.values['continuous goal 1'] == "'the mug' of /planner for 60 s"
    assert judge_goals(GoalReport(NOW, (), 32)).message == 'no goals'


def test_a_client_with_many_goals_is_a_warning():
    goals = [OpenGoal('/planner', 'the mug', True, 60.0)] * 26
    verdict = judge_goals(GoalReport(NOW, goals, 32))
    assert verdict.level is Level.WARN
    assert '/planner has 26 goals, goals_per_client allows 32: let it wait' in verdict.message


def test_a_client_that_left_is_named_for_a_while():
    old, new = Departure('/planner', 2, NOW - 99), Departure('/arm', 4, NOW - 3)
    verdict = judge_goals(GoalReport(NOW, (), 32, [old, new]))
    assert verdict.level is Level.WARN
    assert verdict.message.startswith('the client /arm has left the ROS graph, and its 4 goals')
    assert judge_goals(GoalReport(NOW, (), 32, [old])).level is Level.OK
    many = [new, Departure('unknown client', 1, NOW)]
    assert '(clients that left before it: 1)' in judge_goals(GoalReport(NOW, (), 32, many)).message
