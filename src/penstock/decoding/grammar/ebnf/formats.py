"""JSON Schema's formats as expressions of what every validator takes for one.

Where a format has forms that validators differ on, or that no automaton holds (an address of any length), the
expression leaves them out: what is written is valid, not everything valid is written.
"""

from __future__ import annotations

_HEX = "[0-9A-Fa-f]"
_YEAR_MONTH_DAY = (
    r"(\d{4}-((0[13578]|1[02])-(0[1-9]|[12]\d|3[01])|(0[469]|11)-(0[1-9]|[12]\d|30)|02-(0[1-9]|1\d|2[0-8]))"
    r"|(\d\d(0[48]|[2468][048]|[13579][26])|([02468][048]|[13579][26])00)-02-29)"
)
_TIME = r"([01]\d|2[0-3]):[0-5]\d:[0-5]\d(\.\d{1,9})?(Z|[+-]([01]\d|2[0-3]):[0-5]\d)"
_LABEL = "[A-Za-z0-9](-?[A-Za-z0-9]){0,20}"  # at most 63 characters
_HOST = rf"{_LABEL}(\.{_LABEL}){{0,3}}"  # at most 253 characters
_BYTE = r"(25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)"
_IPV4 = rf"({_BYTE}\.){{3}}{_BYTE}"
_GROUP = f"{_HEX}{{1,4}}"
_IPV6 = "|".join(
    [f"({_GROUP}:){{7}}{_GROUP}", f":(:{_GROUP}){{1,7}}", f"({_GROUP}:){{1,7}}:", "::"]
    + [f"({_GROUP}:){{{before}}}(:{_GROUP}){{1,{7 - before}}}" for before in range(1, 7)]
)
_ATOM = "[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]"
_ADDRESS = rf"{_ATOM}(\.?{_ATOM}){{0,31}}@{_HOST}"  # at most 64 characters before the @

# RFC 3986
_UNRESERVED = r"A-Za-z0-9._~!$&'()*+,;=\-"
_ENCODED = f"%{_HEX}{{2}}"
_SEGMENT = f"([{_UNRESERVED}:@]|{_ENCODED})"
_PATH = f"(/{_SEGMENT}*)*"
_AUTHORITY = rf"([{_UNRESERVED}:]*@)?[{_UNRESERVED}]*(:\d{{1,4}})?"
_TAIL = rf"(\?([{_UNRESERVED}:@/?]|{_ENCODED})*)?(#([{_UNRESERVED}:@/?]|{_ENCODED})*)?"
_ROOTED = f"/({_SEGMENT}+{_PATH})?"
_URI = f"[A-Za-z][A-Za-z0-9+.-]*:(//{_AUTHORITY}{_PATH}|{_ROOTED}|{_SEGMENT}+{_PATH}){_TAIL}"
_RELATIVE = f"(//{_AUTHORITY}{_PATH}|{_ROOTED}|([{_UNRESERVED}@]|{_ENCODED})+{_PATH})?{_TAIL}"
_POINTER = "(/([^~/]|~[01])*)*"

EXPRESSIONS = {
    "date": _YEAR_MONTH_DAY,
    "time": _TIME,
    "date-time": f"{_YEAR_MONTH_DAY}T{_TIME}",
    "duration": (
        r"P((\d{1,9}D|\d{1,9}M(\d{1,9}D)?|\d{1,9}Y(\d{1,9}M(\d{1,9}D)?)?)"
        r"(T(\d{1,9}S|\d{1,9}M(\d{1,9}S)?|\d{1,9}H(\d{1,9}M(\d{1,9}S)?)?))?"
        r"|T(\d{1,9}S|\d{1,9}M(\d{1,9}S)?|\d{1,9}H(\d{1,9}M(\d{1,9}S)?)?)|\d{1,9}W)"
    ),
    "email": _ADDRESS,
    "idn-email": _ADDRESS,
    "hostname": _HOST,
    "idn-hostname": _HOST,
    "ipv4": _IPV4,
    "ipv6": _IPV6,
    "uuid": f"{_HEX}{{8}}(-{_HEX}{{4}}){{3}}-{_HEX}{{12}}",
    "uri": _URI,
    "iri": _URI,
    "uri-reference": f"{_URI}|{_RELATIVE}",
    "iri-reference": f"{_URI}|{_RELATIVE}",
    "json-pointer": _POINTER,
    "relative-json-pointer": f"(0|[1-9][0-9]*)(#|{_POINTER})",
}
# Formats that JSON Schema defines and that are not kept. Other words say nothing about validity.
UNKEPT = frozenset(["regex", "uri-template"])
