# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# The environment of this checkout, made by `make setup`: source .ci/env.sh

_root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# A ROS install that this shell has sourced does not mix with the wheels: leave it outside.
if [ -n "${ROS_DISTRO:-}" ]; then
  PATH=$(tr ':' '\n' <<<"$PATH" | grep -v '^/opt/ros/' | paste -sd:)
  unset ROS_DISTRO PYTHONPATH LD_LIBRARY_PATH AMENT_PREFIX_PATH CMAKE_PREFIX_PATH COLCON_PREFIX_PATH
fi

# The wheels are installed without compiled modules: let Python keep those that it compiles.
unset PYTHONDONTWRITEBYTECODE

# Talk to nobody else: a domain for each checkout, this machine only, the one DDS of the wheels.
unset ROS_LOCALHOST_ONLY ROS_STATIC_PEERS ROS_DISCOVERY_SERVER ROS_SUPER_CLIENT
unset FASTRTPS_DEFAULT_PROFILES_FILE FASTDDS_DEFAULT_PROFILES_FILE FASTDDS_BUILTIN_TRANSPORTS SKIP_DEFAULT_XML
unset RMW_FASTRTPS_USE_QOS_FROM_XML RMW_FASTRTPS_PUBLICATION_MODE
unset ROS_SECURITY_ENABLE ROS_SECURITY_STRATEGY ROS_SECURITY_KEYSTORE
ROS_DOMAIN_ID=$((1 + $(cksum <<<"$_root" | cut -d' ' -f1) % 100))
export ROS_DOMAIN_ID ROS_AUTOMATIC_DISCOVERY_RANGE=LOCALHOST RMW_IMPLEMENTATION=rmw_fastrtps_cpp

export PATH="$_root/.venv/bin:$PATH"
export AMENT_PREFIX_PATH="$_root/.venv${AMENT_PREFIX_PATH:+:$AMENT_PREFIX_PATH}"
export CMAKE_PREFIX_PATH="$_root/.venv${CMAKE_PREFIX_PATH:+:$CMAKE_PREFIX_PATH}"
if [ -f "$_root/install/local_setup.bash" ]; then
  source "$_root/install/local_setup.bash"
fi
unset _root
