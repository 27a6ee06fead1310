# SPDX-License-Identifier: Apache-2.0
"""Check that a server of models can be reached, and that it accepts the token."""

from __future__ import annotations

from lisa_ros.doctor.finding import Finding
from lisa_ros.doctor.weights import ModelOptions
from lisa_ros.errors import LisaError
from lisa_ros.health.verdict import Level
from lisa_ros.perception.backend import LoadOptions
from lisa_ros.perception.registry import find_loader

_CURE = 'start the server, correct model, or see the firewall between the two machines'


def check_server(options: ModelOptions, timeout: float) -> list[Finding]:
    """Return the finding about the server that `options.model` names.

    Args:
        options: the address, and where its token is.
        timeout: of the answer [s].
    """
    try:
        find_loader(options.model)  # names the package that is missing
        from lisa_ros.serving.served_backend import ask_models

        model = ask_models(options.model, _load_options(options), timeout)
    except LisaError as error:
        return [Finding('server', Level.ERROR, str(error), _CURE)]
    observed = f'{options.model} serves {model.name} ({model.precision or "unknown precision"})'
    return [Finding('server', Level.OK, observed)]


def _load_options(options: ModelOptions) -> LoadOptions:
    return LoadOptions(
        api_key_env=options.api_key_env or None, api_key_file=options.api_key_file or None
    )
