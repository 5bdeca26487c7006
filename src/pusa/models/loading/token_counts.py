"""Count the tokens of captions with the tokenizer of a model, without its text encoder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from pusa.errors import InputError
from pusa.files import refuse_pointer
from pusa.models import hub
from pusa.models.loading import sources
from pusa.models.wan import original_layout
from pusa.models.wan.text import TOKENS as LIMIT
from pusa.models.wan.text import clean

__all__ = ["LIMIT", "too_long"]


def too_long(source: str, captions: Sequence[str]) -> Mapping[str, int]:
    """Return {caption: its tokens} for the captions that are cut because they have more than `LIMIT` tokens.

    source: the model, see `sources.find`. Its tokenizer is downloaded if a caption can be too long. Raises InputError
    if there is no tokenizer.
    """
    # A token has at least one byte, and one token ends the text.
    suspects = [text for text in dict.fromkeys(captions) if len(clean(text).encode()) >= LIMIT]
    if not suspects:
        return {}
    count = _counter(source)
    return {text: tokens for text in suspects if (tokens := count(clean(text))) > LIMIT}


def _counter(source: str) -> Callable[[str], int]:
    _, path = sources.find(source, parts=("tokenizer",))
    folder: Path = original_layout.tokenizer_near(path) or hub.snapshot(
        original_layout.TOKENIZER, ["*.json", "spiece.model"]
    )
    file = folder / "tokenizer.json"
    try:
        if file.is_file():
            refuse_pointer(file)
            from tokenizers import Tokenizer

            tokenizer = Tokenizer.from_file(str(file))
            tokenizer.no_truncation()
            tokenizer.no_padding()
            return lambda text: len(tokenizer.encode(text).ids)
        from transformers import AutoTokenizer

        slow = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except InputError:
        raise
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"the tokenizer in {folder} cannot be loaded ({reason}); copy it again") from error
    return lambda text: len(slow(text, truncation=False, verbose=False).input_ids)
