"""Names of signals as Docker takes them."""

from __future__ import annotations

import signal

from skep.errors import Invalid


def signal_number(name: str) -> int:
    """`SIGTERM`, `term`, `15`, `RTMIN+3`. Raises Invalid (`invalid signal: X`)."""
    text = name.upper().removeprefix("SIG")
    if text.isascii() and text.isdigit() and 0 < int(text) < 65:
        return int(text)
    sign = next((sign for sign in "+-" if sign in text), "")
    base, _, offset = text.partition(sign) if sign else (text, "", "")
    found = signal.Signals.__members__.get(f"SIG{base}")
    if found is not None and (not sign or (base in ("RTMIN", "RTMAX") and offset.isascii() and offset.isdigit())):
        number = int(found) + (int(offset or 0) if sign != "-" else -int(offset or 0))
        if 0 < number < 65:
            return number
    raise Invalid(f"invalid signal: {name}")
