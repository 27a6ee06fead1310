# SPDX-License-Identifier: Apache-2.0
"""Requests to a real server for many simulated robots in one process: images, bodies, answers."""

from __future__ import annotations

import asyncio
import json
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import httpx2
import numpy as np
import yaml

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from lisa_ros.messages.bag import read_images  # noqa: E402
from lisa_ros.resources import SAMPLE  # noqa: E402
from lisa_ros.serving.image_transfer import (  # noqa: E402
    ImageCoding,
    SentImage,
    encode_image,
)
from lisa_ros.serving.query_format import SegmentQuery  # noqa: E402
from lisa_ros.serving.wire_format import (  # noqa: E402
    DONE_EVENT,
    ERROR_EVENT,
    SEGMENT_PATH,
    encode_request,
    result_of,
)

TOPIC = '/camera/color/image_raw'
IMAGES = 192  # that robots send: many more than the server keeps, as a camera's are all new
_TRIES = 3  # of a request, as serving/http_client.py has it


@dataclass(frozen=True)
class Outcome:
    """How a request ended."""

    status: str  # of results.Status, or the name of a problem, or "broken"
    seconds: float
    times: dict[str, float]  # by stage, as the server says [s]
    tries: int = 1


def sample_images() -> list[SentImage]:
    """Return images of the bundled bag as JPEG, as a thin node sends them."""
    images = [image.pixels for image in read_images(SAMPLE / 'bag', TOPIC)]
    shifts = range(math.ceil(IMAGES / len(images)))  # turned by so many columns
    shifted = [np.roll(pixels, 3 * shift, axis=1) for shift in shifts for pixels in images]
    return [encode_image(pixels, ImageCoding()) for pixels in shifted[:IMAGES]]


def sample_commands() -> list[str]:
    """Return the commands of the bundled bag."""
    entries = yaml.safe_load((SAMPLE / 'commands.yaml').read_text(encoding='utf-8'))
    return [entry['text'] for entry in entries if 'dialogue' not in entry]


class RobotClient:
    """The connection of one robot."""

    def __init__(self, url: str, name: str, token: str = ''):
        """Make a client; it connects with the first request."""
        self._url, self._name = url.rstrip('/') + SEGMENT_PATH, name
        headers = {'Authorization': f'Bearer {token}'} if token else {}
        self._client = httpx2.AsyncClient(headers=headers, timeout=httpx2.Timeout(None))

    async def close(self) -> None:
        """Close the connection."""
        await self._client.aclose()

    async def ask(self, image: SentImage, command: str, deadline: float) -> Outcome:
        """Send a request, again if the server has no place; return how it ended.

        Cancelling the call closes the connection.

        Args:
            image: to send.
            command: to answer.
            deadline: of all tries [s].
        """
        start = time.perf_counter()
        for number in range(1, _TRIES + 1):
            left = deadline - (time.perf_counter() - start)
            try:
                async with asyncio.timeout(max(0.0, left)):
                    outcome, pause = await self._try(image, command, left, start, number)
            except TimeoutError:
                return Outcome('late', time.perf_counter() - start, {}, number)
            except httpx2.HTTPError as error:
                kind = type(error).__name__
                return Outcome(f'broken: {kind}', time.perf_counter() - start, {}, number)
            if pause is None or number == _TRIES or pause >= left:
                return outcome
            await asyncio.sleep(pause)
        raise AssertionError('the last try returns')

    async def _try(
        self, image: SentImage, command: str, left: float, start: float, number: int
    ) -> tuple[Outcome, float | None]:
        query = SegmentQuery(
            command, self._name, deadline=max(0.001, left), confidence=True, raw=image.raw
        )
        media_type, body = encode_request(image.content, image.media_type, query)
        headers = {'Content-Type': media_type, 'Accept': 'text/event-stream'}
        async with self._client.stream(
            'POST', self._url, content=body, headers=headers
        ) as response:
            if response.status_code != 200:
                problem = json.loads(await response.aread())
                retry = response.headers.get('Retry-After')
                seconds = time.perf_counter() - start
                pause = None if retry is None else float(retry)
                return Outcome(problem['type'], seconds, {}, number), pause
            async for event in httpx2.EventSource(response, max_event_size=2**26):
                if event.event == ERROR_EVENT:
                    name = json.loads(event.data)['type']
                    return Outcome(name, time.perf_counter() - start, {}, number), None
                if event.event == DONE_EVENT:
                    result = result_of(json.loads(event.data))  # decoded, as the node does
                    seconds = time.perf_counter() - start
                    outcome = Outcome(result.status.name, seconds, result.timings, number)
                    return outcome, None
        return Outcome('broken: no end', time.perf_counter() - start, {}, number), None


def percentiles(values: list[float]) -> dict[str, float]:
    """Return median, 95th and 99th percentile."""
    if not values:
        return {}
    shares = {'p50': 50, 'p95': 95, 'p99': 99}
    return {name: float(np.percentile(values, share)) for name, share in shares.items()}
