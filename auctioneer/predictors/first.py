"""The QoS model before any was decided: what a predictor guesses that has no receipts yet.

It is written out, so that every verifier has the same numbers whatever its platform; a test
compares it with `LinearPredictor`.
"""

from __future__ import annotations

from typing import Final

from iemas.core.auction import ProviderQos, QosModel, Scenario
from iemas.core.types import ID_BYTES, NodeId

FIRST_MODEL: Final = QosModel(
    scenarios=(
        Scenario(6, -78_493, 1_325_913),
        Scenario(20, 402_735, -777_881),
        Scenario(34, 1_012_887, 78_493),
        Scenario(49, -1_967_743, 1_012_887),
        Scenario(66, -777_881, -1_012_887),
        Scenario(84, -237_459, -78_493),
        Scenario(104, 237_459, 777_881),
        Scenario(127, 777_881, -1_325_913),
        Scenario(152, 1_967_743, -237_459),
        Scenario(180, -1_012_887, 579_964),
        Scenario(214, -402_735, -1_967_743),
        Scenario(254, 78_493, -402_735),
        Scenario(305, 579_964, 402_735),
        Scenario(373, 1_325_913, 1_967_743),
        Scenario(477, -1_325_913, -579_964),
        Scenario(755, -579_964, 237_459),
    ),
    prior=ProviderQos(
        provider=NodeId(bytes(ID_BYTES)),
        samples=0,
        ttft_base_us=150_000,
        ttft_per_uncached_token_us=400,
        ttft_per_active_task_us=20_000,
        ttft_per_pending_token_us=400,
        ttft_sd_us=489_898,
        token_us=30_000,
        token_sd_us=28_284,
    ),
    rows=(),
)
