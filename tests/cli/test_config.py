"""`mllmsubj config`."""

import pytest

from mllmsubj.cli import main


def printed(capsys, *flags):
    main.run(["mllmsubj", "config", *flags])
    return capsys.readouterr().out.splitlines()


def test_config_origins(capsys, here):
    lines = printed(capsys, "--config=tiny", "--config.train.batch_size=7", "--config.seed=0")
    assert "train.batch_size = 7  # command line" in lines
    assert "seed = 0  # command line" in lines  # though it is the default
    assert "sampling.tau1 = 0.83  # tiny" in lines
    assert "train.clip_norm = 1.0  # default" in lines
    assert lines == sorted(lines)


def test_config_defaults(capsys, here):
    lines = printed(capsys)
    assert "train.stage2.steps = 10000  # default" in lines
    assert all(line.endswith("# default") for line in lines)


def test_config_diff(capsys, here):
    assert printed(capsys, "--config=tiny", "--diff=tiny") == []
    assert printed(capsys, "--config=tiny", "--diff=tiny:short", "--config.data.examples=8000")[:2] == [
        "- data.cached_features = 'all'  # tiny:short",
        "+ data.cached_features = 'latents'  # default",
    ]


def test_config_unknown(capsys, here):
    with pytest.raises(SystemExit) as stopped:
        main.main(["mllmsubj", "config", "--config=tinny"])
    assert stopped.value.code == 2
    assert "did you mean 'tiny'?" in capsys.readouterr().err
