"""What ordinary programs use works inside the sandbox: processes, threads, event loops, databases, the loopback."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.worker.profile_files import Offered, offering, write

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def python() -> Iterator[Offered]:
    """A worker that offers the lean profile."""
    with offering("python") as offered:
        yield offered


def test_programs_run_with_pipes_and_exit_codes(python: Offered) -> None:
    code = """
import subprocess, sys
shell = ['/bin/sh', '-c', 'read line; echo "got $line"; exit 3']
echo = subprocess.run(shell, input='x\\n', capture_output=True, text=True)
own = subprocess.run([sys.executable, '-c', 'import sys; print(sys.argv[1])', 'y'], capture_output=True, text=True)
return echo.stdout, echo.returncode, own.stdout
"""
    assert python.result(code) == ["got x\n", 3, "y\n"]


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_pool_of_processes_runs_functions_of_a_file_beside_the_code(python: Offered, method: str) -> None:
    code = f"""
import multiprocessing
import work
with multiprocessing.get_context('{method}').Pool(2) as pool:
    return pool.map(work.square, range(4))
"""
    assert python.result(code, files={"work.py": "def square(n):\n    return n * n\n"}) == [0, 1, 4, 9]


def test_processes_share_queues_locks_and_memory(python: Offered) -> None:
    code = """
import multiprocessing
from multiprocessing import shared_memory
context = multiprocessing.get_context('fork')
queue, lock, total = context.Queue(), context.Lock(), context.Value('i', 0)
block = shared_memory.SharedMemory(create=True, size=16)
def child(n):
    with lock:
        total.value += n
    block.buf[n] = n
    queue.put(n)
children = [context.Process(target=child, args=(n,)) for n in (1, 2, 3)]
for process in children:
    process.start()
got = sorted(queue.get() for _ in children)
for process in children:
    process.join()
seen = bytes(block.buf[:4])
block.close()
block.unlink()
return got, total.value, list(seen)
"""
    assert python.result(code) == [[1, 2, 3], 6, [0, 1, 2, 3]]


def test_executors_of_threads_and_of_processes_work(python: Offered) -> None:
    code = """
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
import math
with ThreadPoolExecutor(8) as threads, ProcessPoolExecutor(2) as processes:
    return list(threads.map(math.sqrt, [1, 4])), list(processes.map(math.sqrt, [9, 16]))
"""
    assert python.result(code) == [[1, 2], [3, 4]]


def test_an_event_loop_runs_programs_servers_and_threads(python: Offered) -> None:
    code = """
import asyncio
async def answer(reader, writer):
    writer.write(b'you said ' + await reader.readline())
    writer.close()
server = await asyncio.start_server(answer, '127.0.0.1', 0)
reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
writer.write(b'hello\\n')
answered = (await reader.read()).decode()
process = await asyncio.create_subprocess_exec('/bin/sh', '-c', 'echo out; exit 5', stdout=asyncio.subprocess.PIPE)
out, _ = await process.communicate()
in_thread = await asyncio.to_thread(sum, [1, 2])
unix = await asyncio.start_unix_server(answer, '/tmp/socket')
reader, writer = await asyncio.open_unix_connection('/tmp/socket')
writer.write(b'again\\n')
return answered, out.decode(), process.returncode, in_thread, (await reader.read()).decode()
"""
    assert python.result(code) == ["you said hello\n", "out\n", 5, 3, "you said again\n"]


def test_a_database_keeps_what_is_put_into_it(python: Offered) -> None:
    code = """
import sqlite3
for path in (':memory:', '/workspace/db.sqlite'):
    base = sqlite3.connect(path)
    base.execute('pragma journal_mode=wal')
    base.execute('create table t (a, b)')
    with base:
        base.executemany('insert into t values (?, ?)', [(n, str(n)) for n in range(100)])
    base.close()
return sqlite3.connect('/workspace/db.sqlite').execute('select sum(a), max(length(b)) from t').fetchone()
"""
    assert python.result(code) == [4950, 2]


def test_a_web_server_is_reached_on_the_sandboxs_own_loopback(python: Offered) -> None:
    code = """
import http.server, threading, urllib.request
open('page.txt', 'w').write('hello')
server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), http.server.SimpleHTTPRequestHandler)
threading.Thread(target=server.serve_forever, daemon=True).start()
return urllib.request.urlopen(f'http://127.0.0.1:{server.server_port}/page.txt').read().decode()
"""
    assert python.result(code) == "hello"


REQUESTS = """
import http.server, threading
import requests
class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers['content-length']))
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'got ' + body)
    def log_message(self, *args):
        pass
server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
told = requests.post(f'http://127.0.0.1:{server.server_port}/', data='x', timeout=10).text
failures = []
for url in ('http://127.0.0.1:9/', 'http://192.0.2.1/', 'https://example.com/'):
    try:
        requests.get(url, timeout=10)
        failures.append('WORKED')
    except requests.ConnectionError as error:
        text = str(error)
        known = ('Connection refused', 'Network is unreachable', 'resolve', 'resolution')
        failures.append(next((word for word in known if word in text), text))
return told, failures[:2], failures[2] in ('resolve', 'resolution', 'Network is unreachable')
"""


@pytest.mark.parametrize("preload", ["", "requests"])
def test_requests_reaches_the_loopback_and_nothing_else(tmp_path_factory: pytest.TempPathFactory, preload: str) -> None:
    text = f"[profiles.web]\npackages = ['requests']\npreload = {[preload] if preload else []}"
    file = write(tmp_path_factory.mktemp("web"), text)

    with offering("web", profiles_file=file) as web:
        assert web.result(REQUESTS) == ["got x", ["Connection refused", "Network is unreachable"], True]
