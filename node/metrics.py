"""Prometheus metrics of a node; served at `--metrics-listen` if that is set."""

from __future__ import annotations

from prometheus_client import Counter, Gauge

EVENTS = Counter("iemas_events", "Protocol events by name", ["event"])
REFUSED = Counter("iemas_refused", "Refused messages of peers by name of the error", ["error"])
CUT_OFF = Gauge("iemas_peers_cut_off", "Peers that are not listened to for a while")
TASKS = Counter("iemas_tasks", "Tasks served, by how they ended", ["finish"])
TOKENS = Counter("iemas_tokens", "Metered tokens by kind", ["kind"])
HEIGHT = Gauge("iemas_ledger_height", "Height of the ledger replica")
PEERS = Gauge("iemas_peers", "Peers known, silent ones included")
