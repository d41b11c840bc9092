"""What a child that generates text answers, from a Core: the other side of chat.py."""

from collections.abc import Callable, Generator
from typing import Any

import numpy as np

from mofang.engine.worker.core import Core
from mofang.engine.worker.generate import Piece, Slots, answer, check_fits, likeliest, read
from mofang.engine.worker.sample import Choices, choices, log_softmax
from mofang.errors import Invalid
from mofang.messages import Message
from mofang.models import templates


class ChatCalls:
    """mofang.engine.worker.serve.Calls."""

    def __init__(self, core: Core, engine: str) -> None:
        self.core = core
        self.facts = {"n_ctx": core.facts.n_ctx, "provider": core.facts.provider}
        self._engine = engine
        self._slots = Slots(core)
        self._calls: dict[str, Callable[[dict[str, Any], Callable[[], bool]], Any]] = {
            "tokenize": lambda call, gone: self._tokenize(call),
            "detokenize": lambda call, gone: self._detokenize(call),
            "render": lambda call, gone: self._render(call),
            "count_tokens": lambda call, gone: len(self._prompt(call)),
            "busy": lambda call, gone: self._slots.n_busy,
            "next_token": self._next_token,
            "generate": self._generate,
        }

    def answer(self, call: dict[str, Any], gone: Callable[[], bool]) -> Any:
        return self._calls[call["call"]](call, gone)

    def _generate(self, call: dict[str, Any], gone: Callable[[], bool]) -> Generator[Piece, None, None]:
        request = dict(call["sampling"])
        call["template_kwargs"] = request.pop("chat_template_kwargs", None)
        wanted = choices(
            request, self.core.facts.defaults, lambda text: self.core.encode(text, special=False), self._engine
        )
        return answer(self.core, self._slots, self._prompt(call), wanted, gone)

    def _prompt(self, call: dict[str, Any]) -> list[int]:
        """Ids of the conversation or the raw prompt of a call."""
        if "messages" in call:
            return self.core.encode(self._render(call), special=True)
        prompt = call["prompt"]
        return list(prompt) if isinstance(prompt, list) else self.core.encode(prompt, special=True)

    def _tokenize(self, call: dict[str, Any]) -> list[tuple[int, list[int]]]:
        """Each token with its bytes."""
        ids = self.core.encode(call["text"], special=call["special"])
        return [(token, list(self.core.piece(token))) for token in ids]

    def _detokenize(self, call: dict[str, Any]) -> str:
        n_vocab = self.core.facts.n_vocab
        for token in call["tokens"]:
            if not 0 <= token < n_vocab:
                raise Invalid("engine.no_such_token", param="tokens", token=token, n_vocab=n_vocab)
        return b"".join(map(self.core.piece, call["tokens"])).decode("utf-8", errors="replace")

    def _render(self, call: dict[str, Any]) -> str:
        facts = self.core.facts
        if not facts.template:
            raise Invalid("engine.no_chat_template", param="messages")
        messages = [Message(**message) for message in call["messages"]]
        kwargs = call.get("template_kwargs") or {}
        text = templates.render(facts.template, messages, bos=facts.bos, eos=facts.eos, **kwargs)
        # `encode` puts BOS before every prompt of a model that wants one.
        return text.removeprefix(facts.bos) if facts.bos and self._adds_bos() else text

    def _adds_bos(self) -> bool:
        return self.core.encode("a", special=True) != self.core.encode("a", special=False)

    def _next_token(self, call: dict[str, Any], gone: Callable[[], bool]) -> dict[str, Any]:
        prompt, logits = self._prompt(call), np.empty(0, np.float32)
        check_fits(self.core, prompt)
        with self._slots.use(prompt, gone) as slot:
            for _, found in read(self.core, slot, prompt, Choices(), gone):
                logits = logits if found is None else found
        logprobs, forced = log_softmax(logits), call["forced"]
        if forced is not None and not 0 <= forced < logprobs.size:
            raise Invalid("engine.no_such_token", param="forced", token=forced, n_vocab=logprobs.size)
        listed = ((token, self.core.piece(token)) for token in likeliest(logits, call["n_top"]))
        top = [
            (token, raw.decode("utf-8", errors="replace"), float(logprobs[token]), list(raw)) for token, raw in listed
        ]
        return {"forced": None if forced is None else float(logprobs[forced]), "top": top}
