# SPDX-License-Identifier: Apache-2.0
"""The built site in headless Chromium, as on a phone and on a desk: no error, no request out."""

import functools
import http.server
import json
import shutil
import subprocess
import threading
from pathlib import Path

import pytest

SITE = Path(__file__).parents[1] / 'build/site'
CHROMIUM = shutil.which('chromium') or shutil.which('chromium-browser')

pytestmark = [
    pytest.mark.skipif(not (SITE / 'README.html').exists(), reason='no site: run make docs'),
    pytest.mark.skipif(not CHROMIUM, reason='Chromium is not installed'),
]

# Opens each page in a frame of each width, and posts what it saw.
VISITOR = """<!doctype html><link rel="icon" href="data:,"><body><script type="module">
const seen = [];
for (const path of PAGES) for (const width of [360, 1400]) {
  const frame = document.createElement('iframe');
  Object.assign(frame, {src: path, width, height: 900});
  const loaded = new Promise(done => frame.onload = done);
  document.body.append(frame);
  await loaded;
  const {document: page, performance} = frame.contentWindow;
  seen.push({
    path, width, needed: page.documentElement.scrollWidth,
    requests: performance.getEntriesByType('resource').map(entry => entry.name),
    broken: [...page.images].filter(image => !image.naturalWidth).map(image => image.src),
  });
  frame.remove();
}
await fetch('/seen', {method: 'POST', body: JSON.stringify(seen)});
</script>"""


class SiteHandler(http.server.SimpleHTTPRequestHandler):
    """Serves the site and the visitor; keeps its report and the files that are missing."""

    def do_GET(self):
        if self.path != '/visitor':
            return super().do_GET()
        pages = [f'/{page.relative_to(SITE)}' for page in SITE.rglob('*.html')]
        pages.remove('/index.html')  # leads to README.html
        self.send_response(200)
        self.send_header('Content-Type', 'text/html')
        self.end_headers()
        return self.wfile.write(VISITOR.replace('PAGES', json.dumps(pages)).encode())

    def do_POST(self):
        self.server.seen = json.loads(self.rfile.read(int(self.headers['Content-Length'])))
        self.send_response(204)
        self.end_headers()
        self.server.done.set()

    def send_error(self, code, *args):
        self.server.missing.append(self.path)
        super().send_error(code, *args)

    def log_message(self, *args):
        pass


@pytest.fixture(scope='module')
def visit(tmp_path_factory):
    handler = functools.partial(SiteHandler, directory=SITE)
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler)
    server.done, server.missing = threading.Event(), []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    server.url = f'http://127.0.0.1:{server.server_port}/'
    log = tmp_path_factory.mktemp('chromium') / 'log'
    with log.open('w') as output:
        browser = subprocess.Popen(
            [
                *(CHROMIUM, '--headless', '--no-sandbox', '--disable-gpu', '--disable-quic'),
                *('--no-first-run', '--disable-background-networking', '--disable-sync'),
                *('--disable-component-update', '--enable-logging=stderr'),
                *('--remote-debugging-port=0', f'--user-data-dir={log.parent}/profile'),
                f'{server.url}visitor',
            ],
            stderr=output,
            stdout=subprocess.DEVNULL,
        )
        try:
            assert server.done.wait(120), log.read_text()[-2000:]
        finally:
            browser.terminate()
            browser.wait(20)
            server.shutdown()
    server.console = [line for line in log.read_text().splitlines() if 'CONSOLE' in line]
    return server


def test_no_page_has_an_error(visit):
    assert not visit.console
    assert not visit.missing
    assert not [page['broken'] for page in visit.seen if page['broken']]


def test_no_page_sends_a_request_out(visit):
    requests = {request for page in visit.seen for request in page['requests']}
    assert len(requests) > 10
    assert not [request for request in requests if not request.startswith((visit.url, 'data:'))]


def test_no_page_is_wider_than_the_screen(visit):
    assert {page['width'] for page in visit.seen} == {360, 1400}
    assert not [page for page in visit.seen if page['needed'] > page['width']]
