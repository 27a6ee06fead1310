# SPDX-License-Identifier: Apache-2.0
"""Judge a running node from outside: state, inputs, QoS, stamps, transforms, /diagnostics."""

from __future__ import annotations

from collections.abc import Sequence

from lisa_ros.doctor.finding import Finding
from lisa_ros.doctor.graph_facts import GraphFacts, InputFacts, graph_facts
from lisa_ros.doctor.input_topics import publish_cure
from lisa_ros.doctor.probe import ProbeResult, run_probe
from lisa_ros.health.inputs import InputReport, judge_input, other_type_fault
from lisa_ros.health.node import Lifecycle, NodeReport, judge_node
from lisa_ros.health.verdict import Level, Verdict
from lisa_ros.session.image_age import MAX_STAMP_AGE, SECONDS_PER_DAY, SystemClock, clock_hint

_PROBE = 'lisa_ros.ros.graph_probe'
_DEFAULT_NODE = '/lisa'
_DISCOVERY = 3.0  # longest wait for a node that must run [s]
_SHORT_DISCOVERY = 1.5  # for one that may run [s]
_OTHERS = 8  # names of other nodes


def check_graph(node: str | None, timeout: float) -> list[Finding]:
    """Return the findings about a running node.

    Args:
        node: its full name; None: /lisa, if it runs.
        timeout: [s].
    """
    name = '/' + (node or _DEFAULT_NODE).strip('/')
    wait = _DISCOVERY if node else _SHORT_DISCOVERY
    result = run_probe(_PROBE, [name, str(wait)], timeout)
    return judge_probe(name, result, is_expected=node is not None)


def judge_probe(name: str, result: ProbeResult, is_expected: bool) -> list[Finding]:
    """Return the findings from the result of `graph_probe`.

    Args:
        name: full name of the node.
        result: of the probe.
        is_expected: the user has named the node, so it must be there.
    """
    error = result.error or str(result.facts.get('error', ''))
    if error:
        level = Level.ERROR if is_expected else Level.WARN
        return [Finding(name, level, error, 'see the rows ROS, RMW, domain and loopback')]
    facts = graph_facts(result.facts)
    if not facts.same_name:
        return [_absent(facts, is_expected)]
    return [
        *judge_presence(facts),
        *(finding for item in facts.inputs for finding in judge_topic(facts, item)),
        *judge_clock(facts),
        *judge_frames(facts),
        *judge_statuses(facts),
    ]


def _absent(facts: GraphFacts, is_expected: bool) -> Finding:
    node_names = ', '.join(facts.other_nodes[:_OTHERS]) or 'none'
    observed = f'no node {facts.node} in the graph; nodes: {node_names}'
    if not is_expected:
        return Finding(facts.node, Level.OK, observed)
    cure = 'ros2 launch lisa_ros lisa.launch.py; if it runs, see the rows domain and discovery'
    return Finding(facts.node, Level.ERROR, observed, cure)


def judge_presence(facts: GraphFacts) -> list[Finding]:
    """Return the findings about the node's lifecycle state and its name."""
    if not facts.state:
        observed = f'{facts.node} is in the graph and does not answer get_state'
        cure = 'it hangs, or was killed less than 20 s ago: restart it'
        return [Finding(facts.node, Level.ERROR, observed, cure)]
    since = None if facts.same_name < 2 else 0.0
    lifecycle = Lifecycle(facts.state, 0.0)
    report = NodeReport(0.0, facts.node, lifecycle, facts.same_name, since)
    return [_as_finding(facts.node, judge_node(report))]


def judge_topic(facts: GraphFacts, item: InputFacts) -> list[Finding]:
    """Return the findings about an input topic."""
    check = f'input {item.topic}'
    publishers = [publisher for publisher in item.publishers if publisher.type == item.type]
    others = {other.node: other.type for other in item.publishers if other not in publishers}
    faults = [
        f'{publisher.node}: {publisher.qos_fault}'
        for publisher in publishers
        if publisher.qos_fault
    ]
    if faults:
        cure = f'set qos_overrides.{item.topic}.subscription of the node, or correct the publisher'
        observed = f'the node receives nothing from {"; ".join(faults)}'
        return [Finding(check, Level.ERROR, observed, cure)]
    is_required = item in _required(facts.inputs)
    if not item.publishers and item.similar:
        level = Level.ERROR if is_required else Level.OK
        observed = f'nobody publishes it; there are {", ".join(item.similar)}'
        cameras = (facts.parameters or {}).get('cameras') or ()
        cure = publish_cure(item.topic, item.type, item.similar, facts.node, cameras)
        return [Finding(check, level, observed, cure if is_required else '')]
    report = InputReport(
        item.topic,
        is_required,
        [publisher.node for publisher in publishers],
        item.is_latched,
        0.0 if item.messages else float('inf'),
        item.rate,
        item.stamp_age or 0.0,
        stamp_fault=_stamp_fault(item),
        type_fault=other_type_fault(item.type, others),
    )
    verdict = judge_input(report)
    age = '' if item.stamp_age is None else f', stamps {item.stamp_age:.2f} s old at arrival'
    if verdict.level is Level.OK and item.messages and report.publishers:
        return [Finding(check, Level.OK, f'{verdict.message} from {report.publishers[0]}{age}')]
    return [_as_finding(check, verdict)]


def _required(inputs: Sequence[InputFacts]) -> list[InputFacts]:
    """Return the colour images among the inputs, as far as their names tell."""
    images = [i for i in inputs if i.type.rpartition('/')[2] in ('Image', 'CompressedImage')]
    return [image for image in images if 'depth' not in image.topic.lower()] or images[:1]


def _stamp_fault(item: InputFacts) -> str:
    if not item.messages:
        return ''
    if not item.is_stamped:
        return 'its stamps are 0: stamp each image with the time it was taken'
    if item.stamp_age is None or abs(item.stamp_age) <= MAX_STAMP_AGE:
        return ''
    side = 'behind' if item.stamp_age > 0 else 'ahead of'
    cure = clock_hint(item.stamp_age, SystemClock())
    return f'its stamps are {abs(item.stamp_age):.1f} s {side} the clock: {cure}'


def judge_clock(facts: GraphFacts) -> list[Finding]:
    """Return the findings about /clock and use_sim_time."""
    uses_simulation = bool((facts.parameters or {}).get('use_sim_time'))
    if uses_simulation and facts.clock is None:
        count = facts.clock_publishers
        observed = f'use_sim_time is on, and /clock has {count} publishers and no message'
        cure = 'start the simulation, or play the bag with --clock; or set use_sim_time to false'
        return [Finding('clock', Level.ERROR, observed, cure)]
    if facts.clock is None:
        return [Finding('clock', Level.OK, 'system time; nothing on /clock')]
    skew = facts.clock - facts.system_time
    observed = (
        f'/clock is {abs(skew):.1f} s {"ahead of" if skew > 0 else "behind"} the system clock'
    )
    if not uses_simulation:
        observed = f'{observed}, and {facts.node} does not use it'
        level = Level.WARN if abs(skew) > MAX_STAMP_AGE else Level.OK
        cure = 'set use_sim_time: true, in all nodes or in none' if level else ''
        return [Finding('clock', level, observed, cure)]
    # a simulation begins at 0
    is_recording = facts.clock > SECONDS_PER_DAY and abs(skew) > MAX_STAMP_AGE
    return [Finding('clock', Level.OK, observed + (' (a recording)' if is_recording else ''))]


def judge_frames(facts: GraphFacts) -> list[Finding]:
    """Return the findings about the transforms that the parameters ask for."""
    parameters = facts.parameters or {}
    names = ('target_frame', 'gravity_frame')
    targets = [parameters[name] for name in names if parameters.get(name)]
    images = [item.frame_id for item in facts.inputs if item.frame_id]
    if not targets or not images:
        return []
    missing = [frame for frame in targets if not is_connected(frame, images[0], facts.frames)]
    if not missing:
        return [Finding('TF', Level.OK, f'{images[0]} to {", ".join(targets)} is known')]
    frames = sorted({frame for pair in facts.frames for frame in pair})
    frame_names = ', '.join(frames[:_OTHERS]) or 'no frames'
    observed = f'no transform from {images[0]} to {missing[0]}; TF has {frame_names}'
    cure = 'start robot_state_publisher or static_transform_publisher, or correct target_frame'
    return [Finding('TF', Level.WARN, observed, cure)]


def is_connected(first: str, second: str, frames: Sequence[tuple[str, str]]) -> bool:
    """Return whether transforms lead from one frame to another.

    Args:
        first: a frame.
        second: another one.
        frames: parent and child of each transform.
    """
    reached, size = {first}, 0
    while size != len(reached):
        size = len(reached)
        for pair in frames:
            if not reached.isdisjoint(pair):
                reached.update(pair)
    return second in reached


def judge_statuses(facts: GraphFacts) -> list[Finding]:
    """Return the findings of the node's /diagnostics: those that are not OK, or one for all."""
    if not facts.statuses:
        period = (facts.parameters or {}).get('diagnostics_period') or 1.0
        observed = (
            f'{facts.node} publishes nothing on /diagnostics (diagnostics_period {period:g} s)'
        )
        level = Level.OK if period > facts.listened else Level.WARN
        cure = 'the node hangs, or its messages are lost: restart it' if level else ''
        return [Finding('/diagnostics', level, observed, cure)]
    problems = [
        Finding(_part(facts.node, status.name), Level(min(status.level, 2)), status.message)
        for status in facts.statuses
        if status.level
    ]
    good = len(facts.statuses) - len(problems)
    return [*problems, Finding('/diagnostics', Level.OK, f'{good} parts are OK')]


def _part(node: str, name: str) -> str:
    return f'/diagnostics {name.removeprefix(node).strip(" :")}'


def _as_finding(check: str, verdict: Verdict) -> Finding:
    """Return a verdict as a row: what follows its first ": " is the cure."""
    if verdict.level is Level.OK:
        return Finding(check, verdict.level, verdict.message)
    observed, _, cure = verdict.message.partition(': ')
    return Finding(check, verdict.level, observed, cure)
