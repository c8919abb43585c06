"""What a stranger's graph can do to a node: be refused in words that are safe for the page, while the server goes on."""

import asyncio
import time

import comfy.model_management
import pytest
from comfy.cli_args import args
from comfy_api.latest import io
from uniforget_pack.nodes import all_nodes, guard, inputs, routes
from uniforget_pack.nodes.compare import keeper
from uniforget_pack.nodes.maskio import SaveMask, check_name
from uniforget_pack.uniforget.errors import MaskFileError, SettingError, UniForgetError

SCRIPT = "<img src=x onerror=alert(1)>"


def raising(error):
    class Node(io.ComfyNode):
        @classmethod
        def execute(cls):
            raise error

    return guard.guarded(Node)


def test_every_node_is_guarded_once():
    for node in (*all_nodes(), *all_nodes()):
        assert node.execute.__func__.__wrapped__ and not hasattr(node.execute.__func__.__wrapped__, "__wrapped__"), node


def test_our_errors_keep_their_kind_and_are_safe_for_the_page():
    with pytest.raises(MaskFileError) as caught:
        raising(MaskFileError(f"{SCRIPT}\x1b[31m.safetensors: it isn't one.")).execute()
    assert str(caught.value) == "\u2039img src=x onerror=alert(1)\u203a\ufffd[31m.safetensors: it isn't one."


@pytest.mark.parametrize("error", [KeyError(SCRIPT), RecursionError(SCRIPT), UnicodeEncodeError("utf-8", "\ud800", 0, 1, SCRIPT)])
def test_what_nobody_foresaw_asks_for_a_report_and_leaves_its_traceback_in_the_log(error, caplog):
    with pytest.raises(UniForgetError, match="please report it") as caught:
        raising(error).execute()
    assert type(error).__name__ in str(caught.value) and "<" not in str(caught.value)
    assert "Traceback" in caplog.text and "in execute" in caplog.text


def test_stopping_and_full_memory_are_comfyuis_own_business():
    for error in (comfy.model_management.InterruptProcessingException(), comfy.model_management.OOM_EXCEPTION("x")):
        with pytest.raises(type(error)):
            raising(error).execute()


def test_checks_before_a_run_say_what_is_wrong_whatever_it_is(caplog):
    def check(value):
        raise value

    assert inputs.valid(check, SettingError(SCRIPT)) == "\u2039img src=x onerror=alert(1)\u203a"
    assert "please report it" in inputs.valid(check, ZeroDivisionError()) and "Traceback" in caplog.text
    assert inputs.valid(check, None) is True


def test_a_slow_check_does_not_hold_up_the_server():
    async def serve():
        ticks, checking = 0, asyncio.ensure_future(inputs.valid_aside(time.sleep, 0.5))
        while not checking.done():
            await asyncio.sleep(0.01)
            ticks += 1
        return ticks, checking.result()

    ticks, found = asyncio.run(serve())
    assert found is True and ticks > 10


def test_only_so_many_checks_wait():
    async def serve():
        many = (guard.aside(time.sleep, 0.01) for _ in range(guard.MOST_WAITING + 5))
        found = await asyncio.gather(*many, return_exceptions=True)
        return found, await guard.aside(int, "7")

    found, later = asyncio.run(serve())
    assert [type(one) for one in found].count(guard.BusyError) == 5 and found.count(None) == guard.MOST_WAITING
    assert later == 7


def test_checks_run_one_after_the_other():
    running, most = [0], [0]

    def work():
        running[0] += 1
        most[0] = max(most[0], running[0])
        time.sleep(0.02)
        running[0] -= 1

    async def serve():
        await asyncio.gather(*(guard.aside(work) for _ in range(8)))

    asyncio.run(serve())
    assert most == [1]


HERE = ("127.0.0.1:8188", "127.0.0.1", "localhost:8188", "comfy.localhost", "[::1]:8188", "192.168.1.5:8188")
ELSEWHERE = (
    "evil.example",
    "evil.example:8188",
    "127.0.0.1.evil.example",
    "localhost.evil.example",
    "127.0.0.1@evil.example",
    "",
    "[",
    "1:2:3",
)


@pytest.mark.parametrize("host", HERE)
def test_the_servers_own_page_is_answered(host):
    assert routes.expected_host(host)


@pytest.mark.parametrize("host", ELSEWHERE)
def test_a_name_that_a_website_made_point_here_is_not(host, monkeypatch):
    assert not routes.expected_host(host)
    monkeypatch.setattr(args, "listen", "127.0.0.1,::1")
    assert not routes.expected_host(host)
    # where ComfyUI is meant to be reached by names, nobody here knows them
    monkeypatch.setattr(args, "listen", "127.0.0.1,0.0.0.0")
    assert routes.expected_host(host)
    monkeypatch.setattr(args, "listen", "127.0.0.1")
    monkeypatch.setattr(args, "enable_cors_header", "*")
    assert routes.expected_host(host)


@pytest.mark.parametrize("name", [None, "None", "null/None", "client/None"])
def test_no_name_is_no_name(demo, name):
    # ComfyUI makes "None" of a null in a workflow.
    for save in (lambda: check_name(name), lambda: SaveMask.execute(demo.mask(), name, False)):
        with pytest.raises(SettingError, match="expected a plain name"):
            save()
    assert "plain name" in str(SaveMask.validate_inputs("None"))


@pytest.mark.parametrize("prefix", ["None", "../../outside", "/etc/x"])
def test_pictures_are_saved_inside_the_output_folder_under_a_name(prefix):
    with pytest.raises(SettingError, match="expected a name inside"):
        keeper(None, True, prefix)
