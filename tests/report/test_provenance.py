"""Commands that can be typed, settings that can be parsed, and no path of a machine in either."""

from __future__ import annotations

import shlex
import tomllib
from dataclasses import replace

import pytest

from fedgs.report import provenance
from fedgs.report.reading import read_run


@pytest.fixture(scope="module")
def run(pair):
    return read_run(pair[1])


def test_the_command_names_every_setting_once(run):
    words = shlex.split(provenance.command(run).replace("\\\n", " "))
    assert words[:2] == ["fedgs", "train"]
    options = dict(zip(words[2::2], words[3::2], strict=True))
    assert len(options) == len(words[2::2])
    assert options == {
        "--data": "polypgen",
        "--adapter": "polypgen",
        "--algorithm": "fedgs",
        "--model": "unet",
        "--size": "128",
        "--rounds": "12",
        "--unseen-site": "C5",
        "--fold": "0",
        "--seed": "0",
        "--split": "split.csv",
        "--model-option": "norm=group",
        "--local-epochs": "1",
        "--batch-size": "4",
        "--lr": "0.0001",
        "--objective": "dice_batch",
        "--out": "fedgs",
    }
    assert all(len(line) < 100 for line in provenance.command(run).splitlines())


def test_names_for_a_shell_are_quoted(run):
    hostile = replace(run, name="a run; rm -rf", unseen_site="$(reboot)")
    words = shlex.split(provenance.command(hostile).replace("\\\n", " "))
    assert "a run; rm -rf" in words
    assert "$(reboot)" in words


def test_a_run_without_unseen_site_has_no_such_option(run):
    assert "--unseen-site" not in provenance.command(replace(run, unseen_site=None, config={}))


def test_settings_are_toml_without_paths(run):
    again = tomllib.loads(provenance.settings(run))
    assert again["training"] == run.config["training"]
    assert again["model"] == run.config["model"]
    assert again["data"]["data"] == "polypgen"
    assert "secret" not in provenance.settings(run)


def test_the_environment_names_no_host_and_no_path(run):
    pairs = dict(provenance.environment(run))
    assert pairs["torch"] == "2.13.0"
    assert not any("secret" in value for value in pairs.values())


@pytest.mark.parametrize(
    ("text", "shortened"),
    [
        ("/home/ann b/data/polypgen/", "polypgen"),
        ("C:\\Users\\ann\\polypgen", "polypgen"),
        ("\\\\server\\share\\polypgen", "polypgen"),
        ("file:///home/ann/polypgen", "polypgen"),
        ("~/data/polypgen", "polypgen"),
        ("/", "."),
        ("read '/home/ann/x.csv' twice", "read 'x.csv' twice"),
        ("1/150 of N/A", "1/150 of N/A"),
        ("see https://example.org/a/b", "see https://example.org/a/b"),
        ("dice_batch+ce", "dice_batch+ce"),
        ("", ""),
    ],
)
def test_absolute_paths_shrink_to_their_last_part(text, shortened):
    assert provenance.without_paths(text) == shortened
