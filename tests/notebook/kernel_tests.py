"""The kernel `lsa` as Jupyter's client sees it: jupyter_kernel_test's tests, and what they leave out.

    JUPYTER_DATA_DIR=DIR python3 kernel_tests.py      with `lsa kernel --install` done there
"""
import os
import signal
import subprocess
import sys
import time
import unittest

import jupyter_kernel_test
import zmq
from jupyter_client import KernelManager
from jupyter_client.session import Session

TIMEOUT = 20


class Tests(jupyter_kernel_test.KernelTests):
    kernel_name = "lsa"
    language_name = "lua"
    file_extension = ".lua"
    code_hello_world = 'print "hello, world"'
    code_stderr = 'io.stderr:write "oops\\n"'
    completion_samples = [
        {"text": "string.rev", "matches": {"string.reverse"}},
        {"text": "local é = string.rev", "matches": {"string.reverse"}},
        {"text": "lsa.accounti", "matches": {"lsa.accounting"}},
    ]
    complete_code_samples = ["x = 1", "return 2", "for i = 1, 3 do print(i) end", "1 + 1"]
    incomplete_code_samples = ["for i = 1, 3 do", "print(", "x = [[abc"]
    invalid_code_samples = ["x = = 2", "end"]
    code_generate_error = 'error "deliberate"'
    code_execute_result = [
        {"code": "6 * 7", "result": "42"},
        {"code": '"a" .. "b"', "result": "ab"},
        {"code": "6 * 7 ", "result": "42"},
        {"code": "6 * 7", "result": "42"},
        {"code": "6 * 7 -- again", "result": "42"},
    ]
    code_display_data = [
        {"code": 'lsa.display(lsa.display.html "<b>bold</b>")', "mime": "text/html"},
        {"code": 'lsa.display(lsa.display.svg "<svg/>")', "mime": "image/svg+xml"},
        {"code": 'lsa.display(lsa.display.png "\\137PNG")', "mime": "image/png"},
    ]
    code_history_pattern = "6 ?*7"
    supported_history_operations = ("tail", "range", "search")
    code_inspect_sample = "string.rep"
    code_clear_output = "lsa.display.clear()"
    support_iopub_welcome = True


class Client(unittest.TestCase):
    """One kernel for all tests of the class; `run` collects what a cell publishes."""

    @classmethod
    def setUpClass(cls):
        cls.manager = KernelManager(kernel_name="lsa")
        cls.manager.start_kernel()
        cls.client = cls.manager.client()
        cls.client.start_channels()
        cls.client.wait_for_ready(timeout=TIMEOUT)

    @classmethod
    def tearDownClass(cls):
        cls.client.stop_channels()
        cls.manager.shutdown_kernel(now=True)

    def finish(self, msg_id, on_message=None):
        """The reply to msg_id and what was published for it, up to the kernel being idle."""
        published = []
        while True:
            message = self.client.get_iopub_msg(timeout=TIMEOUT)
            if message["parent_header"].get("msg_id") != msg_id:
                continue
            published.append(message)
            if on_message:
                on_message(message)
            if message["msg_type"] == "status" and message["content"]["execution_state"] == "idle":
                break
        while True:
            reply = self.client.get_shell_msg(timeout=TIMEOUT)
            if reply["parent_header"].get("msg_id") == msg_id:
                return reply, published

    def run_cell(self, code, on_message=None, **options):
        return self.finish(self.client.execute(code, **options), on_message)

    def text(self, published, name="stdout"):
        return "".join(
            m["content"]["text"] for m in published if m["msg_type"] == "stream" and m["content"]["name"] == name
        )

    def result(self, code):
        reply, published = self.run_cell(code)
        self.assertEqual(reply["content"]["status"], "ok", reply["content"])
        return [m["content"]["data"]["text/plain"] for m in published if m["msg_type"] == "execute_result"]


class History(unittest.TestCase):
    """Cells outlive their kernel."""

    def kernel(self):
        manager = KernelManager(kernel_name="lsa")
        manager.start_kernel()
        self.addCleanup(manager.shutdown_kernel, now=True)
        client = manager.client()
        client.start_channels()
        self.addCleanup(client.stop_channels)
        client.wait_for_ready(timeout=TIMEOUT)
        return client

    def ask(self, client, **how):
        return client.history(reply=True, timeout=TIMEOUT, **how)["content"]["history"]

    def test_another_kernel_has_the_cells_of_those_before(self):
        first = self.kernel()
        for code in ("x = 'früher'", "x .. 2", "-- three\nx"):
            first.execute(code, reply=True, timeout=TIMEOUT)
        first.execute("'secret'", reply=True, timeout=TIMEOUT, store_history=False)
        here = self.ask(first, hist_access_type="tail", n=2, output=True)
        self.assertEqual([cell[1:] for cell in here], [[2, ["x .. 2", "früher2"]], [3, ["-- three\nx", "früher"]]])
        session = here[0][0]

        second = self.kernel()
        second.execute("1 + 1", reply=True, timeout=TIMEOUT)
        before = [[session, 1, "x = 'früher'"], [session, 2, "x .. 2"], [session, 3, "-- three\nx"]]
        now = [session + 1, 1, "1 + 1"]
        self.assertEqual(self.ask(second, hist_access_type="tail", n=4), before + [now])
        self.assertEqual(self.ask(second, hist_access_type="range", session=-1, start=1, stop=3), before[:2])
        self.assertEqual(self.ask(second, hist_access_type="range", session=session, start=2, stop=10), before[1:])
        self.assertEqual(self.ask(second, hist_access_type="range", session=0, start=1, stop=10), [now])
        self.assertEqual(self.ask(second, hist_access_type="search", pattern="x*", n=10)[-2:], before[:2])
        self.assertEqual(self.ask(second, hist_access_type="tail", n=2, output=True)[0][2], ["-- three\nx", None])
        self.assertEqual(self.ask(second, hist_access_type="tail", n=0), [])

        # A front end that is still there goes on.
        first.execute("x:upper()", reply=True, timeout=TIMEOUT)
        third = self.kernel()
        self.assertEqual([cell[2] for cell in self.ask(third, hist_access_type="tail", n=2)], ["1 + 1", "x:upper()"])


class Cells(Client):
    def test_locals_live_on_and_the_last_value_is_shown(self):
        self.assertEqual(self.result("local a, b = 20, 22"), [])
        self.assertEqual(self.result("a + b"), ["42"])

    def test_order_of_what_is_written_and_shown(self):
        _, published = self.run_cell(
            'print "one" lsa.display(lsa.display.html "<i>two</i>") os.execute "echo three" io.stderr:write "four\\n" io.write "five"'
        )
        seen = [
            m["content"].get("text") or m["content"]["data"]["text/html"]
            for m in published
            if m["msg_type"] in ("stream", "display_data")
        ]
        self.assertEqual(seen[:2], ["one\n", "<i>two</i>"])
        self.assertEqual(self.text(published), "one\nthree\nfive")
        self.assertEqual(self.text(published, "stderr"), "four\n")

    def test_output_comes_while_the_cell_runs(self):
        times = {}

        def note(message):
            if message["msg_type"] == "stream":
                times.setdefault("stream", time.monotonic())
            if message["msg_type"] == "status":
                times[message["content"]["execution_state"]] = time.monotonic()

        _, published = self.run_cell('io.write "working" os.execute "sleep 1" io.write " done"', note)
        self.assertGreater(times["idle"] - times["stream"], 0.5)
        self.assertEqual(self.text(published), "working done")

    def test_what_is_no_utf8_is_replaced_and_characters_stay_whole(self):
        _, published = self.run_cell('io.write(("é"):rep(100001), "\\255", "x")')
        self.assertEqual(self.text(published), "é" * 100001 + "\ufffdx")

    def test_an_error_names_the_cell_and_the_line(self):
        reply, published = self.run_cell("local x = 1\nlocal function f() error 'here' end\nf()")
        self.assertEqual(reply["content"]["status"], "error")
        self.assertRegex(reply["content"]["evalue"], r"^In\[\d+\]:2: here$")
        trace = "\n".join(reply["content"]["traceback"])
        self.assertNotIn("notebook/kernel.lua", trace)
        self.assertRegex(trace, r"In\[\d+\]:3: in ")
        self.assertEqual(published[-2]["msg_type"], "error")

    def test_cells_behind_one_that_fails_are_not_run(self):
        first = self.client.execute("error 'first'")
        second = self.client.execute("ran = true")
        self.finish(first)
        reply, _ = self.finish(second)
        self.assertEqual(reply["content"]["status"], "aborted")
        self.assertEqual(self.result("ran == nil"), ["true"])

    def test_silent_cells_are_not_counted(self):
        before = self.run_cell("1")[0]["content"]["execution_count"]
        reply, published = self.run_cell("print 'x' return 3", silent=True)
        self.assertEqual([m["msg_type"] for m in published if m["msg_type"] != "stream"], ["status", "status"])
        self.assertEqual(self.run_cell("1")[0]["content"]["execution_count"], before + 1)

    def test_user_expressions(self):
        reply, _ = self.run_cell("y = 5", user_expressions={"double": "2 * y", "bad": "nothing.x"})
        got = reply["content"]["user_expressions"]
        self.assertEqual(got["double"]["data"]["text/plain"], "10")
        self.assertEqual(got["bad"]["status"], "error")

    def test_tensors_and_tables_are_html(self):
        _, published = self.run_cell("lsa.arange(6):reshape{2, 3}")
        data = [m["content"]["data"] for m in published if m["msg_type"] == "execute_result"][0]
        self.assertIn("<table", data["text/html"])
        self.assertIn("tensor", data["text/plain"])

    def test_input(self):
        def answer():
            message = self.client.get_stdin_msg(timeout=TIMEOUT)
            self.assertEqual(message["msg_type"], "input_request")
            self.client.input("31")

        msg_id = self.client.execute('io.write "how many? " n = io.read "*n" s = io.stdin:read() print(n + 1, s)', allow_stdin=True)
        answer()
        self.client.get_stdin_msg(timeout=TIMEOUT)
        self.client.input("some text")
        _, published = self.finish(msg_id)
        self.assertEqual(self.text(published), "how many? 32\tsome text\n")
        reply, _ = self.run_cell("io.read()", allow_stdin=False)
        self.assertEqual(reply["content"]["status"], "error")

    def test_progress_is_one_display_that_changes(self):
        _, published = self.run_cell(
            "local bar = require 'lsa.progress'(3, 'steps') for _ = 1, 3 do bar:step() os.execute 'sleep 0.15' end bar:done()"
        )
        shown = [m for m in published if m["msg_type"] == "display_data"]
        updates = [m for m in published if m["msg_type"] == "update_display_data"]
        self.assertEqual(len(shown), 1)
        self.assertGreaterEqual(len(updates), 2)
        name = shown[0]["content"]["transient"]["display_id"]
        self.assertEqual({m["content"]["transient"]["display_id"] for m in updates}, {name})
        self.assertIn("3/3", updates[-1]["content"]["data"]["text/plain"])

    def test_comms(self):
        msg = self.client.session.msg("comm_info_request", {})
        self.client.shell_channel.send(msg)
        reply, _ = self.finish(msg["header"]["msg_id"])
        self.assertEqual(reply["content"]["comms"], {})

    def test_help_commands_and_options(self):
        self.client.inspect("lsa.model", cursor_pos=9)
        text = self.client.get_shell_msg(timeout=TIMEOUT)["content"]["data"]["text/plain"]
        self.assertIn("compute", text)
        code = 'm:session{select = "h2'
        self.client.complete(code, cursor_pos=len(code))
        self.assertEqual(self.client.get_shell_msg(timeout=TIMEOUT)["content"]["matches"], ["h2o", "h2o_ema"])
        reply, published = self.run_cell("?recency")
        self.assertEqual(reply["content"]["status"], "ok")
        reply, published = self.run_cell("%time 1 + 1")
        self.assertIn("took", self.text(published))

    def test_the_cursor_is_counted_in_characters(self):
        code = "é = 'ü' .. string.rev .. 'x'"
        self.client.complete(code, cursor_pos=code.index(" .. 'x'"))
        reply = self.client.get_shell_msg(timeout=TIMEOUT)["content"]
        self.assertEqual(reply["matches"], ["string.reverse"])
        self.assertEqual(code[reply["cursor_start"] : reply["cursor_end"]], "string.rev")


class Interrupts(Client):
    def interrupted(self, code):
        """Interrupts the cell once it has written something; the reply, and how long that took."""
        began = []

        def note(message):
            if message["msg_type"] == "stream" and not began:
                began.append(time.monotonic())
                self.manager.interrupt_kernel()

        reply, _ = self.run_cell(code, note)
        self.assertEqual(reply["content"]["status"], "error")
        self.assertEqual(reply["content"]["ename"], "interrupted")
        self.assertEqual(self.result("40 + 2"), ["42"])
        return time.monotonic() - began[0]

    def test_interpreted_and_compiled_loops(self):
        self.assertLess(self.interrupted("print 'on' while true do end"), 20)
        self.assertLess(self.interrupted("print 'on' local x = 0 for i = 1, 1e15 do x = x + i end"), 20)
        self.assertLess(self.interrupted("print 'on' while true do pcall(function() while true do end end) end"), 20)

    def test_a_c_call(self):
        code = (
            "local model = lsa.model(lsa.root .. '/experiments/models/needle') local s = model:session() "
            "local text = ('word '):rep(60000) print 'on' io.stdout:flush() s:prefill(text)"
        )
        self.assertLess(self.interrupted(code), 20)

    def test_a_wait_for_input(self):
        msg_id = self.client.execute("io.read()", allow_stdin=True)
        self.client.get_stdin_msg(timeout=TIMEOUT)
        self.manager.interrupt_kernel()
        reply, _ = self.finish(msg_id)
        self.assertEqual(reply["content"]["ename"], "interrupted")

    def test_an_idle_kernel_stays(self):
        self.manager.interrupt_kernel()
        time.sleep(0.3)
        self.assertEqual(self.result("40 + 2"), ["42"])

    def test_by_message(self):
        def note(message):
            if message["msg_type"] == "stream":
                self.client.control_channel.send(self.client.session.msg("interrupt_request", {}))

        reply, _ = self.run_cell("print 'on' while true do end", note)
        self.assertEqual(reply["content"]["ename"], "interrupted")
        answer = self.client.get_control_msg(timeout=TIMEOUT)
        self.assertEqual(answer["msg_type"], "interrupt_reply")


class Life(unittest.TestCase):
    def start(self):
        manager = KernelManager(kernel_name="lsa")
        manager.start_kernel()
        self.addCleanup(lambda: manager.is_alive() and manager.shutdown_kernel(now=True))
        client = manager.client()
        client.start_channels()
        self.addCleanup(client.stop_channels)
        client.wait_for_ready(timeout=TIMEOUT)
        return manager, client

    def test_the_heart_beats_while_a_cell_computes(self):
        manager, client = self.start()
        client.execute("print 'on' while true do end")
        while client.get_iopub_msg(timeout=TIMEOUT)["msg_type"] != "stream":
            pass
        context = zmq.Context()
        socket = context.socket(zmq.REQ)
        socket.connect("tcp://127.0.0.1:%d" % manager.hb_port)
        for beat in (b"one", b"two"):
            socket.send(beat)
            self.assertTrue(socket.poll(10000))
            self.assertEqual(socket.recv(), beat)
        context.destroy(linger=0)

    def test_it_ends_when_asked_also_while_a_cell_computes(self):
        manager, client = self.start()
        client.execute("print 'on' while true do end")
        while client.get_iopub_msg(timeout=TIMEOUT)["msg_type"] != "stream":
            pass
        began = time.monotonic()
        client.shutdown()
        reply = client.get_control_msg(timeout=TIMEOUT)
        self.assertEqual(reply["msg_type"], "shutdown_reply")
        while manager.is_alive() and time.monotonic() - began < TIMEOUT:
            time.sleep(0.05)
        self.assertFalse(manager.is_alive())

    def test_messages_with_another_key_are_left_unanswered(self):
        manager, client = self.start()
        right = client.session
        client.session = Session(key=b"wrong", signature_scheme="hmac-sha256")
        client.shell_channel.session = client.session
        client.shell_channel.send(client.session.msg("execute_request", {"code": "stolen = true", "silent": False}))
        client.session = client.shell_channel.session = right
        client.execute("stolen == nil")
        shown = None
        while shown is None:
            message = client.get_iopub_msg(timeout=TIMEOUT)
            if message["msg_type"] == "execute_result":
                shown = message["content"]["data"]["text/plain"]
        self.assertEqual(shown, "true")

    def test_it_ends_with_who_started_it(self):
        script = (
            "from jupyter_client import KernelManager\n"
            "m = KernelManager(kernel_name='lsa'); m.start_kernel(); c = m.client(); c.start_channels()\n"
            "c.wait_for_ready(timeout=60); print(m.provisioner.pid, flush=True)\n"
            "import os; os._exit(0)"
        )
        out = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, timeout=TIMEOUT).stdout
        pid = int(out)
        for _ in range(200):
            if not running(pid):
                return
            time.sleep(0.05)
        os.kill(pid, signal.SIGKILL)
        self.fail("the kernel goes on")


def running(pid):
    """Whether the process is there, and not one that has ended and waits to be buried."""
    try:
        with open("/proc/%d/stat" % pid) as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


if __name__ == "__main__":
    unittest.main()
