"""Having the processor when a packet is due, however busy the machine is.

Rule: ask for the most and live with the least. Real-time scheduling is what keeps packets on time beside other groups
of processes; it needs CAP_SYS_NICE or a limit (LimitRTPRIO), and is given up when a flood would let us take a whole
processor. Else a better nice value is asked for, which needs LimitNICE; else it goes on as any other process.
"""

from __future__ import annotations

import contextlib
import gc
import os
import resource
import signal
from collections.abc import Callable

_PRIORITY = 1  # above all that is not real-time, below what else is
_NICE = (-20, -15, -10, -5)
_LONGEST_RUN = 300_000
"""Microseconds without sleeping after which the kernel says that it is too much (RLIMIT_RTTIME)."""


def hurry(on_given_up: Callable[[str], None]) -> str:
    """Ask for it. What was got, in words; `on_given_up` is told what is left when real time is given up."""
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(_PRIORITY))
    except OSError:
        return nice()

    def give_up(*_: object) -> None:
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
        on_given_up(f"{nice()}, real time was given up under load")

    signal.signal(signal.SIGXCPU, give_up)
    _, most = resource.getrlimit(resource.RLIMIT_RTTIME)
    if most == resource.RLIM_INFINITY or most > _LONGEST_RUN:
        resource.setrlimit(resource.RLIMIT_RTTIME, (_LONGEST_RUN, most))
    return "real time"


def nice() -> str:
    """The best nice value that is allowed."""
    for value in _NICE:
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, 0, value)
            return f"nice {value}"
    return f"nice {os.getpriority(os.PRIO_PROCESS, 0)}"


def no_pauses() -> None:
    """No collections of garbage: they are pauses, and nothing here makes cycles."""
    gc.collect()
    gc.freeze()
    gc.disable()
