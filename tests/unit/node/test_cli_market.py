"""The `iemas` command without a market: plans, folders, locks, and what it says of mistakes."""

import os
from pathlib import Path

import pytest

from iemas.core.errors import BadRequestError, ConfigurationError
from iemas.core.params import MarketParams
from iemas.keystore import load_key
from node.cli.access import find_access, find_home
from node.cli.conversation import require_prompt
from node.cli.local import _make_plan
from node.local_market import BackendAddress, Funds, MarketHome, MarketPlan, MarketState
from node.local_market.home import get_start_ticks, is_alive, make_record
from node.local_market.market import delete_home
from node.local_market.plan import CUSTOMER, load_plan, parse_assignments, parse_params, save_plan


def make_plan(folder: MarketHome, **changes: object) -> MarketPlan:
    arguments: dict[str, object] = {
        "nodes": None,
        "validators": None,
        "backends": [],
        "kv_events": [],
        "kv_replay": [],
        "model": None,
        "params": {},
        "base_port": 0,
        "torch_index": None,
    }
    return _make_plan(folder, **(arguments | changes))  # type: ignore[arg-type]


@pytest.fixture
def home(tmp_path: Path) -> MarketHome:
    return MarketHome(tmp_path / "market")


# --- plans ---------------------------------------------------------------------------------------


def test_params_are_read_by_their_kinds() -> None:
    texts = parse_assignments(["term_ms=5000", "cache_affinity=false", "mode=client"])
    assert parse_params(texts) == MarketParams(term_ms=5000, cache_affinity=False, mode="client")


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["term_ms"], "key=value"),
        (["term=1"], "no market parameter 'term'"),
        (["term_ms=soon"], "whole number"),
        (["term_ms=0"], "at least 1"),
        (["cache_affinity=maybe"], "true or false"),
    ],
)
def test_wrong_params_are_named(texts: list[str], expected: str) -> None:
    with pytest.raises(ConfigurationError, match=expected):
        parse_params(parse_assignments(texts))


def test_urls_make_one_node_each(home: MarketHome) -> None:
    urls = ["http://a:1", "http://b:2"]
    plan = make_plan(home, backends=urls, kv_events=["ipc:///a", "ipc:///b"])
    assert (plan.backend, plan.nodes) == ("url", 2)
    assert plan.addresses[1] == BackendAddress("http://b:2", "ipc:///b")
    plan.validate()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "--backend vllm-cpu"),
        ({"backends": ["vllm"]}, "'vllm'"),
        ({"backends": ["simulated", "simulated"]}, "'simulated'"),
        ({"backends": ["http://a:1"], "kv_events": ["ipc:///a", "ipc:///b"]}, "--kv-events once"),
        ({"backends": ["http://a:1"], "nodes": 3}, "once a node"),
        ({"backends": ["simulated"], "nodes": 99}, "--nodes must be"),
        ({"backends": ["simulated"], "base_port": 80}, "--base-port 80"),
    ],
)
def test_wrong_plans_are_named(home: MarketHome, changes: dict[str, object], expected: str) -> None:
    with pytest.raises(ConfigurationError, match=expected):
        make_plan(home, **changes).validate()


def test_a_market_comes_up_as_it_was(home: MarketHome) -> None:
    plan = MarketPlan(name="kept", nodes=2, params={"term_ms": "777"})
    home.create(plan, "simulated")
    save_plan(home.plan_file, plan)
    assert load_plan(home.plan_file) == plan
    again = make_plan(home)
    assert (again.name, again.nodes, again.backend) == ("kept", 2, "simulated")
    assert again.params == {"term_ms": "777"}


def test_simulated_backends_are_labelled() -> None:
    assert MarketPlan().label == "simulated backend, for tests only"
    assert "tests" not in MarketPlan(backend="vllm-cpu").label


# --- folders -------------------------------------------------------------------------------------


def test_genesis_has_four_validators_and_a_funded_customer(home: MarketHome) -> None:
    accounts = {CUSTOMER: Funds(5, 7)}
    plan = MarketPlan(nodes=3, accounts=accounts)
    genesis = home.create(plan, "model")
    assert plan.names == ["node-1", "node-2", "node-3", "validator-1"]
    ids = [load_key(home.get_node_key(name)).node_id for name in plan.names]
    assert [validator.node_id for validator in genesis.validators] == ids
    customer, *sellers = genesis.accounts
    assert (customer.available_micros, customer.escrow_micros) == (5, 7)
    assert [seller.account for seller in sellers] == ids[:3]
    assert {seller.available_micros for seller in sellers} == {genesis.params.ask_bond_micros}
    assert home.get_account_key(CUSTOMER).stat().st_mode & 0o777 == 0o600
    assert home.create(MarketPlan(nodes=3), "model") == genesis


@pytest.mark.parametrize(
    ("nodes", "validators", "names"),
    [
        (1, 1, ["node-1"]),
        (2, 4, ["node-1", "node-2", "validator-1", "validator-2"]),
        (5, 4, ["node-1", "node-2", "node-3", "node-4", "node-5"]),
    ],
)
def test_who_sells_votes_and_others_vote_where_too_few_sell(
    nodes: int, validators: int, names: list[str]
) -> None:
    assert MarketPlan(nodes=nodes, validators=validators).names == names


@pytest.mark.parametrize(
    ("plan", "model", "expected"),
    [
        (MarketPlan(nodes=2), "other", "sells 'model', the backends serve 'other'"),
        (MarketPlan(nodes=3), "model", "was created with other nodes than"),
        (MarketPlan(nodes=2, params={"term_ms": "1"}), "model", "were fixed"),
    ],
)
def test_a_folder_is_not_run_as_another_market(
    home: MarketHome, plan: MarketPlan, model: str, expected: str
) -> None:
    home.create(MarketPlan(nodes=2), "model")
    with pytest.raises(ConfigurationError, match=expected):
        home.create(plan, model)


def test_only_one_supervisor_runs_a_market(home: MarketHome) -> None:
    home.acquire()
    assert home.is_held()
    supervisor = home.read_supervisor()
    assert supervisor is not None
    assert supervisor.pid == os.getpid()
    with pytest.raises(ConfigurationError, match="runs already"):
        MarketHome(home.path).acquire()
    home.release()
    assert not home.is_held()
    assert home.read_supervisor() is None


def test_a_left_over_state_file_is_not_believed(home: MarketHome) -> None:
    home.acquire()
    record = make_record("supervisor", "supervisor", os.getpid())
    state = MarketState("m", "label", "model", "simulated", 0, record)
    home.write_state(state)
    assert home.read_state() == state
    assert home.state_file.stat().st_mode & 0o777 == 0o600
    home._lock, held = None, home._lock
    assert held is not None
    os.close(held)  # as the kernel does when the supervisor dies
    assert home.state_file.exists()
    assert home.read_state() is None


def test_a_process_is_told_from_a_later_one_with_its_pid() -> None:
    record = make_record("me", "node", os.getpid())
    assert is_alive(record)
    assert get_start_ticks(2**22 + 1) == 0
    later = type(record)(record.name, record.role, record.pid, record.start_ticks + 1)
    assert not is_alive(later)


def test_only_a_markets_folder_is_deleted(tmp_path: Path, home: MarketHome) -> None:
    (tmp_path / "precious").mkdir()
    with pytest.raises(ConfigurationError, match="no market's folder"):
        delete_home(MarketHome(tmp_path / "precious"))
    home.acquire()
    with pytest.raises(ConfigurationError, match="stop the market first"):
        delete_home(MarketHome(home.path))
    home.release()
    delete_home(home)
    assert not home.path.exists()
    assert (tmp_path / "precious").exists()


# --- access --------------------------------------------------------------------------------------


def test_a_market_elsewhere_needs_a_key_only_to_pay() -> None:
    with pytest.raises(ConfigurationError, match="--key FILE"):
        find_access(market=["x@y:1"])
    assert find_access(market=["x@y:1"], pays=False).bootstrap == ("x@y:1",)


def test_no_running_market_says_how_to_start_one(home: MarketHome) -> None:
    with pytest.raises(ConfigurationError, match="iemas market up"):
        find_access(home=home.path)


def test_a_name_is_no_path() -> None:
    with pytest.raises(ConfigurationError, match="--home"):
        find_home("../elsewhere", None)


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(BadRequestError, match="empty"):
        require_prompt(" \n")
