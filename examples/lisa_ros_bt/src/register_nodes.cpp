// SPDX-License-Identifier: Apache-2.0
#include <behaviortree_cpp/bt_factory.h>

#include "lisa_find.hpp"
#include "stand_off_pose.hpp"

BT_REGISTER_NODES(factory)
{
  factory.registerNodeType<lisa_ros_bt::LisaFind>("LisaFind");
  factory.registerNodeType<lisa_ros_bt::StandOffPose>("StandOffPose");
}
