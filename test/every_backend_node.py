# SPDX-License-Identifier: Apache-2.0
"""lisa_node that also loads "counted:NAME"; a program, not a test."""

import every_backend  # noqa: F401  # registers it

from lisa_ros.ros import node

if __name__ == '__main__':
    node.main()
