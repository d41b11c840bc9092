"""How long people wait who share some replicas of a model: a simulation, event by event.

    people        think, ask, read the answer, think again; a conversation ends, and another one begins
    gateway       lets as many in as there are slots in all, in the order of coming (engine.pool, engine.line)
    ring          sends a conversation to the replica of its hash, or on to the next ones when that is full (launch.ray_serve)
    replica       reads prompts and speaks answers in batches, as llama.cpp's server does: a token of every answer that is
                  under way and so many of the prompts that wait; answers get slower the more there are

Nothing here knows of Ray, of a machine or of a file: speeds come from whoever measured them, and the same seed gives the
same figures.  Checked against what is known exactly (Erlang's C, machines with repairmen, Little's law) in
tests/launch/test_launch_queueing.py, and against clients of real replicas by bench/plan.py.
"""

import heapq
import math
from bisect import bisect
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random

RING_POINTS, FALLBACKS = 100, 2
"""Of each replica on Ray's ring, and how many others are tried after the first (ConsistentHashRouter's defaults)."""
TURNS = 4
"""Questions of one conversation, on average. A guess, not studied: it decides how unevenly replicas are used."""
ENOUGH, ENOUGH_EACH = 4000, 8
"""Requests that are counted: in all, and of each person; the 95th percentile moves by a few per cent from seed to seed."""
VARIATION = 0.5
"""Of lengths of which only the mean is known: standard deviation / mean. A guess: prompts with passages and answers with a
limit vary less than an exponential does (1)."""
WARM_UP = 0.2
"""Part of the requests that is not counted: everybody begins by thinking."""

Lengths = Callable[[Random], tuple[int, int]]
"""Tokens of a prompt that must be read (none that a cache holds), and of its answer."""


def around(prompt: float, answer: float, variation: float = VARIATION) -> Lengths:
    """Lengths that vary around these means (a gamma distribution). `variation`: see VARIATION; 0: not at all."""

    def drawn(random: Random, mean: float) -> int:
        shape = 1 / variation**2 if variation else 0.0
        return max(1, round(random.gammavariate(shape, mean / shape) if variation else mean))

    return lambda random: (drawn(random, prompt), drawn(random, answer))


def among(seen: Sequence[tuple[int, int]]) -> Lengths:
    """Lengths as they were seen, each as likely as the others."""
    return lambda random: random.choice(seen)


@dataclass(frozen=True, slots=True)
class Speeds:
    """What one replica computes."""

    prompt: float
    """Tokens of a prompt a second."""
    together: Mapping[int, float]
    """Answers at once → tokens a second, all of them together. Between the measured counts it follows a line, beyond the
    last one it stays."""
    n_batch: int = 128
    """Tokens that are computed before the next look at who is there."""

    def step_s(self, count: int) -> float:
        """Seconds until each of so many answers has its next token."""
        counts = sorted(self.together)
        above = bisect(counts, count)
        if above in (0, len(counts)):
            near = counts[max(0, above - 1)]
            rate = self.together[near] * (count / near if count < near else 1.0)
        else:
            low, high = counts[above - 1], counts[above]
            part = (count - low) / (high - low)
            rate = (1 - part) * self.together[low] + part * self.together[high]
        return count / rate


@dataclass(frozen=True, slots=True)
class Service:
    """What there is to answer with."""

    replicas: int
    slots: int
    """Answers at once, of each replica."""
    speeds: Speeds
    beyond: int = 1
    """Requests that a replica takes in beyond its slots (launch.ray_serve: a place more)."""


@dataclass(frozen=True, slots=True)
class Crowd:
    """Who asks."""

    users: int
    think_s: float
    """From an answer's end to the next question, on average (exponential)."""
    lengths: Lengths
    turns: float = TURNS


@dataclass(slots=True)
class Outcome:
    """What came of it, of the requests that count."""

    ttft: list[float] = field(default_factory=list)
    """Seconds from a question to the first token of its answer, ascending."""
    speeds: list[float] = field(default_factory=list)
    """Tokens a second of each answer, as who reads it sees them; ascending."""
    responses: list[float] = field(default_factory=list)
    """Seconds from a question to the last token of its answer."""
    asked: int = 0
    """Everything from here on is of the whole simulation, what does not count included."""
    answered: int = 0
    inside: int = 0
    """Asked and not answered when it ended."""
    seconds: float = 0.0
    """Of the part that counts; so are the next three."""
    tokens: int = 0
    mean_inside: float = 0.0
    """Requests asked and not answered yet, on average over time."""
    busy: float = 0.0
    """Share of the slots that are taken, on average over time."""

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.seconds

    @property
    def requests_per_s(self) -> float:
        return len(self.responses) / self.seconds


def simulate(service: Service, crowd: Crowd, *, seed: int = 0, requests: int = 0) -> Outcome:
    """Let them ask until `requests` answers were counted (0: enough for a 95th percentile)."""
    wanted = requests or max(ENOUGH, ENOUGH_EACH * crowd.users)
    return _Simulation(service, crowd, seed).run(round(wanted * WARM_UP), wanted)


@dataclass(slots=True, eq=False)
class _Request:
    user: int
    asked_at: float
    prompt: int
    """Tokens that are left to read."""
    answer: int
    """Tokens that are left to say."""
    n_answer: int
    first_at: float = 0.0


@dataclass(slots=True)
class _Person:
    random: Random
    """Their own, so that the same people ask the same things however many replicas there are."""
    ring: tuple[int, ...] = ()
    """The replicas that their conversation may go to, the best first."""


class _Replica:
    """One server. Time goes on in stretches: a batch with prompts in it, or tokens of answers until something changes."""

    __slots__ = ("answers", "began", "end", "line", "prompts", "reads", "slots", "speeds", "steps")

    def __init__(self, slots: int, speeds: Speeds) -> None:
        self.slots, self.speeds = slots, speeds
        self.line: deque[_Request] = deque()
        self.prompts: list[_Request] = []
        self.answers: list[_Request] = []
        self.began = self.end = math.inf
        """Of the stretch that is under way; infinity: there is nothing to do."""
        self.steps = 0
        """Tokens that each answer gets in it."""
        self.reads: list[int] = []
        """Tokens of each prompt that are read in it."""

    @property
    def held(self) -> int:
        return len(self.line) + len(self.prompts) + len(self.answers)

    @property
    def taken(self) -> int:
        return len(self.prompts) + len(self.answers)

    def enter(self, request: _Request, now: float) -> None:
        """Somebody comes: seen after the batch, or after the token, that is being computed."""
        self.line.append(request)
        if self.end == math.inf:
            self.go_on(now)
        elif not self.reads and self.taken < self.slots:
            step = self.speeds.step_s(len(self.answers))
            done = min(self.steps, max(1, math.ceil((now - self.began) / step)))
            self.steps, self.end = done, self.began + done * step

    def finish(self) -> tuple[list[_Request], list[_Request]]:
        """The stretch has ended. Returns whose first token came, and whose last."""
        for each in self.answers:
            each.answer -= self.steps
        for each, read in zip(self.prompts, self.reads, strict=False):
            each.prompt -= read
        begun = [each for each in self.prompts if each.prompt <= 0]
        for each in begun:
            each.answer -= 1
        self.prompts = [each for each in self.prompts if each.prompt > 0]
        spoken = self.answers + begun
        self.answers = [each for each in spoken if each.answer > 0]
        return begun, [each for each in spoken if each.answer <= 0]

    def go_on(self, now: float) -> None:
        """Begin the next stretch with whoever is there."""
        while self.line and self.taken < self.slots:
            self.prompts.append(self.line.popleft())
        count = len(self.answers)
        step = self.speeds.step_s(count) if count else 0.0
        self.began, self.reads, self.end = now, [], math.inf
        if self.prompts:
            room = max(1, self.speeds.n_batch - count)
            left = min((each.answer for each in self.answers), default=self.prompts[0].prompt)
            # As long as one prompt fills the batches by itself, whoever comes changes nothing: they are one stretch.
            batches = max(1, min(self.prompts[0].prompt // room, left))
            room *= batches
            for each in self.prompts:
                self.reads.append(min(room, each.prompt))
                room -= self.reads[-1]
            self.steps = batches if count else 0
            self.end = now + batches * step + sum(self.reads) / self.speeds.prompt
        elif count:
            self.steps = min(each.answer for each in self.answers)
            self.end = now + self.steps * step


class _Simulation:
    def __init__(self, service: Service, crowd: Crowd, seed: int) -> None:
        self._service, self._crowd = service, crowd
        self._replicas = [_Replica(service.slots, service.speeds) for _ in range(service.replicas)]
        self._people = [_Person(Random(f"{seed} {number}")) for number in range(crowd.users)]
        random = Random(f"{seed} ring")
        points = sorted((random.random(), number) for number in range(service.replicas) for _ in range(RING_POINTS))
        self._ring = [at for at, _ in points], [number for _, number in points]
        self._events: list[tuple[float, int, int]] = []
        """(when, 0 for a person or 1 for a replica, its number); a replica's counts when it is the end of its stretch."""
        self._gate: deque[_Request] = deque()
        self._stuck: deque[_Request] = deque()
        """Let in, but the replicas that their conversations may go to are full."""
        self._admitted = 0
        self._now = 0.0
        self._found = Outcome()
        self._counting = False

    def run(self, warm_up: int, wanted: int) -> Outcome:
        found = self._found
        for number in range(self._crowd.users):
            self._think(number)
        while found.answered < warm_up + wanted:
            self._counting = found.answered >= warm_up
            at, what, number = heapq.heappop(self._events)
            if what == 0:
                self._pass(at)
                self._ask(number)
            elif at == self._replicas[number].end:  # else it was cut short
                self._pass(at)
                self._serve(number)
        found.inside = found.asked - found.answered
        if found.seconds:
            found.mean_inside /= found.seconds
            found.busy /= found.seconds * self._service.replicas * self._service.slots
        found.ttft.sort()
        found.speeds.sort()
        return found

    def _pass(self, at: float) -> None:
        """Time goes on to `at`."""
        if self._counting:
            span, found = at - self._now, self._found
            found.seconds += span
            found.mean_inside += span * (found.asked - found.answered)
            found.busy += span * sum(each.taken for each in self._replicas)
        self._now = at

    def _think(self, number: int) -> None:
        pause = self._people[number].random.expovariate(1 / self._crowd.think_s)
        heapq.heappush(self._events, (self._now + pause, 0, number))

    def _ask(self, number: int) -> None:
        person = self._people[number]
        if not person.ring or person.random.random() * self._crowd.turns < 1:
            person.ring = self._places(person.random.random())
        prompt, answer = self._crowd.lengths(person.random)
        self._found.asked += 1
        self._gate.append(_Request(number, self._now, prompt, answer, answer))
        self._admit()

    def _places(self, point: float) -> tuple[int, ...]:
        """The replicas of a conversation whose hash is there, as Ray's router walks its ring."""
        at, numbers = self._ring
        start, places = bisect(at, point), []
        for step in range(len(numbers)):
            number = numbers[(start + step) % len(numbers)]
            if number not in places:
                places.append(number)
            if len(places) == min(1 + FALLBACKS, self._service.replicas):
                break
        return tuple(places)

    def _admit(self) -> None:
        while self._gate and self._admitted < self._service.replicas * self._service.slots:
            self._admitted += 1
            self._stuck.append(self._gate.popleft())
        for request in [self._stuck.popleft() for _ in range(len(self._stuck))]:
            most = self._service.slots + self._service.beyond
            places = self._people[request.user].ring
            chosen = next((number for number in places if self._replicas[number].held < most), None)
            if chosen is None:
                self._stuck.append(request)
            else:
                before = self._replicas[chosen].end
                self._replicas[chosen].enter(request, self._now)
                self._expect(chosen, before)

    def _expect(self, number: int, before: float) -> None:
        end = self._replicas[number].end
        if end != before and end != math.inf:
            heapq.heappush(self._events, (end, 1, number))

    def _serve(self, number: int) -> None:
        replica = self._replicas[number]
        begun, ended = replica.finish()
        for request in begun:
            request.first_at = self._now
        for request in ended:
            self._end(request)
        replica.go_on(self._now)
        self._expect(number, -math.inf)
        if ended:
            self._admit()

    def _end(self, request: _Request) -> None:
        found = self._found
        found.answered += 1
        self._admitted -= 1
        if self._counting:
            found.ttft.append(request.first_at - request.asked_at)
            found.responses.append(self._now - request.asked_at)
            found.tokens += request.n_answer
            if self._now > request.first_at:
                found.speeds.append((request.n_answer - 1) / (self._now - request.first_at))
        self._think(request.user)
