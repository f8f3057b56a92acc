"""Tells Ray that the provider takes this machine back: python cluster/spot.py aws|gcp --address HEAD:PORT

Started beside a worker's Ray, where it asks the machine's own metadata server every two seconds. At a notice
it drains the node: Ray starts nothing more there, and the trials that run there save a checkpoint, leave, and
count as preempted, not as failed. AWS gives notice two minutes before, Google Cloud thirty seconds.
"""

import argparse
import json
import logging
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

INTERVAL_S = 2.0
"""Between two questions."""

_ADDRESSES = {"aws": "http://169.254.169.254", "gcp": "http://metadata.google.internal"}

_log = logging.getLogger(__name__)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("provider", choices=sorted(_ADDRESSES))
    parser.add_argument("--address", required=True, help="of the cluster's head, with the port of Ray")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    node = own_node(arguments.address)
    left_s = wait(arguments.provider, _ADDRESSES[arguments.provider])
    _log.info("this machine ends in %.0f s; node %s is drained", left_s, node)
    drain(arguments.address, node, left_s)


def wait(provider: str, metadata: str) -> float:
    """Return when the provider takes this machine back; the seconds that are left.

    A metadata server that does not answer says nothing, and is asked again.

    Args:
        provider: "aws" or "gcp".
        metadata: address of its metadata server.
    """
    while True:
        try:
            left_s = _NOTICES[provider](metadata)
        except (OSError, ValueError, KeyError, TypeError) as error:
            _log.info("no answer from %s: %s", metadata, error)
            left_s = None
        if left_s is not None:
            return left_s
        time.sleep(INTERVAL_S)


def own_node(address: str) -> str:
    """Ray's id of this machine."""
    import ray  # here, because it takes a second

    ray.init(address=address, logging_level="ERROR", log_to_driver=False)
    try:
        return str(ray.get_runtime_context().get_node_id())
    finally:
        ray.shutdown()


def drain(address: str, node: str, left_s: float) -> None:
    """Warn Ray, and so whatever runs on the node, of its end.

    Args:
        address: of the cluster's head, with the port of Ray.
        node: Ray's id of the node.
        left_s: seconds until its end.
    """
    why = ("--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "the provider takes it back")
    when = ("--deadline-remaining-seconds", str(max(1, round(left_s))))
    ray = Path(sys.executable).with_name("ray")
    command = (str(ray), "drain-node", f"--address={address}", "--node-id", node, *why, *when)
    subprocess.run(command, check=True, timeout=100, stdout=subprocess.DEVNULL)


def _of_aws(metadata: str) -> float | None:
    # https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-instance-termination-notices.html
    asks = {"X-aws-ec2-metadata-token-ttl-seconds": "60"}
    token = _read(f"{metadata}/latest/api/token", asks, "PUT")
    try:
        notice = _read(
            f"{metadata}/latest/meta-data/spot/instance-action", {"X-aws-ec2-metadata-token": token}
        )
    except HTTPError as error:
        if error.code == 404:  # none has been given
            return None
        raise
    ends_at = datetime.fromisoformat(json.loads(notice)["time"])
    return (ends_at - datetime.now(UTC)).total_seconds()


def _of_google(metadata: str) -> float | None:
    # https://cloud.google.com/compute/docs/instances/create-use-preemptible#detecting_if_an_instance_was_preempted
    address = f"{metadata}/computeMetadata/v1/instance/preempted"
    return 30.0 if _read(address, {"Metadata-Flavor": "Google"}).strip() == "TRUE" else None


def _read(address: str, headers: Mapping[str, str], method: str = "GET") -> str:
    with urlopen(Request(address, headers=dict(headers), method=method), timeout=2) as answer:
        return str(answer.read().decode())


_NOTICES: Mapping[str, Callable[[str], float | None]] = {"aws": _of_aws, "gcp": _of_google}


if __name__ == "__main__":
    main()
