"""An instance is `shutting-down` until whoever runs it says that nothing of it is left; only then `terminated`, with its volumes free.

moto shows `terminated` the moment TerminateInstances is asked, which would make "EC2 says terminated" no proof of anything.
"""

import copy

from moto.ec2.models.instances import Instance

_terminate_at_once = Instance.terminate


def _begin(instance):
    previous = copy.copy(instance._state)
    if previous.name not in ("shutting-down", "terminated"):
        instance._state.name = "shutting-down"
        instance._state.code = 32
    return previous


def confirm(instance) -> bool:
    """Makes a `shutting-down` instance `terminated`. False when its termination was never asked for."""
    if instance.state == "terminated":
        return True
    if instance.state != "shutting-down":
        return False
    _terminate_at_once(instance)
    return True


def apply() -> None:
    Instance.terminate = _begin
    # moto hands an instance's address to the next one when the object is collected; addresses are not reused here.
    Instance.__del__ = lambda self: None
