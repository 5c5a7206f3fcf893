"""How places are written down, and that one worker has one name."""

from __future__ import annotations

import pytest

from enclave_broker.finding.urls import authority, canonical, check_place, is_encrypted, named


@pytest.mark.parametrize(
    "spellings",
    [
        ("ws://localhost:3001/ws", "ws://127.0.0.1:3001/ws", "ws://LOCALHOST:3001/ws", "ws://localhost.:3001/ws"),
        ("ws://worker:80/ws", "ws://worker/ws", "WS://Worker/ws"),
        ("wss://worker:443", "wss://worker/", "wss://worker"),
        ("ws://[::1]:3001/ws", "ws://[0:0:0:0:0:0:0:1]:3001/ws"),
    ],
)
def test_all_spellings_of_a_url_are_one_worker(spellings: tuple[str, ...]) -> None:
    assert len({canonical(url) for url in spellings}) == 1


def test_what_leads_elsewhere_is_another_worker() -> None:
    urls = [
        "ws://w:1/ws",
        "wss://w:1/ws",
        "ws://w:2/ws",
        "ws://w:1/WS",
        "ws://w:1/ws?a",
        "ws://v:1/ws",
        "ws://[::1]:1/ws",
    ]
    assert len({canonical(url) for url in urls}) == len(urls)


def test_a_place_is_a_url_or_a_name_that_stands_for_many() -> None:
    assert named(check_place("ws://w:3001/ws")) is None
    assert named(check_place("dns+ws://workers.example:3001/ws")) == ("dns", "ws", "workers.example", 3001, "/ws")
    assert named(check_place("dns+wss://workers.example/ws?a")) == ("dns", "wss", "workers.example", 443, "/ws?a")
    assert named(check_place("srv+ws://_enclave._tcp.example/ws")) == (
        "srv",
        "ws",
        "_enclave._tcp.example",
        None,
        "/ws",
    )


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("http://w", "starts with ws://"),
        ("dns+http://w", "is none of"),
        ("etcd+ws://w", "is none of"),
        ("dns+ws://", "needs a host"),
        ("dns+ws://w:0/ws", "port from 1 to 65535"),
        ("dns+ws://10.0.0.1:3001/ws", "needs no DNS: write ws://10.0.0.1:3001/ws"),
        ("srv+ws://_e._tcp.w:3001/ws", "the records of srv\\+ws say the port"),
        ("ws://\ufffd/ws", "needs a host"),
        (f"ws://{'w' * 64}/ws", "needs a host"),
        ("ws://w/a b", "ASCII without spaces"),
        ("ws://w/\r\nHost: v", "ASCII without spaces"),
        ("ws://w/ü", "ASCII without spaces"),
        ("ws://me:secret@w/ws", "holds a user or a password"),
        ("dns+ws://me:secret@w/ws", "holds a user or a password"),
    ],
)
def test_what_is_no_place_is_refused_with_what_is_wrong(place: str, said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        check_place(place)
    assert "secret" not in str(caught.value)


def test_which_places_are_encrypted() -> None:
    assert [is_encrypted(place) for place in ("wss://w", "dns+wss://w", "srv+wss://w")] == [True, True, True]
    assert [is_encrypted(place) for place in ("ws://w", "dns+ws://w", "ws://wss://w")] == [False, False, False]


def test_an_address_is_written_as_a_url_has_it() -> None:
    assert authority("10.0.0.1", 80) == "10.0.0.1:80"
    assert authority("fe80:0::1", 80) == "[fe80::1]:80"
    assert authority("worker-0.example", 80) == "worker-0.example:80"
