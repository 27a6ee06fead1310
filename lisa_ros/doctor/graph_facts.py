# SPDX-License-Identifier: Apache-2.0
"""What `ros/graph_probe.py` finds out about a running node, as values that JSON can hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class PublisherFacts:
    """A publisher of an input topic."""

    node: str  # full name
    type: str  # sensor_msgs/msg/Image
    qos_fault: str = ''  # why its QoS does not fit; empty: it does


@dataclass(frozen=True)
class InputFacts:
    """An input topic of the node, as the doctor has heard it."""

    topic: str
    type: str
    publishers: tuple[PublisherFacts, ...]
    messages: int  # that came while it listened
    rate: float  # [Hz]
    stamp_age: float | None  # smallest age of a stamp at arrival [s]; None: no message, or stamp 0
    is_stamped: bool  # not all stamps were 0
    frame_id: str
    is_latched: bool  # all publishers are transient local
    similar: tuple[str, ...] = ()  # published topics of the same type, or with another transport


@dataclass(frozen=True)
class StatusFacts:
    """A status of the node on /diagnostics."""

    name: str
    level: int
    message: str


@dataclass(frozen=True)
class GraphFacts:
    """A node and its surroundings."""

    node: str  # full name
    same_name: int  # nodes of this name
    other_nodes: tuple[str, ...]  # names
    state: str = ''  # of its lifecycle; empty: it does not answer
    inputs: tuple[InputFacts, ...] = ()
    parameters: Mapping[str, Any] | None = None  # None: it does not answer
    clock_publishers: int = 0  # of /clock
    clock: float | None = None  # newest time on /clock [s]; None: no message
    system_time: float = 0.0  # when it came [s]
    frames: tuple[tuple[str, str], ...] = ()  # (parent, child) of each transform on /tf
    statuses: tuple[StatusFacts, ...] = ()  # newest message on /diagnostics
    listened: float = 0.0  # [s]


def graph_facts(values: Mapping[str, Any]) -> GraphFacts:
    """Return the facts from the dict that `dataclasses.asdict` and JSON have made of them."""
    inputs = [
        InputFacts(
            **{
                **item,
                'publishers': tuple(PublisherFacts(**p) for p in item['publishers']),
                'similar': tuple(item['similar']),
            }
        )
        for item in values['inputs']
    ]
    return GraphFacts(
        **{
            **values,
            'inputs': tuple(inputs),
            'other_nodes': tuple(values['other_nodes']),
            'frames': tuple((parent, child) for parent, child in values['frames']),
            'statuses': tuple(StatusFacts(**status) for status in values['statuses']),
        }
    )
