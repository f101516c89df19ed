"""TextGenerator: the text layer above any executor. Text in, text deltas out."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from queue import SimpleQueue

from trierarch.builder.manifest import EngineManifest
from trierarch.python_backend.beams.admission import check_room
from trierarch.python_backend.beams.params import BeamParams
from trierarch.python_backend.beams.search import BeamSearch
from trierarch.python_backend.errors import InvalidRequest, ShuttingDown
from trierarch.python_backend.executors.executor import Executor
from trierarch.python_backend.request import Request, SamplingParams, TokenDelta
from trierarch.python_backend.speculation.admission import check_drafters
from trierarch.python_backend.text.bundle import Bundle, tokens_per_response
from trierarch.python_backend.text.chat_template import ChatTemplate
from trierarch.python_backend.text.detokenizer import Detokenizer
from trierarch.python_backend.text.live_beams import LiveBeams
from trierarch.python_backend.text.output_stream import OutputStream
from trierarch.python_backend.text.stop_strings import StopStrings
from trierarch.python_backend.text.text_request import TextDelta, TextRequest
from trierarch.python_backend.text.tokenizer import Tokenizer, valid_text
from trierarch.python_backend.text.words import bias_of_words, spellings

__all__ = ["TextDelta", "TextGenerator", "TextRequest", "TextSink"]

logger = logging.getLogger(__name__)

TextSink = Callable[[TextDelta], None]
"""Receives a request's deltas in order, on the generator's thread. One that raises has lost its client."""

NewStream = Callable[[], OutputStream]

# No tokenizer packs more bytes into a token over a whole prompt; longer texts are refused before they are encoded.
_MAX_BYTES_PER_TOKEN = 256


class TextGenerator:
    """Encodes prompts on the caller's thread; decodes, matches and sends on a thread of its own.

    The executor's thread only puts deltas into a queue, so no slow client or long text ever delays a step.
    """

    def __init__(
        self, executor: Executor, tokenizer: Tokenizer, chat_template: ChatTemplate | None, manifest: EngineManifest
    ) -> None:
        self._executor = executor
        self._tokenizer = tokenizer
        self._chat_template = chat_template
        self._built_speculation = manifest.speculation
        self._max_seq_len = manifest.limits.max_seq_len
        self._end_ids = manifest.tokens.eos
        self._makes_embeddings = manifest.pooling is not None
        self._vocab_size = manifest.architecture.vocab_size
        self._max_prompt_bytes = _MAX_BYTES_PER_TOKEN * self._max_seq_len
        self._deltas: SimpleQueue[tuple[_LiveRequest | LiveBeams, TokenDelta] | None] = SimpleQueue()
        self._live: set[_LiveRequest | LiveBeams] = set()  # those that have sent something; the output thread's own
        self._changed = threading.Condition()
        self._searches: dict[str, LiveBeams] = {}
        self._known_slots = 0
        self._is_draining = False
        self._thread = threading.Thread(target=self._run, name="trierarch-text", daemon=True)
        self._thread.start()

    def submit(self, request: TextRequest, sink: TextSink) -> tuple[int, ...]:
        """Queue a request; its deltas go to `sink`, one last delta for each of its `n` indices.

        Beams send nothing but their last deltas, the best first.

        Returns the prompt's token ids.

        Raises:
            InvalidRequest: text that is not UTF-8, a prompt without tokens, stop strings or words out of bounds, a chat
                without a template, a drafter or embeddings that the engine lacks, more words than beams leave room for; and whatever
                the executor refuses.
            UnknownAdapter, UnusableAdapter: see Executor.find_adapter.
            Overloaded: see Executor.submit; it is draining.
        """
        arrival_time = time.monotonic()
        self._refuse_while_draining()
        check_drafters(request.speculation, self._built_speculation)
        if request.sampling.return_embedding and not self._makes_embeddings:
            raise InvalidRequest(
                "return_embedding", True, "this engine makes none; build it with --pooling last or mean"
            )
        prompt_token_ids = tuple(self._encode(request))
        if not prompt_token_ids:
            raise InvalidRequest("prompt", request.prompt, "has no tokens; send at least one")
        sampling = self._sampling(request, len(prompt_token_ids))

        def new_stream() -> OutputStream:
            return OutputStream(
                Detokenizer(self._tokenizer, request.skip_special_tokens, prompt_token_ids),
                StopStrings(request.stop),
                sampling.min_tokens,
                request.include_stop,
            )

        asked = Request(
            request_id=request.request_id,
            prompt_token_ids=prompt_token_ids,
            sampling=sampling,
            adapter=self._executor.find_adapter(request.adapter) if request.adapter else None,
            cache_salt=request.cache_salt,
            priority=request.priority,
            speculation=request.speculation,
            retention=request.retention,
            arrival_time=arrival_time,
            deadline=arrival_time + request.timeout if request.timeout is not None else None,
        )
        if request.beams is not None:
            self._search(request, asked, request.beams, sink, new_stream)
            return prompt_token_ids
        token_bytes = self._tokenizer.bytes.of if request.return_token_bytes else None
        live = _LiveRequest(request.request_id, sink, [new_stream() for _ in range(sampling.n)], token_bytes)
        self._executor.submit(asked, lambda delta: self._deltas.put((live, delta)))
        return prompt_token_ids

    def tokenize(self, request: TextRequest) -> tuple[tuple[int, ...], str]:
        """The prompt's token ids, and the text that they stand for; nothing is generated.

        Raises:
            InvalidRequest: text that is not UTF-8, or a chat without a template.
        """
        token_ids = tuple(self._encode(request))
        return token_ids, self._tokenizer.decode(token_ids, request.skip_special_tokens)

    def abort(self, request_id: str) -> None:
        """End a request with CANCELLED soon; nothing happens if it is unknown or over."""
        if (search := self._searches.get(request_id)) is not None:
            search.abort()
        else:
            self._executor.abort(request_id)

    def drain(self, timeout: float) -> bool:
        """Executor.drain, which sees no more of a beam search than its step under way."""
        deadline = time.monotonic() + timeout
        with self._changed:
            self._is_draining = True
            self._changed.wait_for(lambda: not self._searches, timeout)
        return self._executor.drain(max(0.0, deadline - time.monotonic()))

    def close(self) -> None:
        """Send what the executor has put out so far and stop. Close the executor first; idempotent."""
        self._deltas.put(None)
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _search(
        self, request: TextRequest, asked: Request, params: BeamParams, sink: TextSink, new_stream: NewStream
    ) -> None:
        new_stream()  # refuses bad stop strings before anything runs
        asked.sampling.check_vocabulary(self._vocab_size)  # its steps name neither words nor end tokens
        check_room(len(asked.prompt_token_ids), asked.sampling.max_tokens, self._max_seq_len, self._num_slots())
        own = asked.sampling.end_ids
        search = BeamSearch(
            params,
            asked.sampling,
            frozenset(self._end_ids if own is None else own),
            asked.prompt_token_ids,
            (lambda token_ids: _is_stopped(new_stream(), token_ids)) if request.stop else None,
        )
        live = LiveBeams(asked, search, self._executor, sink, new_stream)
        with self._changed:
            self._refuse_while_draining()
            if request.request_id in self._searches:
                raise InvalidRequest("request_id", request.request_id, "is in use; give each live request its own")
            self._searches[request.request_id] = live
        try:
            live.submit(lambda delta: self._deltas.put((live, delta)))
        except BaseException:
            self._forget(live)
            raise

    def _refuse_while_draining(self) -> None:
        if self._is_draining:
            raise ShuttingDown("the server is shutting down and takes no new requests; retry elsewhere")

    def _forget(self, live: _LiveRequest | LiveBeams) -> None:
        with self._changed:
            if self._searches.get(live.request_id) is live:
                del self._searches[live.request_id]
                self._changed.notify_all()

    def _encode(self, request: TextRequest) -> tuple[int, ...] | list[int]:
        prompt = request.prompt
        if request.chat is not None:
            return self._encode_chat(self._template("messages").prompt(request.chat), "messages")
        if isinstance(prompt, tuple):
            return prompt
        if len(prompt) > self._max_prompt_bytes:
            raise InvalidRequest(
                "prompt", prompt, f"has {len(prompt)} characters, far beyond the engine's max_seq_len; shorten it"
            )
        if not request.is_chat:
            return self._tokenizer.encode(prompt, request.add_special_tokens)
        message = {"role": "user", "content": valid_text(prompt, "prompt")}
        return self._encode_chat(self._template("is_chat").render([message]), "prompt")

    def _encode_chat(self, prompt: str, field: str) -> list[int]:
        if len(prompt) > self._max_prompt_bytes:
            raise InvalidRequest(
                field, prompt, f"has {len(prompt)} characters, far beyond the engine's max_seq_len; shorten it"
            )
        return self._tokenizer.encode(prompt, add_special_tokens=False, field=field)

    def _template(self, field: str) -> ChatTemplate:
        if self._chat_template is None:
            raise InvalidRequest(field, True, "this engine has no chat template; send the whole prompt as text")
        return self._chat_template

    def _sampling(self, request: TextRequest, num_prompt_tokens: int) -> SamplingParams:
        sampling = request.sampling
        if request.fit_max_tokens:
            sampling = replace(sampling, max_tokens=self._fitting(sampling, num_prompt_tokens))
        if request.bad_words:
            bad_words = spellings(self._tokenizer, request.bad_words, "bad_words")
            sampling = replace(sampling, bad_words=(*sampling.bad_words, *bad_words))
        if request.bias_words:
            logit_bias = bias_of_words(self._tokenizer, request.bias_words, sampling.logit_bias)
            sampling = replace(sampling, logit_bias=logit_bias)
        return sampling

    def _num_slots(self) -> int:
        """Tokens that the KV cache holds; 0 where the executor does not know, as one may not before its first step."""
        if not self._known_slots:  # statistics are work, and this never changes
            stats = self._executor.stats()
            self._known_slots = stats.max_blocks * stats.tokens_per_block
        return self._known_slots

    def _fitting(self, sampling: SamplingParams, num_prompt_tokens: int) -> int:
        """The most tokens that fit behind a prompt, of those that are asked for; where none do, the executor says so."""
        room = self._max_seq_len
        if num_slots := self._num_slots():
            room = min(room, num_slots + 1)  # the last token drawn is never computed, and takes no slot
        return max(1, sampling.min_tokens, min(sampling.max_tokens, room - num_prompt_tokens))

    def _run(self) -> None:
        while (item := self._deltas.get()) is not None:
            live, delta = item
            self._live.add(live)
            try:
                if live.push(delta, tokens_per_response(len(self._live))):
                    self._executor.abort(live.request_id)
            except Exception:
                # Whatever it is, the streams of others go on.
                logger.exception("request %s: a delta was lost", live.request_id)
            if live.is_over:
                self._live.discard(live)
                self._forget(live)


def _is_stopped(stream: OutputStream, token_ids: tuple[int, ...]) -> bool:
    """Whether the text of `token_ids` completes a stop string. Costs O(their number)."""
    stream.push(TokenDelta(request_id="", index=0, token_ids=token_ids))
    return stream.is_over


class _LiveRequest:
    """A request's sink and streams. Touched by the output thread alone."""

    def __init__(
        self,
        request_id: str,
        sink: TextSink,
        streams: list[OutputStream],
        token_bytes: Callable[[int], bytes] | None,
    ) -> None:
        self.request_id = request_id
        self._token_bytes = token_bytes
        self._sink = sink
        self._streams = streams
        self._bundles = [Bundle() for _ in streams]
        self._unfinished = set(range(len(streams)))  # indices whose last delta the executor still owes
        self._is_abandoned = False
        self._is_aborted = False

    @property
    def is_over(self) -> bool:
        """Whether the executor has nothing more to say of it."""
        return not self._unfinished

    def push(self, delta: TokenDelta, tokens_per_response: int) -> bool:
        """Send what `delta` brings; whether the executor must now be told that nobody wants any more of it."""
        bundled = self._bundles[delta.index].add(delta, tokens_per_response)
        if bundled is None:
            return False
        text_delta = self._streams[delta.index].push(bundled)
        if delta.finish_reason is not None:
            self._unfinished.discard(delta.index)
        if text_delta is not None and not self._is_abandoned:
            try:
                self._sink(text_delta if self._token_bytes is None else _told(text_delta, self._token_bytes))
            except Exception:
                logger.exception("request %s: its sink failed; nobody reads it any more", self.request_id)
                self._is_abandoned = True
        is_wanted = not self._is_abandoned and not all(self._streams[index].is_over for index in self._unfinished)
        if is_wanted or self._is_aborted or not self._unfinished:
            return False
        self._is_aborted = True
        return True


def _told(delta: TextDelta, token_bytes: Callable[[int], bytes]) -> TextDelta:
    """The delta, saying what the tokens of its log-probs stand for."""
    named = [item for item in (*(delta.logprobs or ()), *(delta.prompt_logprobs or ())) if item is not None]
    token_ids = {item.token_id for item in named} | {token_id for item in named for token_id, _ in item.top}
    return replace(delta, token_bytes={token_id: token_bytes(token_id) for token_id in token_ids})
