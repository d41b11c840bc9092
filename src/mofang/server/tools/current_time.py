"""The tool `current_time`: what no model can know."""

from datetime import datetime
from zoneinfo import ZoneInfo

from mofang.errors import Invalid
from mofang.server.rooms import Rooms
from mofang.server.tools.base import Own
from mofang.strings import say
from mofang.wire import Request


class Arguments(Request):
    zone: str = ""
    """A time zone's IANA name; "": this machine's."""


async def run(asked: Arguments, rooms: Rooms) -> str:
    now = datetime.now().astimezone(_zone(asked.zone))
    weekday = say(f"tools.weekday_{now.isoweekday()}")
    return f"{now.isoformat(sep=' ', timespec='seconds')} {weekday} ({asked.zone or now.tzname()})"


def _zone(name: str) -> ZoneInfo | None:
    """Raises Invalid for what is no zone."""
    if not name:
        return None
    try:
        return ZoneInfo(name)
    except (ValueError, LookupError, OSError) as error:  # a path; no such zone; a folder of zones, such as "Asia"
        raise Invalid("tools.no_zone", param="zone", zone=name) from error


CURRENT_TIME = Own(Arguments, run)
