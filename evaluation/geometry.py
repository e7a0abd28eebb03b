"""How much two places overlap: exact for boxes and convex quads."""

from collections.abc import Sequence

from vlm_trt.families.messages import Grounding

Point = tuple[float, float]
Polygon = Sequence[Point]  # convex, corners counterclockwise (x to the right, y up; on a picture: clockwise)


def outline(place: Grounding) -> Polygon:
    """The place as a convex polygon: a box as its rectangle, a quad as it is, or as its bounding box if not convex."""
    points = place.points
    if place.kind == "quad" and (turned := _convex(points)):
        return turned
    (left, right), (bottom, top) = ((min(c), max(c)) for c in zip(*points, strict=True))
    return (left, bottom), (right, bottom), (right, top), (left, top)


def area(polygon: Polygon) -> float:
    """Square pixels inside; positive where the corners run counterclockwise.

    Source: the shoelace formula, ½ Σ (xᵢ yᵢ₊₁ − xᵢ₊₁ yᵢ).
    """
    following = (*polygon[1:], *polygon[:1])
    return sum(x * v - u * y for (x, y), (u, v) in zip(polygon, following, strict=True)) / 2


def intersection(subject: Polygon, clip: Polygon) -> Polygon:
    """The polygon that lies in both; empty where they do not meet or `clip` has no area.

    Source: Sutherland and Hodgman, Reentrant polygon clipping, 1974.
    """
    if area(clip) <= 0:  # a point has no edges that could cut anything away
        return ()
    for start, end in zip(clip, (*clip[1:], *clip[:1]), strict=True):
        subject = _half(subject, start, end)
    return subject


def iou(one: Polygon, other: Polygon) -> float:
    """Intersection over union, 0…1, rounded to 12 digits so that equal places score exactly 1; 0 without an area."""
    shared = area(intersection(one, other))
    union = area(one) + area(other) - shared
    return min(1.0, max(0.0, round(shared / union, 12))) if union > 0 else 0.0


def _convex(points: Polygon) -> Polygon | None:
    """The corners counterclockwise; None where the polygon is not convex or crosses itself."""
    count = len(points)
    turns = [_side(points[i], points[(i + 1) % count], points[(i + 2) % count]) for i in range(count)]
    if all(turn >= 0 for turn in turns):
        return points
    return tuple(reversed(points)) if all(turn <= 0 for turn in turns) else None


def _side(start: Point, end: Point, point: Point) -> float:
    """Above 0 where the point lies to the left of the line from start to end, exactly 0 at both."""
    return (end[0] - start[0]) * (point[1] - start[1]) - (end[1] - start[1]) * (point[0] - start[0])


def _half(polygon: Polygon, start: Point, end: Point) -> Polygon:
    """The part of the polygon to the left of the line from start to end."""
    kept: list[Point] = []
    for here, there in zip(polygon, (*polygon[1:], *polygon[:1]), strict=True):
        inside, outside = _side(start, end, here), _side(start, end, there)
        if inside >= 0:
            kept.append(here)
        if (inside > 0 > outside) or (inside < 0 < outside):
            share = inside / (inside - outside)
            kept.append((here[0] + share * (there[0] - here[0]), here[1] + share * (there[1] - here[1])))
    return kept
