"""The shipped `python-data` on the real sandbox: its libraries work, cost a session nothing, and share nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support import client_of, worker_process
from tests.worker.profile_files import Offered, offering

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def data() -> Iterator[Offered]:
    """A worker that offers python-data."""
    with offering("python-data") as offered:
        yield offered


def test_numpy_computes(data: Offered) -> None:
    code = (
        "import numpy as np\nm = np.arange(10_000.0).reshape(100, 100)\nreturn float((m @ m.T).trace()), int(m.sum())"
    )

    assert data.result(code) == [333283335000.0, 49995000]


def test_pandas_reads_groups_and_writes_files(data: Offered) -> None:
    code = """
import pandas as pd
table = pd.read_csv('in.csv', parse_dates=['day'])
table.groupby('who')['n'].sum().to_csv('/workspace/out.csv')
return open('out.csv').read(), str(table['day'].max().tz_localize('Europe/Berlin'))
"""
    given = {"in.csv": "who,n,day\na,1,2024-07-01\nb,2,2024-07-02\na,3,2024-07-03\n"}

    assert data.result(code, files=given) == ["who,n\na,4\nb,2\n", "2024-07-03 00:00:00+02:00"]


def test_matplotlib_draws_into_a_file_and_reads_it_back_without_a_cache_of_its_own(data: Offered) -> None:
    code = """
import matplotlib, os
import matplotlib.pyplot as plt
plt.plot([1, 3, 2])
plt.title('a title')
plt.savefig('/workspace/plot.png')
height, width, channels = plt.imread('/workspace/plot.png').shape
return matplotlib.get_backend().lower(), height > 100, width > 100, channels, os.listdir('/tmp')
"""
    done = data.run(code)

    assert done.result == ["agg", True, True, 4, []], done.error
    assert done.stderr == ""


def test_what_it_preloads_is_loaded_before_the_code_and_from_the_packages(data: Offered) -> None:
    code = """
import sys
loaded = {name: name in sys.modules for name in ('numpy', 'pandas', 'matplotlib.pyplot', 'matplotlib.font_manager')}
import numpy
from matplotlib.font_manager import fontManager
return all(loaded.values()), numpy.__file__, len(fontManager.ttflist) > 10
"""
    assert data.result(code) == [True, "/packages/numpy/__init__.py", True]


def test_it_has_one_thread_and_an_environment_without_the_zygotes(data: Offered) -> None:
    code = """
import os
return len(os.listdir('/proc/self/task')), sorted(os.environ)
"""
    assert data.result(code) == [1, ["MPLBACKEND", "MPLCONFIGDIR", "OPENBLAS_NUM_THREADS", "PYTHONPATH"]]


def test_every_lock_is_on_in_its_sandboxes_too(data: Offered) -> None:
    code = "return dict(l.split(':\\t', 1) for l in open('/proc/self/status').read().splitlines() if ':\\t' in l)"
    status = data.result(code)

    assert {int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {0}
    assert (status["NoNewPrivs"], status["Seccomp"], status["NSpid"]) == ("1", "2", "1")


def test_what_the_zygote_used_while_preloading_is_gone(data: Offered) -> None:
    code = "return [l.split()[4] for l in open('/proc/self/mountinfo').read().splitlines() if 'scratch' in l]"

    assert data.result(code) == []


def test_its_packages_can_not_be_written_to_and_no_others_are_there(data: Offered) -> None:
    code = """
import os
def attempt(action):
    try:
        return f'WORKED: {action()}'
    except OSError as error:
        return type(error).__name__ if error.errno == 30 else str(error)
tried = [
    attempt(lambda: open('/packages/numpy/planted.py', 'w')),
    attempt(lambda: open('/packages/planted.py', 'w')),
    attempt(lambda: os.chmod('/packages/numpy/__init__.py', 0o777)),
    attempt(lambda: os.unlink('/packages/pylab.py')),
]
return tried, sorted({'msgspec', 'pytest', 'enclave_worker', 'click'} & set(os.listdir('/packages')))
"""
    assert data.result(code) == [["OSError"] * 4, []]


def test_a_program_that_it_starts_finds_the_packages_too(data: Offered) -> None:
    code = """
import subprocess, sys
program = 'import numpy, matplotlib.pyplot as plt; plt.plot([1]); plt.savefig("x.png"); print(numpy.arange(3).sum())'
return subprocess.run([sys.executable, '-c', program], capture_output=True, text=True).stdout
"""
    assert data.result(code) == "3\n"


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_pool_of_processes_computes_with_numpy(data: Offered, method: str) -> None:
    code = f"""
import multiprocessing
import numpy as np
with multiprocessing.get_context('{method}').Pool(2) as pool:
    return [float(total) for total in pool.map(np.sum, [np.ones(10), np.ones(20)])]
"""
    assert data.result(code) == [10.0, 20.0]


def test_threads_compute_with_numpy(data: Offered) -> None:
    code = """
from concurrent.futures import ThreadPoolExecutor
import numpy as np
with ThreadPoolExecutor(4) as pool:
    return [float(total) for total in pool.map(lambda n: (np.ones((n, n)) @ np.ones((n, n))).sum(), [50, 60])]
"""
    assert data.result(code) == [50.0**3, 60.0**3]


def test_an_array_beyond_its_memory_is_the_guests_failure(data: Offered) -> None:
    done = data.run("import numpy\nnumpy.ones(10**10)\nreturn 'WORKED'")

    assert done.error is not None
    assert done.error.code == "MEMORY_LIMIT_EXCEEDED"


def test_a_lower_memory_limit_leaves_the_libraries_their_address_space(data: Offered) -> None:
    done = data.run("import numpy\nreturn float(numpy.ones(10**6).sum())", {"memoryLimitBytes": 64 * 1024 * 1024})

    assert done.result == 1e6, done.error


def test_two_sessions_draw_different_numbers_from_every_source(data: Offered) -> None:
    code = """
import random, secrets, tempfile, uuid
import numpy as np
return [np.random.rand(), float(np.random.default_rng().random()), random.random(), secrets.token_hex(),
        str(uuid.uuid4()), str(uuid.uuid1().clock_seq), tempfile.mkstemp()[1], tempfile.mktemp()]
"""
    first, second = data.result(code), data.result(code)

    # The clock sequence has 14 bits: two may be equal by chance.
    assert [i for i, (one, other) in enumerate(zip(first, second, strict=True)) if one == other and i != 5] == []


def test_nothing_of_one_session_is_there_in_the_next(data: Offered) -> None:
    data.result("""
import builtins, os, sys
import numpy, matplotlib.pyplot as plt
builtins.left = numpy.left = 1
numpy.random.seed(1)
plt.figure()
os.environ['LEFT'] = '1'
open('/workspace/left', 'w')
open('/tmp/left', 'w')
""")
    code = """
import builtins, os
import numpy, matplotlib.pyplot as plt
seeded = numpy.random.RandomState(1).rand() == numpy.random.rand()
left = hasattr(builtins, 'left') or hasattr(numpy, 'left')
return seeded, left, plt.get_fignums(), 'LEFT' in os.environ, os.listdir('/workspace'), os.listdir('/tmp')
"""
    assert data.result(code) == [False, False, [], False, [], []]


async def test_an_ordinary_users_worker_offers_it_as_well() -> None:
    with worker_process("--profile", "python-data", "--pool-size", "1", as_user=True) as (_, url):
        async with client_of(url) as client:
            assert client.hello["profiles"] == ["python-data"]
            await client.send(
                {
                    "type": "execute",
                    "sessionId": "s_1",
                    "profile": "python-data",
                    "code": "import numpy, pandas, matplotlib.pyplot as plt\nplt.savefig('a.png')\nreturn numpy.pi",
                }
            )
            assert round((await client.finish("s_1")).final["result"], 3) == 3.142
