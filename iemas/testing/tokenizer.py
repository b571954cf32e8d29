"""A tokenizer for simulated markets: one token a byte, so that no model is needed.

The files are what a model's folder holds, in the format of the `tokenizers` library: a byte-level
vocabulary without merges in which token id and byte value are the same number, the ChatML
markers above it, and a ChatML chat template.
"""

from __future__ import annotations

import json
from typing import Final

IM_START_ID: Final = 256
IM_END_ID: Final = 257

_MARKERS: Final = ((IM_START_ID, "<|im_start|>"), (IM_END_ID, "<|im_end|>"))
_CHAT_TEMPLATE: Final = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def build_byte_tokenizer() -> dict[str, bytes]:
    """Build the tokenizer's files: name to content, the same bytes at every call."""
    added = [
        {
            "id": token_id,
            "content": content,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for token_id, content in _MARKERS
    ]
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": False,
    }
    tokenizer: dict[str, object] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": _build_vocabulary(),
            "merges": [],
        },
    }
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "pad_token": "<|im_end|>",
        "model_max_length": 8192,
        "clean_up_tokenization_spaces": False,
        "chat_template": _CHAT_TEMPLATE,
    }
    return {
        "tokenizer.json": _encode_json(tokenizer),
        "tokenizer_config.json": _encode_json(config),
    }


def encode_text(text: str) -> tuple[int, ...]:
    """Tokenize as the files do: the markers are one token each, all else is its UTF-8 bytes."""
    for token_id, marker in _MARKERS:
        before, found, after = text.partition(marker)
        if found:
            return (*encode_text(before), token_id, *encode_text(after))
    return tuple(text.encode())


def decode_tokens(token_ids: tuple[int, ...] | list[int]) -> str:
    """Give the text of byte tokens; markers have none, as a server skips special tokens."""
    return bytes(i for i in token_ids if 0 <= i < IM_START_ID).decode(errors="replace")


def render_chat(messages: list[dict[str, str]]) -> str:
    """Render messages as the chat template does, with the marker that asks for an answer."""
    turns = (f"<|im_start|>{turn['role']}\n{turn['content']}<|im_end|>\n" for turn in messages)
    return "".join(turns) + "<|im_start|>assistant\n"


def _build_vocabulary() -> dict[str, int]:
    """Name each byte by GPT-2's printable character for it, as the ByteLevel steps expect."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    vocabulary: dict[str, int] = {}
    unprintable = 256
    for byte in range(256):
        if byte in printable:
            vocabulary[chr(byte)] = byte
        else:
            vocabulary[chr(unprintable)] = byte
            unprintable += 1
    return vocabulary


def _encode_json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, indent=1).encode()
