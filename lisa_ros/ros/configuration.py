# SPDX-License-Identifier: Apache-2.0
"""Convert the node's settings to the options of each part, the model and the tracker.

The settings are the only place with defaults. Neither torch nor transformers is imported before
`load_model` or `load_tracker` needs it: the node is in the graph before that.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from lisa_ros.errors import SettingsError
from lisa_ros.optional_packages import is_served, local_model_packages
from lisa_ros.perception.backend import AnswerStyle, Backend, InferenceOptions, LoadOptions
from lisa_ros.perception.fallback_backend import FallbackBackend
from lisa_ros.perception.process_backend import ProcessBackend
from lisa_ros.perception.registry import find_loader, load_backend, without_auto
from lisa_ros.perception.worker_supervisor import WorkerLog
from lisa_ros.session.options import SessionOptions
from lisa_ros.settings import Settings
from lisa_ros.tracking.optical_flow import FlowTracker
from lisa_ros.tracking.requery import RequeryPolicy, RequeryRule
from lisa_ros.tracking.tracker import Tracker

if TYPE_CHECKING:
    from lisa_ros.serving.served_backend import ServedBackend

GPU_BATCH = 8  # requests at once on a GPU, unless `max_batch` says otherwise
_SWITCH = {'on': True, 'off': False}  # auto: None, as the model has it


def session_options(settings: Settings) -> SessionOptions:
    """Return how requests are scheduled."""
    names = [field.name for field in dataclasses.fields(SessionOptions)]
    return SessionOptions(**{name: getattr(settings, name) for name in names})


def inference_options(settings: Settings) -> InferenceOptions:
    """Return how queries are answered."""
    return InferenceOptions(
        max_new_tokens=settings.max_new_tokens,
        confidence_threshold=settings.confidence_threshold or None,
        answer_style=AnswerStyle(settings.answer_style),
        refine=_SWITCH.get(settings.refine),
        similarity_points=_SWITCH.get(settings.similarity_points),
        dialogue_boxes=settings.dialogue_boxes,
        answer_timeout=settings.answer_timeout or None,
        verify=settings.verify,
    )


def max_batch(settings: Settings, device: str) -> int:
    """Return how many requests a model on a device answers at once, if it can."""
    return settings.max_batch or (GPU_BATCH if device.startswith('cuda') else 1)


def requery_policy(settings: Settings) -> RequeryPolicy:
    """Return when the last query is asked again while its objects are tracked."""
    rule = RequeryRule(settings.requery)
    return RequeryPolicy(rule, settings.requery_period, settings.requery_drift)


def load_model(settings: Settings, log: WorkerLog) -> Backend:
    """Load the model, in this process or in one of its own; seconds to minutes.

    Args:
        settings: of the node.
        log: receives the ends and reloads of the model's process.

    Raises:
        CheckpointError: the files are not a whole model.
        SettingsError: the scheme, the device, the precision or the template is not available, or
            a server's model points in other coordinates than its profile has.
        ModelError: a server refuses a request.
        WorkerError: the model's process died while it loaded the model.
    """
    options = LoadOptions(
        device=settings.device,
        precision=settings.precision,
        vision_tower=settings.vision_tower,
        segmenter_model=settings.segmenter_model,
        vlm_url=settings.vlm_url,
        api_key_env=settings.api_key_env,
        api_key_file=settings.api_key_file,
        server_image=settings.server_image,
        server_jpeg_quality=settings.server_jpeg_quality,
        template=settings.template,
        threads=settings.threads or None,
        allow_download=settings.allow_download,
        sha256=settings.model_sha256,
        lock=settings.model_lock,
        max_input_side=settings.max_input_side,
        max_model_size=settings.max_model_size or None,
        cache_bytes=settings.cache_memory * 2**20,
    )
    if not settings.fallback_model:
        return _load_one(settings.model, settings, options, log)
    if not is_served(settings.model):
        raise SettingsError(
            f'fallback_model is for a model on a server, and model is {settings.model!r}: leave '
            'it empty'
        )
    backend = _connect(settings.model, options, log)
    try:
        fallback = _load_one(settings.fallback_model, settings, options, log)
    except BaseException:
        backend.close()
        raise
    return FallbackBackend(backend, fallback, settings.fallback_model)


def _load_one(model: str, settings: Settings, options: LoadOptions, log: WorkerLog) -> Backend:
    """Load a model where the settings want it."""
    if is_served(model):
        return _connect(model, options, log)
    if settings.isolation == 'thread':
        return load_backend(model, options)
    memory_limit = settings.worker_memory_limit * 2**20 or None
    return ProcessBackend(
        model,
        options,
        memory_limit=memory_limit,
        has_standby=settings.worker_standby,
        log=log,
    )


def _connect(model: str, options: LoadOptions, log: WorkerLog) -> ServedBackend:
    """Return a model on a server, which needs no process of its own."""
    find_loader(model)  # names the package that is missing
    from lisa_ros.serving.served_backend import ServedBackend

    return ServedBackend.load(model, without_auto(options), log)


def load_tracker(settings: Settings) -> Tracker | None:
    """Load a new tracker; None if tracking is off.

    Raises:
        LisaError: its weights cannot be loaded, or PyTorch is not installed.
    """
    if settings.tracker == 'off':
        return None
    if settings.tracker == 'flow':
        return FlowTracker()
    with local_model_packages(f'tracker {settings.tracker!r}'):
        from lisa_ros.model.device import resolve_device
        from lisa_ros.tracking.video_model import load_video_tracker

        device = resolve_device(settings.device)
        return load_video_tracker(settings.tracker, settings.tracker_model, device)
