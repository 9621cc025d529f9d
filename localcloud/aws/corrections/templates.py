"""CreateLaunchTemplateVersion understands user data and SourceVersion; moto stores the raw text and then fails every launch with it."""

from moto.core.types import Base64EncodedString
from moto.ec2.models.launch_templates import LaunchTemplate
from moto.ec2.responses.launch_templates import LaunchTemplates
from moto.ec2.utils import parse_user_data

_create_version = LaunchTemplate.create_version
_respond = LaunchTemplates.create_launch_template_version


def _create_version_checked(template, data, description):
    user_data = data.get("UserData")
    if user_data is not None and not isinstance(user_data, Base64EncodedString):
        data["UserData"] = parse_user_data(str(user_data))
    return _create_version(template, data, description)


def _respond_merged(self):
    source = self._get_param("SourceVersion")
    if source:
        name, identifier = self._get_param("LaunchTemplateName"), self._get_param("LaunchTemplateId")
        backend = self.ec2_backend
        template = backend.get_launch_template(identifier) if identifier else backend.get_launch_template_by_name(name)
        asked = self._get_param("LaunchTemplateData", {})
        merged = {**template.get_version(source).data, **asked}
        original = self._get_param
        self._get_param = lambda key, default=None: merged if key == "LaunchTemplateData" else original(key, default)
    return _respond(self)


def apply() -> None:
    LaunchTemplate.create_version = _create_version_checked
    LaunchTemplates.create_launch_template_version = _respond_merged
