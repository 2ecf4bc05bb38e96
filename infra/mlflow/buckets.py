"""Make the S3 buckets that are named on the command line, unless they are there."""

from __future__ import annotations

import sys

import boto3


def make(names: list[str]) -> None:
    """Credentials and address come from the environment, as for every AWS client."""
    client = boto3.client("s3")
    known = {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}
    for name in names:
        if name not in known:
            client.create_bucket(Bucket=name)
            print(f"made bucket {name}")


if __name__ == "__main__":
    make(sys.argv[1:])
