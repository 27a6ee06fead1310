# SPDX-License-Identifier: Apache-2.0
"""`lisa-ros doctor`: each planted fault has a row with its level, its cause and one cure."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, replace
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest

from lisa_ros import cli
from lisa_ros.doctor import discovery, gpu, imports, run, shared_memory, system_clock, versions
from lisa_ros.doctor.finding import Check, Finding
from lisa_ros.doctor.graph import is_connected, judge_probe
from lisa_ros.doctor.graph_facts import GraphFacts, InputFacts, PublisherFacts, StatusFacts
from lisa_ros.doctor.input_topics import publish_cure
from lisa_ros.doctor.loopback import judge_loopback
from lisa_ros.doctor.middleware import uses_shared_memory
from lisa_ros.doctor.probe import ProbeResult, run_probe
from lisa_ros.doctor.ros_install import RosFacts, judge_ros, ros_facts
from lisa_ros.doctor.table import as_table, to_json
from lisa_ros.doctor.weights import ModelOptions, _imports, check_model
from lisa_ros.health.verdict import Level
from lisa_ros.resources import FASTDDS_LOCALHOST_PROFILE

OK, WARN, ERROR = Level
ROOT = Path(__file__).parents[1]
REFERENCE = Path(__file__).parent / 'data' / 'reference'
MIB = 2**20


def check_row(finding, level, *texts, cure=''):
    line = f'{finding.observed} | {finding.cure}'
    assert finding.level is level, line
    assert all(text in line for text in texts), line
    assert cure in finding.cure, line
    assert '\n' not in line


# ---- versions


def test_the_bounds_are_those_of_the_requirements():
    folder = ROOT / 'config' / 'requirements'
    lines = [
        line
        for name in ('library', 'thin', 'local')
        for line in (folder / f'{name}.txt').open()
        if not line.startswith('#')
    ]
    requirements = dict(re.match(r'([\w-]+)([^;\s]*)', line).groups() for line in lines)
    bounds = {
        name: f'>={oldest}' + (f',<{too_new}' if too_new else '')
        for name, (oldest, too_new) in versions.BOUNDS.items()
    }
    assert bounds == requirements
    assert f'>={".".join(map(str, versions.MIN_PYTHON))}' in (ROOT / 'setup.py').read_text()


def test_versions():
    rows = versions.judge_packages({'torch': '2.8.1+cu128', 'transformers': '6.0', 'numpy': None})
    check_row(rows[0], ERROR, 'torch 2.8.1+cu128; expected torch>=2.9', cure='pip install')
    check_row(rows[1], ERROR, 'transformers 6.0; expected transformers>=5.20,<6')
    check_row(rows[2], ERROR, 'numpy is not installed', cure="pip install 'numpy>=1.26'")
    check_row(versions.judge_python((3, 9, 2)), ERROR, 'Python 3.9.2', cure='3.10 or later')
    (row,) = versions.judge_opencv(['opencv-python-headless', 'opencv-python'])
    check_row(row, WARN, 'overwrite the files of each other', cure='pip uninstall')
    assert all(row.level is OK for row in versions.check_versions())


# ---- processes of their own


def test_a_probe_that_hangs_crashes_or_is_not_there(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / 'hangs.py').write_text(
        'import time\ndef main(_):\n    yield {"step": 1}\n    time.sleep(60)'
    )
    (tmp_path / 'crashes.py').write_text(
        'import os\ndef main(_):\n    yield {"step": 1}\n    os.kill(os.getpid(), 11)'
    )
    start = time.monotonic()
    late = run_probe('hangs', [], 1.0)
    assert time.monotonic() - start < 5
    assert (late.facts, late.is_late, late.error) == ({'step': 1}, True, 'not finished within 1 s')
    crashed = run_probe('crashes', [], 10.0)
    assert crashed.facts == {'step': 1}
    assert 'died of signal 11 (SIGSEGV)' in crashed.error
    assert 'No module named' in run_probe('nowhere', [], 10.0).error


CLASH = 'A module that was compiled using NumPy 1.x cannot be run in NumPy 2.4.6 as it may crash.'


@pytest.mark.parametrize(
    'code',
    [
        f'import sys\nprint({CLASH!r}, file=sys.stderr)\nraise AttributeError("_ARRAY_API")',
        'import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)',
    ],
)
def test_a_cv_bridge_for_another_numpy(tmp_path, monkeypatch, code):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / 'cv_bridge.py').write_text(code)
    numpy, cv2, cv_bridge = (imports.check_import(name, 20.0)[0] for name in imports.MODULES)
    check_row(numpy, OK, '2.')
    check_row(cv2, OK)
    check_row(cv_bridge, WARN, 'cannot be imported', cure="pip install 'numpy<2'")


def test_an_opencv_without_the_libraries_of_a_screen():
    error = 'ImportError: libGL.so.1: cannot open shared object file'
    result = ProbeResult({'is_installed': True, 'error': error})
    check_row(imports.judge_import('cv2', result), ERROR, 'libGL', cure='opencv-python-headless')
    late = imports.judge_import('cv2', ProbeResult({}, 'not finished within 10 s', is_late=True))
    check_row(late, WARN, 'import not finished within 10 s', cure='--timeout')
    missing = imports.judge_import('cv_bridge', ProbeResult({'is_installed': False}))
    check_row(missing, OK, 'does not need it')


@pytest.mark.parametrize('name', ['opencv-python', 'opencv-contrib-python-headless'])
def test_any_one_distribution_of_opencv_is_right(name, monkeypatch):
    def version(asked):
        if asked.startswith('opencv') and asked != name:
            raise metadata.PackageNotFoundError(asked)
        return '4.12'

    monkeypatch.setattr(versions.metadata, 'version', version)
    assert versions.installed_version('opencv-python-headless') == '4.12'
    assert not [row for row in versions.check_versions() if 'overwrite' in row.observed]


# ---- GPU

CPU_ONLY = gpu.DriverFacts(0, '', '', '')
H100 = gpu.DriverFacts(1, 'NVIDIA H100, 580.65.06', '', '13.0')
TORCH = gpu.TorchFacts('2.13.0+cu130', '13.0', '', (), ('sm_80', 'sm_90'), '', '')
DEVICE = {'name': 'NVIDIA H100', 'capability': [9, 0], 'memory': 80 * 10**9}


@pytest.mark.parametrize(
    ('driver', 'torch', 'level', 'text', 'cure'),
    [
        (CPU_ONLY, TORCH, OK, 'on the CPU', ''),
        (H100, replace(TORCH, devices=(DEVICE,), free=70 * 10**9), OK, '70.0 of 80.0 GB', ''),
        (H100, replace(TORCH, version='2.13.0+cpu', cuda=''), WARN, 'without CUDA', 'CUDA build'),
        (
            gpu.DriverFacts(2, '', '', ''),
            TORCH,
            WARN,
            '2 NVIDIA GPUs without a driver',
            '--gpus all',
        ),
        (
            replace(H100, cuda='12.4'),
            TORCH,
            ERROR,
            'up to CUDA 12.4 is too old',
            'update the driver',
        ),
        (
            replace(H100, smi='', smi_error='Driver/library version mismatch'),
            TORCH,
            ERROR,
            'version mismatch',
            'restart',
        ),
        (
            H100,
            replace(TORCH, devices=({**DEVICE, 'capability': [12, 0]},)),
            ERROR,
            'has no kernels for NVIDIA H100 (sm_120), only sm_80, sm_90',
            'another build',
        ),
        (
            H100,
            replace(TORCH, devices=(DEVICE,), kernel_error='CUDA error: out of memory'),
            ERROR,
            'cannot compute on NVIDIA H100 (sm_90): CUDA error',
            'nvidia-smi',
        ),
        (
            H100,
            replace(TORCH, warning='CUDA unknown error'),
            ERROR,
            'CUDA unknown error',
            '/dev/nv',
        ),
    ],
)
def test_gpu(driver, torch, level, text, cure):
    result = ProbeResult({'torch': asdict(torch)})
    check_row(gpu.judge_gpu(driver, result), level, text, cure=cure)


def test_the_free_memory_of_a_gpu_is_that_of_its_computer_where_they_share_it(monkeypatch):
    import torch

    from lisa_ros.doctor.torch_facts import torch_facts

    orin = {'name': 'Orin', 'major': 8, 'minor': 7, 'total_memory': 64 * 10**9}
    properties, ones = SimpleNamespace(is_integrated=1, **orin), torch.ones
    stubs = {
        'is_available': lambda: True,
        'get_arch_list': lambda: ['sm_87'],
        'device_count': lambda: 1,
        'get_device_properties': lambda _: properties,
        'mem_get_info': lambda *_: (10**6, 64 * 10**9),
        'memory_reserved': lambda _: 0,
        'memory_allocated': lambda _: 0,
    }
    for name, stub in stubs.items():
        monkeypatch.setattr(torch.cuda, name, stub)
    monkeypatch.setattr(torch, 'ones', lambda shape, device: ones(shape))
    facts = torch_facts()
    assert facts['kernel_error'] == ''
    assert facts['free'] > 10**8


def test_a_gpu_that_is_asked_for_and_not_there():
    result = ProbeResult({'torch': asdict(TORCH)})
    check_row(gpu.judge_gpu(CPU_ONLY, result, 'cuda:0'), ERROR, 'no GPU here', cure='device cpu')


@pytest.mark.parametrize(
    ('capability', 'architectures', 'fits'),
    [
        ((8, 6), ['sm_80'], True),
        ((8, 0), ['sm_86'], False),
        ((9, 0), ['sm_80'], False),
        ((12, 0), ['compute_90'], True),
        ((9, 0), ['sm_90a'], True),
        ((12, 0), ['sm_100', 'sm_120'], True),
    ],
)
def test_kernels_of_a_build(capability, architectures, fits):
    assert gpu.has_kernels(capability, architectures) is fits


# ---- weights


def weights_row(model, **options):
    from lisa_ros.doctor import model_files

    options = ModelOptions(str(model), str(REFERENCE / 'clip_256'), **options)
    facts = model_files.check_files(asdict(options))
    return Finding('weights', Level(facts['level']), facts['observed'], facts['cure'])


@pytest.fixture
def model(tmp_path):
    return Path(shutil.copytree(REFERENCE / 'ckpt_256', tmp_path / 'model'))


def test_whole_weights():
    check_row(weights_row(REFERENCE / 'ckpt_256'), OK, 'whole', 'checksums not compared')
    check_row(weights_row('lisa-tabletop'), OK, 'whole')


def test_weights_that_are_missing_or_cut(model):
    check_row(weights_row(model.with_name('none')), ERROR, 'no such folder', cure='Models and')
    check_row(weights_row('nobody/nothing'), WARN, 'not in the local cache', cure='download')
    weights = sorted([*model.glob('*.bin'), *model.glob('*.safetensors')])[0]
    with weights.open('r+b') as file:
        file.truncate(weights.stat().st_size // 2)
    check_row(weights_row(model), ERROR, weights.name, 'download it again')


def test_weights_of_another_checksum_or_without_a_tokenizer(model):
    check_row(weights_row(model, sha256='0' * 64), ERROR, 'has the SHA-256', 'expected 0000')
    (model / 'tokenizer.model').unlink()
    assert weights_row(model).level is ERROR


def test_a_torchvision_of_another_torch(tmp_path, monkeypatch):
    """As apt's, which a virtual environment with the packages of the system sees."""
    error = 'operator torchvision::nms does not exist'
    (tmp_path / 'torchvision').mkdir()
    (tmp_path / 'torchvision' / '__init__.py').write_text(f'raise RuntimeError({error!r})')
    info = tmp_path / 'torchvision-0.20.1.dist-info'
    info.mkdir()
    (info / 'METADATA').write_text('Metadata-Version: 2.1\nName: torchvision\nVersion: 0.20.1\n')
    monkeypatch.syspath_prepend(tmp_path)
    *_, files, row = check_model(ModelOptions('lisa-tabletop'), False, 90.0)
    check_row(files, OK, 'whole')
    assert row.check == 'import model'
    check_row(row, ERROR, error, 'install the torchvision that fits this torch')


def test_a_slow_import_is_no_fault():
    facts = {'weights': {'level': int(OK), 'observed': 'whole', 'cure': ''}}
    late = ProbeResult(facts, 'not finished within 10 s', is_late=True)
    check_row(_imports(late), OK, 'not finished within 10 s')
    died = ProbeResult(facts, 'died of signal 11 (SIGSEGV): ')
    check_row(_imports(died), ERROR, 'died of signal 11', cure='row of torch')


# ---- shared memory, discovery, clock


def test_shared_memory(tmp_path):
    facts = shared_memory.SharedMemoryFacts(64 * MIB, 60 * MIB)
    judge = shared_memory.judge_shared_memory
    check_row(judge(facts), WARN, 'shm has 64 MiB', cure='--shm-size=1g')
    full = replace(facts, size=1024 * MIB, free=8 * MIB)
    check_row(judge(full), ERROR, '8 of 1024 MiB', cure='fastdds shm clean')
    foreign = replace(full, free=900 * MIB, foreign_ports=('fastdds_port7411',))
    check_row(judge(foreign), WARN, 'belong to another user', cure='as one user')
    (row,) = shared_memory.check_shared_memory(tmp_path / 'none', {})
    check_row(row, WARN, 'is missing', cure='tmpfs')
    for name in (
        'rmw_cyclonedds_cpp',
        'rmw_zenoh_cpp',
    ):  # with their own shared memory
        other = {'RMW_IMPLEMENTATION': name}
        (row,) = shared_memory.check_shared_memory(tmp_path / 'none', other)
        assert (row.level, row.observed) == (OK, 'not checked: Fast DDS is not in use')
    udp = {'FASTDDS_BUILTIN_TRANSPORTS': 'UDPv4'}
    (row,) = shared_memory.check_shared_memory(tmp_path / 'none', udp)
    check_row(row, OK, 'is not used')
    (tmp_path / 'fastdds_0123').write_bytes(bytes(2 * MIB))
    assert shared_memory.shared_memory_facts(tmp_path).segments >= 2 * MIB


@pytest.mark.parametrize(
    ('environment', 'level', 'text', 'cure'),
    [
        ({}, OK, 'SUBNET', ''),
        ({'ROS_LOCALHOST_ONLY': '1'}, OK, 'this computer only', ''),
        ({'ROS_AUTOMATIC_DISCOVERY_RANGE': 'OFF'}, ERROR, 'no node finds another', 'LOCALHOST'),
        ({'ROS_AUTOMATIC_DISCOVERY_RANGE': 'local'}, ERROR, "'local'", 'SUBNET'),
        (
            {'ROS_LOCALHOST_ONLY': '1', 'ROS_AUTOMATIC_DISCOVERY_RANGE': 'SUBNET'},
            WARN,
            'overrides',
            'unset ROS_LOCALHOST_ONLY',
        ),
    ],
)
def test_the_range_of_discovery(environment, level, text, cure):
    (row,) = discovery.judge_range(environment)
    check_row(row, level, text, cure=cure)


def test_the_domain():
    check_row(discovery.judge_domain(''), OK, '0 (not set)')
    check_row(discovery.judge_domain('robot'), ERROR, "'robot'; expected 0 to 232", cure='export')
    check_row(discovery.judge_domain('300'), ERROR, "'300'")
    check_row(discovery.judge_domain('200'), WARN, 'may be taken', cure='0 to 101')


def test_a_node_in_another_domain(tmp_path):
    """As a process of this computer shows itself in /proc."""
    folder = tmp_path / '1234'
    folder.mkdir()
    (folder / 'cmdline').write_bytes(b'/usr/bin/python3\0/opt/lisa_ros/lib/lisa_ros/lisa_node\0')
    (folder / 'environ').write_bytes(b'ROS_DOMAIN_ID=7\0HOME=/root\0')
    nodes = discovery.running_nodes(tmp_path)
    (row,) = discovery.judge_processes(nodes, {})
    check_row(row, WARN, 'lisa_node (pid 1234) has ROS_DOMAIN_ID=7; here ROS_DOMAIN_ID=0')
    assert row.cure.startswith('export ROS_DOMAIN_ID=7')
    for same in (
        {'ROS_DOMAIN_ID': '7'},
        {'ROS_DOMAIN_ID': '7', 'RMW_IMPLEMENTATION': 'rmw_fastrtps_cpp'},
        {'ROS_DOMAIN_ID': '7', 'ROS_AUTOMATIC_DISCOVERY_RANGE': 'SYSTEM_DEFAULT'},
    ):
        assert discovery.judge_processes(nodes, same) == []
    cyclone = {'ROS_DOMAIN_ID': '7', 'RMW_IMPLEMENTATION': 'rmw_cyclonedds_cpp'}
    (row,) = discovery.judge_processes(nodes, cyclone)
    check_row(row, WARN, 'RMW_IMPLEMENTATION=rmw_fastrtps_cpp; here RMW_IMPLEMENTATION=rmw_cycl')


def test_a_profile_of_dds(tmp_path):
    name = 'FASTDDS_DEFAULT_PROFILES_FILE'
    path = tmp_path / 'profile.xml'
    (row,) = discovery.judge_profile(name, {name: str(path)})
    check_row(row, ERROR, 'No such file', cure=f'unset {name}')
    path.write_text('<profiles>')
    (row,) = discovery.judge_profile(name, {name: str(path)})
    check_row(row, ERROR, 'not XML')
    path.write_text('<profiles></profiles>')
    (row,) = discovery.judge_profile(name, {name: str(path)})
    check_row(row, WARN, 'sets no segment_size', cure='fastdds.xml')
    good = ROOT / 'lisa_ros' / 'ros' / 'fastdds.xml'
    (row,) = discovery.judge_profile(name, {name: str(good)})
    check_row(row, OK, str(good))
    local = {'ROS_AUTOMATIC_DISCOVERY_RANGE': 'LOCALHOST'}
    (row,) = discovery.judge_profile(name, {name: str(good), **local})
    check_row(row, WARN, 'has a UDP transport', cure='fastdds_localhost.xml')
    (row,) = discovery.judge_profile(name, {name: str(FASTDDS_LOCALHOST_PROFILE), **local})
    check_row(row, OK, str(FASTDDS_LOCALHOST_PROFILE))
    assert discovery.judge_profile(name, {}) == []


def udp_profile(builtin='<useBuiltinTransports>false</useBuiltinTransports>'):
    return f"""<profiles xmlns="http://www.eprosima.com"><transport_descriptors>
        <transport_descriptor><transport_id>udp</transport_id><type>UDPv4</type>
        </transport_descriptor></transport_descriptors>
        <participant profile_name="p" is_default_profile="true"><rtps><userTransports>
        <transport_id>udp</transport_id></userTransports>{builtin}</rtps></participant>
        </profiles>"""


@pytest.mark.parametrize(
    ('content', 'variables', 'is_used'),
    [
        (None, {}, True),
        (None, {'RMW_IMPLEMENTATION': 'rmw_fastrtps_dynamic_cpp'}, True),
        (None, {'RMW_IMPLEMENTATION': 'rmw_cyclonedds_cpp'}, False),
        (None, {'RMW_IMPLEMENTATION': 'rmw_zenoh_cpp'}, False),
        (None, {'FASTDDS_BUILTIN_TRANSPORTS': 'UDPv4'}, False),
        (None, {'FASTDDS_BUILTIN_TRANSPORTS': 'UDPv4?max_msg_size=1MB'}, False),
        (udp_profile(''), {'FASTDDS_BUILTIN_TRANSPORTS': 'UDPv4?max_msg_size=1MB'}, False),
        (None, {'FASTDDS_BUILTIN_TRANSPORTS': 'LARGE_DATA?max_msg_size=1MB'}, True),
        (None, {'FASTDDS_BUILTIN_TRANSPORTS': 'LARGE_DATA'}, True),
        ('<profiles></profiles>', {}, True),
        ('<profiles>', {}, True),
        (udp_profile(), {}, False),
        (udp_profile(), {'ROS_LOCALHOST_ONLY': '1'}, True),  # rmw_fastrtps adds it
        (udp_profile(''), {}, True),
        (udp_profile('<builtinTransports>UDPv4</builtinTransports>'), {}, False),
        ((ROOT / 'lisa_ros' / 'ros' / 'fastdds.xml').read_text(), {}, True),
    ],
)
def test_shared_memory_is_judged_only_where_it_is_used(content, variables, is_used, tmp_path):
    name, path = 'FASTRTPS_DEFAULT_PROFILES_FILE', tmp_path / 'profile.xml'
    if content is not None:
        path.write_text(content)
        variables = {name: str(path), **variables}
    assert uses_shared_memory(variables) is is_used
    if content is not None and content.startswith('<profiles xmlns') and not is_used:
        check_row(*discovery.judge_profile(name, variables), OK, str(path))


def test_the_configuration_of_cyclone_is_a_list(tmp_path):
    name, path = 'CYCLONEDDS_URI', tmp_path / 'a.xml'
    path.write_text('<CycloneDDS/>')
    used = {'RMW_IMPLEMENTATION': 'rmw_cyclonedds_cpp'}
    inline = '<Tracing><Category>a,b</Category></Tracing>'

    def rows(value, **variables):
        return discovery.judge_profile(name, {name: value, **used, **variables})

    for value in (f'file://{path},{inline}', f'{inline}, {path}', f'{inline},file://{path},<A/>'):
        check_row(*rows(value), OK, str(path))
    check_row(*rows(f'{tmp_path}/none.xml,{inline}'), ERROR, 'No such file', cure=f'unset {name}')
    assert [row.level for row in rows(f'{path},{tmp_path}/none.xml')] == [OK, ERROR]
    assert rows(inline) == rows('file://${HOME}/a.xml') == []
    assert rows('/none.xml', RMW_IMPLEMENTATION='rmw_fastrtps_cpp') == []
    profile = {'FASTDDS_DEFAULT_PROFILES_FILE': '/none.xml', **used}
    assert discovery.judge_profile('FASTDDS_DEFAULT_PROFILES_FILE', profile) == []


def test_multicast():
    lost = 'a packet did not come back'
    check_row(discovery.judge_multicast(lost, {}), WARN, lost, cure='firewall')
    check_row(discovery.judge_multicast(lost, {'ROS_LOCALHOST_ONLY': '1'}), OK, 'not needed')
    check_row(discovery.judge_multicast('', {}), OK, 'came back')


def test_the_system_clock():
    check_row(system_clock.judge_system_clock(86400.0, None), ERROR, '1970', cure='timedatectl')
    check_row(system_clock.judge_system_clock(time.time(), True), OK, 'synchronized')
    assert system_clock.is_synchronized() in (True, False, None)


# ---- ROS

ROS = RosFacts('kilted', '9.1.2', True, 'rmw_fastrtps_cpp', ('rmw_fastrtps_cpp',))


def test_the_installation_of_ros():
    assert [row.level for row in judge_ros(ROS)] == [OK, OK]
    (row,) = judge_ros(replace(ROS, rclpy_version=None))
    check_row(row, WARN, 'no rclpy', cure='source /opt/ros')
    check_row(judge_ros(replace(ROS, has_messages=False))[1], ERROR, 'not built', cure='colcon')
    check_row(judge_ros(replace(ROS, distribution='foxy'))[0], WARN, 'not tested', cure='jazzy')
    row = judge_ros(replace(ROS, rmw='rmw_cyclonedds_cpp'))[1]
    check_row(row, ERROR, 'installed: rmw_fastrtps_cpp', cure='ros-kilted-rmw-cyclonedds-cpp')


def test_installed_middlewares_are_read_from_the_ament_index(tmp_path):
    folder = tmp_path / 'share/ament_index/resource_index/rmw_typesupport'
    folder.mkdir(parents=True)
    (folder / 'rmw_zenoh_cpp').touch()
    (folder / 'rmw_implementation').touch()
    facts = ros_facts({'AMENT_PREFIX_PATH': f'/nowhere:{tmp_path}'})
    assert facts.installed_rmws == ('rmw_zenoh_cpp',)


def test_the_loopback_message():
    facts = {'sent': 20, 'small': 20, 'large': 20, 'small_latency': 0.001, 'large_latency': 0.004}
    check_row(judge_loopback(ProbeResult(facts)), OK, 'message 1.0 ms, image of 0.9 MB 4.0 ms')
    check_row(judge_loopback(ProbeResult({**facts, 'large': 3})), ERROR, '0 small and 17 large')
    check_row(
        judge_loopback(ProbeResult({**facts, 'large_latency': 0.4})), WARN, 'slow', cure='top'
    )
    check_row(
        judge_loopback(ProbeResult({'error': 'did not find each other'})), ERROR, cure='rows'
    )


def test_a_node_without_camera_info_is_whole():
    info = replace(
        IMAGE, topic='/camera_info', type='sensor_msgs/msg/CameraInfo', publishers=(), messages=0
    )
    depth = replace(info, topic='/camera/depth/image', type='sensor_msgs/msg/Image')
    rows = graph_rows(replace(GRAPH, inputs=(depth, info, IMAGE)))
    levels = {name: row.level for name, row in rows.items() if name.startswith('input')}
    assert levels == dict.fromkeys(levels, OK)
    silent = replace(IMAGE, publishers=(), messages=0)
    for inputs in ((depth, info, silent), (info, replace(depth, topic='/image'))):
        rows = graph_rows(replace(GRAPH, inputs=inputs))
        assert rows['input /image'].level is ERROR
        assert rows['input /camera_info'].level is OK


# ---- a running node

IMAGE = InputFacts(
    topic='/image',
    type='sensor_msgs/msg/Image',
    publishers=(PublisherFacts('/camera', 'sensor_msgs/msg/Image'),),
    messages=60,
    rate=30.0,
    stamp_age=0.02,
    is_stamped=True,
    frame_id='optical',
    is_latched=False,
)
GRAPH = GraphFacts(
    node='/lisa',
    same_name=1,
    other_nodes=('/camera',),
    state='active',
    inputs=(IMAGE,),
    parameters={'use_sim_time': False, 'target_frame': '', 'gravity_frame': ''},
    statuses=(StatusFacts('/lisa: model', 0, 'is loaded'),),
    listened=2.0,
)
SIMULATED = {'use_sim_time': True}
MAP = {'target_frame': 'map'}
CHAIN = (('map', 'odom'), ('odom', 'base'), ('base', 'optical'))


def graph_rows(facts, is_expected=True):
    values = json.loads(json.dumps(asdict(facts)))
    return {row.check: row for row in judge_probe('/lisa', ProbeResult(values), is_expected)}


@pytest.mark.parametrize(
    ('change', 'check', 'level', 'text', 'cure'),
    [
        ({}, '/lisa', OK, 'active', ''),
        ({'state': ''}, '/lisa', ERROR, 'does not answer get_state', 'restart it'),
        ({'state': 'inactive'}, '/lisa', WARN, 'inactive', 'ros2 lifecycle set /lisa activate'),
        ({'same_name': 0}, '/lisa', ERROR, 'no node /lisa in the graph; nodes: /camera', 'launch'),
        ({'same_name': 2}, '/lisa', WARN, '2 nodes have the name', 'rename it'),
        ({}, 'input /image', OK, '30.0 Hz from /camera, stamps 0.02 s old', ''),
        (
            {'parameters': SIMULATED},
            'clock',
            ERROR,
            'use_sim_time is on, and /clock has 0',
            '--clock',
        ),
        (
            {'clock': 5.0, 'system_time': 1e9},
            'clock',
            WARN,
            'does not use it',
            'use_sim_time: true',
        ),
        (
            {'parameters': MAP},
            'TF',
            WARN,
            'no transform from optical to map; TF has no',
            'robot_st',
        ),
        (
            {'parameters': SIMULATED, 'clock': 1e9 - 90000.0, 'system_time': 1e9},
            'clock',
            OK,
            '(a recording)',
            '',
        ),
        ({'parameters': SIMULATED, 'clock': 12.0, 'system_time': 1e9}, 'clock', OK, 'behind', ''),
        ({'parameters': MAP, 'frames': CHAIN}, 'TF', OK, 'is known', ''),
        ({'parameters': MAP, 'frames': CHAIN[1:]}, 'TF', WARN, 'TF has base, odom, optical', ''),
        ({'statuses': ()}, '/diagnostics', WARN, 'publishes nothing', 'hangs'),
        (
            {'statuses': (StatusFacts('/lisa: requests', 2, 'the queue is full: send fewer'),)},
            '/diagnostics requests',
            ERROR,
            'the queue is full: send fewer',
            '',
        ),
    ],
)
def test_a_node_in_the_graph(change, check, level, text, cure):
    check_row(graph_rows(replace(GRAPH, **change))[check], level, text, cure=cure)


def test_a_node_that_nobody_asked_for_may_be_missing():
    check_row(graph_rows(replace(GRAPH, same_name=0), is_expected=False)['/lisa'], OK, 'no node')


@pytest.mark.parametrize(
    ('change', 'level', 'text', 'cure'),
    [
        ({'publishers': (), 'messages': 0}, ERROR, 'nobody publishes it', 'start the camera'),
        (
            {'publishers': (), 'messages': 0, 'similar': ('/camera/image_raw',)},
            ERROR,
            'there are /camera/image_raw',
            'image:=/camera/image_raw',
        ),
        (
            {'publishers': (), 'messages': 0, 'similar': ('/image/compressed',)},
            ERROR,
            'there are /image/compressed',
            'image_transport',
        ),
        ({'messages': 0}, ERROR, 'no message comes', 'check the camera'),
        (
            {'publishers': (PublisherFacts('/camera', IMAGE.type, 'Reliability'),)},
            ERROR,
            'receives nothing from /camera: Reliability',
            'qos_overrides./image',
        ),
        (
            {'publishers': (PublisherFacts('/camera', 'sensor_msgs/msg/CompressedImage'),)},
            ERROR,
            '/camera sends sensor_msgs/msg/CompressedImage, the node expects sensor_msgs/msg/Im',
            'set image_transport',
        ),
        (
            {'publishers': IMAGE.publishers * 2},
            WARN,
            '2 publishers send on it',
            'stop all but one',
        ),
        ({'stamp_age': -20.0}, WARN, '20.0 s ahead of the clock', 'synchronize'),
        ({'stamp_age': 5e8}, WARN, 'behind the clock', 'use_sim_time'),
        ({'stamp_age': None, 'is_stamped': False}, WARN, 'its stamps are 0', 'stamp each image'),
    ],
)
def test_an_input_of_a_node(change, level, text, cure):
    rows = graph_rows(replace(GRAPH, inputs=(replace(IMAGE, **change),)))
    check_row(rows['input /image'], level, text, cure=cure)


RAW, COMPRESSED = 'sensor_msgs/msg/Image', 'sensor_msgs/msg/CompressedImage'
COLOUR, FRONT = '/camera/color/image_raw', {'cameras': ['front', 'rear']}


@pytest.mark.parametrize(
    ('topic', 'kind', 'similar', 'parameters', 'cure'),
    [
        ('/image', RAW, (COLOUR,), {}, f'remap it: -r image:={COLOUR}'),
        ('/image', RAW, (COLOUR,), {'cameras': ['']}, f'remap it: -r image:={COLOUR}'),
        ('/front/image', RAW, (COLOUR,), FRONT, f'remap it: -r front/image:={COLOUR}'),
        ('/front/image', RAW, (COLOUR,), {}, f'the input: {COLOUR} in place of /front/image'),
        (COLOUR, RAW, ('/cam/image',), {}, f'the input: /cam/image in place of {COLOUR}'),
        ('/image', RAW, ('/image/compressed', COLOUR), {}, 'image_transport to compressed'),
        ('/image/compressed', COMPRESSED, ('/image',), {}, 'image_transport to raw'),
        ('/image', RAW, ('/image/theora',), {}, 'ros2 run image_transport republish'),
        (
            '/image/compressed',
            COMPRESSED,
            ('/camera/depth/compressedDepth', f'{COLOUR}/compressed'),
            {},
            f'remap it: -r image:={COLOUR}',
        ),
        (
            '/rear/image/compressed',
            COMPRESSED,
            ('/camera/jpeg',),
            FRONT,
            'remap it: -r /rear/image/compressed:=/camera/jpeg',
        ),
    ],
)
def test_an_image_that_is_published_under_another_name(topic, kind, similar, parameters, cure):
    absent = {'publishers': (), 'messages': 0, 'similar': similar}
    item = replace(IMAGE, topic=topic, type=kind, **absent)
    parameters = {**GRAPH.parameters, **parameters}
    row = graph_rows(replace(GRAPH, inputs=(item,), parameters=parameters))[f'input {topic}']
    check_row(row, ERROR, f'there are {similar[0]}', cure=cure)


def test_an_input_of_a_node_in_a_namespace_is_remapped_by_its_relative_name():
    depth = publish_cure('/arm/wrist/depth', RAW, ['/camera/depth'], '/arm/lisa', ['wrist'])
    assert depth == 'remap it: -r wrist/depth:=/camera/depth'
    other = publish_cure(
        '/depth/compressedDepth', COMPRESSED, ['/depth/compressed'], '/lisa', ['']
    )
    assert other == 'set the parameter depth_transport to compressed'


def test_frames_are_connected_over_several_transforms():
    assert is_connected('optical', 'map', CHAIN)
    assert not is_connected('optical', 'map', CHAIN[:1])


# ---- the whole


def test_no_check_ends_the_others():
    def fails():
        raise RuntimeError('a bug\nof two lines')

    listed = [
        Check('hangs', lambda: time.sleep(30)),
        Check('fails', fails),
        Check('exits', sys.exit),
        Check('works', lambda: [Finding('works', OK, 'fine')]),
    ]
    start = time.monotonic()
    hangs, fails_row, exits, works = run.run_checks(listed, 0.5)
    assert time.monotonic() - start < 3
    check_row(hangs, WARN, 'not finished within 0.5 s', cure='--timeout')
    check_row(fails_row, ERROR, 'the check itself failed: RuntimeError: a bug of two lines')
    check_row(exits, ERROR, 'SystemExit')
    check_row(works, OK, 'fine')


def test_table_and_json():
    rows = [Finding('GPU', WARN, 'an old \x1b[31mdriver', 'update it'), Finding('TF', OK, 'fine')]
    lines = as_table(rows).splitlines()
    assert lines[0] == 'WARN   GPU  an old [31mdriver'
    assert lines[1].strip() == 'cure: update it'
    assert lines[-1] == '0 errors, 1 warnings, 1 OK'
    report = json.loads(to_json(rows))
    assert report['level'] == 'WARN'
    assert report['findings'][1] == {'check': 'TF', 'level': 'OK', 'observed': 'fine', 'cure': ''}


def test_the_command_finds_faults_of_the_environment(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('ROS_DOMAIN_ID', 'robot')
    monkeypatch.setenv('RMW_IMPLEMENTATION', 'rmw_nowhere_cpp')
    monkeypatch.setenv('FASTDDS_DEFAULT_PROFILES_FILE', str(tmp_path / 'none.xml'))
    command = ['doctor', '--json', '--timeout', '40', '--node', 'lisa', '--model', str(tmp_path)]
    assert cli.main(command) == 1
    rows = {row['check']: row for row in json.loads(capsys.readouterr().out)['findings']}
    assert 'config.json' in rows['weights']['observed']
    assert rows['DDS profile']['level'] == rows['domain']['level'] == 'ERROR'
    if 'loopback' in rows:  # with ROS
        assert 'rmw_nowhere_cpp' in rows['RMW']['observed']
        assert rows['loopback']['level'] == rows['/lisa']['level'] == 'ERROR'
    else:
        assert rows['node']['level'] == 'ERROR'
    assert {row['level'] for row in rows.values()} >= {'OK', 'ERROR'}


def test_a_machine_without_ros_gets_a_table():
    options = run.DoctorOptions(ModelOptions('lisa-tabletop'))
    names = [check.name for check in run.checks(options, RosFacts('', None, False, '', ()))]
    assert 'weights' in ' '.join(names)
    assert 'loopback' not in names
    (row,) = run.checks(options, RosFacts('', None, False, '', ()))[-1].run()
    check_row(row, OK, 'it needs ROS')


def test_the_doctor_works_where_numpy_does_not(tmp_path):
    (tmp_path / 'numpy').mkdir()
    (tmp_path / 'numpy' / '__init__.py').write_text(f'raise ImportError({CLASH!r})')
    environment = {**os.environ, 'PYTHONPATH': f'{tmp_path}:{os.environ.get("PYTHONPATH", "")}'}
    code = 'from lisa_ros.startup import run_command_line; run_command_line(*{!r})'
    doctor, other = (
        subprocess.run(
            [sys.executable, '-c', code.format(arguments)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        for arguments in (
            ['doctor', '--json', '--timeout', '30', '--model', 'other'],
            ['chat'],
        )
    )
    rows = {row['check']: row for row in json.loads(doctor.stdout)['findings']}
    assert doctor.returncode == 1
    assert '--model other has no effect here: only lisa-tabletop is checked' in doctor.stderr
    assert CLASH in rows['import numpy']['observed']
    assert rows['domain']['level'] in ('OK', 'WARN')
    assert other.returncode == 1
    assert other.stderr == f'lisa-ros: {CLASH}; lisa-ros doctor checks all packages\n'
