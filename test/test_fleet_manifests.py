# SPDX-License-Identifier: Apache-2.0
"""examples/fleet: what the files for systemd, Docker Compose, KubeRay and proxies say is so.

LISA_ROS_SCHEMAS names a folder with the official schemas, which are not part of this package:

    compose-spec.json             compose-spec/compose-spec, schema/
    ray.io_rayclusters.yaml       ray-project/kuberay, ray-operator/config/crd/bases/
    kubernetes/KIND-VERSION.json  yannh/kubernetes-json-schema, a folder of strict schemas
"""

import argparse
import copy
import json
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

pytest.importorskip('python_multipart', reason='the extra `serve` is not installed')
pytest.importorskip('prometheus_client', reason='the extra `serve` is not installed')

import lisa_ros
from lisa_ros.commands import serve
from lisa_ros.serving.limits import ServerLimits
from lisa_ros.serving.metrics import ServerMetrics
from lisa_ros.serving.models import ModelsState
from lisa_ros.serving.openapi import openapi
from lisa_ros.serving.problems import Problem
from lisa_ros.serving.tokens import TokenTable

ROOT = Path(__file__).parents[1]
FLEET = ROOT / 'examples/fleet'
LIMITS = ServerLimits()
PATHS = set(openapi(LIMITS, has_tokens=True)['paths'])
IMAGE = f'lisa_ros-serve:{lisa_ros.__version__}'
END = 30  # that Ray may take to end, on a busy machine [s]
SCHEMAS = os.environ.get('LISA_ROS_SCHEMAS', '')


def text(name):
    return (FLEET / name).read_text(encoding='utf-8')


def without_comments(name):
    return re.sub(r'(^|\s)#.*', '', text(name))


def unit():
    """Return the directives of the unit with their values; those of a list are joined."""
    directives = {}
    for line in text('lisa-ros-serve.service').splitlines():
        name, equals, value = line.partition('=')
        if equals and not line.startswith('#'):
            directives[name] = ' '.join([*filter(None, [directives.get(name)]), value])
    return directives


COMPOSE = yaml.safe_load(text('compose.yaml'))
SERVICES = COMPOSE['services']
KUBERNETES = list(yaml.safe_load_all(text('kuberay.yaml')))
UNIT = unit()


def of_kind(kind):
    return [item for item in KUBERNETES if item['kind'] == kind]


def pods():
    """Return the pods of the cluster and of the server, as (labels, spec)."""
    (cluster,), (server,) = of_kind('RayCluster'), of_kind('StatefulSet')
    groups = [cluster['spec']['headGroupSpec'], *cluster['spec']['workerGroupSpecs']]
    templates = [group['template'] for group in (*groups, server['spec'])]
    return [(item['metadata']['labels'], item['spec']) for item in templates]


def server_pod():
    return pods()[-1][1]


def commands():
    """Return the arguments of lisa-ros of each file."""
    (script,) = server_pod()['containers'][0]['args']
    docker = text('Dockerfile')
    entry, command = (
        json.loads(re.search(rf'^{name} (.+)$', docker, re.M)[1]) for name in ('ENTRYPOINT', 'CMD')
    )
    assert entry == ['lisa-ros']
    return {
        'systemd': shlex.split(UNIT['ExecStart'])[1:],
        'compose': SERVICES['server']['command'],
        'kuberay': shlex.split(script.split('exec lisa-ros ')[1]),
        'docker': command,
    }


def parsed(arguments):
    parser = argparse.ArgumentParser(exit_on_error=False)
    serve.add(parser.add_subparsers())
    return parser.parse_args(arguments)


def help_text():
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers()
    serve.add(commands)
    return commands.choices['serve'].format_help()


def seconds(time):
    return int(re.fullmatch(r'(\d+)s', time)[1])


# ---- the command


@pytest.mark.parametrize('name', commands())
def test_the_command_has_flags_that_exist(name):
    options = parsed(commands()[name])
    assert options.run is serve.serve
    assert options.port == 8000
    flags = {word.partition('=')[0] for word in commands()[name] if word.startswith('--')}
    assert flags <= set(re.findall(r'--[\w-]+', help_text()))  # argparse accepts beginnings, too
    with pytest.raises((SystemExit, argparse.ArgumentError)):
        parsed([*commands()[name], '--no-such-flag'])


@pytest.mark.parametrize('name', ['systemd', 'compose', 'kuberay'])
def test_whoever_reaches_the_port_needs_a_token(name):
    assert parsed(commands()[name]).token_file is not None


@pytest.mark.parametrize(
    ('name', 'stop'),
    [
        ('systemd', seconds(UNIT['TimeoutStopSec'])),
        ('compose', seconds(SERVICES['server']['stop_grace_period'])),
        ('kuberay', server_pod()['terminationGracePeriodSeconds']),
    ],
)
def test_answers_in_progress_are_sent_before_the_server_is_killed(name, stop):
    assert stop >= parsed(commands()[name]).deadline + END


def test_paths_of_probes_exist():
    (container,) = server_pod()['containers']
    ports = {port['name']: port['containerPort'] for port in container['ports']}
    for name in ('startup', 'liveness', 'readiness'):
        probe = container[f'{name}Probe']['httpGet']
        assert probe['path'] in PATHS
        assert ports[probe['port']] == parsed(commands()['kuberay']).port
    assert container['readinessProbe']['httpGet']['path'] == '/readyz'
    for check in (text('Dockerfile'), *SERVICES['server']['healthcheck']['test']):
        for port, path in re.findall(r'http://127\.0\.0\.1:(\d+)(/\w+)', check):
            assert (int(port), path) == (8000, '/readyz')


# ---- versions


def test_images_have_the_version_of_the_package_and_of_ray():
    images = [container['image'] for _, spec in pods() for container in spec['containers']]
    assert {*images, SERVICES['server']['image']} == {IMAGE}
    pins = (ROOT / '.ci/constraints.txt').read_text()
    ray = re.search(r'^ray==(\S+)$', pins, re.M)[1]
    assert of_kind('RayCluster')[0]['spec']['rayVersion'] == ray
    installs = re.findall(r'pip install (?!.*--no-deps)[^&]+', text('Dockerfile'))
    assert installs
    assert all('-c .ci/constraints.txt' in install for install in installs)
    build = SERVICES['server']['build']
    assert (FLEET / build['context']).resolve() == ROOT
    assert (ROOT / build['dockerfile']).samefile(FLEET / 'Dockerfile')
    for file in re.findall(r'-r (\S+\.txt)', text('Dockerfile')):
        assert (ROOT / file).exists()


# ---- secrets


def test_no_secret_is_in_a_file():
    for _, spec in pods():
        for container in spec['containers']:
            for variable in container.get('env', ()):
                is_secret = re.search('TOKEN|KEY|SECRET|PASSWORD', variable['name'])
                assert not is_secret or 'value' not in variable, variable
    for service in SERVICES.values():
        assert not re.search('TOKEN|KEY|SECRET|PASSWORD', str(service.get('environment')))
    assert not of_kind('Secret')
    for file in FLEET.iterdir():
        assert not re.search(r'\b[0-9a-f]{32,}\b', text(file.name)), file


def test_the_token_file_is_what_the_secret_provides():
    secrets = COMPOSE['secrets']
    assert SERVICES['server']['secrets'] == list(secrets)
    (name,) = secrets
    assert str(parsed(commands()['compose']).token_file) == f'/run/secrets/{name}'
    mounts = {
        item['name']: item['mountPath'] for item in server_pod()['containers'][0]['volumeMounts']
    }
    file = parsed(commands()['kuberay']).token_file
    assert str(file.parent) == mounts['tokens']
    assert f'create secret generic lisa-tokens --from-file={file.name}' in text('kuberay.yaml')


def test_the_token_file_is_in_no_commit_and_no_image():
    line = 'examples/fleet/tokens'
    assert line in (ROOT / '.gitignore').read_text().splitlines()
    assert line in text('Dockerfile.dockerignore').splitlines()


def test_the_printed_line_is_a_token_file(tmp_path):
    line = re.search(r"^#\s+(printf 'robot1.+> tokens)", text('compose.yaml'), re.M)[1]
    shell = shutil.which('openssl') and shutil.which('sh')
    if not shell:
        pytest.skip('needs openssl, which makes the token')
    subprocess.run([shell, '-c', line], cwd=tmp_path, check=True)
    ((_, client),) = TokenTable.read(tmp_path / 'tokens').clients
    assert client.name == 'robot1'


# ---- systemd


def test_the_unit_lets_ray_end_and_the_gpu_work():
    assert UNIT['KillMode'] == 'mixed'  # else Ray's processes get SIGTERM, too
    assert UNIT['ExecReload'].split()[1:] == ['-HUP', '$MAINPID']
    assert UNIT['Restart'] == 'on-failure'
    for hidden in ('PrivateDevices', 'MemoryDenyWriteExecute', 'PrivateNetwork', 'ProcSubset'):
        assert hidden not in UNIT
    assert 'char-nvidia*' in UNIT['DeviceAllow']
    assert {'AF_UNIX', 'AF_INET', 'AF_NETLINK'} <= set(UNIT['RestrictAddressFamilies'].split())
    options = parsed(commands()['systemd'])
    assert options.model.startswith(f'%S/{UNIT["StateDirectory"]}/')
    assert (options.host, UNIT['IPAddressAllow']) == ('127.0.0.1', 'localhost')


def verified(folder, content):
    """Return what systemd finds wrong with a unit."""
    file = folder / 'lisa-ros-serve.service'
    file.write_text(content.replace('/opt/lisa_ros/bin/lisa-ros', shutil.which('true')))
    verify = ['systemd-analyze', 'verify', '--man=no', '--recursive-errors=no', file]
    done = subprocess.run(verify, capture_output=True, text=True, check=False)
    return [line for line in done.stderr.splitlines() if file.name in line]


@pytest.mark.skipif(not shutil.which('systemd-analyze'), reason='needs systemd')
def test_systemd_accepts_the_unit(tmp_path):
    content = text('lisa-ros-serve.service')
    assert verified(tmp_path, content) == []
    wrong = content.replace('TimeoutStopSec=', 'TimeoutToStop=')
    assert 'TimeoutToStop' in ' '.join(verified(tmp_path, wrong))


# ---- Kubernetes


def test_pods_have_limits_and_no_rights():
    for _, spec in pods():
        assert spec['securityContext']['runAsNonRoot'] is True
        for container in spec['containers']:
            assert {'cpu', 'memory'} <= set(container['resources']['limits'])
            assert container['securityContext']['allowPrivilegeEscalation'] is False
    (workers,) = of_kind('RayCluster')[0]['spec']['workerGroupSpecs']
    (container,) = workers['template']['spec']['containers']
    gpus = workers['replicas'] * int(container['resources']['limits']['nvidia.com/gpu'])
    options = parsed(commands()['kuberay'])
    assert options.replicas * options.gpus_per_replica == gpus
    assert options.device == 'cuda'  # on CPUs it would be slow, and nobody would know


def test_the_server_joins_the_cluster_with_its_token():
    (cluster,) = of_kind('RayCluster')
    name = cluster['metadata']['name']
    assert cluster['spec']['authOptions'] == {'mode': 'token'}
    (container,) = server_pod()['containers']
    address = parsed(commands()['kuberay']).ray
    assert address == f'{name}-head-svc:6379'  # as KubeRay names it
    assert f'ray start --address={address} --num-cpus=0 --num-gpus=0' in container['args'][0]
    environment = {item['name']: item for item in container['env']}
    assert environment['RAY_AUTH_MODE']['value'] == 'token'
    secret = environment['RAY_AUTH_TOKEN']['valueFrom']['secretKeyRef']
    assert secret == {'name': name, 'key': 'auth_token'}


def test_server_and_workers_have_the_same_weights():
    (claim,) = of_kind('PersistentVolumeClaim')
    folder = Path(parsed(commands()['kuberay']).model).parent
    for _, spec in pods()[1:]:
        volumes = {volume['name']: volume for volume in spec['volumes']}
        assert volumes['models']['persistentVolumeClaim']['claimName'] == claim['metadata']['name']
        (mount,) = (m for m in spec['containers'][0]['volumeMounts'] if m['name'] == 'models')
        assert mount == {'name': 'models', 'mountPath': str(folder), 'readOnly': True}


def test_only_http_is_open_to_others():
    def reached(policy):
        selected = policy['spec']['podSelector']['matchLabels'].items()
        return [selected <= labels.items() for labels, _ in pods()]

    cluster, http = of_kind('NetworkPolicy')
    assert reached(cluster) == [True, True, True]
    (rule,) = cluster['spec']['ingress']
    assert rule == {'from': [{'podSelector': cluster['spec']['podSelector']}]}
    assert reached(http) == [False, False, True]
    (rule,) = http['spec']['ingress']
    assert rule == {'ports': [{'protocol': 'TCP', 'port': parsed(commands()['kuberay']).port}]}
    (service,) = of_kind('Service')
    assert service['spec']['selector'] == http['spec']['podSelector']['matchLabels']


# ---- proxies


def test_proxies_pass_on_the_api_alone():
    open_paths = PATHS - {'/metrics'}
    caddy = re.search(r'@api path (.+)', text('Caddyfile'))[1].split()
    patterns = [re.compile(re.escape(item).replace(r'\*', '.*') + '$') for item in caddy]
    nginx = re.compile(re.search(r'location ~ (\S+) {', text('nginx.conf'))[1])
    for path in PATHS:
        is_open = path in open_paths
        assert any(pattern.match(path) for pattern in patterns) is is_open, path
        assert bool(nginx.search(path)) is is_open, path
    assert 'reverse_proxy {$LISA_SERVER:127.0.0.1:8000}' in text('Caddyfile')
    assert SERVICES['proxy']['environment']['LISA_SERVER'] == 'server:8000'
    assert 'proxy_pass http://127.0.0.1:8000;' in text('nginx.conf')


def test_proxies_neither_hold_events_nor_go_on_without_their_client():
    assert LIMITS.body_bytes == 32 << 20
    assert 'max_size 32MiB' in without_comments('Caddyfile')
    assert 'flush_interval' not in without_comments('Caddyfile')  # -1 would go on
    nginx = without_comments('nginx.conf')
    assert 'client_max_body_size 32m;' in nginx
    assert 'proxy_buffering off;' in nginx
    assert 'proxy_ignore_client_abort' not in nginx
    timeout = int(re.search(r'proxy_read_timeout (\d+)s;', nginx)[1])
    assert timeout > LIMITS.query.deadline


# ---- Prometheus


def test_alerts_use_metrics_and_results_that_exist():
    metrics = ServerMetrics()
    metrics.count('FOUND')
    page = metrics.text(ModelsState(1, 1, 0, 1, 0)).decode()
    names = set(re.findall(r'^(\w+)', page, re.M)) | {'up'}
    results = {problem.value.name for problem in Problem}
    (group,) = yaml.safe_load(text('alerts.yml'))['groups']
    for rule in group['rules']:
        assert set(re.findall(r'\b(?:lisa_\w+|up)\b', rule['expr'])) <= names, rule
        for listed in re.findall(r'result=~"([^"]+)"', rule['expr']):
            assert set(listed.split('|')) <= results
    config = yaml.safe_load(text('prometheus.yml'))
    (job,) = config['scrape_configs']
    assert config['rule_files'] == ['alerts.yml']
    assert job['metrics_path'] in PATHS
    assert job['static_configs'][0]['targets'] == ['server:8000']
    assert f'job="{job["job_name"]}"' in text('alerts.yml')


@pytest.mark.skipif(not shutil.which('promtool'), reason='needs promtool of Prometheus')
def test_prometheus_accepts_its_files():
    subprocess.run(['promtool', 'check', 'config', FLEET / 'prometheus.yml'], check=True)


# ---- schemas


def strict(schema):
    """Return a schema of a custom resource that refuses fields that it does not name."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    changed = {key: strict(value) for key, value in schema.items()}
    if isinstance(schema.get('properties'), dict) and 'additionalProperties' not in schema:
        changed['additionalProperties'] = False
    return changed


def validator(kind, version):
    """Return the validator of a kind of Kubernetes, or of a file of Compose."""
    jsonschema = pytest.importorskip('jsonschema', reason='it reads the schemas')
    referencing = pytest.importorskip('referencing', reason='it reads the schemas')
    folder = Path(SCHEMAS)
    if kind == 'Compose':
        schema = json.loads((folder / 'compose-spec.json').read_text())
        return jsonschema.Draft7Validator(schema)
    if kind == 'RayCluster':
        definition = yaml.safe_load((folder / 'ray.io_rayclusters.yaml').read_text())
        (found,) = (v for v in definition['spec']['versions'] if f'ray.io/{v["name"]}' == version)
        return jsonschema.Draft202012Validator(strict(found['schema']['openAPIV3Schema']))
    group, _, number = version.replace('.k8s.io', '').rpartition('/')
    name = '-'.join(filter(None, [kind.lower(), group, number]))
    folder = folder / 'kubernetes'
    schema = json.loads((folder / f'{name}.json').read_text())

    def retrieve(uri):
        content = json.loads((folder / uri.rpartition('/')[2]).read_text())
        return referencing.Resource.from_contents(
            content, default_specification=referencing.jsonschema.DRAFT7
        )

    registry = referencing.Registry(retrieve=retrieve)
    return jsonschema.Draft7Validator(schema, registry=registry)


DOCUMENTS = [('Compose', '', COMPOSE), *((d['kind'], d['apiVersion'], d) for d in KUBERNETES)]
INNERMOST = {  # a place in each document where a wrong field must be found
    'Compose': ('services', 'server', 'deploy'),
    'RayCluster': ('spec', 'headGroupSpec', 'template', 'spec', 'containers', 0),
    'StatefulSet': ('spec', 'template', 'spec', 'containers', 0, 'readinessProbe'),
    'Service': ('spec', 'ports', 0),
    'PersistentVolumeClaim': ('spec',),
    'NetworkPolicy': ('spec', 'ingress', 0),
}


@pytest.mark.skipif(not SCHEMAS, reason='LISA_ROS_SCHEMAS names no folder with schemas')
@pytest.mark.parametrize(
    ('kind', 'version', 'document'),
    DOCUMENTS,
    ids=[f'{number}-{kind}' for number, (kind, _, _) in enumerate(DOCUMENTS)],
)
def test_the_schema_accepts_the_document(kind, version, document):
    check = validator(kind, version)
    assert [error.message for error in check.iter_errors(document)] == []
    wrong = copy.deepcopy(document)
    place = wrong
    for key in INNERMOST[kind]:
        place = place[key]
    place['noSuchField'] = 1
    assert 'noSuchField' in ' '.join(error.message for error in check.iter_errors(wrong))
