"""Answering: one request from its lease on Triton to its last byte."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from trierarch.orchestrator.gateway.exchange import Exchange
from trierarch.orchestrator.gateway.generation import Generation
from trierarch.orchestrator.gateway.piece import Piece, read_pieces
from trierarch.orchestrator.gateway.reply import DONE, Reply, TotalUsage, WholeAnswer
from trierarch.orchestrator.gateway.triton import Triton
from trierarch.orchestrator.gateway.upstream import Endpoints

NumberedPieces = AsyncIterator[tuple[int, Piece]]
"""(number of the prompt, piece)."""
_MAX_WAITING = 16
"""Pieces of several prompts that wait for the client; behind them the streams from Triton wait."""


async def answer(exchange: Exchange, generation: Generation, reply: Reply, pieces: NumberedPieces) -> TotalUsage:
    """Tell the client what comes; the tokens that it took.

    Raises:
        RelayedError, ApiError: from `pieces`. Nothing is sent before the first of them has come, so that what is
            refused at once has a status of its own.
        ClientGone: see Exchange.
    """
    usage = TotalUsage()
    counted: set[int] = set()  # prompts
    answers: dict[tuple[int, int], WholeAnswer] = {}
    async for prompt, piece in pieces:
        if piece.usage is not None:
            usage.add(piece.usage, prompt not in counted)
            counted.add(prompt)
        if generation.is_streaming:
            events = reply.events(prompt, piece)
            if events:
                await exchange.write_event(events)
        else:
            key = (prompt, piece.index)
            if key not in answers:
                answers[key] = WholeAnswer(*key)
            answers[key].add(piece)
    if generation.is_streaming:
        await exchange.end_events((reply.usage_event(usage) if generation.include_usage else b"") + DONE)
    else:
        await exchange.answer(reply.whole([answers[key] for key in sorted(answers)], usage))
    return usage


@asynccontextmanager
async def pieces_of(triton: Triton, endpoints: Endpoints, requests: list[Any]) -> AsyncIterator[NumberedPieces]:
    """Send a ModelInferRequest for each prompt; leaving cancels what is not over."""
    async with AsyncExitStack() as stack:
        streams = [
            _pieces(number, await stack.enter_async_context(triton.responses(endpoints, request)))
            for number, request in enumerate(requests)
        ]
        pieces = streams[0] if len(streams) == 1 else _merged(streams)
        try:
            yield pieces
        finally:
            await pieces.aclose()


async def _pieces(number: int, responses: AsyncIterator[Any]) -> AsyncGenerator[tuple[int, Piece]]:
    async for response in responses:
        for piece in read_pieces(response):
            yield number, piece


async def _merged(streams: Sequence[NumberedPieces]) -> AsyncGenerator[tuple[int, Piece]]:
    """What comes of any of them, as it comes; the first that fails ends them all."""
    waiting: asyncio.Queue[tuple[int, Piece] | Exception | None] = asyncio.Queue(_MAX_WAITING)

    async def forward(stream: NumberedPieces) -> None:
        try:
            async for item in stream:
                await waiting.put(item)
            await waiting.put(None)
        except Exception as error:  # noqa: BLE001 - it is raised where the items are read
            await waiting.put(error)

    tasks = [asyncio.ensure_future(forward(stream)) for stream in streams]
    try:
        num_running = len(tasks)
        while num_running:
            item = await waiting.get()
            if isinstance(item, Exception):
                raise item
            if item is None:
                num_running -= 1
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
