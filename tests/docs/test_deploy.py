"""The examples of deployments: every option is one, and what belongs together fits."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest
import yaml

import enclave_broker.cli
import enclave_worker.cli
from enclave_broker import BrokerConfig
from enclave_broker.finding.urls import named
from enclave_protocol.credentials import is_loopback

if TYPE_CHECKING:
    import click

FILE = Path(__file__).parents[2] / "deploy" / "kubernetes.yaml"
COMMANDS = {"enclave-broker": enclave_broker.cli.main, "enclave-runtime": enclave_worker.cli.main}
Resource = dict[str, Any]


@pytest.fixture(scope="module")
def resources() -> list[Resource]:
    return [resource for resource in yaml.safe_load_all(FILE.read_text()) if resource]


def of_kind(resources: list[Resource], kind: str) -> dict[str, Resource]:
    return {resource["metadata"]["name"]: resource["spec"] for resource in resources if resource["kind"] == kind}


def pods(resources: list[Resource]) -> dict[str, Resource]:
    found = of_kind(resources, "Deployment") | of_kind(resources, "StatefulSet")
    return {name: spec["template"] for name, spec in found.items()}


def options(pod: Resource) -> dict[str, Any]:
    """Parse a container's command line, as the command itself does; it raises for what is no option of it."""
    program, *arguments = pod["spec"]["containers"][0]["command"]
    command: click.Command = COMMANDS[program]
    return command.make_context(program, arguments).params


def test_there_is_a_broker_and_there_are_workers_and_every_option_is_one(resources: list[Resource]) -> None:
    assert {name: options(pod)["host"] for name, pod in pods(resources).items()} == {
        "enclave-broker": "0.0.0.0",
        "enclave-worker": "0.0.0.0",
    }


def test_the_broker_finds_the_pods_of_the_headless_service_on_their_port(resources: list[Resource]) -> None:
    [place] = options(pods(resources)["enclave-broker"])["workers"]
    BrokerConfig(workers=[place])
    asked = named(place)
    assert asked is not None
    service = of_kind(resources, "Service")[asked.host]
    assert service["clusterIP"] == "None"
    assert not service.get("publishNotReadyAddresses")  # whoever drains is not ready, and leaves the list by that
    worker = pods(resources)["enclave-worker"]
    assert service["selector"].items() <= worker["metadata"]["labels"].items()
    [container] = worker["spec"]["containers"]
    assert [port["containerPort"] for port in container["ports"]] == [asked.port] == [options(worker)["port"]]
    assert urlsplit(place).path == "/ws"


def test_nobody_listens_to_strangers_and_both_sides_have_the_same_secret(resources: list[Resource]) -> None:
    secrets = []
    for pod in pods(resources).values():
        given = options(pod)
        assert not given["insecure"]
        assert not is_loopback(given["host"])
        [container] = pod["spec"]["containers"]
        secrets += [each["valueFrom"] for each in container["env"] if each["name"] == "ENCLAVE_WORKER_TOKEN"]
    assert len(secrets) == 2
    assert secrets[0] == secrets[1]
    assert options(pods(resources)["enclave-broker"])["keys_file"]


def test_whoever_is_stopped_has_the_time_that_it_was_promised(resources: list[Resource]) -> None:
    for pod in pods(resources).values():
        [container] = pod["spec"]["containers"]
        before = container.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", ["sleep", "0"])
        assert before[0] == "sleep"
        assert pod["spec"]["terminationGracePeriodSeconds"] >= int(before[1]) + options(pod)["grace_s"] + 10
        assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"
        assert container["livenessProbe"]["httpGet"]["path"] == "/healthz"


def test_the_brokers_files_are_where_something_is_mounted(resources: list[Resource]) -> None:
    pod = pods(resources)["enclave-broker"]
    given = options(pod)
    [container] = pod["spec"]["containers"]
    mounted = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    claims = of_kind(resources, "StatefulSet")["enclave-broker"]["volumeClaimTemplates"]
    there = {volume["name"] for volume in pod["spec"]["volumes"]} | {claim["metadata"]["name"] for claim in claims}
    store = given["store"].removeprefix("sqlite:")
    assert {mounted[str(Path(file).parent)] for file in (given["keys_file"], store)} == there


def test_services_and_policies_select_pods_that_there_are(resources: list[Resource]) -> None:
    labels = [pod["metadata"]["labels"] for pod in pods(resources).values()]
    selectors = [spec["selector"] for spec in of_kind(resources, "Service").values()]
    for kind in ("Deployment", "StatefulSet", "PodDisruptionBudget"):
        selectors += [spec["selector"]["matchLabels"] for spec in of_kind(resources, kind).values()]
    selectors += [spec["podSelector"]["matchLabels"] for spec in of_kind(resources, "NetworkPolicy").values()]
    assert len(selectors) >= 6
    assert all(selector in labels for selector in selectors)
