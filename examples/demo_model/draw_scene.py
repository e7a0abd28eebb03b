"""Draws scene.png, the picture of the quick start: none of its things, and not its number, was in the training.

python -m examples.demo_model.draw_scene
"""

from pathlib import Path

from vlm_trt.evaluation.scenes.render import draw_scene
from vlm_trt.evaluation.scenes.scene import Scene, Thing, Writing, held_out_combination, held_out_number

TARGET = Path(__file__).parent / "scene.png"


def thing(colour: str, shape: str, size: str, left: int, top: int) -> Thing:
    """A thing at a place of the raster of 32×32."""
    side = {"small": 5, "large": 8}[size]
    return Thing(colour, shape, size, (left / 32, top / 32, (left + side) / 32, (top + side) / 32))


SCENE = Scene(
    side=320,
    background=(150, 160, 172),
    clutter_seed=4,
    things=(
        thing("green", "star", "large", 2, 3),
        thing("yellow", "square", "large", 5, 20),
        thing("red", "circle", "small", 15, 15),
        thing("orange", "star", "small", 25, 23),
    ),
    writing=Writing("56", "DejaVuSans-Bold", (20 / 32, 4 / 32, 28 / 32, 8 / 32), light=False),
)
assert all(held_out_combination(one.colour, one.shape, one.size) for one in SCENE.things) and held_out_number(56)


def main() -> None:
    draw_scene(SCENE, scale=2).save(TARGET)
    print(f"wrote {TARGET}")


if __name__ == "__main__":
    main()
