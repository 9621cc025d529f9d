"""CompleteLifecycleAction and RecordLifecycleActionHeartbeat answer; moto knows lifecycle hooks but not how to end one.

No instance ever waits in Pending:Wait or Terminating:Wait here, so completing is only checked, not acted on.
"""

from moto.autoscaling.exceptions import ValidationError
from moto.autoscaling.responses import AutoScalingResponse
from moto.core.responses import EmptyResult


def _known_hook(self):
    group, hook = self._get_param("AutoScalingGroupName"), self._get_param("LifecycleHookName")
    if not any(known.name == hook for known in self.autoscaling_backend.describe_lifecycle_hooks(group)):
        raise ValidationError(f"No Lifecycle Action found with hook {hook} in group {group}")
    return EmptyResult()


def apply() -> None:
    AutoScalingResponse.complete_lifecycle_action = _known_hook
    AutoScalingResponse.record_lifecycle_action_heartbeat = _known_hook
