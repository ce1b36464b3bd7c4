"""Decides how many tokens a draft model guesses, by how many came true lately and by what both models' passes took.

Pure. Called by `draft_model`. After k guesses of which each comes true with chance p, one pass gives
1 + p + ... + p^k tokens, and takes k passes of the draft and one of k + 1 tokens. A k is worth it where that gives
more tokens than as many plain passes; where none is, it is silent, for longer each time, and tries again. Where not
even guesses that all come true would pay by far, it is silent for as long as it ever is. Devices have busy moments:
before it gives up what went well, it measures plain passes again.
Invariant: while it is silent it costs nothing.
"""

from h2qd.worker.pace import smoothed

GAIN_MIN = 1.05
"""Tokens in the time of one plain pass that make guessing worth it: measurements are no better than that."""

QUIET_PASSES = 64
QUIET_PASSES_MAX = 4096
"""For so many passes it is silent where guesses do not pay; four times as many each time that they still do not."""

PLAIN_EVERY = 32
"""Now and then a pass without a guess: what that takes is what all is compared with."""

_HITS, _TRIES = 3.6, 4.0
"""Where nothing is known, it supposes that nine of ten come true, and learns better fast."""

_MEMORY = 0.95
"""What is left of an older try's weight."""

_TOKEN_SHARE = 0.2
"""Of a plain pass that each more token takes, before any such pass was measured: no draft is tried for less."""

_HOPELESS = 0.8
"""Tokens in the time of a plain pass, if all guesses came true: no busy moment makes that of a draft that pays."""

_DOUBT_PASSES = 8
"""Plain ones, to compare with, before what paid is found to pay no longer."""

_PROVEN = 24
"""After so many guesses that were worth it, the next silence is a short one."""


class Wager:
    """Of at most `guesses_max` tokens."""

    def __init__(self, guesses_max: int) -> None:
        self._guesses_max = guesses_max
        self._plain_s = 0.0  # 0: not known yet
        self._draft_s = 0.0  # a token of the draft; 0: not known
        self._passes_s: dict[int, float] = {}  # a pass of so many tokens
        self._silent_s = 0.0  # what a plain pass took when it fell silent; 0: that was a moment ago
        self._hits, self._tries = _HITS, _TRIES
        self._quiet = 0
        self._pause = QUIET_PASSES
        self._guesses = 0  # since it was silent

    @property
    def measured(self) -> bool:
        """What a token of the draft takes is known: `count` can be asked."""
        return self._draft_s > 0

    def silent(self) -> bool:
        """Not now. To be asked once a pass."""
        if self._quiet:
            self._quiet -= 1
            if not self._quiet:
                self._rescale()
        return self._quiet > 0 or self._plain_s == 0

    def passed(self, tokens: int, took_s: float) -> None:
        """A pass of the model over so many tokens took so long."""
        if tokens == 1:
            self._plain_s = smoothed(self._plain_s, took_s)
        else:
            self._passes_s[tokens] = smoothed(self._passes_s.get(tokens, 0.0), took_s)

    def drafted(self, tokens: int, took_s: float) -> None:
        """The draft took so long for so many tokens."""
        self._draft_s = smoothed(self._draft_s, took_s / tokens)

    def checked(self, guessed: int, accepted: int) -> None:
        """So many of the tokens guessed last came true."""
        self._guesses += 1
        if self._guesses >= _PROVEN:
            self._pause = QUIET_PASSES
        for hit in [True] * accepted + [False] * (accepted < guessed):
            self._hits = self._hits * _MEMORY + hit
            self._tries = self._tries * _MEMORY + 1

    def count(self, room: int) -> int:
        """How many tokens to guess now, of at most `room`; 0: none."""
        if self._guesses % PLAIN_EVERY == PLAIN_EVERY - 1:
            self._guesses += 1
            return 0
        gain, best = self._best(self._hits / self._tries, room)
        if gain > GAIN_MIN:
            return best
        if room >= self._guesses_max:  # else it is the end of an answer, which tells nothing
            self._fall_silent()
        return 0

    def _fall_silent(self) -> None:
        self._silent_s = self._plain_s
        if self._guesses >= _PROVEN:
            self._guesses, self._quiet, self._silent_s = 0, _DOUBT_PASSES, 0.0
            return
        most, _ = self._best(1.0, self._guesses_max)
        if most <= _HOPELESS or (most <= GAIN_MIN and not self._passes_s):
            self._pause = QUIET_PASSES_MAX
        if most <= GAIN_MIN or self._pause == QUIET_PASSES_MAX:  # it may have been a busy moment that was measured
            self._draft_s, self._passes_s = 0.0, {}
        self._quiet, self._pause = self._pause, min(4 * self._pause, QUIET_PASSES_MAX)
        self._hits, self._tries = _HITS, _TRIES
        self._guesses = 0

    def _rescale(self) -> None:
        """After a silence: what took so long beside such plain passes takes as much more as they do now."""
        if self._silent_s:
            ratio = self._plain_s / self._silent_s
            self._draft_s *= ratio
            self._passes_s = {tokens: took_s * ratio for tokens, took_s in self._passes_s.items()}

    def _best(self, chance: float, room: int) -> tuple[float, int]:
        """What gives most tokens in a plain pass's time, where the next guess comes true with `chance`: how many."""
        best, most = 0, 0.0
        tokens = power = 1.0
        for count in range(1, min(room, self._guesses_max) + 1):
            power *= chance
            tokens += power
            gain = tokens * self._plain_s / (count * self._draft_s + self._pass_s(count + 1))
            if gain > most:
                best, most = count, gain
        return most, best

    def _pass_s(self, tokens: int) -> float:
        """What a pass of so many tokens takes: on a line through what was measured; no less than a plain one."""
        known = {1: self._plain_s, **self._passes_s}
        if tokens in known:
            return known[tokens]
        if len(known) == 1:
            return self._plain_s * (1 + _TOKEN_SHARE * (tokens - 1))
        first = max(count for count in known if count < tokens)
        last = min((count for count in known if count > tokens), default=first)
        if last == first:  # it is beyond all: the line from one token on goes on
            first = 1
        slope = (known[last] - known[first]) / (last - first)
        return max(self._plain_s, known[first] + slope * (tokens - first))
