# SPDX-License-Identifier: Apache-2.0
"""Judge whether the depth of a camera fits its colour images, so that 3D positions are right."""

from __future__ import annotations

from dataclasses import dataclass

from lisa_ros.geometry.rgbd import calibration_frame_fault, registration_fault
from lisa_ros.health.outcomes import Outcome
from lisa_ros.health.verdict import WINDOW, Level, Problem, Verdict, verdict

Size = tuple[int, int]  # width and height [pixels]


@dataclass(frozen=True)
class ImageReport:
    """What an image message says of itself."""

    frame_id: str
    size: Size | None  # None: it is compressed


@dataclass(frozen=True)
class DepthReport:
    """The newest messages of a camera."""

    now: float  # [s, monotonic]
    image: ImageReport | None  # None: none has come
    depth: ImageReport | None  # None: none has come
    has_info: bool  # a camera_info has come
    info_size: Size | None  # that of its images; None: it does not tell, or cannot be used
    info_frame: str  # its frame_id; empty: it does not tell
    info_fault: str  # why the camera_info does not fit the image, with the cure; empty: it does
    stamp_gap: float | None  # between the nearest image and depth image [s]; None: one is missing
    tolerance: float  # `depth_tolerance` [s]
    position: Outcome | None  # of the last 3D positions
    depth_doubt: str = ''  # why depth may be in another unit, with the cure; empty: it is not


def judge_depth(report: DepthReport) -> Verdict:
    """Return whether 3D positions can be computed."""
    values = {
        'image': _described(report.image),
        'depth': _described(report.depth),
        'camera_info': 'no message' if not report.has_info else _pixels(report.info_size),
        'stamp difference [s]': 'unknown' if report.stamp_gap is None else report.stamp_gap,
    }
    if report.depth is None:
        return Verdict(Level.OK, 'no depth: masks without 3D positions', values)
    problems = [_calibration(report), _registration(report), _stamps(report)]
    if not any(problems):
        doubt = Problem(Level.WARN, report.depth_doubt) if report.depth_doubt else None
        problems = [_position(report) or doubt]
    return verdict(problems, 'depth fits the image', values)


def _calibration(report: DepthReport) -> Problem | None:
    if not report.has_info:
        text = 'depth comes without camera_info, so there are no 3D positions: remap camera_info'
        return Problem(Level.WARN, f"{text} to the topic of the colour camera's driver")
    frame = report.image.frame_id if report.image else ''
    fault = report.info_fault or calibration_frame_fault(frame, report.info_frame)
    return Problem(Level.WARN, fault) if fault else None


def _registration(report: DepthReport) -> Problem | None:
    if report.image is None or report.depth is None:
        return None
    fault = registration_fault(
        report.image.frame_id,
        report.depth.frame_id,
        report.image.size or report.info_size,
        report.depth.size,
    )
    return Problem(Level.WARN, fault) if fault else None


def _stamps(report: DepthReport) -> Problem | None:
    if report.stamp_gap is None or report.stamp_gap <= report.tolerance:
        return None
    gap = f'the nearest differ by {report.stamp_gap:.3f} s'
    limit = f'depth_tolerance allows {report.tolerance:g} s'
    cure = 'synchronize both streams of the camera, or raise depth_tolerance'
    text = f'no depth image has the stamp of an image: {gap}, {limit}: {cure}'
    return Problem(Level.WARN, text)


def _position(report: DepthReport) -> Problem | None:
    outcome = report.position
    if outcome is None or not outcome.reason or report.now - outcome.at > WINDOW:
        return None
    return Problem(Level.WARN, f'no 3D position: {outcome.reason}')


def _described(image: ImageReport | None) -> str:
    if image is None:
        return 'no message'
    return f'{_pixels(image.size) if image.size else "compressed"} in {image.frame_id!r}'


def _pixels(size: Size | None) -> str:
    return 'unknown size' if size is None else f'{size[0]} x {size[1]} pixels'
