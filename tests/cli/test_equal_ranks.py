"""Processes of one run are compared: settings, the checkpoint's step, digests of the data."""

import numpy as np
from jsonargparse import Namespace

from zoo.cli.equal_ranks import comparable_settings, first_difference
from zoo.datamodules.rows import TextRows


def settings(step=None, **values):
    return comparable_settings(Namespace(**values), step)


def test_the_first_difference_names_the_option_and_both_values():
    one, other = settings(model=Namespace(init_args=Namespace(lr=0.1))), settings(seed_everything=1)
    assert first_difference([one, one]) is None
    assert first_difference([one, one, other]) == "--model.lr is 0.1 on rank 0 and not set on rank 2"
    long = [settings(labels=["a" * 200, end]) for end in "xy"]
    assert first_difference(long).startswith("--labels is")
    assert len(first_difference(long)) < 200
    assert (
        first_difference([settings(step=4), settings()])
        == "the step in the checkpoint of --ckpt_path is 4 on rank 0 and not set on rank 1"
    )


def test_folders_may_differ_and_names_of_files_may_not():
    def of(folder, file):
        data = Namespace(init_args=Namespace(data=f"{folder}/{file}", cache_dir=folder))
        return settings(output_dir=folder, ckpt_path=f"{folder}/last.ckpt", data=data)

    assert first_difference([of("/a", "x.csv"), of("/b", "x.csv")]) is None
    assert (
        first_difference([of("/a", "x.csv"), of("/b", "y.csv")])
        == "--data.data is 'x.csv' on rank 0 and 'y.csv' on rank 1"
    )


def test_the_digest_of_rows_depends_on_ids_targets_and_features():
    def digest(ids=((1, 2), (3,)), targets=(1.0, 2.0), features=None):
        features = features and np.array(features)[:, None]
        return TextRows(["a", "b"], [list(row) for row in ids], np.array(targets)[:, None], features).digest

    assert digest() == digest()
    others = [
        digest(ids=((1,), (2, 3))),
        digest(ids=((1, 2), (4,))),
        digest(targets=(1.0, 3.0)),
        digest(features=[1.0, 2.0]),
    ]
    assert len({digest(), digest(features=[1.0, 2.0]), *others}) == 5
