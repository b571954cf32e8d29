"""The byte tokenizer's files mean what its functions do."""

import json

import jinja2.sandbox
import pytest
import tokenizers

from iemas.testing.tokenizer import (
    IM_END_ID,
    IM_START_ID,
    build_byte_tokenizer,
    decode_tokens,
    encode_text,
    render_chat,
)

FILES = build_byte_tokenizer()
TOKENIZER = tokenizers.Tokenizer.from_buffer(FILES["tokenizer.json"])


@pytest.mark.parametrize(
    "text",
    ["", "plain", "two  spaces\n", "mañana ☕", "<|im_start|>user\nhi<|im_end|>\n", "\0\x7f"],
)
def test_the_library_and_the_functions_agree(text: str) -> None:
    token_ids = TOKENIZER.encode(text, add_special_tokens=False).ids
    assert tuple(token_ids) == encode_text(text)
    assert TOKENIZER.decode(token_ids, skip_special_tokens=True) == decode_tokens(token_ids)
    assert TOKENIZER.decode(token_ids, skip_special_tokens=False) == text


def test_markers_are_one_token_each() -> None:
    assert encode_text("<|im_start|><|im_end|>") == (IM_START_ID, IM_END_ID)


def test_the_chat_template_renders_as_the_function_does() -> None:
    template = json.loads(FILES["tokenizer_config.json"])["chat_template"]
    messages = [{"role": "system", "content": "be"}, {"role": "user", "content": "hi"}]
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment()
    rendered = environment.from_string(template).render(
        messages=messages, add_generation_prompt=True
    )
    assert rendered == render_chat(messages)


def test_the_files_are_the_same_every_time() -> None:
    assert build_byte_tokenizer() == FILES
