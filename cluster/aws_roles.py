"""Makes the roles of gpu.yaml, as instance profiles, for a bucket: python cluster/aws_roles.py BUCKET

Workers read and write the bucket. The head does, too, and starts workers: with their role, and from images
that are named by parameters. Roles that are there already get these policies instead of those for another
bucket. Needs boto3, and credentials of one who may make roles.
"""

import argparse
import json
import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

WORKER, HEAD = "mmjsd-study-worker", "mmjsd-study-head"
"""Names of the roles and of their instance profiles."""

_STARTS_INSTANCES = "arn:aws:iam::aws:policy/AmazonEC2FullAccess"


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; its exit code."""
    parser = argparse.ArgumentParser(
        prog="aws_roles.py",
        description="Make the roles of gpu.yaml, as instance profiles, for one bucket. Made again for "
        "another, they no longer reach the first.",
    )
    parser.add_argument("bucket", metavar="BUCKET", help="its name, as in s3://BUCKET")
    arguments = parser.parse_args(argv)
    if not re.fullmatch(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", arguments.bucket):
        sys.stderr.write(
            f"error: {arguments.bucket!r} is no bucket's name; expected 3 to 63 small letters, digits, dots "
            "and hyphens, without s3:// and without a folder\n"
        )
        return 2
    try:
        import boto3
        from botocore.exceptions import BotoCoreError, ClientError
    except ImportError:
        sys.stderr.write("error: boto3 is missing; pip install boto3\n")
        return 2
    try:
        make_roles(boto3.client("iam"), arguments.bucket)
    except (BotoCoreError, ClientError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    sys.stdout.write(f"IamInstanceProfile of the head: {HEAD}\nIamInstanceProfile of workers: {WORKER}\n")
    return 0


def make_roles(iam: Any, bucket: str) -> None:
    """Make both roles; `iam` is boto3's client."""
    storage = [
        _allow("s3:ListBucket", on=f"arn:aws:s3:::{bucket}"),
        _allow("s3:GetObject", "s3:PutObject", "s3:DeleteObject", on=f"arn:aws:s3:::{bucket}/*"),
    ]
    worker = _make_role(iam, WORKER, storage)
    starting = [
        _allow("iam:PassRole", on=worker),
        _allow("ssm:GetParameters", on="arn:aws:ssm:*::parameter/aws/service/*"),
    ]
    _make_role(iam, HEAD, [*storage, *starting])
    iam.attach_role_policy(RoleName=HEAD, PolicyArn=_STARTS_INSTANCES)


def _make_role(iam: Any, name: str, statements: Sequence[Mapping[str, Any]]) -> str:
    """Make a role that instances can have, with its profile; its address."""
    exists = iam.exceptions.EntityAlreadyExistsException
    trust = {"Effect": "Allow", "Principal": {"Service": "ec2.amazonaws.com"}, "Action": "sts:AssumeRole"}
    with suppress(exists):
        iam.create_role(RoleName=name, AssumeRolePolicyDocument=_policy([trust]))
    iam.put_role_policy(RoleName=name, PolicyName="mmjsd-study", PolicyDocument=_policy(statements))
    with suppress(exists):
        iam.create_instance_profile(InstanceProfileName=name)
    profile = iam.get_instance_profile(InstanceProfileName=name)["InstanceProfile"]
    if not profile["Roles"]:
        iam.add_role_to_instance_profile(InstanceProfileName=name, RoleName=name)
    address: str = iam.get_role(RoleName=name)["Role"]["Arn"]
    return address


def _allow(*actions: str, on: str) -> dict[str, Any]:
    return {"Effect": "Allow", "Action": list(actions), "Resource": on}


def _policy(statements: Sequence[Mapping[str, Any]]) -> str:
    return json.dumps({"Version": "2012-10-17", "Statement": list(statements)})


if __name__ == "__main__":
    sys.exit(main())
