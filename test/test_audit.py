# SPDX-License-Identifier: Apache-2.0
"""The audit fails on a known vulnerability, and never because the network is missing."""

import importlib.util
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

pytest.importorskip('tomllib', reason='Python 3.10 has no tomllib; the audit runs with the set-up')
FILE = Path(__file__).parents[1] / '.ci' / 'audit.py'

CLEAN = {'name': 'numpy', 'version': '2.4.6', 'vulns': []}
BAD = {
    'name': 'Jinja2',
    'version': '3.1.0',
    'vulns': [
        {'id': 'PYSEC-2024-1', 'aliases': ['CVE-2024-1'], 'fix_versions': ['3.1.3']},
    ],
}
SKIPPED = {'name': 'ros-rcl', 'skip_reason': 'not found'}


@pytest.fixture(scope='module')
def audit():
    spec = importlib.util.spec_from_file_location('audit', FILE)
    module = sys.modules['audit'] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_known_vulnerability_fails_with_its_cure(audit):
    lines, status = audit.judge({'dependencies': [CLEAN, BAD, SKIPPED]}, {})
    assert status == 1
    assert lines == [
        'audit: jinja2 3.1.0: CVE-2024-1, PYSEC-2024-1; fixed in 3.1.3',
        'audit: 2 packages checked, 1 not known to the service, 1 vulnerabilities',
    ]


@pytest.mark.parametrize('identifier', ['PYSEC-2024-1', 'CVE-2024-1'])
def test_the_allow_list_accepts_an_id_or_an_alias_with_a_reason(audit, identifier):
    keys = f'id = "{identifier}"\npackage = "jinja2"\nreason = "no templates of others"'
    text = f'[[vulnerability]]\n{keys}'
    lines, status = audit.judge({'dependencies': [BAD]}, audit.read_allow_list(text))
    assert status == 0
    assert 'accepted: ' in lines[0]
    assert 'no templates of others' in lines[0]


def test_an_entry_for_another_package_accepts_nothing(audit):
    text = '[[vulnerability]]\nid = "CVE-2024-1"\npackage = "numpy"\nreason = "x"\n'
    assert audit.judge({'dependencies': [BAD]}, audit.read_allow_list(text))[1] == 1


@pytest.mark.parametrize('missing', ['id', 'package', 'reason'])
def test_an_entry_without_a_reason_is_an_error(audit, missing):
    entry = {'id': 'CVE-1', 'package': 'numpy', 'reason': 'x', missing: ' '}
    lines = [f'{key} = "{value}"' for key, value in entry.items()]
    with pytest.raises(audit.AllowListError, match='entry 1'):
        audit.read_allow_list('[[vulnerability]]\n' + '\n'.join(lines))


def test_nothing_checked_is_not_called_clean(audit):
    lines, status = audit.judge({'dependencies': [SKIPPED]}, {})
    assert status == 0
    assert 'nothing was checked' in lines[0]


def test_the_allow_list_of_the_project_is_complete(audit):
    audit.read_allow_list(audit.ALLOW_FILE.read_text())


def test_all_pins_are_audited_with_pytorch(audit):
    assert 'torch==' in audit.pinned()
    assert 'Jinja2==' in audit.pinned()


class Answer(BaseHTTPRequestHandler):
    status, content = 404, {}

    def do_GET(self):
        self.send_response(self.status)
        self.end_headers()
        self.wfile.write(json.dumps(self.content).encode())

    def log_message(self, *arguments):
        pass


@pytest.mark.parametrize(
    ('status', 'content', 'problem'),
    [(404, {}, '404'), (200, {}, 'no vulnerabilities'), (200, {'vulnerabilities': []}, '')],
)
def test_whether_the_service_is_reachable(audit, status, content, problem):
    handler = type('Handler', (Answer,), {'status': status, 'content': content})
    server = HTTPServer(('127.0.0.1', 0), handler)
    threading.Thread(target=server.handle_request, daemon=True).start()
    try:
        result = audit.unreachable(f'http://127.0.0.1:{server.server_port}/')
    finally:
        server.server_close()
    assert problem in result
    assert bool(result) == bool(problem)


def test_a_service_that_does_not_listen_is_unreachable(audit):
    assert audit.unreachable('http://127.0.0.1:9/')
