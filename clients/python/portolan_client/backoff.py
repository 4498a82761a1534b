"""How long to wait before the next try."""

import random
import typing


class Backoff:
    """Delays that double from `first` to `longest` seconds, each shortened by
    up to a half at random; none once `give_up_after` seconds would pass without
    success. Knows no clock: `now` is an argument."""

    def __init__(self, first: float = 0.1, longest: float = 2.0,
                 give_up_after: float = 60.0,
                 seed: typing.Optional[int] = None):
        self._first = first
        self._longest = longest
        self._give_up_after = give_up_after
        self._random = random.Random(seed)
        self.reset()

    def reset(self) -> None:
        self._delay = self._first
        self._failing_since: typing.Optional[float] = None

    def next(self, now: float,
             asked: typing.Optional[float]) -> typing.Optional[float]:
        """A try failed at `now`; `asked` is what the service wants. Returns
        the delay, at least `asked`, or None to give up."""
        if self._failing_since is None:
            self._failing_since = now
        unit = self._random.random()
        delay = self._delay * (1 - unit / 2)
        if asked is not None:
            delay = max(delay, asked * (1 + unit / 4))
        self._delay = min(self._delay * 2, self._longest)
        if now + delay - self._failing_since > self._give_up_after:
            return None
        return delay
