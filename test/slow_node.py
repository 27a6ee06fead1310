# SPDX-License-Identifier: Apache-2.0
"""lisa_node with the scripted backend and short timeouts; a program, not a test."""

import scripted_backend  # noqa: F401  # registers "scripted:"

from lisa_ros.ros import node

if __name__ == '__main__':
    node.SELF_TEST_TIMEOUT = 0.5
    node.main(stop_timeout=0.5)
