"""Checks a launcher file before it costs anything, or a cluster that runs: python cluster/doctor.py [FILE]

With FILE, one of gpu.yaml, gcp.yaml, onprem.yaml, kuberay.yaml, slurm.sh or your own: everything that can
be known offline. Without, the Ray cluster at --address: run it on the head, or submit it as a job.

One line a check. Exit codes: 0 all is well, 1 something is wrong, 2 nothing could be checked.
"""

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

if __package__ in (None, ""):  # run as a script
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from cluster.findings import CheckError, Finding


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; its exit code."""
    parser = argparse.ArgumentParser(
        prog="doctor.py", description="Check a launcher file, or a cluster that runs."
    )
    parser.add_argument("file", metavar="FILE", nargs="?", type=Path, help="a launcher file")
    parser.add_argument("--address", help="the running cluster (default: the one of this machine)")
    parser.add_argument("--out", help="where studies will write; each node tries it, and cleans up")
    arguments = parser.parse_args(argv)
    try:
        if arguments.file is not None:
            if arguments.address or arguments.out:
                raise CheckError("--address and --out are of a running cluster; leave FILE out, or them")
            from cluster.launcher import check_file  # here, because Ray takes a second to import

            findings: Iterable[Finding] = check_file(arguments.file)
        else:
            from cluster.live import check_cluster  # likewise torch

            findings = check_cluster(arguments.address or "auto", arguments.out)
        return _tell(findings)
    except CheckError as refused:
        sys.stderr.write(f"error: {refused}\n")
        return 2


def _tell(findings: Iterable[Finding]) -> int:
    is_well = True
    for finding in findings:
        is_well &= not finding.problems
        for problem in finding.problems:
            sys.stdout.write(f"FAIL  {finding.check}: {problem}\n")
        if not finding.problems:
            note = f": {finding.note}" if finding.note else ""
            sys.stdout.write(f"ok    {finding.check}{note}\n")
        sys.stdout.flush()
    return 0 if is_well else 1


if __name__ == "__main__":
    sys.exit(main())
