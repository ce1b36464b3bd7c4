"""A folder's tokenizer: text to tokens and back, and the few tokens that mean something.

No state of a request is here. Called by whoever has to do with text here. Only tokenizer.json is read, by
the library that wrote it; what else a folder says of tokens comes from its checked small files.
"""

import msgspec

from h2qd.safetensors.errors import SafetensorsError
from h2qd.safetensors.folder import GENERATION, TEMPLATE, TOKENIZER, Folder, Word, read_file, typed
from h2qd.safetensors.sentences import Sentences
from h2qd.wire.names import shown
from h2qd.worker.engine import EngineError
from h2qd.worker.torch.lexicon import Lexicon, open_lexicon
from h2qd.worker.torch.libraries import DecodeStream, Tokenizer


class _Generation(msgspec.Struct, frozen=True):
    eos_token_id: int | list[int] | None = None


class Stream:
    """Tokens of one answer to text: what is whole by now."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._stream = DecodeStream(skip_special_tokens=True)

    def feed(self, token: int) -> str:
        """The text that is certain with `token`."""
        text: str | None = self._stream.step(self._tokenizer, token)
        return text or ""


class Vocabulary:
    """Of a checked folder. Raises `EngineError` (load_failed) when the tokenizer cannot be read."""

    def __init__(self, folder: Folder, sentences: Sentences) -> None:
        try:
            self._tokenizer = Tokenizer.from_file(str(folder.path / TOKENIZER))
        except Exception as error:  # the library raises plain Exception
            why = shown(str(error), 200)
            raise EngineError(
                "load_failed", f"cannot load the model: its {TOKENIZER} cannot be read: {why}"
            ) from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._lower = sentences.lower
        self.size = folder.config.integer("vocab_size", 1, 2**31 - 1)
        said = folder.tokenizer
        self.bos_name, self.eos_name = _written(said.bos_token), _written(said.eos_token)
        self.bos = self._number(self.bos_name)
        self.adds_bos = self.bos is not None and self._tokenizer.encode("").ids[:1] == [self.bos]
        self.ends = frozenset(self._ends(folder))
        added = self._tokenizer.get_added_tokens_decoder()
        self._controls = {one.content for one in added.values() if one.special and one.content}
        self.pad = next((n for n in (folder.config.values.get("pad_token_id"),) if isinstance(n, int) and n >= 0), 0)
        self.template = _template(folder)
        self._anchor = self._tokenizer.encode("a", add_special_tokens=False).ids[-1:]
        self._anchor_text: str = self._tokenizer.decode(self._anchor, skip_special_tokens=False)

    def tokenize(self, text: str, *, special: bool) -> list[int]:
        """The tokens of `text`, with none added. `special`: control tokens written out in it count as such."""
        self._tokenizer.encode_special_tokens = not special
        return self._known(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def framed(self, text: str, length_max: int) -> tuple[list[int], int]:
        """The tokens of a text that becomes a vector, with those that frame it, and how many it had in all.

        No more than `length_max`: its end is lost then.
        """
        if self._lower:
            text = text.lower()
        self._tokenizer.encode_special_tokens = True
        tokens = self._tokenizer.encode(text).ids
        whole = len(tokens)
        if whole > length_max:
            self._tokenizer.enable_truncation(length_max)
            try:
                tokens = self._tokenizer.encode(text).ids
            finally:
                self._tokenizer.no_truncation()
        return self._known(tokens), whole

    def control_words(self, text: str) -> set[str]:
        """The control tokens that are spelled out in `text`."""
        return {word for word in self._controls if word in text}

    def as_json(self) -> str:
        """All of the tokenizer, as its library writes it."""
        text: str = self._tokenizer.to_str()
        return text

    def lexicon(self, end: int) -> Lexicon | None:
        """All tokens as bytes, of which `end` ends a text; None where that is for the library to find out."""
        return open_lexicon(self._tokenizer, self.size, end)

    def stream(self) -> Stream:
        """For the tokens of one answer."""
        return Stream(self._tokenizer)

    def text(self, tokens: list[int]) -> str:
        """The text of `tokens`."""
        text: str = self._tokenizer.decode(tokens, skip_special_tokens=False)
        return text

    def piece(self, token: int) -> str:
        """What `token` reads as, after another one: some tokenizers drop a space in front of a text."""
        return self.text([*self._anchor, token])[len(self._anchor_text) :]

    def _known(self, tokens: list[int]) -> list[int]:
        """`tokens`, which the model has numbers for."""
        if tokens and max(tokens) >= self.size:
            raise EngineError("invalid_request", f"cannot use token {max(tokens)}: the model knows {self.size}")
        return tokens

    def _number(self, name: str) -> int | None:
        number: int | None = self._tokenizer.token_to_id(name) if name else None
        return number if number is not None and number < self.size else None

    def _ends(self, folder: Folder) -> list[int]:
        said: list[object] = [self._number(self.eos_name), folder.config.values.get("eos_token_id")]
        if GENERATION in folder.files:
            try:
                said.append(typed(folder.path, GENERATION, _Generation).eos_token_id)
            except SafetensorsError as error:
                raise EngineError("invalid_model_file", str(error)) from error
        flat = [one for some in said for one in (some if isinstance(some, list) else [some])]
        return [one for one in flat if isinstance(one, int) and 0 <= one < self.size]


def _written(token: str | Word | None) -> str:
    return token.content if isinstance(token, Word) else token or ""


def _template(folder: Folder) -> bytes:
    """The chat template; empty when there is none."""
    if TEMPLATE in folder.files:
        try:
            return read_file(folder.path, TEMPLATE)
        except SafetensorsError as error:
            raise EngineError("invalid_model_file", str(error)) from error
    said = folder.tokenizer.chat_template
    if isinstance(said, list):
        said = next((one.template for one in said if one.name == "default"), None)
    return (said or "").encode("utf-8", "replace")
