"""/tokenize, /detokenize and /tokenizer_info, as vLLM has them."""

from __future__ import annotations

from anyio import to_thread
from pydantic import Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from fader.request import Alignment
from fader.schema import Invalid
from fader.server.aligned import HEADER, alignment_of, model_of
from fader.server.serving import read_json, serving
from fader.server.wire import Asked, Chat, Ids, Turn, chat_request, ignored, read


class Tokenize(Asked):
    """The body of /tokenize: a text, or a conversation as the model reads it."""

    prompt: str | None = None
    messages: list[Turn] | None = Field(None, min_length=1)
    add_special_tokens: bool = True
    return_token_strs: bool = False


class Detokenize(Asked):
    """The body of /detokenize."""

    tokens: Ids = Field(default_factory=list)


async def tokenize(request: Request) -> Response:
    """A text, or a conversation under its alignment, as token ids."""
    of = serving(request)
    body = read(Tokenize, await read_json(request))
    model, profile = model_of(body.model, of.backend.models)
    if (body.prompt is None) == (body.messages is None):
        raise Invalid("give `prompt` or `messages`, one of them", "prompt")
    if body.prompt is not None:
        encode = of.backend.encode
        ids = await to_thread.run_sync(encode, model, body.prompt, body.add_special_tokens)
    else:
        alignment = alignment_of(body, profile, request.headers.get(HEADER), of.default)
        asked = chat_request(
            Chat(messages=body.messages or []),
            model,
            Alignment(preferences=alignment.preferences),
            1,
        )
        ids = await to_thread.run_sync(of.backend.encode, model, asked)
    answer = {"count": len(ids), "max_model_len": of.backend.about(model).max_length, "tokens": ids}
    if body.return_token_strs:
        answer["token_strs"] = [of.backend.decode(model, [token], special=True) for token in ids]
    return JSONResponse(answer, headers=ignored(body))


async def detokenize(request: Request) -> Response:
    """Token ids as the text that they spell."""
    of = serving(request)
    body = read(Detokenize, await read_json(request))
    model, _ = model_of(body.model, of.backend.models)
    text = await to_thread.run_sync(of.backend.decode, model, body.tokens, True)
    return JSONResponse({"prompt": text}, headers=ignored(body))


async def tokenizer_info(request: Request) -> Response:
    """The tokenizer's own settings."""
    of = serving(request)
    model, _ = model_of(request.query_params.get("model"), of.backend.models)
    about = of.backend.about(model)
    return JSONResponse(
        {**about.tokenizer, "model_max_length": about.max_length, "vocab_size": about.vocabulary}
    )
