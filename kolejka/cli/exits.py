"""Exit statuses: the one table. A command that ran a task ends as the task did.

===========================  =======================================
the task                     exit status
===========================  =======================================
ok, failed                   its own exit code
signaled                     128 + the signal's number
limit time, cpu_time         124, as ``timeout`` says
limit memory                 137, as ``docker run`` says
limit output, storage, …     153, as a shell says of a file-size limit
cancelled                    130, as after an interrupt
error                        125, as ``docker run`` says of itself
===========================  =======================================

Wrong words of the caller end with 2; a server, node or neighbour that fails ends with 125; an interrupt with 130,
a SIGTERM with 143.
"""

from __future__ import annotations

from typing import Final

from kolejka.common.errors import InputError, KolejkaError
from kolejka.common.result import Outcome, Result

BAD_INPUT: Final = 2
INFRASTRUCTURE: Final = 125
INTERRUPTED: Final = 130
TERMINATED: Final = 143

_LIMITS: Final = {"time": 124, "cpu_time": 124, "memory": 137}


def exit_status(result: Result) -> int:
    """The exit status that tells how a task ended."""
    if result.outcome is Outcome.LIMIT:
        return _LIMITS.get(result.limit or "", 153)
    if result.outcome is Outcome.CANCELLED:
        return INTERRUPTED
    if result.outcome is Outcome.ERROR or result.result is None:
        return INFRASTRUCTURE
    return result.result


def error_status(error: KolejkaError) -> int:
    """The exit status that tells whose fault an error is."""
    return BAD_INPUT if isinstance(error, InputError) else INFRASTRUCTURE
