"""Having the processor when a packet is due, however busy the machine is.

Rule: ask for the most and live with the least. Real-time scheduling is what keeps packets on time beside other groups
of processes; it needs CAP_SYS_NICE or a limit (LimitRTPRIO), and is given up when a flood would let us take a whole
processor. Else a better nice value is asked for, which needs LimitNICE; else it goes on as any other process. Imports
nearly nothing: it is asked for before the rest is loaded.
"""

from __future__ import annotations

import gc
import os
import resource
import signal

_PRIORITY = 1  # above all that is not real-time, below what else is
_NICE = (-20, -15, -10, -5)
_LONGEST_RUN = 300_000
"""Microseconds without sleeping after which the kernel says that it is too much (RLIMIT_RTTIME)."""

_given_up = False


def hurry() -> None:
    """Ask for it."""
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(_PRIORITY))
    except OSError:
        _be_nice()


def settle() -> None:
    """All is loaded. From here on a long run is a flood, and there are no collections of garbage.

    These are pauses, and nothing here makes cycles.
    """
    if os.sched_getscheduler(0) & ~os.SCHED_RESET_ON_FORK == os.SCHED_FIFO:
        signal.signal(signal.SIGXCPU, _give_up)
        _, most = resource.getrlimit(resource.RLIMIT_RTTIME)
        if most == resource.RLIM_INFINITY or most > _LONGEST_RUN:
            resource.setrlimit(resource.RLIMIT_RTTIME, (_LONGEST_RUN, most))
    gc.collect()
    gc.freeze()
    gc.disable()


def got() -> str:
    """What we have, in words."""
    if os.sched_getscheduler(0) & ~os.SCHED_RESET_ON_FORK == os.SCHED_FIFO:
        return "real time"
    nice = f"nice {os.getpriority(os.PRIO_PROCESS, 0)}"
    return f"{nice}, real time was given up under load" if _given_up else nice


def _be_nice() -> None:
    for value in _NICE:
        try:
            os.setpriority(os.PRIO_PROCESS, 0, value)
            return
        except OSError:
            continue


def _give_up(*_: object) -> None:
    global _given_up
    _given_up = True
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    _be_nice()
