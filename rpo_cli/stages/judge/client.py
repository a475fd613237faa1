"""A judge behind an OpenAI-compatible endpoint: one question at a time, until it has answered.

Imports neither torch nor transformers.
"""

from __future__ import annotations

import email.utils
import json
import os
import random
import re
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal

import httpx2

from rpo_cli.artifacts import hash_of
from rpo_cli.errors import BadInput, RunFailed
from rpo_cli.recipes.schema import JudgeSettings

Verdict = Literal["A", "B", "tie"]
BACKOFF_SECONDS = 1.0  # before the first retry; doubles, with jitter
LONGEST_BACKOFF = 60.0
LONGEST_WAIT = 600.0  # a Retry-After beyond this ends the run, which can be resumed
LARGEST_ANSWER = 4 * 2**20
MOST_TOKENS = 2**31  # that one answer may have taken
TOKENS = ("prompt_tokens", "completion_tokens")
ASKED_AGAIN = 1  # times that an answer without a verdict is asked for again
# What follows the word "verdict" in its own line and sentence, to the line's end; or all that follows it.
_NAMED = r"(?:\\boxed\{\s*(?:\\text\w*\{\s*)?)?(?:response\s+)?(A|B|tie(?:\s*/\s*draw)?|draw(?:\s*/\s*tie)?)"
_DEGREE = r"(?:slightly|somewhat|marginally|narrowly|clearly|much|far|strongly|significantly|a\s+bit)"
_BETTER = r"(?:better|best|stronger|superior|preferred|preferable)(?:\s+(?:one|response|answer|overall))?"
_REMARK = (
    rf"(?:[^\w\n]+(?:{_DEGREE}|wins|(?:(?:is|was)\s+)?(?:{_DEGREE}\s+)?(?:the\s+)?{_BETTER}"
    rf"(?:\s+than\s+(?:response\s+)?[AB])?))?"
)
_STATED = rf"(?:[^\w\n.!?;]*{_NAMED}{_REMARK}[^\w\n]*$|[^\w\n.!?;]*\n\W*{_NAMED}\W*\Z)"
# A line that begins as a verdict and is none, such as "Verdict: a close call", takes back those before.
VERDICT = re.compile(
    rf"(?<!\bno )\bverdict{_STATED}|\\boxed\{{\s*(?:\\text\w*\{{\s*)?(A|B|tie|draw)\W*\}}"
    rf"|^[^\w\n]*(?:(?:final|the|my)\s+)?verdict(?!{_STATED})[^\w\n]*[:\uff1a]",
    re.IGNORECASE | re.MULTILINE,
)
BARE = re.compile(r"\W*(A|B|tie|draw)\W*", re.IGNORECASE)


@dataclass(frozen=True)
class Answer:
    """What a judge said; `verdict` None: its text held none. Tokens as the endpoint counted them, or None."""

    verdict: Verdict | None
    text: str
    prompt_tokens: int | None
    completion_tokens: int | None


class Stopped(Exception):
    """The run is ending: no further requests."""


class _Again(Exception):
    """A request failed in a way that may pass; `after`: seconds the server asked to wait."""

    def __init__(self, reason: str, after: float | None = None) -> None:
        super().__init__(reason)
        self.after = after


def api_key(settings: JudgeSettings) -> str | None:
    """The key from the environment; None for an endpoint that needs none.

    Raises:
        BadInput: the variable is not set, or holds what no header can carry. Never shows the value.
    """
    if settings.api_key_env is None:
        return None
    key = os.environ.get(settings.api_key_env, "").strip()
    if not key:
        raise BadInput(
            f"judge: {settings.api_key_env} is not set; export the endpoint's key, "
            "or set api_key_env: null if it needs none"
        )
    if not re.fullmatch(r"[\x21-\x7e]+", key):
        raise BadInput(f"judge: {settings.api_key_env} holds characters that a key cannot have")
    return key


def render(template: str, prompt: str, response_a: str, response_b: str) -> str:
    """The question; what a text itself holds in braces stays as it is."""
    texts = {"prompt": prompt, "response_a": response_a, "response_b": response_b}
    return re.sub(r"\{(prompt|response_a|response_b)\}", lambda place: texts[place[1]], template)


def request_body(settings: JudgeSettings, question: str) -> dict[str, object]:
    """The body of the request for one question."""
    messages = [{"role": "user", "content": question}]
    limits = {"max_tokens": settings.max_tokens, "temperature": settings.temperature}
    given = {name: value for name, value in limits.items() if value is not None}
    return {"model": settings.model, "messages": messages, **settings.extra_body, **given}


def question_key(settings: JudgeSettings, question: str) -> str:
    """Name of a question by content: endpoint and everything that is sent but the API key."""
    return hash_of({"base_url": settings.base_url, "body": request_body(settings, question)})


def verdict_of(text: str) -> Verdict | None:
    """`A`, `B` or `tie` of a text's last verdict, or a text that is nothing but one; else None."""
    stated = [*VERDICT.finditer(text)]
    found = stated[-1] if stated else BARE.fullmatch(text)
    words = [word for word in found.groups() if word] if found is not None else []
    known: dict[str, Verdict] = {"a": "A", "b": "B"}
    return known.get(words[0].lower(), "tie") if words else None


def retry_after(header: str | None) -> float | None:
    """Seconds of a Retry-After header, which is a number or a date; None without a usable one."""
    if header is None:
        return None
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(header).timestamp() - time.time()
        except ValueError:
            return None
    return max(0.0, seconds) if seconds == seconds else None


class Judge:
    """Asks one endpoint, also from several threads. `stop` ends waits and keeps requests from being sent."""

    def __init__(self, settings: JudgeSettings, key: str | None, stop: threading.Event) -> None:
        self.settings = settings
        self.stop = stop
        self._key = key
        self._host = settings.host
        self._jitter = random.Random()
        headers = {"Authorization": f"Bearer {key}"} if key is not None else {}
        limits = httpx2.Limits(max_connections=settings.concurrency)
        # What stays on this machine goes past a proxy, which would see the key.
        self._client = httpx2.Client(
            headers=headers,
            timeout=settings.timeout,
            limits=limits,
            follow_redirects=False,
            trust_env=not settings.is_local,
        )

    def __enter__(self) -> Judge:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    def ask(self, question: str) -> Answer:
        """The judge's answer, after as many tries as it takes, with the tokens of all the answers it gave.

        Raises:
            RunFailed: it refuses, or `retries` further tries failed; names the last reason, never the key.
            Stopped: the run is ending.
        """
        body = request_body(self.settings, question)
        tokens: dict[str, int | None] = dict.fromkeys(TOKENS)
        failures = unread = 0
        while True:
            if self.stop.is_set():
                raise Stopped
            try:
                text, usage = self._once(body)
            except _Again as failure:
                failures += 1
                if failures > self.settings.retries:
                    said = f"{failure} ({failures} tries); the same command goes on from here"
                    raise RunFailed(f"judge {self._host}: {said}") from None
                self._wait(failures, failure.after)
                continue
            for name, count in usage.items():
                if count is not None:
                    tokens[name] = (tokens[name] or 0) + count
            verdict = verdict_of(text)
            if verdict is None and unread < ASKED_AGAIN:
                unread += 1
                continue
            return Answer(verdict, text, **tokens)

    def _wait(self, failures: int, after: float | None) -> None:
        """Exponential back-off with jitter, at least as long as the server asked for."""
        if after is not None and after > LONGEST_WAIT:
            raise RunFailed(
                f"judge {self._host}: asks to wait {after:.0f} s; run the same command again then"
            )
        backoff = min(LONGEST_BACKOFF, BACKOFF_SECONDS * 2 ** (failures - 1))
        seconds = backoff * self._jitter.uniform(0.5, 1.0) + (after or 0.0)
        if self.stop.wait(seconds):
            raise Stopped

    def _once(self, body: dict[str, object]) -> tuple[str, dict[str, int | None]]:
        """One request: the answer's text and the tokens it took."""
        deadline = time.monotonic() + self.settings.timeout
        late = f"no whole answer within {self.settings.timeout:g} s"
        content = bytearray()
        try:
            with self._client.stream(
                "POST", f"{self.settings.base_url}/chat/completions", json=body
            ) as response:
                for part in response.iter_bytes():
                    content += part
                    # The client's own timeout is for each read: a server that drips would never run into it.
                    if time.monotonic() > deadline:
                        raise _Again(late)
                    if len(content) > LARGEST_ANSWER:
                        raise _Again("an answer of more than 4 MB")
                status, headers = response.status_code, response.headers
        except httpx2.TimeoutException as error:
            raise _Again(f"{late} ({type(error).__name__})") from None
        except httpx2.RequestError as error:
            # Before there is a connection the words are this machine's; later they may quote the server.
            said = f": {error}"[:200] if isinstance(error, httpx2.ConnectError) else ""
            raise _Again(type(error).__name__ + said) from None
        if status in (408, 409, 425, 429) or status >= 500:
            raise _Again(f"HTTP {status}", retry_after(headers.get("Retry-After")))
        if status != 200:
            # Of what it says nothing is shown: it may quote the key, whole, in part or encoded.
            hint = (
                f" (is {self.settings.api_key_env} the key of this endpoint?)" if status in (401, 403) else ""
            )
            raise RunFailed(f"judge {self._host}: HTTP {status}{hint}")
        text, usage = _read(bytes(content))
        return text if self._key is None else text.replace(self._key, "***"), usage


def _read(content: bytes) -> tuple[str, dict[str, int | None]]:
    """Text and usage of a chat completion; _Again if it is none, or cannot be kept."""
    try:
        found = json.loads(content, parse_constant=_no_number)
        text = found["choices"][0]["message"]["content"]
        usage = found.get("usage")
        counts = {name: usage.get(name) if isinstance(usage, dict) else None for name in TOKENS}
        # Without text: a refusal, or all of max_tokens spent on thinking: an answer without a verdict.
        whole = {name: count if type(count) is int else None for name, count in counts.items()}
        answer = kept_as({"verdict": None, "text": "" if text is None else text, **whole})
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
        raise _Again("HTTP 200, but no chat completion") from None
    return answer.text, whole


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def kept_as(found: Mapping[str, Any]) -> Answer:
    """The answer with these fields.

    Raises:
        TypeError, ValueError: other fields, or values that cannot be written and read back: text with half a
            character, a count beyond any.
    """
    answer = Answer(**found)
    if answer.verdict not in ("A", "B", "tie", None):
        raise ValueError(f"verdict {answer.verdict}")
    answer.text.encode()
    for count in (answer.prompt_tokens, answer.completion_tokens):
        if count is not None and not (type(count) is int and 0 <= count < MOST_TOKENS):
            raise ValueError("no count of tokens")
    return answer
