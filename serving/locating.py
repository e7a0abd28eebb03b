"""POST /v1/detect and /v1/point: where what has a name is in a picture, in its pixels, whatever the family writes."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from vlm_trt.bundle.errors import UnsupportedError
from vlm_trt.families.family import family
from vlm_trt.families.messages import Image, PlaceKind
from vlm_trt.runtime.model import Answer, found_in
from vlm_trt.runtime.places import asked, question_of, require_names
from vlm_trt.runtime.requests import Request
from vlm_trt.serving.documents import Document, Heading, usage
from vlm_trt.serving.errors import refused
from vlm_trt.serving.logs import UnknownFields
from vlm_trt.serving.media import Picture
from vlm_trt.serving.requests import LocateRequest, read_locate
from vlm_trt.serving.services import Served


@dataclass(frozen=True)
class PlacesForm:
    """What was found, in one piece: coordinates that are half written are of no use."""

    heading: Heading
    name: str
    kind: PlaceKind

    def whole(self, answer: Answer) -> Document:
        found = found_in([(self.name, answer)], self.kind)
        head = {name: value for name, value in self.heading.document("places", []).items() if name != "choices"}
        return head | {
            "name": self.name,
            "width": found.size[0],
            "height": found.size[1],
            "places": [asdict(one) | {"kind": one.kind} for one in found.places],
            "malformed_places": found.malformed,
            "finish_reason": answer.finish_reason,
            "usage": usage(answer),
        }


class Locate:
    """The kind of request."""

    prompt_param = "image"

    def __init__(self, kind: PlaceKind) -> None:
        self._kind = kind

    def read(self, body: bytes, unknown: UnknownFields) -> LocateRequest:
        return read_locate(body, unknown)

    def pictures(self, asked: LocateRequest) -> list[tuple[str, str]]:
        return [("image.url", asked.image.url)]

    def ask(self, wanted: LocateRequest, served: Served, pictures: Sequence[Picture], deadline_s: float) -> Request:
        model, look = served.loop.model, wanted.image
        require_names([wanted.name])
        try:
            question = question_of(family(model.engine.model.family), self._kind, wanted.question)
        except UnsupportedError as error:
            raise refused("model", f"cannot be asked so: {error}", "unsupported_parameter") from None
        picture = Image(pictures[0].data, detail=look.detail, min_pixels=look.min_pixels, max_pixels=look.max_pixels)
        (conversation,) = asked(picture, [wanted.name], question)
        options = wanted.options(speculation=served.speculation)
        return model.request(model.build_prompt(conversation), options, deadline_s=deadline_s)

    def form(self, asked: LocateRequest, served: Served, number: str) -> PlacesForm:
        return PlacesForm(Heading(f"places-{number}", served.name), asked.name, self._kind)
