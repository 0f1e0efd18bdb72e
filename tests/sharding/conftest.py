"""A process group of one process, in which tensors can be sharded. A test with the fixture `mesh` runs in a fork.

A process that has used gloo cannot be forked afterwards, as other tests do.
"""

import os
import pickle

import pytest
import torch.distributed as dist
from _pytest.runner import runtestprotocol
from torch.distributed.device_mesh import init_device_mesh


@pytest.fixture
def mesh():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item, nextitem):
    if "mesh" not in getattr(item, "fixturenames", ()):
        return None
    hook, config = item.config.hook, item.config
    hook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    reader, writer = os.pipe()
    if (pid := os.fork()) == 0:
        os.close(reader)
        # `item` as the next one: fixtures of the module and the session are not torn down here.
        reports = runtestprotocol(item, nextitem=item, log=False)
        content = [hook.pytest_report_to_serializable(config=config, report=report) for report in reports]
        with os.fdopen(writer, "wb") as pipe:
            pipe.write(pickle.dumps(content))
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        content = pipe.read()
    os.waitpid(pid, 0)
    assert content, f"the process of {item.nodeid} died"
    for data in pickle.loads(content):
        hook.pytest_runtest_logreport(report=hook.pytest_report_from_serializable(config=config, data=data))
    item.session._setupstate.teardown_exact(nextitem)  # of the module and the session, where nothing more needs them
    hook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True
