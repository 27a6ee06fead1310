// SPDX-License-Identifier: Apache-2.0
#include "lisa_find.hpp"

#include <cmath>

namespace lisa_ros_bt
{

LisaFind::LisaFind(const std::string & tag, const BT::NodeConfiguration & configuration)
: BtActionNode(tag, "lisa/segment", configuration)
{
}

void LisaFind::on_tick()
{
  error_.clear();
  double max_age = 0.0;
  getInput("camera", goal_.camera);
  getInput("dialogue", goal_.dialogue);
  getInput("max_age", max_age);
  goal_.max_age = static_cast<float>(max_age);
  if (!getInput("query", goal_.query) || goal_.query.empty()) {
    fail("the port query is empty");
    should_send_goal_ = false;
  }
}

BT::NodeStatus LisaFind::tick()
{
  auto status = BtActionNode::tick();
  // BtActionNode waits without end for the result of a server that has died.
  if (status == BT::NodeStatus::RUNNING && !action_client_->action_server_is_ready()) {
    status = fail("the server of " + action_name_ + " has left");
  }
  // BtActionNode calls nothing in Jazzy and Kilted if a goal is rejected or not acknowledged.
  if (status == BT::NodeStatus::FAILURE && error_.empty()) {
    fail(action_name_ + " did not accept the goal: is the lisa node active?");
  }
  if (status != BT::NodeStatus::RUNNING) {
    setOutput("error_msg", error_);
  }
  return status;
}

BT::NodeStatus LisaFind::on_success()
{
  using lisa_ros::msg::Segmentation;

  const auto & segmentation = result_.result->segmentation;
  setOutput("answer", segmentation.answer);
  if (segmentation.status != Segmentation::FOUND) {  // NOT_FOUND is an answer, too
    return fail(segmentation.reason.empty() ? segmentation.answer : segmentation.reason);
  }
  const auto & instance = segmentation.instances.front();
  if (std::isnan(instance.centroid.x)) {
    return fail("found, but not in 3D: " + segmentation.place_reason);
  }
  geometry_msgs::msg::PoseStamped object;
  object.header = segmentation.header;
  object.pose.position = instance.centroid;
  object.pose.orientation = instance.box_pose.orientation;
  setOutput("object", object);
  setOutput("object_name", instance.name);
  setOutput("score", static_cast<double>(instance.score));
  return BT::NodeStatus::SUCCESS;
}

BT::NodeStatus LisaFind::on_aborted()  // FAILED, TIMED_OUT, UNREACHABLE, STALE_INPUT, REPEATED, or inactive
{
  return fail(result_.result->segmentation.reason);
}

BT::NodeStatus LisaFind::on_cancelled()  // by halt(), or by somebody else
{
  error_ = "the goal was cancelled";
  return BT::NodeStatus::FAILURE;
}

BT::NodeStatus LisaFind::fail(const std::string & cause)
{
  error_ = cause.empty() ? "the answer has no reason" : cause;
  RCLCPP_WARN(node_->get_logger(), "%s: %s", name().c_str(), error_.c_str());
  return BT::NodeStatus::FAILURE;
}

}  // namespace lisa_ros_bt
