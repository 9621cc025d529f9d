"""StartInstanceRefresh, DescribeInstanceRefreshes and CancelInstanceRefresh, which moto does not know: a group's instances are replaced one after another.

The next one is terminated when nothing is left of the one before; `advance` is called whenever the keeper confirms an end, and by each description.
"""

import datetime
import uuid

from moto.autoscaling.exceptions import AutoscalingClientError, ValidationError
from moto.autoscaling.models import FakeAutoScalingGroup
from moto.autoscaling.responses import AutoScalingResponse
from moto.core.responses import ActionResult


class InstanceRefreshInProgress(AutoscalingClientError):
    code = "InstanceRefreshInProgress"


class ActiveInstanceRefreshNotFound(AutoscalingClientError):
    code = "ActiveInstanceRefreshNotFound"


class Refresh:
    """One refresh of one group: which instances it began with, and whose turn it is."""

    def __init__(self, group):
        self.group, self.id, self.status = group, str(uuid.uuid4()), "InProgress"
        self.started, self.ended = datetime.datetime.now(datetime.UTC), None
        self.waiting = [state.instance for state in group.instance_states]
        self.count, self.leaving = len(self.waiting), None

    def advance(self, backend):
        """Terminates the next instance once the one before is gone. One that left the group meanwhile has had its turn."""
        while self.status == "InProgress" and (self.leaving is None or self.leaving.state == "terminated"):
            members = {state.instance.id for state in self.group.instance_states}
            self.waiting = [one for one in self.waiting if one.id in members]
            if not self.waiting:
                self.end("Successful")
                return
            self.leaving = self.waiting.pop(0)
            backend.terminate_instance(self.leaving.id, False)

    def end(self, status):
        self.status, self.ended = status, datetime.datetime.now(datetime.UTC)

    def described(self):
        done = self.count - len(self.waiting) - (self.leaving is not None and self.leaving.state != "terminated")
        return {
            "InstanceRefreshId": self.id,
            "AutoScalingGroupName": self.group.name,
            "Status": self.status,
            "StartTime": self.started,
            "EndTime": self.ended,
            "PercentageComplete": 100 * done // self.count if self.count else 100,
            "InstancesToUpdate": self.count - done,
        }


def _group(response):
    name = response._get_param("AutoScalingGroupName")
    group = response.autoscaling_backend.autoscaling_groups.get(name)
    if group is None:
        raise ValidationError(f"AutoScalingGroup name not found - {name}")
    return group


def _active(group):
    return next((one for one in group.refreshes if one.status == "InProgress"), None)


def advance(backend) -> None:
    """Goes on with every refresh that is under way."""
    for group in backend.autoscaling_groups.values():
        if refresh := _active(group):
            refresh.advance(backend)


def _start(self):
    group = _group(self)
    if _active(group):
        raise InstanceRefreshInProgress(f"An Instance Refresh is already in progress for group {group.name}")
    refresh = Refresh(group)
    group.refreshes.insert(0, refresh)
    refresh.advance(self.autoscaling_backend)
    return ActionResult({"InstanceRefreshId": refresh.id})


def _describe(self):
    group, wanted = _group(self), self._get_param("InstanceRefreshIds") or []
    advance(self.autoscaling_backend)
    return ActionResult({"InstanceRefreshes": [one.described() for one in group.refreshes if not wanted or one.id in wanted]})


def _cancel(self):
    group = _group(self)
    refresh = _active(group)
    if refresh is None:
        raise ActiveInstanceRefreshNotFound(f"No in progress or pending Instance Refresh found for Auto Scaling group {group.name}")
    refresh.end("Cancelled")
    return ActionResult({"InstanceRefreshId": refresh.id})


_init = FakeAutoScalingGroup.__init__


def _with_refreshes(group, *positional, **named):
    group.refreshes = []
    _init(group, *positional, **named)


def apply() -> None:
    FakeAutoScalingGroup.__init__ = _with_refreshes
    AutoScalingResponse.start_instance_refresh = _start
    AutoScalingResponse.describe_instance_refreshes = _describe
    AutoScalingResponse.cancel_instance_refresh = _cancel
