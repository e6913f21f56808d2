"""Collectives of ranks of one host that compute on CPUs, through memory that they share.

A rank that waits sleeps in the kernel, because ranks often outnumber cores. The semaphores are
POSIX's, in the shared memory itself. `sem_post` and `sem_wait` synchronize memory (POSIX.1-2024,
4.15.2), so that what was written before one is seen after the other, on weakly ordered CPUs as
well. The memory has no name in a file system: the first rank of a group makes it, the others open
it through /proc, and it is gone with the last of them, however they end.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import json
import mmap
import os
import secrets
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor
from torch.distributed import DistBackendError

from workers.process import ProcessId, boot_id

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store  # torch.distributed has it, but not for mypy

CAN_SHARE = hasattr(os, "memfd_create")  # as Linux has it
PIECE = 1 << 20  # bytes; a larger message goes piece by piece, so that both ends find it in a cache
PIECES = 64  # of a ring: what its writer may be ahead of a reader
LINE = 64  # bytes of a cache's line, which a semaphore has for itself. It takes 32 of them
LOOK_S = 0.5  # how often a rank that waits looks whether the other one still runs


class Timespec(ctypes.Structure):
    """`struct timespec`."""

    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


@functools.cache
def _library(keeps_lock: bool) -> Any:
    """The C library, of whose semaphore functions the first argument is an address. keeps_lock:
    calls keep Python's lock, for those that return at once: giving it away would take longer."""
    found = ctypes.PyDLL(None) if keeps_lock else ctypes.CDLL(None)
    found.sem_init.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_uint)
    found.sem_post.argtypes = found.sem_trywait.argtypes = (ctypes.c_void_p,)
    found.sem_timedwait.argtypes = (ctypes.c_void_p, ctypes.POINTER(Timespec))
    return found


@dataclass(frozen=True, slots=True)
class Member:
    """A rank of a group: its number, and its process."""

    rank: int
    process: ProcessId


class Memory:
    """Memory that all ranks of a group have mapped: semaphores, then data.

    members: the ranks, in their order. place: which of them this one is. timeout_s: seconds to
    wait for another one. post: lets one wait for the semaphore of that address end.
    """

    def __init__(
        self, mapped: mmap.mmap, members: Sequence[Member], place: int, timeout_s: float
    ) -> None:
        self.members, self.place = members, place
        self._mapped, self._timeout_s = mapped, timeout_s
        self._base = ctypes.addressof(ctypes.c_char.from_buffer(mapped))
        # Ready to be called: an attribute of an attribute takes as long as a call.
        self.post = _library(keeps_lock=True).sem_post
        self._try_wait = _library(keeps_lock=True).sem_trywait
        self._timed_wait = _library(keeps_lock=False).sem_timedwait

    def semaphore(self, number: int) -> int:
        """The address of a semaphore."""
        return self._base + number * LINE

    def tensor(self, offset: int, dtype: torch.dtype, count: int) -> Tensor:
        """`count` elements from the byte `offset` on."""
        return torch.frombuffer(self._mapped, dtype=dtype, count=count, offset=offset)

    def wait(self, semaphore: int, place: int) -> None:
        """Wait until the member at `place` has posted it. Raises DistBackendError where its process
        has ended, or `timeout_s` is over."""
        if self._try_wait(semaphore) == 0:
            return
        limit = time.monotonic() + self._timeout_s
        while self._timed_wait(semaphore, _soon()) != 0:
            has_ended = not self.members[place].process.may_run(of_this_machine=True)
            if self._try_wait(semaphore) == 0:  # it may have ended since
                return
            if has_ended:
                self._give_up(place, "Connection closed, as its process has ended")
            if time.monotonic() > limit:
                self._give_up(place, f"it has not come within {self._timeout_s:g} s")

    def _give_up(self, place: int, why: str) -> NoReturn:
        rank = self.members[place].rank
        raise DistBackendError(f"it waits for rank {rank} in shared memory: {why}")


def _soon() -> Timespec:
    """In LOOK_S, by the clock that `sem_timedwait` reads."""
    at = time.time() + LOOK_S
    return Timespec(int(at), int(at % 1 * 1e9))


class Exchange:
    """All-reduce and all-gather over a group: every rank writes its part, waits for the others, and
    reads all parts in the order of the ranks.

    There are two sets of parts, used in turn. Who writes one again has met all ranks over the other
    one since, so that none still reads it.
    """

    def __init__(self, memory: Memory) -> None:
        self._memory, self._ranks = memory, len(memory.members)
        mine, at = memory.place, memory.semaphore
        others = [place for place in range(self._ranks) if place != mine]
        self._posts = [at(place * self._ranks + mine) for place in others]
        self._waits = [(at(mine * self._ranks + place), place) for place in others]
        first, size = _data(self._ranks**2), self._ranks * PIECE
        self._sets = [first, first + size]

    @staticmethod
    def needs(ranks: int) -> tuple[list[int], int]:
        """What its semaphores begin with, and the bytes of the memory."""
        return [0] * ranks**2, _data(ranks**2) + 2 * ranks * PIECE

    def all_reduce(self, x: Tensor) -> None:
        """The sum over the ranks, in place: the same bits on every one. x: contiguous, float32,
        bfloat16 or float16, of which the last two are summed in float32."""
        for piece in _pieces(x.view(-1)):
            first, *rest = self._parts(piece).unbind()
            total = first.to(torch.float32, copy=True)
            for part in rest:
                total += part
            piece.copy_(total)

    def all_gather(self, x: Tensor, out: Tensor) -> None:
        """`x` of every rank, contiguous. out: [ranks, *shape of x]."""
        begin, rows = 0, out.view(self._ranks, -1)
        for piece in _pieces(x.view(-1)):
            end = begin + piece.numel()
            rows[:, begin:end].copy_(self._parts(piece))
            begin = end

    def _parts(self, mine: Tensor) -> Tensor:
        """What every rank brings [ranks, n], where this one brings `mine` [n]."""
        self._sets.reverse()
        shape = self._ranks, mine.numel()
        parts = self._memory.tensor(self._sets[0], mine.dtype, shape[0] * shape[1]).view(shape)
        parts[self._memory.place].copy_(mine)
        for semaphore in self._posts:
            self._memory.post(semaphore)
        for semaphore, place in self._waits:
            self._memory.wait(semaphore, place)
        return parts


class Ring:
    """Messages from one member of a group, the writer, to all others, in their order.

    The writer goes on as soon as its message is written. It waits where a reader is PIECES pieces
    behind it.
    """

    def __init__(self, memory: Memory, writer: int) -> None:
        self._memory, self._writer = memory, writer
        ranks, at, place = len(memory.members), memory.semaphore, memory.place
        readers = [place for place in range(ranks) if place != writer]
        # Of each reader: what it has not read yet, and what there is room for.
        self._readers = [(at(2 * reader), at(2 * reader + 1), reader) for reader in readers]
        self._mine = at(2 * place), at(2 * place + 1)
        self._first, self._next = _data(2 * ranks), 0

    @staticmethod
    def needs(ranks: int) -> tuple[list[int], int]:
        """What its semaphores begin with, and the bytes of the memory."""
        return [0, PIECES] * ranks, _data(2 * ranks) + PIECES * PIECE

    def write(self, x: Tensor) -> None:
        """Hand on `x`, contiguous. It is copied, so that it may be overwritten."""
        for piece in _pieces(x.view(-1)):
            for _, room, reader in self._readers:
                self._memory.wait(room, reader)
            self._slot(piece).copy_(piece)
            for unread, _, _ in self._readers:
                self._memory.post(unread)

    def read(self, out: Tensor) -> None:
        """Fill `out`, contiguous, with the next message, which has its shape and dtype."""
        unread, room = self._mine
        for piece in _pieces(out.view(-1)):
            self._memory.wait(unread, self._writer)
            piece.copy_(self._slot(piece))
            self._memory.post(room)

    def _slot(self, piece: Tensor) -> Tensor:
        """The next slot, as a tensor like `piece`."""
        at, self._next = self._next, (self._next + 1) % PIECES
        return self._memory.tensor(self._first + at * PIECE, piece.dtype, piece.numel())


def _data(semaphores: int) -> int:
    """The byte at which the data begins."""
    return -(-semaphores * LINE // mmap.PAGESIZE) * mmap.PAGESIZE


def _pieces(flat: Tensor) -> Iterable[Tensor]:
    """`flat` in parts of at most PIECE bytes."""
    most = PIECE // flat.element_size()
    return (flat,) if flat.numel() <= most else torch.split(flat, most)


# -- how ranks come to share it


@dataclass(frozen=True, slots=True)
class Meeting:
    """Where the ranks of a placement meet to share memory.

    store: the same on every rank. rank: the number of this one. timeout_s: see `Memory`. met: how
    often ranks have met under a name.
    """

    store: Store
    rank: int
    timeout_s: float
    met: Counter[str] = field(default_factory=Counter)

    def exchange(self, name: str, ranks: Sequence[int]) -> Exchange | None:
        """A new one of a group, of which every rank calls this. None on each of them where they are
        not all on one host. name: the same on each."""
        memory = self._memory(name, ranks, Exchange.needs(len(ranks)))
        return None if memory is None else Exchange(memory)

    def ring(self, name: str, ranks: Sequence[int], writer: int) -> Ring | None:
        """The same. writer: the rank that writes; the others read."""
        memory = self._memory(name, ranks, Ring.needs(len(ranks)))
        return None if memory is None else Ring(memory, ranks.index(writer))

    def _memory(
        self, name: str, ranks: Sequence[int], needs: tuple[list[int], int]
    ) -> Memory | None:
        mapped: mmap.mmap | None
        self.met[name] += 1
        name = f"{name}, {self.met[name]}"
        if self.rank == ranks[0]:
            with _made(*needs) as (mapped, where):
                self.store.set(name, json.dumps(where))
                members = self._members(name, ranks, True)
        else:
            mapped = _opened(needs[1], *json.loads(self.store.get(name)))
            members = self._members(name, ranks, mapped is not None)
        if mapped is None or members is None:
            return None
        return Memory(mapped, members, ranks.index(self.rank), self.timeout_s)

    def _members(self, name: str, ranks: Sequence[int], has_it: bool) -> list[Member] | None:
        """The processes of `ranks`, once all of them know whether they have the memory; None if one
        has it not."""
        own = asdict(ProcessId.here()) if has_it else None
        self.store.set(f"{name}/{self.rank}", json.dumps(own))
        told = [json.loads(self.store.get(f"{name}/{rank}")) for rank in ranks]
        if None in told:
            return None
        return [Member(*one) for one in zip(ranks, map(ProcessId.read, told), strict=True)]


@contextlib.contextmanager
def _made(values: Sequence[int], size: int) -> Iterator[tuple[mmap.mmap, list[object]]]:
    """Memory of `size` bytes with semaphores of these values, and where others find it: they can
    open it inside."""
    name = f"collectives-{secrets.token_hex(8)}"
    fd = os.memfd_create(name)
    try:
        os.ftruncate(fd, size)
        mapped = mmap.mmap(fd, size)
        base = ctypes.addressof(ctypes.c_char.from_buffer(mapped))
        for number, value in enumerate(values):
            _library(keeps_lock=True).sem_init(base + number * LINE, 1, value)
        yield mapped, [boot_id(), os.getpid(), fd, name]
    finally:
        os.close(fd)


def _opened(size: int, boot: str, pid: int, fd: int, name: str) -> mmap.mmap | None:
    """The memory that another process has made; None where it is of another host, or cannot be
    opened."""
    path = f"/proc/{pid}/fd/{fd}"
    try:
        if boot != boot_id() or not os.readlink(path).startswith(f"/memfd:{name}"):
            return None
        with open(path, "r+b") as file:
            return mmap.mmap(file.fileno(), size)
    except OSError:
        return None
