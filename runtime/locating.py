"""How a model with region heads names places: x, y and, of boxes, width and height, one after another until it is done.

Each is the likeliest bin of the hidden state before it; its value, not a token, is what the decoder is given next.
Between two places the likeliest token says whether there is another one. Source: `_generate_points` of
vikhyat/moondream.
"""

from dataclasses import dataclass, field
from enum import Enum, auto

from vlm_trt.families.messages import Answered, Grounding, PlaceKind
from vlm_trt.runtime.backend import Binding
from vlm_trt.runtime.region import RegionRun, Said
from vlm_trt.runtime.slots import Key

MOST_PLACES = 50  # of one answer
# A side is two to the power of −10 … 0 of the picture's.
_SMALLEST_POWER = -10.0


class _Next(Enum):
    """What the last hidden state is asked for."""

    ANOTHER = auto()  # whether there is one more place, and its x
    Y = auto()
    SIZE = auto()


@dataclass
class Locator:
    """The places of one answer, as far as they are known. Written by `Generator` only."""

    kind: PlaceKind
    places: list[tuple[float, ...]] = field(default_factory=list)  # x, y and maybe width, height: shares
    key: Key = 0  # what the next position holds
    _next: _Next = _Next.ANOTHER
    _value: tuple[float, ...] = ()  # what the decoder is given there
    _centre: tuple[float, ...] = ()

    def may_end(self) -> bool:
        """Whether the next token may say that all is found."""
        return self._next is _Next.ANOTHER

    def take(self, said: Said) -> str:
        """The next number, of the last hidden state; what an answer in words says of a place that is known with it."""
        if self._next is _Next.SIZE:
            bins = tuple(int(row.argmax()) for row in said.size)
            last = said.size.shape[1] - 1
            self._value = tuple(2.0 ** (one / last * -_SMALLEST_POWER + _SMALLEST_POWER) for one in bins)
            self.key = (b"size", bins[0] * (last + 1) + bins[1])
            self._next = _Next.ANOTHER
            return self._found((*self._centre, *self._value))
        chosen = int(said.coordinate.argmax())
        self._value, self.key = (chosen / len(said.coordinate),), (b"coordinate", chosen)
        if self._next is _Next.ANOTHER:
            self._centre, self._next = self._value, _Next.Y
            return ""
        self._centre += self._value
        self._next = _Next.SIZE if self.kind is PlaceKind.BOX else _Next.ANOTHER
        return "" if self.kind is PlaceKind.BOX else self._found(self._centre)

    def _found(self, place: tuple[float, ...]) -> str:
        """Its corners as shares of the picture's sides, a line each."""
        self.places.append(place)
        corners = ", ".join(f"({x:.4f}, {y:.4f})" for x, y in _corners(place))
        return corners if len(self.places) == 1 else f"\n{corners}"

    def write(self, region: RegionRun, to: Binding) -> None:
        """Writes what the decoder is given at the next position."""
        if len(self._value) == 1:
            region.write_coordinate(self._value[0], to)
        else:
            width, height = self._value
            region.write_size(width, height, to)

    def answered(self, text: str, size: tuple[int, int]) -> Answered:
        """The answer with its places in pixels; what of a box lies beyond the picture is cut off.

        Args:
            text: what `take` said, all together.
            size: width and height of the picture, pixels.
        """
        found = [tuple((x * size[0], y * size[1]) for x, y in _corners(place)) for place in self.places]
        return Answered(text, tuple(Grounding("", self.kind, corners, 0) for corners in found))


def _corners(place: tuple[float, ...]) -> tuple[tuple[float, float], ...]:
    """Left top and right bottom of a box, or the point; shares."""
    x, y, *sides = place
    if not sides:
        return ((x, y),)
    across, down = sides

    def inside(share: float) -> float:
        return min(max(share, 0.0), 1.0)

    return (
        (inside(x - across / 2), inside(y - down / 2)),
        (inside(x + across / 2), inside(y + down / 2)),
    )
