"""From what markets show to tables: lists of rows, each a flat mapping, the same keys throughout.

Sums come before quotients: a share is the sum over a kind's markets of one thing over the sum of
another, so large markets and agents count for more and none with next to nothing distorts it.
Money is in micro-credits here.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np

from benchmarks.economics.book import RULES
from benchmarks.economics.lies import PRICE_GROUPS, PROVIDER_LIES, REQUESTER_LIES
from benchmarks.economics.rounds import BoolArray, FloatArray
from benchmarks.economics.study import PERFECT, SETTINGS, MarketResult, Setting
from benchmarks.economics.world import FINE
from iemas.core.params import CLEARING_MODES, MarketParams

Table = list[dict[str, object]]

SIDES: Final = ("requester", "provider")
CHOICES: Final = frozenset({"max_tokens"})
"""Classes that are no lie about a given task but another task: counted by themselves."""

LIES: Final = {
    "requester": [(lie.name, lie.group) for lie in REQUESTER_LIES],
    "provider": [(lie.name, lie.group) for lie in PROVIDER_LIES],
}

UNITS: Final = {
    "*_share": "of 1",
    "*_micros": "micro-credits; the mean over agents, attempts or markets as the table says",
    "noise": "coefficient of variation of the errors of predicted times and lengths",
    "bias": "share by which all predicted times and lengths are too high",
    "gain_of_truthful_share": "what a lie adds, of what the truth gives (null: that gives nothing)",
    "gain_of_vcg_share": "what a lie adds, of the agents' VCG payoffs under perfect predictions",
}


def divide(above: float, below: float) -> float | None:
    """Divide where there is something to divide by, to four digits after the point."""
    return round(above / below, 4) if below > FINE else None


def _share(count: float, of: float) -> float:
    return round(count / max(of, 1.0), 4)


def by_kind(results: Sequence[MarketResult]) -> dict[str, list[MarketResult]]:
    """Sort results by kind of market, in the order of their numbers."""
    groups: dict[str, list[MarketResult]] = defaultdict(list)
    for result in sorted(results, key=lambda result: result.number):
        groups[result.kind].append(result)
    return dict(groups)


# --- everybody truthful --------------------------------------------------------------------------


def make_baseline(results: Sequence[MarketResult]) -> Table:
    """List efficiency, shares of the gains, deficit and losses by kind, setting and mode."""
    table: Table = []
    for kind, group in by_kind(results).items():
        for setting in SETTINGS:
            for mode in CLEARING_MODES:
                rows = [result.baseline[setting, mode] for result in group]
                total = {key: sum(row[key] for row in rows) for key in rows[0]}
                table.append(
                    {
                        "market": kind,
                        "noise": setting.noise,
                        "bias": setting.bias,
                        "mode": mode,
                        "markets": len(group),
                        "matched_share": divide(
                            FINE**2 * total["matched"], FINE**2 * total["tasks"]
                        ),
                        "price_micros": round(
                            total["payments"] / max(total["matched"], 1.0) / FINE, 1
                        ),
                        "efficiency_share": divide(total["welfare"], total["optimum"]),
                        "providers_share": divide(total["providers_gain"], total["welfare"]),
                        "requesters_share": divide(total["requesters_gain"], total["welfare"]),
                        "vcg_deficit_share": divide(total["deficit"], total["declared_welfare"]),
                        "losing_requesters_share": _share(
                            total["losing_requesters"], total["matched"]
                        ),
                        "losing_providers_share": _share(
                            total["losing_providers"], total["busy_providers"]
                        ),
                        "requesters_loss_share": divide(
                            total["requesters_loss"], total["payments"]
                        ),
                        "providers_loss_share": divide(total["providers_loss"], total["payments"]),
                    }
                )
    return table


# --- lies ----------------------------------------------------------------------------------------


class Search:
    """One side's utilities in one mode over the markets of a kind."""

    def __init__(
        self, group: Sequence[MarketResult], side: str, setting: Setting, mode: str
    ) -> None:
        found = [
            result.requesters[setting] if side == "requester" else result.providers[setting]
            for result in group
        ]
        utilities = [values[CLEARING_MODES.index(mode)] for values in found]
        self.names = [name for name, _ in LIES[side]]
        self.groups = np.array([group for _, group in LIES[side]])
        self.truth = np.concatenate([values[:, 0] for values in utilities])
        self.gains = np.concatenate([values - values[:, :1] for values in utilities])
        self.vcg = np.concatenate(
            [
                result.requester_vcg if side == "requester" else result.provider_vcg
                for result in group
            ]
        )
        half = [n % 2 for n, values in enumerate(utilities) for _ in values]
        self.half = np.array(half)

    def find_best(self, allowed: BoolArray) -> tuple[FloatArray, list[int]]:
        """Find each agent's best lie of those allowed, the truth among them."""
        gains = np.where(allowed, self.gains, -np.inf)
        best: list[int] = gains.argmax(axis=1).tolist()
        return np.maximum(gains.max(axis=1), 0.0), best

    def play_fixed(self, allowed: BoolArray) -> tuple[float, list[str]]:
        """Pick the best lie for all on one half of the markets, play it on the other.

        Returns: the sum of gains over all agents, and the two lies.
        """
        total, picked = 0.0, []
        for part in (0, 1):
            learned = np.where(allowed, self.gains[self.half == part].sum(axis=0), -np.inf)
            best = int(learned.argmax())
            total += float(self.gains[self.half != part][:, best].sum())
            picked.append(self.names[best])
        return total, picked

    def allow(self, groups: set[str] | frozenset[str]) -> BoolArray:
        """Allow the truth and some classes of lies; shape (n_lies,)."""
        allowed: BoolArray = np.isin(self.groups, ["truth", *sorted(groups)])
        return allowed

    @property
    def all_groups(self) -> list[str]:
        """All classes of lies, in order."""
        return [group for group in dict.fromkeys(self.groups.tolist()) if group != "truth"]

    def summarise(self, groups: set[str] | frozenset[str]) -> dict[str, object]:
        """Summarise what some classes of lies can gain."""
        allowed = self.allow(groups)
        best, choice = self.find_best(allowed)
        fixed, picked = self.play_fixed(allowed)
        gaining = best > np.maximum(0.01 * self.truth, FINE)
        names = Counter(self.names[n] for n, gains in zip(choice, gaining, strict=True) if gains)
        truth, vcg = float(self.truth.sum()), float(self.vcg.sum())
        return {
            "agents": len(best),
            "truthful_micros": round(float(self.truth.mean()) / FINE, 2),
            "best_gain_micros": round(float(best.mean()) / FINE, 2),
            "best_gain_of_truthful_share": divide(float(best.sum()), truth),
            "best_gain_of_vcg_share": divide(float(best.sum()), vcg),
            "gaining_share": round(float(gaining.mean()), 4),
            "most_common_best_lie": names.most_common(1)[0][0] if names else "truth",
            "fixed_gain_of_truthful_share": divide(fixed, truth),
            "fixed_gain_of_vcg_share": divide(fixed, vcg),
            "fixed_lies": " / ".join(dict.fromkeys(picked)),
        }


def _iterate(
    results: Sequence[MarketResult],
) -> Iterator[tuple[str, list[MarketResult], str, str]]:
    for kind, group in by_kind(results).items():
        for mode in CLEARING_MODES:
            for side in SIDES:
                yield kind, group, mode, side


def make_lies(results: Sequence[MarketResult]) -> Table:
    """List the best lies by kind, setting, mode and side."""
    table: Table = []
    for kind, group, mode, side in _iterate(results):
        for setting in SETTINGS:
            search = Search(group, side, setting, mode)
            table.append(
                {
                    "market": kind,
                    "mode": mode,
                    "side": side,
                    "noise": setting.noise,
                    "bias": setting.bias,
                    **search.summarise(set(search.all_groups) - CHOICES),
                }
            )
    return table


def make_lie_classes(results: Sequence[MarketResult]) -> Table:
    """List the best lies of each class, under perfect predictions."""
    table: Table = []
    for kind, group, mode, side in _iterate(results):
        search = Search(group, side, PERFECT, mode)
        table += [
            {
                "market": kind,
                "mode": mode,
                "side": side,
                "class": name,
                **search.summarise({name}),
            }
            for name in search.all_groups
        ]
    return table


def make_bounds(results: Sequence[MarketResult]) -> Table:
    """Tell how much of what the VCG payoff leaves to gain a lie gets, under perfect predictions.

    Slots that a provider lacks and other tasks than the true one are outside of what the bound is
    about and left out.
    """
    table: Table = []
    for kind, group, mode, side in _iterate(results):
        search = Search(group, side, PERFECT, mode)
        best, _ = search.find_best(
            search.allow(set(search.all_groups) - CHOICES - {"more slots", "more slots, made good"})
        )
        room = search.vcg - search.truth
        bound = np.maximum(room, 0.0) + np.maximum(0.01 * search.vcg, FINE)
        table.append(
            {
                "market": kind,
                "mode": mode,
                "side": side,
                "room_micros": round(float(room.mean()) / FINE, 2),
                "best_gain_micros": round(float(best.mean()) / FINE, 2),
                "used_share": divide(float(best.sum()), float(room.sum())),
                "room_of_vcg_share": divide(float(room.sum()), float(search.vcg.sum())),
                "above_bound_share": round(float((best > bound).mean()), 4),
            }
        )
    return table


def make_cover_rule(results: Sequence[MarketResult]) -> Table:
    """Tell what the rule that bids cover asks kind by kind costs, and what it lets lies gain."""
    table: Table = []
    for kind, group, mode, side in _iterate(results):
        search = Search(group, side, PERFECT, mode)
        with_rule, _ = search.find_best(search.allow(set(PRICE_GROUPS)))
        number = CLEARING_MODES.index(mode)
        without = [result.relaxed[side][number] for result in group]
        gains = np.concatenate([(values - values[:, :1]).max(axis=1) for values in without])
        truth = sum(float(values[:, 0].sum()) for values in without)
        free = sum(result.relaxed_optimum for result in group)
        table.append(
            {
                "market": kind,
                "mode": mode,
                "side": side,
                "welfare_lost_share": divide(free - sum(r.optimum for r in group), free) or 0.0,
                "gain_with_rule_of_truthful_share": divide(
                    float(with_rule.sum()), float(search.truth.sum())
                ),
                "gain_without_rule_of_truthful_share": divide(float(gains.sum()), truth),
                "gaining_without_rule_share": round(float((gains > FINE).mean()), 4),
            }
        )
    return table


# --- acting together -----------------------------------------------------------------------------


def make_collusion(results: Sequence[MarketResult]) -> Table:
    """List gains of groups by kind, scheme and rule; fees are the market's defaults."""
    fee = MarketParams().bid_fee_micros
    table: Table = []
    for kind, group in by_kind(results).items():
        welfare = sum(result.optimum for result in group) / len(group)
        attempts = [attempt for result in group for attempt in result.attempts]
        schemes = dict.fromkeys((attempt.scheme, attempt.variant) for attempt in attempts)
        for scheme, variant in schemes:
            for rule in RULES:
                wanted = (scheme, variant, rule)
                found = [a for a in attempts if (a.scheme, a.variant, a.rule) == wanted]
                gains = np.array([a.gain for a in found]) / FINE
                strict = np.array([a.strict_gain for a in found]) / FINE
                truth = np.array([a.truth for a in found]) / FINE
                bids = np.array([a.bids for a in found])
                extra = bids if scheme in {"shill", "accomplice", "crowd"} else 0 * bids
                played = np.where(gains > 0, extra, 0)
                table.append(
                    {
                        "market": kind,
                        "scheme": scheme,
                        "variant": variant,
                        "rule": rule,
                        "groups": len(found),
                        "truthful_micros": round(float(truth.mean()), 2),
                        "gain_micros": round(float(gains.mean()), 2),
                        "gain_after_bid_fee_micros": round(float((gains - fee * played).mean()), 2),
                        "gain_if_paid_up_micros": round(float(strict.mean()), 2),
                        "gain_of_truthful_share": divide(
                            float(gains.sum()) * FINE, float(truth.sum()) * FINE
                        ),
                        "gain_of_welfare_share": divide(float(gains.mean()) * FINE, welfare),
                        "gaining_share": round(
                            float((gains > np.maximum(0.01 * truth, 1.0)).mean()), 4
                        ),
                        "fee_to_deter_micros": (
                            round(float(gains.sum() / played.sum()), 1) if played.sum() else None
                        ),
                    }
                )
    return table


def make_sharing(results: Sequence[MarketResult]) -> Table:
    """Compare `provider` mode with the rule that shared bonuses by welfare."""
    table: Table = []
    for kind, group in by_kind(results).items():
        attempts = [attempt for result in group for attempt in result.sharing]
        for wanted in dict.fromkeys((a.scheme, a.variant, a.rule) for a in attempts):
            scheme, variant, rule = wanted
            found = [a for a in attempts if (a.scheme, a.variant, a.rule) == wanted]
            gain, truth = sum(a.gain for a in found), sum(a.truth for a in found)
            table.append(
                {
                    "market": kind,
                    "scheme": scheme,
                    "variant": variant,
                    "rule": rule,
                    "truthful_micros": round(truth / len(found) / FINE, 2),
                    "gain_micros": round(gain / len(found) / FINE, 2),
                    "gain_of_truthful_share": divide(gain, truth),
                }
            )
    return table


# --- Markdown ------------------------------------------------------------------------------------


def format_table(table: Table) -> str:
    """Write rows as a Markdown table."""
    if not table:
        return "(empty)\n"
    head = list(table[0])
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(_format_cell(row.get(key)) for key in head) + " |" for row in table]
    return "\n".join(lines) + "\n"


def _format_cell(value: object) -> str:
    if value is None:
        return "–"
    return f"{value:g}" if isinstance(value, float) else str(value)
