"""How scenes are spoken of, in English and Chinese."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vlm_trt.evaluation.scenes.scene import Scene, Thing


@dataclass(frozen=True)
class Language:
    """Names and sentences of one language. Questions have several wordings each; `{}` are names of things."""

    colours: dict[str, str]
    shapes: dict[str, str]
    plurals: dict[str, str]
    sizes: dict[str, str]
    name: Callable[[str, str, str], str]  # size, colour and shape in this language, each may be "" → the thing
    joined: Callable[[Sequence[str]], str]  # a list as it is said
    article: Callable[[str], str]  # a thing named for the first time
    definite: Callable[[str], str]  # a thing known
    writing: Callable[[str, bool], str]  # text, whether it is a number → how a caption names it
    answers: dict[str, str]
    questions: dict[str, tuple[str, ...]]


def _english_list(items: Sequence[str]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


_EN_COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "black", "white")
_EN_SHAPES = ("circle", "square", "triangle", "star", "diamond", "cross")

ENGLISH = Language(
    colours={name: name for name in _EN_COLOURS},
    shapes={name: name for name in _EN_SHAPES},
    plurals={name: f"{name}es" if name == "cross" else f"{name}s" for name in _EN_SHAPES} | {"": "shapes"},
    sizes={"small": "small", "large": "large"},
    name=lambda size, colour, shape: " ".join(filter(None, (size, colour, shape))),
    joined=_english_list,
    article=lambda name: f"{'an' if name.startswith('orange') else 'a'} {name}",
    definite=lambda name: f"the {name}",
    writing=lambda text, is_number: f"the {'number' if is_number else 'word'} {text}",
    answers={
        "yes": "yes", "no": "no", "left": "left", "right": "right", "above": "above", "below": "below",
        "first": "picture 1", "second": "picture 2", "both": "both", "neither": "neither", "text": "the text",
    },
    questions={
        "caption": ("Describe the picture.", "What is in the picture?", "What do you see?"),
        "colour": ("What colour is {}?", "What color is {}?", "Which colour does {} have?"),
        "count": ("How many {} are there?", "How many {} are in the picture?", "Count the {}."),
        "horizontal": ("Is {} left or right of {}?", "Is {} to the left or to the right of {}?"),
        "vertical": ("Is {} above or below {}?",),
        "left": ("Is {} left of {}?",),
        "above": ("Is {} above {}?",),
        "larger": ("Which is larger, {} or {}?",),
        "read": ("What is written in the picture?", "Read the text.", "What does the text say?"),
        "read_number": ("Which number is in the picture?", "What number is written there?"),
        "ground": ("Where is {}?", "Find {}.", "Point at {}."),
        "ground_all": ("Find all {}.", "Where are the {}?"),
        "more": ("Which picture has more shapes?", "Are there more shapes in picture 1 or in picture 2?"),
        "which_has": ("Which picture shows {}?", "In which picture is {}?"),
        "in_both": ("Is there {} in both pictures?",),
        "count_in": ("How many shapes are in picture {}?",),
        "read_in": ("What is written in picture {}?",),
        "then_colour": ("And {}?", "And what colour is {}?"),
        "then_where": ("Where is it?", "And where is it?"),
        "then_what_colour": ("What colour is it?", "And its colour?"),
        "then_size": ("Is it small or large?",),
    },
)  # fmt: skip

CHINESE = Language(
    colours=dict(zip(_EN_COLOURS, ("红色", "绿色", "蓝色", "黄色", "紫色", "橙色", "黑色", "白色"), strict=True)),
    shapes=dict(zip(_EN_SHAPES, ("圆形", "正方形", "三角形", "星形", "菱形", "十字形"), strict=True)),
    plurals=dict(zip((*_EN_SHAPES, ""), ("圆形", "正方形", "三角形", "星形", "菱形", "十字形", "图形"), strict=True)),
    sizes={"small": "小", "large": "大"},
    name=lambda size, colour, shape: f"{size}{colour}{shape}",
    joined="，".join,
    article=lambda name: f"一个{name}",
    definite=lambda name: name,
    writing=lambda text, is_number: f"{'数字' if is_number else '单词'}{text}",
    answers={
        "yes": "是", "no": "不是", "left": "左边", "right": "右边", "above": "上面", "below": "下面",
        "first": "图1", "second": "图2", "both": "都有", "neither": "一样多", "text": "文字",
    },
    questions={
        "caption": ("描述这张图片。", "图片里有什么？", "图中有什么？"),
        "colour": ("{}是什么颜色？", "{}的颜色是什么？"),
        "count": ("有几个{}？", "图中有多少个{}？"),
        "horizontal": ("{}在{}的左边还是右边？",),
        "vertical": ("{}在{}的上面还是下面？",),
        "left": ("{}在{}的左边吗？",),
        "above": ("{}在{}的上面吗？",),
        "larger": ("{}和{}哪个更大？",),
        "read": ("图片里写着什么？", "读出文字。"),
        "read_number": ("图中的数字是多少？",),
        "ground": ("{}在哪里？", "找出{}。"),
        "ground_all": ("找出所有的{}。",),
        "more": ("哪张图的图形更多？",),
        "which_has": ("哪张图里有{}？",),
        "in_both": ("两张图里都有{}吗？",),
        "count_in": ("图{}里有几个图形？",),
        "read_in": ("图{}里写着什么？",),
        "then_colour": ("{}呢？",),
        "then_where": ("它在哪里？",),
        "then_what_colour": ("它是什么颜色？",),
        "then_size": ("它是大的还是小的？",),
    },
)  # fmt: skip


def full_name(thing: Thing, language: Language) -> str:
    """Size, colour and shape."""
    return language.name(language.sizes[thing.size], language.colours[thing.colour], language.shapes[thing.shape])


def short_names(thing: Thing, scene: Scene, language: Language, *, with_colour: bool = True) -> list[str]:
    """Every name that means this thing and no other of the scene, the shortest first."""
    kinds = ["shape", "size shape"] + (["colour shape", "size colour shape"] if with_colour else [])
    names = []
    for kind in kinds:
        attributes = kind.split()
        same = [other for other in scene.things if all(getattr(other, a) == getattr(thing, a) for a in attributes)]
        if len(same) == 1:
            names.append(
                language.name(
                    language.sizes[thing.size] if "size" in attributes else "",
                    language.colours[thing.colour] if "colour" in attributes else "",
                    language.shapes[thing.shape],
                )
            )
    return names
