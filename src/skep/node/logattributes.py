"""What `docker logs --details` tells beside a line: labels and variables that the log options choose, and the container's tag."""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec

from skep.engine.base import ContainerConfig
from skep.errors import Invalid
from skep.plan.template import expand


class _Tagged(msgspec.Struct, frozen=True, kw_only=True):
    """What the tag's template may name, in the words of Docker's log tags."""

    id: str = "0" * 64
    name: str = "name"
    image_id: str = "sha256:" + "0" * 64
    image: str = "image"
    command: str = "command"

    def tree(self) -> Mapping[str, object]:
        return {
            "ID": self.id[:12],
            "FullID": self.id,
            "Name": self.name,
            "ImageID": self.image_id[:12],
            "ImageFullID": self.image_id,
            "ImageName": self.image,
            "Command": self.command,
            "DaemonName": "docker",
        }


def check_attribute(key: str, value: str) -> None:
    """Of one log option. Raises Invalid for a template or an expression that means nothing."""
    if key == "tag":
        expand(value, _Tagged())
    elif key.endswith("-regex"):
        try:
            re.compile(value)
        except re.error as error:
            raise Invalid(f"error parsing regexp: {error}: `{value}`") from None


def log_attributes(config: ContainerConfig, options: Mapping[str, str], image: str) -> dict[str, str]:
    """`image`: the name it was asked for by."""
    variables = dict(item.partition("=")[::2] for item in config.env)
    found = {}
    for option, values in (("labels", config.labels), ("env", variables)):
        for name in options.get(option, "").split(","):
            if name in values:
                found[name] = values[name]
        if pattern := options.get(f"{option}-regex", ""):
            found |= {name: value for name, value in values.items() if re.search(pattern, name)}
    if tag := options.get("tag", ""):
        names = _Tagged(id=config.id, name=config.name, image_id=config.image, image=image, command=" ".join(config.args))
        found["tag"] = expand(tag, names)
    return found
