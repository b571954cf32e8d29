"""Watching what a requester's channel signs to owe."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from iemas.client._channel import Channel
from iemas.core.execution import ChannelTotal


def watch_totals(channel: Channel, note: Callable[[ChannelTotal], None]) -> None:
    """Have every total noted from now on, as it is signed."""
    sign = channel._sign_total

    def sign_total(*arguments: Any) -> Any:
        signed = sign(*arguments)
        note(signed.message)
        return signed

    channel._sign_total = sign_total  # type: ignore[method-assign]
