"""How objects are shown in full: as indented JSON, through a template, or one per line."""

from __future__ import annotations

import json

from skep.cli.shell import Failed, message_of
from skep.client.unix import ApiError
from skep.errors import SkepError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from skep.cli.shell import Shell


def show(shell: Shell, names: list[str], form: str, get: Callable[[str], Any], missing: Callable[[str], str] | None = None) -> int:
    """What is there is printed, what is not comes after it as errors. `missing` words a 404."""
    template = None
    if form.strip() and form != "json":
        from skep.cli.gotemplate import Template

        template = Template(form)
    found, failed = [], []
    for name in names:
        try:
            found.append(get(name))
        except (SkepError, Failed) as error:
            gone = missing is not None and isinstance(error, ApiError) and error.status == 404
            failed.append(missing(name) if gone and missing is not None else message_of(error))
    if template is not None:
        for one in found:
            shell.print(template.render(one))
    elif form == "json":
        shell.print(json.dumps(found, separators=(",", ":"), ensure_ascii=False))
    else:
        shell.print(json.dumps(found, indent=4, ensure_ascii=False) if found else "[]")
    shell.out.flush()
    if failed:
        raise Failed("\n".join(failed))
    return 0
