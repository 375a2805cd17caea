"""Numbers with a range, as types of hyper-parameters: `members: Count`, `cap: Positive | None`.

A type checker reads the plain number. `scripts/config` reads the range from the annotation's text
and refuses a value outside it, before anything is built.
"""

import operator
from typing import Annotated, NamedTuple

HOLDS = {
    "above": operator.gt,
    "at least": operator.ge,
    "below": operator.lt,
    "at most": operator.le,
}


class Range(NamedTuple):
    """Numbers above `gt` or from `ge` on, and below `lt` or up to `le`; null: no such bound."""

    gt: float | None = None
    ge: float | None = None
    lt: float | None = None
    le: float | None = None

    def problem(self, value: float) -> str:
        """What a number outside must be, as in "above 0 and at most 1"; empty for one inside."""
        bounds = [(word, x) for word, x in zip(HOLDS, self, strict=True) if x is not None]
        if all(HOLDS[word](value, bound) for word, bound in bounds):
            return ""
        return "0 or more" if self == Range(ge=0) else " and ".join(f"{w} {x}" for w, x in bounds)


Count = Annotated[int, Range(ge=1)]
Natural = Annotated[int, Range(ge=0)]
Positive = Annotated[float, Range(gt=0)]
NonNegative = Annotated[float, Range(ge=0)]
Rate = Annotated[float, Range(gt=0, le=1)]  # of an average, a discount: 0 would be no such thing
Share = Annotated[float, Range(ge=0, le=1)]  # of a whole
Quantile = Annotated[float, Range(gt=0, lt=1)]
