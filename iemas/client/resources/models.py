"""``client.models``: what is for sale."""

from __future__ import annotations

from iemas.client._core import ClientCore
from iemas.client._tokenizer import ChatTokenizer
from iemas.client._types import Model
from iemas.core.report import CapabilityReport


class AsyncModels:
    """Lists models."""

    def __init__(self, core: ClientCore) -> None:
        self._core = core

    async def list(self) -> tuple[Model, ...]:
        """List the models that live nodes serve.

        Raises: APIConnectionError.

        Example:
            >>> async def show(client):
            ...     for model in await client.models.list():
            ...         print(model.id, model.providers)

        """
        await self._core.open()
        network = self._core.network
        await network.refresh_reports()
        names = {
            node.capability.model
            for node in network.nodes.values()
            if node.capability is not None and node.capability.sells
        }
        models = []
        for name in sorted(names):
            reports = network.list_providers(name)
            if reports:
                models.append(_describe(name, reports))
        return tuple(models)

    async def get_tokenizer(self, model: str | None = None) -> ChatTokenizer:
        """Give a model's own tokenizer, fetched once and checked by its hash.

        With it a prompt's tokens are counted, or cut, before anything is bid.
        Raises: ModelNotFoundError, APIConnectionError.

        Example:
            >>> async def count(client, text):
            ...     return len((await client.models.get_tokenizer()).encode(text))

        """
        await self._core.open()
        return await self._core.get_tokenizer(model)


def _describe(name: str, reports: list[CapabilityReport]) -> Model:
    return Model(
        id=name,
        context_tokens=max(report.context_tokens for report in reports),
        providers=len(reports),
        slots=sum(report.slots for report in reports),
        tokenizer_hash=reports[0].tokenizer_hash.hex(),
    )
