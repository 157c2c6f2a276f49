"""What is asked of the service and what it answers, as /openapi.json describes them."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from src.captioner import Caption, Captioner
from src.figures import placed
from src.service.captioning import LEAST_CONFIDENCE, MOST_BEAMS
from src.service.pictures import Refused
from src.service.reading import MULTIPART
from src.tags import PARTS, SAMPLES

Text = Annotated[str | None, BeforeValidator(lambda given: given or None)]
"""Of an option that may be left empty, as a form's fields are."""
ONE_TAG = r"^[^\s,，=<>]+$"


class Options(BaseModel):
    """Query parameters, or fields of the form beside the files."""

    model_config = ConfigDict(extra="forbid")


Given = TypeVar("Given", bound=Options)


class CaptionOptions(Options):
    language: Text = Field(
        None, pattern=ONE_TAG, max_length=64, description="such as en or zh, of those that /v1/captioner lists"
    )
    tags: Text = Field(None, max_length=256, description="tags that it knows, separated by commas")
    length: Text = Field(None, max_length=16, description="short, medium, long or a number of words")
    alternatives: int = Field(0, ge=0, lt=MOST_BEAMS, description="further captions, best first")
    beam: int | None = Field(None, ge=1, le=MOST_BEAMS, description="beams of the search, instead of its own number")
    attention: bool = Field(False, description="also where each word looked")
    flags: bool = Field(False, description="also how firmly the caption stands, which takes several times as long")


class TagOptions(Options):
    language: Text = Field(None, pattern=ONE_TAG, max_length=64, description="such as en or zh")
    samples: int = Field(SAMPLES, ge=1, le=50, description="captions drawn; a tag's confidence is its share of them")
    min_confidence: float = Field(LEAST_CONFIDENCE, ge=0, le=1, description="tags below are left out")


class Attention(BaseModel):
    boxes: list[tuple[float, float, float, float]] = Field(
        description="of each region x1, y1, x2, y2, fractions of the picture; beyond [0, 1] where grey bars were added"
    )
    grid: tuple[int, int] | None = Field(description="rows and columns, where the boxes are a grid's, row by row")
    weights: list[list[float]] = Field(description="of each word, of each region")


class Said(BaseModel):
    text: str
    words: list[str]
    log_probs: list[float] = Field(description="of each word, and of the end where the caption ended by itself")
    score: float = Field(description="what the search ranked by")
    confidence: float | None = Field(description="the probability that it is a good one, of a calibrated captioner")
    attention: Attention | None = Field(description="where asked for, of a captioner that attends")


class CaptionAnswer(Said):
    width: int = Field(description="pixels of the picture, upright")
    height: int
    alternatives: list[Said]
    unfamiliar: float | None = Field(
        description="the share of pictures like those that the captioner learned from that are nearer to these, of a "
        "captioner with a detector"
    )
    stability: float | None = Field(
        description="how much of the words' probability stays where the picture is changed a little, in (0, 1], where "
        "flags are asked for"
    )


class NamedAnswer(BaseModel):
    """One of several pictures': a caption, or what is wrong with the picture."""

    name: str
    caption: CaptionAnswer | None = None
    error: str | None = None


class CaptionsAnswer(BaseModel):
    captions: list[NamedAnswer] = Field(description="in the order of the files")


class TagAnswer(BaseModel):
    part: str = Field(description=", ".join(PARTS))
    name: str
    confidence: float


class TagsAnswer(BaseModel):
    tags: list[TagAnswer]
    captions: list[str] = Field(description="the drawn captions, likeliest first")


class SearchOptions(Options):
    count: int = Field(24, ge=1, le=100, description="pictures at most")


class SentenceOptions(SearchOptions):
    q: str = Field(min_length=1, max_length=500, description="what to search for")
    by: Literal["sentence", "words"] = Field(
        "sentence", description="sentence: pictures that it describes; words: those whose captions hold its words"
    )
    rerank: int = Field(
        20,
        ge=0,
        le=100,
        description="by=sentence: so many of the first are looked at again, which finds better, slower",
    )


class FoundAnswer(BaseModel):
    id: str = Field(description="for /v1/pictures/{id}, as long as this service runs")
    name: str = Field(description="of its file")
    score: float = Field(description="by which it ranks")
    caption: str = Field(description="in the index; in several languages one a line; empty where there is none")


class SearchAnswer(BaseModel):
    results: list[FoundAnswer] = Field(description="best first")


class PictureOptions(Options):
    side: int = Field(320, ge=16, le=1600, description="pixels of its longer side at most")


class Error(BaseModel):
    error: str = Field(description="one sentence")


class Health(BaseModel):
    status: str


class Indexed(BaseModel):
    pictures: int
    languages: list[str] = Field(description="of their captions; empty text: the captioner's default")


class About(BaseModel):
    version: str
    languages: list[str]
    tags: list[str] = Field(description="other tags that can be asked for")
    default: list[str] = Field(description="tags that captions have where none are asked for")
    lengths: dict[str, int] = Field(description="names of lengths and the words that they are; empty: none are known")
    alternatives: int = Field(description="that can be asked for without a larger beam")
    attends: bool
    calibrated: bool
    detects: bool = Field(description="whether answers say how unfamiliar a picture is")
    formats: str
    limits: dict[str, float]
    index: Indexed | None = Field(description="pictures that can be searched; null: none")


REASONS = {
    400: "no picture, or a damaged one",
    401: "no token, or a wrong one",
    404: "no such picture, or nothing that can be searched",
    408: "the picture did not arrive in time",
    413: "too many bytes, pixels or pictures",
    415: "not a picture in a format that is read",
    422: "an option that is unknown, out of its range, or beyond this captioner; or a picture that is too unfamiliar",
    429: "too many pictures are waiting: ask again after Retry-After seconds",
    503: "the service is about to stop",
    504: "no answer in time",
}


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": Error, "description": REASONS[status]} for status in statuses}


def body_of(field: str, options: type[Options], many: bool = False) -> dict[str, Any]:
    """The OpenAPI description of a body that is one picture, or a form with one or several and options."""
    file: dict[str, Any] = {"type": "string", "format": "binary"}
    properties = options.model_json_schema()["properties"]
    pictures = {"type": "array", "items": file, "minItems": 1} if many else file
    form = {"type": "object", "properties": {field: pictures, **properties}, "required": [field]}
    content: dict[str, Any] = {MULTIPART: {"schema": form}}
    if not many:
        content |= {"image/*": {"schema": file}, "application/octet-stream": {"schema": file}}
    return {"requestBody": {"required": True, "content": content}}


def with_fields(options: Given, fields: Mapping[str, str]) -> Given:
    """Options, those of a form's fields in place of the query's."""
    try:
        return type(options).model_validate({**options.model_dump(exclude_unset=True), **fields})
    except ValidationError as error:
        raise Refused(422, sentence(error)) from error


def sentence(error: ValidationError | RequestValidationError) -> str:
    """What is wrong with options, the first of it."""
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"] if part not in ("query", "path", "body")) or "request"
    if first["type"] == "extra_forbidden":
        return f"{name}: no such option; /openapi.json lists them"
    return f"{name}: {first['msg'][:1].lower()}{first['msg'][1:]}"


def said(caption: Caption, size: tuple[int, int], captioner: Captioner) -> dict[str, Any]:
    """The fields of a Said, of a picture of this size."""
    attention = None
    if caption.attention is not None and caption.words:
        weights, regions = placed(caption.words, caption.attention, caption.boxes, size, captioner.preprocess)
        attention = Attention(
            boxes=regions.boxes.round(4).tolist(), grid=regions.grid, weights=weights.round(5).tolist()
        )
    return {
        "text": caption.text,
        "words": caption.words,
        "log_probs": [round(value, 4) for value in caption.log_probs],
        "score": caption.score,
        "confidence": caption.confidence,
        "attention": attention,
    }


def caption_answer(caption: Caption, size: tuple[int, int], captioner: Captioner) -> CaptionAnswer:
    others = [Said(**said(each, size, captioner)) for each in caption.alternatives]
    return CaptionAnswer(
        **said(caption, size, captioner),
        width=size[0],
        height=size[1],
        alternatives=others,
        unfamiliar=caption.unfamiliar,
        stability=caption.stability,
    )
