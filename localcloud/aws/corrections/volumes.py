"""A volume is attached to one instance of its own zone at a time, leaves the instance that is named, and a terminating one only when that is gone."""

from moto.ec2.exceptions import EC2ClientError, InvalidVolumeAttachmentError, VolumeInUseError
from moto.ec2.models.elastic_block_store import EBSBackend

_attach = EBSBackend.attach_volume
_detach = EBSBackend.detach_volume


class IncorrectState(EC2ClientError):
    code = "IncorrectState"

    def __init__(self, instance):
        super().__init__(self.code, f"Instance {instance.id} is {instance.state}, not running.")


class NotAttached(EC2ClientError):
    code = "IncorrectState"

    def __init__(self, volume):
        super().__init__(self.code, f"Volume {volume.id} is in the 'available' state.")


class ZoneMismatch(EC2ClientError):
    code = "InvalidVolume.ZoneMismatch"

    def __init__(self, volume, instance):
        super().__init__(self.code, f"The volume {volume.id} is not in the zone of instance {instance.id}.")


class DeviceInUse(EC2ClientError):
    code = "InvalidParameterValue"

    def __init__(self, device: str, instance):
        super().__init__(self.code, f"Device {device} of instance {instance.id} is already in use.")


def _attach_checked(backend, volume_id, instance_id, device_path, delete_on_termination=False):
    volume = backend.get_volume(volume_id)
    instance = backend.get_instance(instance_id)
    if volume.attachment:
        raise VolumeInUseError(volume_id, volume.attachment.instance.id)
    if instance.state not in ("pending", "running", "stopped"):
        raise IncorrectState(instance)
    if volume.availability_zone != instance._placement.zone:
        raise ZoneMismatch(volume, instance)
    if device_path in instance.block_device_mapping:
        raise DeviceInUse(device_path, instance)
    return _attach(backend, volume_id, instance_id, device_path, delete_on_termination)


def _detach_checked(backend, volume_id, instance_id, device_path):
    volume = backend.get_volume(volume_id)
    attachment = volume.attachment
    if not attachment:
        raise NotAttached(volume)
    if instance_id and attachment.instance.id != instance_id:
        raise InvalidVolumeAttachmentError(volume_id, instance_id)
    if attachment.instance.state == "shutting-down":
        attachment.status = "detaching"
        return attachment
    return _detach(backend, volume_id, attachment.instance.id, device_path)


def _teardown(instance):
    for device, block in list(instance.block_device_mapping.items()):
        _detach(instance.ec2_backend, block.volume_id, instance.id, device)
        if block.delete_on_termination:
            instance.ec2_backend.delete_volume(block.volume_id)


def apply() -> None:
    from moto.ec2.models import EC2Backend
    from moto.ec2.models.instances import Instance

    for owner in (EBSBackend, EC2Backend):
        owner.attach_volume = _attach_checked
        owner.detach_volume = _detach_checked
    Instance.teardown_defaults = _teardown
