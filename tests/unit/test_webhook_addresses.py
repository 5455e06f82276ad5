"""Which addresses a webhook may be sent to, in whatever form they come."""

import pytest

from millpond.errors import InvalidRequestError, WebhookForbiddenError
from millpond.settings import load_settings
from millpond.webhooks.addresses import may_be_called, read_networks
from millpond.webhooks.guard import Guard, SystemResolver

PUBLIC = ["8.8.8.8", "1.1.1.1", "2606:4700:4700::1111", "2a00:1450:4001:81b::200e"]
FORBIDDEN = {
    "loopback": ["127.0.0.1", "127.8.9.10", "::1"],
    "this host": ["0.0.0.0", "::"],
    "private": ["10.0.0.1", "172.16.0.1", "192.168.1.1", "fd00::1", "fec0::1"],
    "shared": ["100.64.0.1"],
    "link-local": ["169.254.169.254", "fe80::1", "fe80::1%eth0"],
    "multicast": ["224.0.0.1", "ff02::1", "ff0e::1"],
    "mapped": ["::ffff:169.254.169.254", "::ffff:8.8.8.8", "::ffff:0:169.254.169.254"],
    "compatible": ["::169.254.169.254", "::8.8.8.8"],
    "NAT64": ["64:ff9b::a9fe:a9fe", "64:ff9b:1::a9fe:a9fe"],
    "6to4": ["2002:a9fe:a9fe::1", "192.88.99.1"],
    "Teredo": ["2001:0:a9fe:a9fe::1"],
    "documentation": ["192.0.2.1", "198.51.100.7", "2001:db8::1", "3fff::1"],
    "reserved": ["240.0.0.1", "255.255.255.255", "192.0.0.8", "100::1", "5f00::1"],
}


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_may_be_called(address: str) -> None:
    assert may_be_called(address, ())


@pytest.mark.parametrize("kind", FORBIDDEN)
def test_others_may_not(kind: str) -> None:
    assert [address for address in FORBIDDEN[kind] if may_be_called(address, ())] == []


def test_what_is_allowed_is_allowed_as_it_stands() -> None:
    allowed = read_networks(["10.1.0.0/16", "::1"])

    assert may_be_called("10.1.2.3", allowed)
    assert may_be_called("::1", allowed)
    assert not may_be_called("10.2.0.1", allowed)
    assert not may_be_called("::ffff:10.1.2.3", allowed), "another form is another address"


@pytest.mark.parametrize(
    "host", ["2852039166", "0xa9fea9fe", "0251.0376.0251.0376", "169.254.43518"]
)
async def test_a_number_is_read_as_the_system_reads_it(host: str) -> None:
    resolver = SystemResolver()
    try:
        assert await resolver(host, 80) == ["169.254.169.254"]
        with pytest.raises(WebhookForbiddenError):
            await Guard(resolver).check(f"http://{host}/latest/meta-data")
    finally:
        resolver.close()


async def test_a_name_with_several_addresses_leads_to_those_that_are_allowed() -> None:
    async def resolve(host: str, port: int) -> list[str]:
        assert (host, port) == ("receiver.example", 443)
        return ["127.0.0.1", "8.8.8.8", "fe80::1"]

    guard = Guard(resolve)

    assert await guard.addresses("receiver.example", 443) == ["8.8.8.8"]
    await guard.check("https://receiver.example/x")


def test_the_setting_names_networks() -> None:
    settings = load_settings({"webhook_allow": "10.1.0.0/16, fd00::/8"})
    assert settings.webhook_networks == read_networks(["10.1.0.0/16", "fd00::/8"])
    assert load_settings().webhook_networks == ()
    for wrong in ("10.1.0.1/16", "receiver.example", "10.1.0.0/33"):
        with pytest.raises(InvalidRequestError, match="webhook_allow"):
            load_settings({"webhook_allow": wrong})
