"""The one loop that makes the kernel equal to what is desired, and the only writer to it.

Rules: input is coalesced and applied in batches, a lone change at once; what exists and is equal is left alone (a
restart rewrites nothing); things of an earlier run that nobody wants go only after `release_stale`, when the new
state stands; an object that fails holds up no other and is tried again with back-off; a hint from the kernel is only
a reason to look: dump and diff is the only repair. Two parties that fight over an object are told apart from drift:
each repair of the same key within a short time doubles the wait before the next.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import random
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

import msgspec

from netagent.kernel.base import Change, Failure, Host, Op
from netagent.model import KINDS, Finding, Key, Object, Route
from netagent.plan.desired import Claim, Delta, Desired
from netagent.plan.diff import diff, order, satisfied, turn
from netagent.status import describe

log = logging.getLogger(__name__)

CHUNK = 256  # operations between two breaths of the event loop
RETRY_FIRST, RETRY_MAX = 0.1, 30.0  # seconds
FIGHT_WINDOW = 10.0  # seconds in which repairs of one key count as a fight
FIGHT_AFTER = 5  # repairs in the window
ONE_BLOW = 0.2  # seconds: a device that goes down takes the same things away, and what was put back, in several steps
FIGHT_FIRST = 0.8  # seconds until the first repair in a fight
DRIFTS_KEPT = 20
FINDINGS_MAX = 50

# What is gone silently when an object of the kind is changed by somebody else.
DEPENDENTS: dict[str, tuple[str, ...]] = {
    "link": ("offload", "address", "nexthop", "neighbour", "fdb", "route"),
    "address": ("nexthop", "route"),
    "nexthop": ("route",),
    "nft": ("element",),
}


class Failing(msgspec.Struct):
    """An object that the kernel refuses, or that waits because somebody else fights over it (`contested`)."""

    object: Object
    verb: str
    errno: int
    message: str
    foreign: str
    since: float  # time.time()
    attempts: int
    retry: float  # of the clock
    contested: bool = False


class Drift(NamedTuple):
    """A change by somebody else that was repaired."""

    at: float  # time.time()
    kind: str
    what: str


class Row(NamedTuple):
    """One desired object, for views."""

    object: Object
    owner: str
    rank: int
    losers: tuple[str, ...]
    installed: bool
    error: str


class Status(NamedTuple):
    desired: dict[str, int]
    installed: dict[str, int]
    failing: list[Failing]
    drifts: int
    last_drift: Drift | None
    passes: int
    last_pass: float
    last_pass_seconds: float
    operations: int


class Reconciler:
    """Feed it with `put` and `drop` from the event loop's thread; `run` is its task."""

    def __init__(
        self,
        host: Host,
        *,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self.host = host
        self.facts_changed = asyncio.Event()
        self.others_changed = asyncio.Event()  # other programs' firewalls
        self.adopted = asyncio.Event()
        self.applied = asyncio.Event()  # set after each pass, for whoever clears it and waits
        self._clock = clock
        self._jitter = jitter
        self._desired = Desired()
        self._known: dict[Key, Object] = {}
        self._pending: dict[Key, None] = {}
        self._stale: set[Key] = set()
        self._keep_stale = True
        self._dirty: set[str] = set()
        self._failing: dict[Key, Failing] = {}
        self._repairs: dict[Key, list[float]] = {}  # by the clock, the last few of each key
        self._waits: dict[Key, float] = {}  # seconds that the next repair of a key waits that is fought over
        self._unread: dict[str, int] = {}  # kinds whose dump failed, and how often in a row
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._drifts: deque[Drift] = deque(maxlen=DRIFTS_KEPT)
        self._drift_count = self._passes = self._operations = 0
        self._last_pass = self._last_pass_seconds = 0.0

    # ------------------------------------------------------------------------------------------ input

    def put(self, owner: str, objects: Iterable[Object], rank: int = 0) -> None:
        """Make `objects` all that `owner` wants."""
        self.put_all({owner: objects}, rank)

    def put_all(self, wishes: Mapping[str, Iterable[Object]], rank: int = 0) -> None:
        """`put` of many owners at once: a quarter of the work where each wants one route."""
        self._take(self._desired.put_all(wishes, rank))

    def drop(self, owner: str) -> None:
        self._take(self._desired.drop(owner))

    def owners(self, prefix: str = "") -> list[str]:
        return self._desired.owners(prefix)

    def invalidate(self, kinds: Collection[str] = KINDS) -> None:
        """Dump these kinds and repair what differs."""
        self._dirty.update(kinds)
        self._stir()

    def retry(self) -> None:
        """Something changed that may be what failing objects wait for: try them now."""
        now = self._clock()
        for failing in self._failing.values():
            if not failing.contested:  # a fight is not won by haste
                failing.retry = now
        if self._failing:
            self._stir()

    def release_stale(self) -> None:
        """The new state stands: what is left of an earlier run may go."""
        self._keep_stale = False
        self._pending.update(dict.fromkeys(self._stale))
        self._stale.clear()
        self._stir()

    async def settled(self) -> None:
        """Return once all that was put so far has been tried."""
        await self._idle.wait()

    def _take(self, delta: Delta) -> None:
        if delta.put or delta.gone:
            for key in (*delta.put, *delta.gone):
                self._pending[key] = None
            self._stir()

    def _stir(self) -> None:
        self._idle.clear()
        self._wake.set()

    # ------------------------------------------------------------------------------------------ the loop

    async def run(self) -> None:
        """Until cancelled; the kernel stays as it is."""
        listener = asyncio.create_task(self._listen(), name="kernel changes")
        try:
            self._adopt()
            while True:
                await self._pass()
                await self._sleep()
        finally:
            listener.cancel()
            await asyncio.wait([listener])

    def _adopt(self) -> None:
        """What an earlier run left: equal objects stay untouched, the rest waits for `release_stale`."""
        for obj in self._dump(KINDS, list(self._desired.values())):
            self._known[obj.key] = obj
            if obj.key not in self._desired:
                self._stale.add(obj.key)
        self.adopted.set()

    async def _sleep(self) -> None:
        """Until there is something to do, or until something failing is due."""
        now = self._clock()
        due = min((f.retry for f in self._failing.values()), default=None)
        if not self._pending and not self._dirty and (due is None or due > now):
            self._idle.set()
            # Not wait_for: until Python 3.12 it loses a cancellation that comes together with a wake-up.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(None if due is None else due - now):
                    await self._wake.wait()
        else:
            await asyncio.sleep(0)  # whatever the reason to go on at once, the event loop breathes
        self._wake.clear()

    async def _pass(self) -> None:
        started, wall = self._clock(), time.time()
        if self._dirty:
            self._verify()
        now = self._clock()
        self._pending.update((key, None) for key, failing in self._failing.items() if failing.retry <= now)
        if not self._pending:
            return
        pending, self._pending = self._pending, {}
        keys = sorted(pending, key=self._turn)
        for start in range(0, len(keys), CHUNK):
            # What input touched that came while the pass was under way waits for the next one.
            due = (key for key in keys[start : start + CHUNK] if key not in self._pending)
            self._apply([op for key in due if (op := self._operation(key)) is not None])
            if start + CHUNK < len(keys):
                await asyncio.sleep(0)
        self._passes += 1
        self.applied.set()
        self._last_pass, self._last_pass_seconds = wall, self._clock() - started

    def _turn(self, key: Key) -> int:
        return turn(key[0], "put" if key in self._desired else "delete")

    def _operation(self, key: Key) -> Op | None:
        """What brings the key to its desired state, None where it is there."""
        want, have = self._desired.get(key), self._known.get(key)
        if want is None:
            failing = self._failing.get(key)
            if have is None:
                self._failing.pop(key, None)
                return None
            if failing is not None and failing.verb == "delete" and failing.retry > self._clock():
                return None
            if self._keep_stale and key in self._stale:
                self._failing.pop(key, None)  # not due before `release_stale`
                return None
            return Op("delete", have, key)
        self._stale.discard(key)
        if satisfied(want, have):
            self._failing.pop(key, None)
            return None
        failing = self._failing.get(key)
        if failing is not None and failing.object == want and failing.retry > self._clock():
            return None
        return Op("put", want, key)

    def _apply(self, ops: Sequence[Op]) -> None:
        failed = {failure.op.object.key: failure for failure in self.host.apply(ops)}
        self._operations += len(ops)
        appeared: set[str] = set()
        vanished: set[Key] = set()
        for op in ops:
            key = op.key or op.object.key
            failure = failed.get(key)
            if failure is not None:
                self._fail(key, failure)
                continue
            earlier = self._failing.pop(key, None)
            if earlier is not None and key[0] == "link" and earlier.errno == errno.EOPNOTSUPP:
                self.facts_changed.set()  # it can now
            if op.verb == "put":
                self._known[key] = op.object
                appeared.update(DEPENDENTS.get(op.object.KIND, ()))
                if op.object.KIND == "link":
                    self._recreated(op.object)
            else:
                self._known.pop(key, None)
                if op.object.KIND == "nexthop":
                    vanished.add(key[1:])
                if op.object.KIND == "link":
                    self.invalidate(DEPENDENTS["link"])
                    self._hasten(("link",))  # it may have been in the way of another, with the same VNI
        if vanished:
            self._lost_with(vanished)
        self._hasten(appeared, but=failed)

    def _lost_with(self, nexthops: Collection[Key]) -> None:
        """Nexthops went, and silently with them the routes through them that are wanted still."""
        for key, known in list(self._known.items()):
            if isinstance(known, Route) and known.nexthop in nexthops:
                del self._known[key]
                self._pending[key] = None

    def _hasten(self, kinds: Collection[str], but: Collection[Key] = ()) -> None:
        """What failed may succeed now: it is due."""
        now = self._clock()
        for key, failing in self._failing.items():
            if failing.object.KIND in kinds and not failing.contested and key not in but:
                failing.retry = now

    def _fail(self, key: Key, failure: Failure) -> None:
        earlier = self._failing.get(key)
        attempts = earlier.attempts + 1 if earlier is not None else 1
        if failure.op.object.KIND == "link" and failure.errno == errno.EOPNOTSUPP and earlier is None:
            self.facts_changed.set()  # the kernel cannot make such a device: what is planned may depend on it
        self._failing[key] = Failing(
            failure.op.object,
            failure.op.verb,
            failure.errno,
            failure.message,
            failure.foreign,
            earlier.since if earlier is not None else time.time(),
            attempts,
            self._clock() + self._delay(attempts),
        )

    def _delay(self, attempts: int) -> float:
        """Seconds before the next try, after so many (1 and up)."""
        return min(RETRY_FIRST * 2.0 ** min(attempts - 1, 10) * self._jitter(0.75, 1.25), RETRY_MAX)

    # ------------------------------------------------------------------------------------------ drift

    async def _listen(self) -> None:
        """Hints, for ever: without them drift would go unseen, so what ends them is told, and they start again."""
        failures = 0
        while True:
            try:
                async for changes in self.host.changes():
                    failures = 0
                    self._hear(changes)
                log.warning("the kernel's changes ended; listening again")
            except Exception:
                log.exception("the kernel's changes cannot be followed; listening again")
            failures += 1
            await asyncio.sleep(self._delay(failures))
            self.invalidate()  # whatever was missed meanwhile

    def _hear(self, changes: Iterable[Change]) -> None:
        """Hints: something of these kinds may differ now."""
        now = self._clock()
        for change in changes:
            if change.kind == "facts":
                self.facts_changed.set()
                if change.key is not None:
                    self._forgive(change.key[1])
                continue
            if change.kind == "accept":
                self.others_changed.set()
            failing = None if change.key is None else self._failing.get(change.key)
            if failing is not None and not failing.contested:
                failing.retry = now  # what was in the way may be gone
            self._dirty.update((change.kind, *DEPENDENTS.get(change.kind, ())))
        if self._dirty:
            self._stir()

    def _forgive(self, dev: str) -> None:
        """An uplink went up or down: what the kernel removed with it was nobody's doing, however often it flaps."""
        for key in list(self._repairs):
            want = self._desired.get(key)
            if want is None or not _stands_on(want, dev):
                continue
            del self._repairs[key]
            self._waits.pop(key, None)
            failing = self._failing.get(key)
            if failing is not None and failing.contested:
                del self._failing[key]
                self._pending[key] = None
                self._stir()

    def _recreated(self, link: Object) -> None:
        """A device was made (anew): what stood on an earlier one of the name is gone."""
        for key, obj in list(self._known.items()):
            if _stands_on(obj, link.key[1]):
                del self._known[key]
                if key in self._desired:
                    self._pending[key] = None
        self._dirty.update(DEPENDENTS["link"])

    def _verify(self) -> None:
        """Dump what is dirty; what differs from what we wrote was changed by somebody else."""
        dirty, self._dirty = self._dirty, set()
        wanted = [obj for obj in self._desired.values() if obj.KIND in dirty]
        actual = {obj.key: obj for obj in self._dump(list(dirty), wanted)}
        now = self._clock()
        dirty.difference_update(self._unread)  # not read: nothing is known of it
        for key in [key for key in self._repairs if self._calm(key, now)]:
            del self._repairs[key]
            self._waits.pop(key, None)
        before = self._drift_count
        for key, known in list(self._known.items()):
            if known.KIND in dirty and not satisfied(known, actual.get(key)):
                have = actual.get(key)
                if have is None:
                    del self._known[key]
                else:
                    self._known[key] = have
                if key in self._desired:
                    self._drifted(key, known, have, now)
        for key, obj in actual.items():
            if key not in self._known:
                self._known[key] = obj
                if key not in self._desired:
                    if self._keep_stale:
                        self._stale.add(key)
                    else:
                        self._pending[key] = None
        if self._drift_count > before:
            more = self._drift_count - before - 1
            log.warning("%s%s; putting it back", self._drifts[-1].what, f" (and {more} objects more)" if more else "")

    def _dump(self, kinds: Collection[str], wanted: Sequence[Object]) -> list[Object]:
        """What is there of these kinds. One that cannot be read is left out, and read again after a back-off."""
        try:
            found = self.host.dump(kinds, wanted)
        except OSError as error:
            if len(kinds) > 1:
                return [obj for kind in kinds for obj in self._dump((kind,), [o for o in wanted if kind == o.KIND])]
            (kind,) = kinds
            failures = self._unread[kind] = self._unread.get(kind, 0) + 1
            log.warning("the kernel's objects of kind %s cannot be read: %s", kind, error)
            asyncio.get_running_loop().call_later(self._delay(failures), self.invalidate, (kind,))
            return []
        for kind in kinds:
            self._unread.pop(kind, None)
        return found

    def _calm(self, key: Key, now: float) -> bool:
        """Whether somebody else has left the key alone for so long that it is trusted again."""
        return now - self._repairs[key][-1] > FIGHT_WINDOW + 2 * self._waits.get(key, 0.0)

    def _drifted(self, key: Key, known: Object, have: Object | None, now: float) -> None:
        done = "removed" if have is None else "changed"
        what = f"{known.KIND} {describe(known)} was {done} by somebody else"
        self._drift_count += 1
        self._drifts.append(Drift(time.time(), known.KIND, what))
        earlier = self._repairs.get(key, [])
        repairs = [at for at in earlier if now - at <= FIGHT_WINDOW][1 - 2 * FIGHT_AFTER :]
        another = not repairs or now - repairs[-1] > ONE_BLOW
        if another:
            repairs.append(now)
        self._repairs[key] = repairs
        wait = self._waits.get(key, 0.0)
        if wait or len(repairs) >= FIGHT_AFTER:
            want = self._desired.get(key)
            assert want is not None
            if another:
                wait = min(2 * wait or FIGHT_FIRST, RETRY_MAX)
            self._waits[key] = wait
            self._failing[key] = Failing(
                want,
                "put",
                errno.EAGAIN,
                "somebody else keeps changing it",
                "another program",
                time.time(),
                len(repairs),
                now + wait,
                contested=True,
            )
        else:
            self._pending[key] = None

    # ------------------------------------------------------------------------------------------ views

    def plan(self) -> list[Op]:
        """What a full pass would do now, by dump and diff. Changes nothing."""
        return diff(dict(self._desired.items()), self.host.dump(KINDS, self._desired.values()))

    def explain(self, kinds: Collection[str] = ()) -> list[Row]:
        rows = []
        for key, obj in self._desired.items():
            if kinds and obj.KIND not in kinds:
                continue
            winner, *losers = self._desired.claims(key)
            failing = self._failing.get(key)
            rows.append(
                Row(
                    obj,
                    winner.owner,
                    winner.rank,
                    tuple(loser.owner for loser in losers),
                    satisfied(obj, self._known.get(key)),
                    failing.message if failing is not None else "",
                )
            )
        rows.sort(key=lambda row: KINDS.index(row.object.KIND))
        return rows

    def claims(self, key: Key) -> list[Claim]:
        return self._desired.claims(key)

    def installed(self, key: Key) -> bool:
        want = self._desired.get(key)
        return want is not None and satisfied(want, self._known.get(key))

    def in_place(self, obj: Object) -> bool:
        """Whether this very object is in the kernel: not another under its key that is wanted at present."""
        return satisfied(obj, self._known.get(obj.key))

    def present(self, key: Key) -> Object | None:
        """What we believe is in the kernel under the key."""
        return self._known.get(key)

    def stands(self, owner: str) -> bool:
        """Whether everything that the owner wants and that no lower rank took over is in the kernel."""
        return all(self.installed(key) for key in self._desired.keys_of(owner))

    def findings(self) -> list[Finding]:
        """What cannot be installed, or does not stay so, for an operator."""
        fought = [key for key in self._waits if not self._calm(key, self._clock())]
        found = [_contested(want) for key in fought if (want := self._desired.get(key)) is not None]
        found += [_refused(failing) for failing in self._failing.values() if not failing.contested]
        return found[:FINDINGS_MAX]

    def failure(self, key: Key) -> Failing | None:
        return self._failing.get(key)

    def status(self) -> Status:
        desired = Counter(obj.KIND for obj in self._desired.values())
        installed = Counter(obj.KIND for key, obj in self._desired.items() if self.installed(key))
        return Status(
            dict(desired),
            dict(installed),
            list(self._failing.values()),
            self._drift_count,
            self._drifts[-1] if self._drifts else None,
            self._passes,
            self._last_pass,
            self._last_pass_seconds,
            self._operations,
        )

    async def withdraw_all(self) -> list[Failure]:
        """Remove everything of ours, for cleanup. What could not be removed."""
        failed: list[Failure] = []
        for _ in range(2):  # what a first removal uncovers goes in a second
            ops = sorted((Op("delete", obj) for obj in self.host.dump(KINDS)), key=order)
            failed = []
            for start in range(0, len(ops), CHUNK):
                failed += self.host.apply(ops[start : start + CHUNK])
                await asyncio.sleep(0)
            if not failed:
                break
        return failed


def _refused(failing: Failing) -> Finding:
    kind, text = failing.object.KIND, describe(failing.object)
    if failing.foreign:
        return Finding(
            code="foreign-in-the-way",
            subject=f"{kind} {text}",
            severity="error",
            message=f"{text} cannot be installed: something that is not netagent's is in the way",
            evidence=failing.foreign,
            remedy="remove it, or keep it and choose another network; netagent never overwrites what is not its own",
        )
    return Finding(
        code="object-refused",
        subject=f"{kind} {text}",
        severity="error",
        message=f"{text} cannot be {'installed' if failing.verb == 'put' else 'removed'}: {failing.message}",
        evidence=f"errno {failing.errno}, {failing.attempts} tries",
        remedy="it is tried again by itself; `netagent objects` shows what else is missing",
    )


def _contested(want: Object) -> Finding:
    kind, text = want.KIND, describe(want)
    return Finding(
        code="object-contested",
        subject=f"{kind} {text}",
        severity="error",
        message=f"{text} is removed or changed again and again by another program",
        evidence=f"at least {FIGHT_AFTER} times; it is put back ever more rarely",
        remedy="find the program and tell it to leave what is netagent's alone (`ip monitor` shows each change)",
    )


def _stands_on(obj: Object, dev: str) -> bool:
    if isinstance(obj, Route):
        return any(hop.dev == dev for hop in obj.hops) or (obj.nexthop is not None and obj.nexthop[0] == dev)
    return obj.KIND in DEPENDENTS["link"] and getattr(obj, "dev", None) == dev
