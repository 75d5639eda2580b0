"""A Hub on this machine, for the tests of publishing."""

import pytest

from tests.support.hub_server import HubServer, allow_only_this_machine


@pytest.fixture
def only_this_machine(monkeypatch):
    allow_only_this_machine(monkeypatch)


@pytest.fixture
def hub():
    with HubServer() as server:
        yield server
