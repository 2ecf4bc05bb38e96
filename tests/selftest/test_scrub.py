"""Nothing in a report says who ran it, where, or with which secrets."""

from __future__ import annotations

import getpass
import json
import socket
from pathlib import Path

import pytest

from sharedenc.selftest.scrub import private_words, scrub


def test_users_hosts_folders_addresses_and_secrets_go(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(getpass, "getuser", lambda: "ada")
    monkeypatch.setattr(socket, "gethostname", lambda: "gpu7.lab.example")
    monkeypatch.setattr(socket, "getfqdn", lambda: "gpu7.lab.example")
    monkeypatch.setenv("STORE_SECRET_ACCESS_KEY", "p1anted+secret")
    monkeypatch.setenv("WANDB_TOKEN", "another-planted")
    monkeypatch.setenv("HOME", "/home/ada")
    report = {
        "reason": f"no space left on {tmp_path}/data/train.images of ada on gpu7",
        "trace": [
            'File "/home/ada/code/sharedenc/loop.py", line 3, in fit',
            "see https://ada:pw@tracker.lab.example:5000/#/runs",
            "key p1anted+secret and another-planted",
            r"C:\Users\ada\data",
            "cannot read ~/coco/annotations/instances_val2017.json",
        ],
        "checks": {"resnet18/baseline/seg": {"images/s": 12.5, "adamant": "1/2 of all"}},
    }
    cleaned = scrub(report, private_words([tmp_path / "data"]))
    text = json.dumps(cleaned)
    for word in ("ada ", "/home", "ada:", "gpu7", "lab.example", "planted", "Users", "~/"):
        assert word not in text, text
    assert str(tmp_path) not in text
    assert 'File ".../loop.py", line 3, in fit' in cleaned["trace"][0]
    assert cleaned["trace"][4] == "cannot read .../instances_val2017.json"
    # What is not private stays as it is.
    assert cleaned["checks"] == report["checks"]


def test_a_common_user_name_is_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(getpass, "getuser", lambda: "root")
    assert scrub("the root of the mean", private_words()) == "the root of the mean"
