"""What the instance keeper asks of the control API beside AWS's own calls: one cheap list, and "nothing of it is left"."""

import json
import re

from corrections import lifecycle, refresh

ACCOUNT, REGION = "123456789012", "us-east-1"
_CONFIRM = re.compile(r"^/_keeper/instances/(i-[0-9a-f]+)/terminated$")


def _backend():
    from moto.ec2.models import ec2_backends

    return ec2_backends[ACCOUNT][REGION]


def _scaling():
    from moto.autoscaling.models import autoscaling_backends

    return autoscaling_backends[ACCOUNT][REGION]


def _describe(instance, lifecycle_states) -> dict:
    return {
        "id": instance.id,
        "state": instance.state,
        "image": instance.image_id,
        "type": instance.instance_type,
        "zone": instance._placement.zone,
        "address": instance.private_ip,
        "account": instance.owner_id,
        "user_data": str(instance.user_data) if instance.user_data else "",
        "tags": {tag["key"]: tag["value"] for tag in instance.get_tags()},
        "volumes": [
            {"volume": block.volume_id, "device": device}
            for device, block in instance.block_device_mapping.items()
            if device != instance.root_device_name and device != "/dev/sda1"
        ],
        "launched": instance.launch_time.isoformat(),
        "lifecycle": lifecycle_states.get(instance.id, "Terminated" if instance.state in ("shutting-down", "terminated") else "InService"),
    }


def list_instances() -> dict:
    """Every instance that the API still shows, whatever its state."""
    states = {s.instance.id: s.lifecycle_state for g in _scaling().autoscaling_groups.values() for s in g.instance_states}
    return {"instances": [_describe(i, states) for i in _backend().all_instances()]}


def confirm_terminated(instance_id: str) -> tuple[str, dict]:
    """The keeper's word that nothing of an instance runs: from here on it is `terminated`. Status line and body of the answer."""
    found = [i for i in _backend().all_instances() if i.id == instance_id]
    if not found:
        return "404 Not Found", {"error": f"no instance {instance_id}"}
    if not lifecycle.confirm(found[0]):
        return "409 Conflict", {"error": f"{instance_id} is {found[0].state}: its termination was not asked for"}
    refresh.advance(_scaling())
    return "200 OK", {"id": instance_id, "state": found[0].state}


def answer(environ, start_response):
    """The WSGI side; the caller holds the lock on moto's state."""
    method, path = environ["REQUEST_METHOD"], environ.get("PATH_INFO", "")
    match = _CONFIRM.match(path)
    if method == "GET" and path == "/_keeper/instances":
        status, body = "200 OK", list_instances()
    elif method == "POST" and match:
        status, body = confirm_terminated(match.group(1))
    else:
        status, body = "404 Not Found", {"error": f"{method} {path} is not known here"}
    content = json.dumps(body).encode()
    start_response(status, [("Content-Type", "application/json"), ("Content-Length", str(len(content)))])
    return [content]
