"""The `iemas` command without a market: plans, folders, locks, and what it says of mistakes."""

import asyncio
import errno
import io
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from iemas.client._types import RecordedTransaction, Validator
from iemas.core.errors import BadRequestError, ConfigurationError
from iemas.core.params import MarketParams
from iemas.keystore import generate_key, load_key
from iemas.ledger.transaction import Unstake
from iemas.testing.tokenizer import build_byte_tokenizer
from node.cli import common
from node.cli.access import find_access, find_home
from node.cli.conversation import require_prompt
from node.cli.daemon import app as daemon_app
from node.cli.ledger_views import render_recorded, render_validators
from node.cli.local import _make_plan
from node.cli.market import app
from node.local_market import (
    BackendAddress,
    Funds,
    LocalMarket,
    MarketHome,
    MarketPlan,
    MarketState,
)
from node.local_market.home import ProcessRecord, get_start_ticks, is_alive, make_record
from node.local_market.market import delete_home
from node.local_market.plan import CUSTOMER, load_plan, parse_assignments, parse_params, save_plan
from node.local_market.supervise import start_detached, stop_market


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
        ({"backends": ["simulated"], "base_port": 80}, "--base-port 80.*choose one in 1024"),
        ({"backends": ["simulated"], "nodes": 0}, "--nodes must be in 1..16, got 0"),
        ({"backends": ["simulated"], "validators": 0}, "--validators must be in 1..16, got 0"),
        ({"backends": ["simulated"], "kv_events": ["ipc:///a"]}, "--kv-events and --kv-replay"),
        ({"kv_replay": ["ipc:///a"]}, "--kv-events and --kv-replay"),
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


def test_a_plan_that_is_no_plan_says_what_to_do(home: MarketHome) -> None:
    make_files(home.path, "plan.json", "genesis.json", "market.lock")
    with pytest.raises(ConfigurationError, match=r"plan\.json is no market plan.*delete that file"):
        make_plan(home)


def test_a_taken_port_names_the_markets_flag(home: MarketHome) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        plan = MarketPlan(nodes=1, validators=1, base_port=port)
        with pytest.raises(ConfigurationError, match=f"{port}: Address.*another --base-port"):
            asyncio.run(LocalMarket(home).start(plan, str))
    assert not home.is_held()


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
        (
            MarketPlan(nodes=3),
            "model",
            "created with other nodes than node-1.*say --nodes 2 --validators 4",
        ),
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


def publish(home: MarketHome, *processes: ProcessRecord) -> None:
    record = make_record("supervisor", "supervisor", os.getpid())
    home.write_state(MarketState("m", "label", "model", "simulated", 0, record, processes))


def test_up_says_how_a_node_that_was_left_comes_back(home: MarketHome) -> None:
    home.acquire()
    alive, ended = make_record("node-1", "node", os.getpid()), ProcessRecord("node-2", "node", 1, 0)
    publish(home, alive)
    with pytest.raises(ConfigurationError, match="runs already: see `iemas market status`"):
        start_detached(home, MarketPlan(), str)
    publish(home, alive, ended)
    for start in (MarketHome(home.path).acquire, lambda: start_detached(home, MarketPlan(), str)):
        with pytest.raises(
            ConfigurationError, match=r"node-2 ended .*`iemas market down`, then `iemas market up`"
        ):
            start()
    home.release()


def test_a_damaged_state_file_says_what_to_do(home: MarketHome) -> None:
    home.acquire()
    home.state_file.write_text("{")
    with pytest.raises(ConfigurationError, match="`iemas market down`, then `iemas market up`"):
        home.require_state()
    home.release()


def test_a_damaged_state_file_does_not_keep_a_market_up(home: MarketHome) -> None:
    """`market down` is the fix, so it must do without that file."""
    script = (
        "import sys, time; from pathlib import Path; from node.local_market import MarketHome; "
        "home = MarketHome(Path(sys.argv[1])); home.acquire(); "
        "home.state_file.write_text('{'); print('up', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", script, str(home.path)]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE) as process,
        ThreadPoolExecutor() as reaper,
    ):
        reaper.submit(process.wait)
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        assert stop_market(home, str) == 1
    assert not home.is_held()


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
    assert delete_home(home) == []
    assert not home.path.exists()
    assert (tmp_path / "precious").exists()


def make_files(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_a_folder_with_other_files_is_not_made_a_market(home: MarketHome) -> None:
    make_files(home.path, "thesis.tex", "genesis.json")
    with pytest.raises(ConfigurationError, match=r"thesis\.tex.*empty folder with --home"):
        home.acquire()
    with pytest.raises(ConfigurationError, match=r"thesis\.tex"):
        start_detached(home, MarketPlan(), str)
    with pytest.raises(ConfigurationError, match=r"thesis\.tex"):
        make_plan(home, backends=["simulated"])
    assert sorted(path.name for path in home.path.iterdir()) == ["genesis.json", "thesis.tex"]


@pytest.mark.parametrize("names", [(), ("supervisor.log",), ("market.lock", "notes.txt")])
def test_a_folder_of_a_market_is_taken_again(home: MarketHome, names: tuple[str, ...]) -> None:
    make_files(home.path, *names)
    home.acquire()
    home.release()


def test_only_what_a_market_made_is_deleted(home: MarketHome) -> None:
    home.acquire()
    home.create(MarketPlan(nodes=2), "model")
    home.release()
    made = ["plan.json", "market.tmp", "supervisor.log", "backend-1.log", "vllm-2.log"]
    made += ["node-1/node.db", "node-1/node.db-wal", "node-1/node.db.lock", "node-1/node.log"]
    made += ["node-1/genesis.json", "validator-1/ready.json", f"trusted/{'ab' * 32}"]
    made += [f"tokenizer/{name}" for name in build_byte_tokenizer()]
    users = ["keys/backup.pem", "node-1/why.txt", "thesis.tex", "src/node.db", "node-1.py"]
    make_files(home.path, *made, *users)
    (home.path / "validator-2").symlink_to(home.path / "src")
    assert [path.name for path in delete_home(home)] == [
        "keys", "node-1", "node-1.py", "src", "thesis.tex", "validator-2",
    ]  # fmt: skip
    left = [path for path in home.path.rglob("*") if path.is_file()]
    assert sorted(str(path.relative_to(home.path)) for path in left) == sorted(users)


# --- what was lost -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["node-2", "validator-1", "account-customer"])
def test_a_lost_key_is_named_and_to_be_restored(home: MarketHome, name: str) -> None:
    plan = MarketPlan(nodes=2)
    home.create(plan, "model")
    path = home.get_node_key(name)
    path.unlink()
    with pytest.raises(ConfigurationError, match=f"{path} is missing.*restore") as caught:
        home.create(plan, "model")
    assert "--delete" not in str(caught.value)


def test_a_key_that_is_not_the_nodes_is_named(home: MarketHome) -> None:
    home.create(MarketPlan(), "model")
    home.get_node_key("node-1").replace(home.get_node_key("node-2"))
    generate_key(home.get_node_key("node-1"))
    with pytest.raises(ConfigurationError, match=r"node-1\.pem is not the key that"):
        home.create(MarketPlan(), "model")


@pytest.mark.parametrize("options", [{}, {"node": "node-1"}])
def test_a_command_names_the_key_that_it_lacks(home: MarketHome, options: dict[str, str]) -> None:
    home.acquire()
    record = make_record("supervisor", "supervisor", os.getpid())
    home.write_state(MarketState("m", "label", "model", "simulated", 0, record))
    make_files(home.path, "node-1/node.db")
    with pytest.raises(ConfigurationError, match=r"1\.pem is missing|customer\.pem is missing"):
        find_access(home=home.path, **options)  # type: ignore[arg-type]
    home.release()


def test_a_lost_genesis_is_not_replaced_by_another(home: MarketHome) -> None:
    home.acquire()
    home.create(MarketPlan(), "model")
    make_files(home.path, "node-2/node.db", "node-2/genesis.json")
    home.release()
    home.genesis_file.unlink()
    copy = home.get_data_dir("node-2") / "genesis.json"
    for refuse in (home.acquire, lambda: home.create(MarketPlan(), "m"), lambda: make_plan(home)):
        with pytest.raises(ConfigurationError, match=f"cp {copy} {home.genesis_file}"):
            refuse()
    copy.unlink()
    with pytest.raises(ConfigurationError, match="restore it from a copy"):
        home.acquire()
    assert not home.genesis_file.exists()


# --- where there can be no folder ----------------------------------------------------------------


@pytest.mark.parametrize("below", ["", "market"])
def test_a_place_that_can_be_no_folder_is_named(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").touch()
    home = MarketHome(tmp_path / "file" / below)
    plan = MarketPlan()
    starts: list[Callable[[], object]] = [
        lambda: start_detached(home, plan, str),
        lambda: asyncio.run(LocalMarket(home).start(plan, str)),
    ]
    for start in starts:
        with pytest.raises(ConfigurationError, match="another folder with --home") as caught:
            start()
        assert f"cannot use {tmp_path / 'file'}" in str(caught.value)


def test_a_folder_below_which_nothing_can_be_made_is_named() -> None:
    with pytest.raises(ConfigurationError, match=r"cannot use /proc/x.*--home"):
        start_detached(MarketHome(Path("/proc/x/market")), MarketPlan(), str)


def test_keys_that_cannot_be_looked_at_are_named(
    home: MarketHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, **_: object) -> bool:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "exists", refuse)
    with pytest.raises(ConfigurationError, match=r"let this user .* read and write it"):
        asyncio.run(LocalMarket(home).start(MarketPlan(), str))


# --- access --------------------------------------------------------------------------------------


def test_a_market_elsewhere_needs_a_key_only_to_pay() -> None:
    with pytest.raises(ConfigurationError, match="--key FILE"):
        find_access(market=["x@y:1"])
    assert find_access(market=["x@y:1"], pays=False).bootstrap == ("x@y:1",)


@pytest.mark.parametrize("options", [{"node": "node-1"}, {"key": Path("k")}, {"market": ["x@y:1"]}])
def test_an_account_that_would_be_ignored_is_refused(options: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError, match="--account names an account of a local market"):
        find_access(account="customer", **options)  # type: ignore[arg-type]


def test_no_running_market_says_how_to_start_one(home: MarketHome) -> None:
    with pytest.raises(ConfigurationError, match="iemas market up"):
        find_access(home=home.path)


def test_a_name_is_no_path() -> None:
    with pytest.raises(ConfigurationError, match="--home"):
        find_home("../elsewhere", None)


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(BadRequestError, match="empty"):
        require_prompt(" \n")


# --- the command line ----------------------------------------------------------------------------


@pytest.mark.parametrize("main_app", [app, daemon_app])
def test_a_command_line_tells_its_version_and_helps(main_app: typer.Typer) -> None:
    shown = CliRunner().invoke(main_app, ["--version"])
    assert (shown.exit_code, shown.stdout) == (0, f"iemas {version('iemas')}\n")
    assert "--version" in CliRunner().invoke(main_app, ["-h"]).stdout


@pytest.mark.parametrize("command", [["transfer"], ["market", "up"], ["vote", "parameter"]])
def test_every_command_helps(command: list[str]) -> None:
    shown = CliRunner().invoke(app, [*command, "-h"])
    assert shown.exit_code == 0
    assert "Usage" in shown.stdout


def test_ids_stay_in_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    narrow = Console(width=60, record=True, file=io.StringIO())
    monkeypatch.setattr(common, "console", narrow)
    one = "ab" * 32
    validator = Validator(one, 10**8, "live", is_jailed=False, jailed_until_ms=None, height=7)
    common.print_wide(render_validators([validator], str))
    text = narrow.export_text()
    assert f"100.000000   100.0%   live   {one}" in text
    recorded = RecordedTransaction(one, 7, 0, one, 3, Unstake(5), "ok", "x" * 100)
    common.print_wide(render_recorded(recorded, str))
    assert narrow.export_text().count(f" {one} ") == 3
