# SPDX-License-Identifier: Apache-2.0
"""Tools of the Model Context Protocol (MCP), by which agents use a running node."""
