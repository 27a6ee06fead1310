# SPDX-License-Identifier: Apache-2.0
"""What `lisa-ros` can do, a file for each kind of work; `cli` puts them together."""
