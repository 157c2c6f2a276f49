"""The routes: captions, tags and search over HTTP, described in /openapi.json, and the page that uses them."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, TypeVar

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, PlainTextResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from src import __version__
from src.captioner import Caption, Captioner
from src.service.batching import Batcher, Full, Places
from src.service.captioning import Engine, Task, Wanted
from src.service.counters import Counters, resident_bytes
from src.service.guard import GONE, Guard, refusal
from src.service.pictures import READ, Limits, Refused, Shown, opened
from src.service.reading import Sent, left, read
from src.service.schema import (
    About,
    CaptionAnswer,
    CaptionOptions,
    CaptionsAnswer,
    FoundAnswer,
    Health,
    Indexed,
    NamedAnswer,
    PictureOptions,
    SearchAnswer,
    SearchOptions,
    SentenceOptions,
    TagAnswer,
    TagOptions,
    TagsAnswer,
    body_of,
    caption_answer,
    errors,
    sentence,
    with_fields,
)

if TYPE_CHECKING:
    from src.retrieval import Found, Index

log = logging.getLogger(__name__)

PAGE = Path(__file__).parent / "page"
DECODERS = 2
"""Threads that decode pictures: more would take cores from the captioner."""
ARRIVING = 4
"""Requests whose body is arriving, at most, as a multiple of the queue: who sends slowly takes no place in it."""
HELD = 16
"""Bytes of all requests that arrive or are not answered, at most, as a multiple of one's."""

Answer = TypeVar("Answer")


class Settings(NamedTuple):
    """How the service answers."""

    batch: int = 16
    """Pictures computed together, at most."""
    wait: float = 0.01
    """Seconds that a batch waits for pictures that are being decoded."""
    queue: int = 64
    """Pictures accepted and not answered yet, at most."""
    limits: Limits = Limits()
    token: str | None = None
    hosts: Sequence[str] | None = ()
    """See `Guard`."""
    unfamiliar: float | None = None
    """Pictures as unfamiliar as that are refused; None: none."""


DEFAULT = Settings()

# ---------------------------------------------------------------- answering


class Service:
    """What the routes share: the captioner, the batches, and the pictures on their way."""

    def __init__(self, captioner: Captioner, settings: Settings, index: "Index | None") -> None:
        self.settings, self.limits, self.index = settings, settings.limits, index
        self.shown = Shown()
        self.engine = Engine(captioner)
        self.counters = Counters()
        self.batcher: Batcher[Task, Any] = Batcher(
            self.engine, settings.batch, settings.wait, settings.queue, self.counters.batches.add
        )
        self.decoders = ThreadPoolExecutor(DECODERS, "decode")
        self.thumbnails = ThreadPoolExecutor(1, "thumbnail")
        self.arriving = self.held = self.shrinking = 0
        """Requests whose body arrives, bytes of those that arrive or are answered, requests for thumbnails."""
        self.stopping = False

    @property
    def most(self) -> int:
        """Pictures of one request."""
        return min(self.limits.pictures, self.settings.queue)

    @property
    def busy(self) -> bool:
        """Whether an answer is owed."""
        return bool(self.arriving or self.batcher.taken or self.shrinking)

    @asynccontextmanager
    async def running(self, app: FastAPI) -> AsyncIterator[None]:
        """Compute while this context is entered."""
        async with self.batcher:
            yield
        for threads in (self.decoders, self.thumbnails):
            threads.shutdown(wait=False, cancel_futures=True)

    @contextmanager
    def places(self, count: int = 1) -> Iterator[Places[Task, Any]]:
        """Places of the queue for a request; Refused, 429, where there are not so many."""
        try:
            with self.batcher.places(count) as places:
                yield places
        except Full as error:
            waiting, most, batch = self.batcher.taken, self.settings.queue, self.settings.batch
            seconds = 1 + waiting // batch  # a batch takes less than a second on two cores
            raise full(f"{waiting} pictures are waiting, and {most} may wait", seconds) from error

    @asynccontextmanager
    async def accepted(self, request: Request, most: int) -> AsyncIterator[tuple[Sent, Places[Task, Any]]]:
        """What a request brings, up to `most` pictures, and places of the queue for them.

        Raises:
            Refused: see `read`; 408 it takes too long to arrive, 429 there is no room.
        """
        held, room = 0, HELD * self.limits.bytes

        def hold(size: int) -> None:
            nonlocal held
            if self.held + size > room:
                raise full(f"requests of {self.held / 1e6:.3g} MB are waiting, and {room / 1e6:g} MB may wait")
            self.held += size
            held += size

        try:
            sent = await self.read(request, most, hold)
            with self.places(len(sent.files)) as places:
                yield sent, places
        finally:
            self.held -= held

    async def read(self, request: Request, most: int, arrived: Callable[[int], None]) -> Sent:
        """See `read`; Refused, 408, where it takes too long, or 429, where too many others arrive."""
        if self.arriving >= ARRIVING * self.settings.queue:
            raise full(f"{self.arriving} requests are arriving, and no more may")
        self.arriving += 1
        try:
            async with asyncio.timeout(self.limits.seconds):
                return await read(request, self.limits, most, arrived)
        except TimeoutError as error:
            raise Refused(408, f"the picture did not arrive within {self.limits.seconds:g} s: send it again") from error
        finally:
            self.arriving -= 1

    async def in_time(self, request: Request, work: Awaitable[Answer]) -> Answer:
        """What the work gives; Refused where it takes too long, 504, or where nobody waits for it any more, GONE."""
        working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(left(request))
        try:
            async with asyncio.timeout(self.limits.seconds):
                await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                raise Refused(GONE, "the client left")
            return working.result()
        except TimeoutError as error:
            raise Refused(504, f"no answer within {self.limits.seconds:g} s: ask again later") from error
        finally:
            working.cancel()
            leaving.cancel()

    def decoded(self, data: bytes, name: str) -> tuple[Any, tuple[int, int]]:
        """A file → a batch of one of what the captioner takes, and the picture's own width and height."""
        image, size = opened(data, name, self.limits, self.engine.draft)
        return self.engine.captioner.stacked([image]), size

    async def captioned(
        self, places: Places[Task, Any], files: Sequence[tuple[str, bytes]], wanted: Wanted
    ) -> list[tuple[Caption, tuple[int, int]] | Refused]:
        """Each file's caption and size, or what is wrong with it."""
        loop = asyncio.get_running_loop()
        places.expect(len(files))

        async def one(name: str, data: bytes) -> tuple[Caption, tuple[int, int]] | Refused:
            try:
                pixels, size = await loop.run_in_executor(self.decoders, self.decoded, data, name)
            except Refused as error:
                places.expect(-1)
                return error
            caption = await places.add(Task(pixels, wanted))
            most = self.settings.unfamiliar
            if most is not None and caption.unfamiliar is not None and caption.unfamiliar >= most:
                share = f"{caption.unfamiliar:.1%}"
                return Refused(422, f"{name}: unlike the pictures that the captioner learned from: {share} are nearer")
            return caption, size

        return list(await asyncio.gather(*(one(*file) for file in files)))

    async def thumbnail(self, request: Request, name: str, side: int) -> bytes:
        """See `Shown.thumbnail`; Refused, 429, where as many are waited for as pictures may wait.

        They have a thread of their own, as large pictures take seconds, and captions would wait for them.
        """
        if self.shrinking >= self.settings.queue:
            raise full(f"{self.shrinking} thumbnails are waited for, and no more may be")
        self.shrinking += 1
        try:
            return await self.in_time(
                request,
                asyncio.get_running_loop().run_in_executor(
                    self.thumbnails, self.shown.thumbnail, name, side, self.limits
                ),
            )
        finally:
            self.shrinking -= 1

    def searched(self) -> "Index":
        """What can be searched; Refused, 404, where there is nothing."""
        if self.index is None:
            raise Refused(
                404,
                "nothing can be searched here: `python -m src.index PICTURES --index FOLDER` indexes pictures, and "
                "`python -m src.serve --index FOLDER` serves them",
            )
        return self.index

    async def found(self, places: Places[Task, Any], search: Callable[["Index"], Sequence["Found"]]) -> SearchAnswer:
        """What a search gives, computed in the captioner's thread; Refused, 422, where it cannot."""
        from src.segments import IndexFault

        index = self.searched()

        def work() -> Sequence["Found"]:
            index.refresh()  # others may have added to it
            return search(index)

        try:
            found = await places.add(Task(None, work=work))
        except IndexFault as error:  # it names the index's folder, which is nobody's business
            log.error("%s", error)
            raise Refused(503, "the index cannot be read at the moment: ask again later") from error
        except ValueError as error:
            raise Refused(422, str(error)) from error
        return SearchAnswer(
            results=[
                FoundAnswer(
                    id=self.shown.name(each.path), name=Path(each.path).name, score=each.score, caption=each.caption
                )
                for each in found
            ]
        )


def full(reason: str, seconds: int = 2) -> Refused:
    """429, and to come again in so many seconds."""
    return Refused(429, f"{reason}: ask again in a few seconds", {"retry-after": str(seconds)})


def understood(want: Callable[..., Wanted], **options: Any) -> Wanted:
    """What options mean to the captioner; Refused, 422, where it cannot."""
    try:
        return want(**options)
    except ValueError as error:
        raise Refused(422, str(error)) from error


def build_app(captioner: Captioner, settings: Settings = DEFAULT, index: "Index | None" = None) -> Guard:
    """The service as an ASGI application; `app.service` is what its routes share.

    Raises:
        RegionsError: a captioner of regions computed beforehand.
        IndexFault: an index of another captioner.
    """
    if index is not None:
        index.check(captioner)
    service = Service(captioner, settings, index)
    engine, limits = service.engine, service.limits
    app = FastAPI(
        title="Captionary",
        version=__version__,
        description="Captions, tags and search of pictures.",
        docs_url=None,  # these two fetch their scripts from a CDN
        redoc_url=None,
        lifespan=service.running,
        responses=errors(401, 503),
    )

    async def refused(request: Request, error: Any) -> Response:
        return refusal(error)

    async def wrong_route(request: Request, error: Any) -> Response:
        reason = {404: "no such address; /openapi.json lists them", 405: f"{request.method} is not answered here"}
        return refusal(Refused(error.status_code, reason.get(error.status_code, str(error.detail)), error.headers))

    async def wrong_options(request: Request, error: Any) -> Response:
        return refusal(Refused(422, sentence(error)))

    async def gone(request: Request, error: Any) -> Response:
        return Response(status_code=GONE)

    async def failed(request: Request, error: Any) -> Response:
        return refusal(Refused(500, "the service failed; its log says how"))

    app.add_exception_handler(Refused, refused)
    app.add_exception_handler(HTTPException, wrong_route)
    app.add_exception_handler(RequestValidationError, wrong_options)
    app.add_exception_handler(ClientDisconnect, gone)
    app.add_exception_handler(Exception, failed)

    @app.post(
        "/v1/caption",
        summary="Caption a picture",
        responses=errors(400, 408, 413, 415, 422, 429, 504),
        openapi_extra=body_of("picture", CaptionOptions),
    )
    async def caption(request: Request, options: Annotated[CaptionOptions, Query()]) -> CaptionAnswer:
        async with service.accepted(request, 1) as (sent, places):
            wanted = understood(engine.wanted, **with_fields(options, sent.fields).model_dump())
            (found,) = await service.in_time(request, service.captioned(places, sent.files, wanted))
        if isinstance(found, Refused):
            raise found
        return caption_answer(*found, captioner)

    @app.post(
        "/v1/captions",
        summary="Caption several pictures",
        responses=errors(400, 408, 413, 415, 422, 429, 504),
        openapi_extra=body_of("pictures", CaptionOptions, many=True),
    )
    async def captions(request: Request, options: Annotated[CaptionOptions, Query()]) -> CaptionsAnswer:
        async with service.accepted(request, service.most) as (sent, places):
            wanted = understood(engine.wanted, **with_fields(options, sent.fields).model_dump())
            found = await service.in_time(request, service.captioned(places, sent.files, wanted))
        named = []
        for (name, _), each in zip(sent.files, found, strict=True):
            if isinstance(each, Refused):
                named.append(NamedAnswer(name=name, error=each.reason))
            else:
                named.append(NamedAnswer(name=name, caption=caption_answer(*each, captioner)))
        return CaptionsAnswer(captions=named)

    @app.post(
        "/v1/tags",
        summary="What a picture shows, as tags",
        responses=errors(400, 408, 413, 415, 422, 429, 504),
        openapi_extra=body_of("picture", TagOptions),
    )
    async def tags(request: Request, options: Annotated[TagOptions, Query()]) -> TagsAnswer:
        async with service.accepted(request, 1) as (sent, places):
            options = with_fields(options, sent.fields)
            wanted = understood(engine.wanted_for_tags, language=options.language, samples=options.samples)
            (found,) = await service.in_time(request, service.captioned(places, sent.files, wanted))
        if isinstance(found, Refused):
            raise found
        best, _ = found
        rows = [TagAnswer(**tag._asdict()) for tag in engine.tags_of(best, options.min_confidence)]
        return TagsAnswer(tags=rows, captions=[best.text, *(other.text for other in best.alternatives)])

    @app.get("/v1/captioner", summary="What can be asked for")
    async def about() -> About:
        return About(
            version=__version__,
            languages=engine.languages,
            tags=engine.tags,
            default=engine.default,
            lengths=engine.lengths,
            alternatives=engine.alternatives,
            attends=captioner.model.decoder.attends,
            calibrated=captioner.calibration is not None,
            detects=captioner.detector is not None,
            formats=READ,
            limits={**limits._asdict(), "pictures": service.most},
            index=None if index is None else Indexed(pictures=len(index), languages=index.languages),
        )

    @app.get("/v1/search", summary="Find pictures by a sentence or by words", responses=errors(404, 422, 429, 504))
    async def search(request: Request, options: Annotated[SentenceOptions, Query()]) -> SearchAnswer:
        def work(index: "Index") -> Sequence["Found"]:
            if options.by == "words":
                if not index.languages:
                    raise ValueError("by=words: the pictures were indexed without captions; search by=sentence")
                return index.by_words(options.q, options.count)
            return index.by_sentence(captioner, options.q, options.count, rerank=options.rerank)

        with service.places() as places:
            return await service.in_time(request, service.found(places, work))

    @app.post(
        "/v1/search",
        summary="Find pictures like one",
        responses=errors(400, 404, 408, 413, 415, 422, 429, 504),
        openapi_extra=body_of("picture", SearchOptions),
    )
    async def search_by_picture(request: Request, options: Annotated[SearchOptions, Query()]) -> SearchAnswer:
        async def answer(places: Places[Task, Any], name: str, data: bytes) -> SearchAnswer:
            image, _ = await asyncio.get_running_loop().run_in_executor(
                service.decoders, opened, data, name, limits, engine.draft
            )
            return await service.found(places, lambda index: index.by_picture(captioner, image, count))

        service.searched()
        async with service.accepted(request, 1) as (sent, places):
            count = with_fields(options, sent.fields).count
            return await service.in_time(request, answer(places, *sent.files[0]))

    @app.get(
        "/v1/pictures/{name}",
        summary="A picture that was found, as a JPEG",
        response_class=Response,
        responses={200: {"content": {"image/jpeg": {}}}, **errors(404, 422, 429, 504)},
    )
    async def found_picture(request: Request, name: str, options: Annotated[PictureOptions, Query()]) -> Response:
        data = await service.thumbnail(request, name, options.side)
        return Response(data, media_type="image/jpeg", headers={"cache-control": "private, max-age=600"})

    @app.get("/health", summary="Whether it answers", responses=errors(503))
    async def health() -> Health:
        return Health(status="ok")

    @app.get("/metrics", summary="Counters, in Prometheus' form", response_class=PlainTextResponse)
    async def metrics() -> PlainTextResponse:
        gauges = {"captionary_pictures_waiting": float(service.batcher.taken)}
        if (held := resident_bytes()) is not None:
            gauges["process_resident_memory_bytes"] = held
        return PlainTextResponse(service.counters.text(gauges), media_type="text/plain; version=0.0.4")

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(PAGE / "index.html")

    files = {file.name: file for file in PAGE.iterdir()}  # and no others, whatever a path says

    @app.get("/page/{name}", include_in_schema=False)
    async def file_of_page(name: str) -> FileResponse:
        if name not in files:
            raise HTTPException(404)
        return FileResponse(files[name])

    return Guard(app, service, settings.token, settings.hosts)
